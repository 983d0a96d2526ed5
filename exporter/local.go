package exporter

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
)

// local writes images to the image store. Nothing is compressed: the store's
// manifests name layers built here by their uncompressed tars.
type local struct {
	store *image.Store
}

// layer describes l as the store's manifests have it.
func (w *local) layer(ctx context.Context, l oci.Layer) (blob, error) {
	if l.Blob != nil {
		b := blob{desc: *l.Blob, diffID: l.DiffID, tarSize: l.TarSize, foreign: len(l.Blob.URLs) > 0}
		b.desc.Annotations = nil
		if !b.foreign {
			b.desc.MediaType = layerType(b.desc.MediaType, false)
		}
		return b, w.keep(ctx, l)
	}
	d := oci.Descriptor{MediaType: specs.MediaTypeImageLayer, Digest: l.DiffID, Size: l.TarSize}
	if d.Digest == "" || d.Size == 0 {
		if l.Tar == nil {
			return blob{}, fmt.Errorf("export layer %s: its diff ID or size is not known", l.ID)
		}
		r, err := l.Tar(ctx)
		if err != nil {
			return blob{}, fmt.Errorf("export layer %s: %w", l.ID, err)
		}
		defer r.Close()
		s := &sum{w: io.Discard, hash: sha256.New()}
		if err := copyAll(ctx, s, r, nil); err != nil {
			return blob{}, fmt.Errorf("export layer %s: %w", l.ID, err)
		}
		if d.Digest != "" && d.Digest != s.digest() {
			return blob{}, fmt.Errorf("export layer %s: its tar has the diff ID %s now: %w", d.Digest, s.digest(), ErrChanged)
		}
		d.Digest, d.Size = s.digest(), s.n
	}
	return blob{desc: d, diffID: d.Digest, tarSize: d.Size}, nil
}

// keep sees to it that a pulled layer's blob can be had again: it is in the
// store, or a registry has it, else it is copied to the store now.
func (w *local) keep(ctx context.Context, l oci.Layer) error {
	inRegistry := l.Origin != "" && !strings.Contains(l.Origin, "://")
	if inRegistry {
		ref, err := oci.ParseReference(l.Origin)
		if err == nil {
			err = w.store.AddOrigin(l.Blob.Digest, ref.Repository())
		}
		if err != nil {
			return err
		}
	}
	if w.store.Renew(*l.Blob) || inRegistry || l.Compressed == nil || len(l.Blob.URLs) > 0 {
		return nil
	}
	r, err := l.Compressed(ctx)
	if err != nil {
		return fmt.Errorf("keep layer %s: %w", l.Blob.Digest, err)
	}
	defer r.Close()
	in, err := w.store.Ingest(ctx)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := copyAll(ctx, in, r, nil); err != nil {
		return fmt.Errorf("keep layer %s: %w", l.Blob.Digest, err)
	}
	return in.Commit(*l.Blob)
}

// write stores what the bundles consist of, and then gives them their names.
func (w *local) write(ctx context.Context, list []*bundle) error {
	for _, b := range list {
		for _, img := range b.images {
			if _, err := w.store.Put(img.config.desc.MediaType, img.config.data); err != nil {
				return fmt.Errorf("export to the image store: %w", err)
			}
		}
		for _, d := range b.documents {
			if _, err := w.store.Put(d.desc.MediaType, d.data); err != nil {
				return fmt.Errorf("export to the image store: %w", err)
			}
		}
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	var err error
	for _, b := range list {
		if len(b.names) == 0 {
			err = errors.Join(err, w.store.Add(b.root))
		}
		for _, name := range b.names {
			err = errors.Join(err, w.store.Set(name, b.root))
		}
	}
	return err
}

// both is the Exporter of type=image,push=true: the image store, and registries.
type both struct {
	local Exporter
	push  *images
}

func newBoth(out Output, o Options) (Exporter, error) {
	kept := Output{Type: TypeImage, Attrs: map[string]string{}}
	pushed := Output{Type: TypeRegistry, Attrs: out.Attrs}
	for k, v := range out.Attrs {
		if k != "push" && k != "push-by-digest" && k != "oci-mediatypes" {
			kept.Attrs[k] = v
		}
	}
	l, err := New(kept, o)
	if err != nil {
		return nil, err
	}
	p, err := New(pushed, o)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &both{local: l, push: p.(*images)}, nil
}

func (e *both) Layer(ctx context.Context, l oci.Layer) error { return e.push.Layer(ctx, l) }

// Seal is that of the push.
func (e *both) Seal(ctx context.Context, l oci.Layer) (sealed oci.Layer, ok bool, err error) {
	return e.push.Seal(ctx, l)
}

// Export names the image here first, which costs little, so that a push that
// fails can be repeated without a build. It returns what was pushed.
func (e *both) Export(ctx context.Context, r oci.Result) (oci.Descriptor, error) {
	if d, err := e.local.Export(ctx, r); err != nil {
		return d, err
	}
	return e.push.Export(ctx, r)
}

func (e *both) Close() error { return errors.Join(e.local.Close(), e.push.Close()) }
