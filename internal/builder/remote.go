package builder

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/861fb494/build/executor/source"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
)

// remote is where a build's images come from: the store's own, and those of
// registries.
type remote struct {
	*source.Images
	builder *Builder
	sink    progress.Sink

	mu    sync.Mutex
	steps map[oci.Digest]progress.Step // by blob: who is told how far it is
}

func (b *Builder) newRemote(pull bool, sink progress.Sink) (*remote, error) {
	client, err := b.Registry()
	if err != nil {
		return nil, err
	}
	r := &remote{builder: b, sink: sink, steps: map[oci.Digest]progress.Step{}}
	r.Images = source.NewImages(b.Images, client, source.ImageOptions{
		Pull: pull, Pins: pins{b}, Built: r.built, Progress: r.progress,
	})
	return r, nil
}

type pins struct{ b *Builder }

func (p pins) Get(ref oci.Reference) (oci.Descriptor, bool)  { return p.b.Store.Pin(ref) }
func (p pins) Put(ref oci.Reference, d oci.Descriptor) error { return p.b.Store.PutPin(ref, d) }

// built finds a layer of a local image that was built here. What is built upon
// it has the same keys as on a machine that pulled the image: its content is
// its diff ID.
func (r *remote) built(diffID oci.Digest) (oci.Layer, bool) {
	l, ok := r.builder.Store.Built(diffID)
	l.Content = diffID
	return l, ok
}

func (r *remote) progress(d oci.Descriptor, current int64, done bool) {
	r.mu.Lock()
	step, ok := r.steps[d.Digest]
	r.mu.Unlock()
	if ok {
		r.sink.Emit(progress.Counter{Step: step, Name: d.Digest.String(), Current: current, Total: d.Size, Unit: "B", Done: done, Time: time.Now()})
	}
}

// OpenLayer implements executor.Fetcher.
func (r *remote) OpenLayer(ctx context.Context, l oci.Layer, step progress.Step) (io.ReadCloser, error) {
	if l.Tar == nil {
		l = r.openable(l)
	}
	r.mu.Lock()
	r.steps[l.Blob.Digest] = step
	r.mu.Unlock()
	return l.Tar(ctx)
}

// openable gives a layer, which may come from a record, the functions that open
// its bytes.
func (r *remote) openable(l oci.Layer) oci.Layer {
	if l.Blob == nil {
		l.Tar = func(ctx context.Context) (io.ReadCloser, error) { return r.builder.Store.Tar(ctx, l.ID) }
		return l
	}
	open, err := r.Images.Reopen(l)
	if err != nil {
		l.Tar = func(context.Context) (io.ReadCloser, error) { return nil, fmt.Errorf("layer %s: %w", l.ID, err) }
		return l
	}
	return open
}
