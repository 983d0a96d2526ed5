package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/registry"
	"github.com/861fb494/build/llb"
)

// Pins remembers from build to build what a tag was when a registry was last
// asked. It is safe for concurrent use.
type Pins interface {
	// Get is the manifest or index that ref, a tag, was.
	Get(ref oci.Reference) (oci.Descriptor, bool)
	Put(ref oci.Reference, d oci.Descriptor) error
}

// ImageOptions configures Images. The zero value knows nothing but the store
// and the registry.
type ImageOptions struct {
	// Pull asks the registry what a tag is, whatever is here.
	Pull bool
	// Offline asks no registry: what is not here is an error. Pull does not count
	// then; what Elsewhere may open is for that to say.
	Offline bool
	// Pins may be nil.
	Pins Pins
	// Built finds a layer that was built here, and has no blob, by the ID of
	// the chain that it is the top of: oci.ChainID. nil: there are none.
	Built func(chain oci.Digest) (oci.Layer, bool)
	// Elsewhere opens a blob of a layer whose Origin is a URL, unverified. nil:
	// there are none.
	Elsewhere func(ctx context.Context, origin string, d oci.Descriptor) (io.ReadCloser, error)
	// Progress is told how much of a blob has been downloaded, in bytes, at
	// most some ten times a second and once at its end. nil: nobody is.
	Progress func(d oci.Descriptor, current int64, done bool)
}

// Images is the source of images, for one build: those of registries, and
// those in the store. Within one Images a tag is always the same image. What
// it downloads goes into the store.
type Images struct {
	store  *image.Store
	client *registry.Client
	o      ImageOptions

	mu      sync.Mutex
	pinned  map[pinKey]*pin
	damaged map[oci.Digest]bool // blobs of the store to be fetched anew
}

// pinKey has the platform, since a tag can be here for one and in the registry
// for another.
type pinKey struct{ ref, platform string }

// pin is the outcome of looking up a tag; its mutex is held meanwhile, so that
// others who need it wait.
type pin struct {
	mu   sync.Mutex
	desc oci.Descriptor
}

// NewImages returns a source over a store and the registries of client.
func NewImages(s *image.Store, client *registry.Client, o ImageOptions) *Images {
	return &Images{
		store: s, client: client, o: o,
		pinned: map[pinKey]*pin{}, damaged: map[oci.Digest]bool{},
	}
}

// Resolve is the image that ref names, pinned, and its configuration for p.
func (m *Images) Resolve(ctx context.Context, ref string, p oci.Platform) (llb.Source, oci.Image, error) {
	s, err := m.Pin(ctx, llb.Source{Scheme: llb.Registry, Ref: ref, Platform: p})
	if err != nil {
		return s, oci.Image{}, err
	}
	img, err := m.Image(ctx, s)
	return s, img.Config, err
}

// Pin gives s the digest of the manifest or index that its reference names:
// that of the local image of this name, else the last pin whose configuration
// is here, else what the registry says; with Pull, the latter only. A source
// whose Ref or Digest says it already asks nobody.
func (m *Images) Pin(ctx context.Context, s llb.Source) (llb.Source, error) {
	ref, err := oci.ParseReference(s.Ref)
	if err != nil {
		return s, err
	}
	if s.Digest == "" {
		s.Digest = ref.Digest
	}
	if s.Digest != "" {
		return s, nil
	}
	d, err := m.pin(ctx, ref, s.Platform)
	s.Digest = d.Digest
	return s, err
}

func (m *Images) pin(ctx context.Context, ref oci.Reference, p oci.Platform) (oci.Descriptor, error) {
	key := pinKey{ref.String(), formatPlatform(p)}
	m.mu.Lock()
	entry := m.pinned[key]
	if entry == nil {
		entry = &pin{}
		m.pinned[key] = entry
	}
	m.mu.Unlock()

	entry.mu.Lock()
	defer entry.mu.Unlock()
	if entry.desc.Digest != "" {
		return entry.desc, nil
	}
	d, err := m.lookUp(ctx, ref, p)
	if err == nil {
		entry.desc = d
	}
	return d, err
}

// lookUp is pin without its memory.
func (m *Images) lookUp(ctx context.Context, ref oci.Reference, p oci.Platform) (oci.Descriptor, error) {
	if !m.o.Pull || m.o.Offline {
		if d, ok := m.here(ctx, ref, p); ok {
			return d, nil
		}
	}
	if m.o.Offline {
		return oci.Descriptor{}, fmt.Errorf("image %s for %s: %w here, and registries are not asked (offline)", ref.Familiar(), formatPlatform(p), image.ErrNotFound)
	}
	d, err := m.client.Resolve(ctx, ref)
	if err != nil {
		return d, err
	}
	if m.o.Pins != nil {
		if err := m.o.Pins.Put(ref, d); err != nil {
			return d, err
		}
	}
	return d, nil
}

// here is what ref is without asking a registry.
func (m *Images) here(ctx context.Context, ref oci.Reference, p oci.Platform) (oci.Descriptor, bool) {
	if d, err := m.store.Get(ref); err == nil && m.complete(ctx, ref, d, p) {
		return d, true
	}
	if m.o.Pins != nil {
		if d, ok := m.o.Pins.Get(ref); ok && m.complete(ctx, ref, d, p) {
			return d, true
		}
	}
	return oci.Descriptor{}, false
}

// complete reports whether manifest and configuration of d for p are here.
func (m *Images) complete(ctx context.Context, ref oci.Reference, d oci.Descriptor, p oci.Platform) bool {
	img, err := m.read(ctx, documents{store: m.store}, ref.WithDigest(d.Digest), p)
	// One that was built or pulled for another platform is not what was asked for.
	return err == nil && matches(img.Config.Platform, p)
}

// Image reads manifest and configuration of a pinned source. What is not here
// is downloaded.
func (m *Images) Image(ctx context.Context, s llb.Source) (Image, error) {
	ref, err := m.reference(s)
	if err != nil {
		return Image{}, err
	}
	docs := documents{store: m.store}
	if !m.o.Offline {
		docs.client = m.client
	}
	img, err := m.read(ctx, docs, ref, s.Platform)
	if m.o.Offline && errors.Is(err, image.ErrNotFound) {
		err = fmt.Errorf("image %s for %s: %w here, and registries are not asked (offline)", ref.Familiar(), formatPlatform(s.Platform), image.ErrNotFound)
	}
	return img, err
}

// Config is the configuration of a pinned source's image.
func (m *Images) Config(ctx context.Context, s llb.Source) (oci.Image, error) {
	img, err := m.Image(ctx, s)
	return img.Config, err
}

// reference is that of a pinned source, by digest.
func (m *Images) reference(s llb.Source) (oci.Reference, error) {
	ref, err := oci.ParseReference(s.Ref)
	if err != nil {
		return ref, err
	}
	if s.Digest == "" {
		return ref, errors.New("image " + ref.Familiar() + " is not pinned")
	}
	return ref.WithDigest(s.Digest), nil
}

// Open is the layers of a pinned source, lowest first. Nothing but manifest and
// configuration is downloaded before one of them is opened.
func (m *Images) Open(ctx context.Context, s llb.Source) (Content, error) {
	img, err := m.Image(ctx, s)
	if err != nil {
		return Content{}, err
	}
	ref, err := m.reference(s)
	if err != nil {
		return Content{}, err
	}
	layers, err := m.layers(ref, img)
	return Content{Layers: layers}, err
}
