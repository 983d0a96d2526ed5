package builder

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/861fb494/build/cache/image/archive"
	"github.com/861fb494/build/executor/source"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
)

// remoteImages is where a build's images come from: the store's own, and those of
// registries.
type remoteImages struct {
	*source.Images
	builder *Builder
	sink    progress.Sink
	imports *imports // caches that the build may take layers from; may be nil
	lock    pinning  // what tags are; may be nil
	offline bool

	mu    sync.Mutex
	steps map[oci.Digest]progress.Step // by blob: who is told how far it is
}

func (b *Builder) newRemote(o source.ImageOptions, sink progress.Sink) (*remoteImages, error) {
	client, err := b.Registry()
	if err != nil {
		return nil, err
	}
	r := &remoteImages{builder: b, sink: sink, offline: o.Offline, steps: map[oci.Digest]progress.Step{}}
	if o.Pins == nil {
		o.Pins = pins{b}
	}
	o.Built, o.Elsewhere, o.Progress = b.Store.Built, r.elsewhere, r.progress
	r.Images = source.NewImages(b.Images, client, o)
	return r, nil
}

type pins struct{ b *Builder }

func (p pins) Get(ref oci.Reference) (oci.Descriptor, bool)  { return p.b.Store.Pin(ref) }
func (p pins) Put(ref oci.Reference, d oci.Descriptor) error { return p.b.Store.PutPin(ref, d) }

// oldPins are pins that stay as they are: builds are not to notice a lock.
type oldPins struct{ pins }

func (oldPins) Put(oci.Reference, oci.Descriptor) error { return nil }

func (r *remoteImages) progress(d oci.Descriptor, current int64, done bool) {
	r.mu.Lock()
	step, ok := r.steps[d.Digest]
	r.mu.Unlock()
	if ok {
		r.sink.Emit(progress.Counter{Step: step, Name: d.Digest.String(), Current: current, Total: d.Size, Unit: "B", Done: done, Time: time.Now()})
	}
}

// Resolve implements dockerfile.Bases.
func (r *remoteImages) Resolve(ctx context.Context, ref string, p oci.Platform) (llb.Source, oci.Image, error) {
	layout, ok := strings.CutPrefix(ref, "oci-layout://")
	if !ok {
		return r.resolve(ctx, ref, p)
	}
	dir, tag, digest := splitLayout(layout)
	d, err := archive.Import(ctx, r.builder.Images, dir, tag, digest)
	if err != nil {
		return llb.Source{}, oci.Image{}, err
	}
	// From here on it is an image of the store that has no name.
	return r.Images.Resolve(ctx, oci.Reference{Domain: "docker.io", Path: "library/oci-layout", Digest: d.Digest}.String(), p)
}

// splitLayout reads DIRECTORY[:TAG][@DIGEST].
func splitLayout(s string) (dir, tag string, digest oci.Digest) {
	if d, hash, ok := strings.Cut(s, "@"); ok {
		s, digest = d, oci.Digest(hash)
	}
	if i := strings.LastIndex(s, ":"); i > strings.LastIndex(s, "/") {
		s, tag = s[:i], s[i+1:]
	}
	return s, tag, digest
}

// OpenLayer implements executor.Fetcher.
func (r *remoteImages) OpenLayer(ctx context.Context, l oci.Layer, step progress.Step) (io.ReadCloser, error) {
	if l.Tar == nil {
		l = r.openable(l)
	}
	if l.Blob != nil {
		r.mu.Lock()
		r.steps[l.Blob.Digest] = step
		r.mu.Unlock()
	}
	return l.Tar(ctx)
}

// openable gives a layer, which may come from a record, the functions that open
// its bytes.
func (r *remoteImages) openable(l oci.Layer) oci.Layer {
	if l.Blob == nil {
		l.Tar = func(ctx context.Context) (io.ReadCloser, error) { return r.builder.Store.Tar(ctx, l) }
		return l
	}
	open, err := r.Images.Reopen(l)
	if err != nil {
		l.Tar = func(context.Context) (io.ReadCloser, error) { return nil, fmt.Errorf("layer %s: %w", l.ID, err) }
	} else {
		l = open
	}
	if l.Imported {
		return lossy(l)
	}
	return l
}
