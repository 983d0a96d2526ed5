// Package exporter puts images out: to a registry, an OCI layout or tar, a
// Docker tar, a directory.
package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/exporter/compress"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
)

// Exporter puts out one result.
type Exporter interface {
	// Layer is called as a layer's step ends, so that compressing and
	// uploading it overlaps with the build. It may do nothing. It is safe for
	// concurrent calls; a layer that then is in no result harms nothing.
	Layer(ctx context.Context, l oci.Layer) error
	// Export puts the result out, all of it or nothing under its name, and
	// returns what was written: of one platform the manifest, of several the
	// index.
	Export(ctx context.Context, r oci.Result) (oci.Descriptor, error)
	// Close releases what Layer began and Export did not use. It is called
	// always, once, last.
	Close() error
}

// ErrChanged is wrapped by errors about a layer whose bytes are not those that
// its diff ID names.
var ErrChanged = errors.New("the layer's files were changed")

// Registry is where images are pushed to; *registry.Client is one.
type Registry interface {
	// PushBlob makes sure that ref's repository has blob d: it is there, or
	// mounted from the path mountFrom of the same registry (empty: none), or
	// sent. open may be called several times or not at all.
	PushBlob(ctx context.Context, ref oci.Reference, d oci.Descriptor, open func() (io.ReadCloser, error), mountFrom string) error
	// PushStream is PushBlob for a blob that is still being made: open's readers
	// wait for what is to come, and desc for the end.
	PushStream(ctx context.Context, ref oci.Reference, open func() (io.ReadCloser, error), desc func(context.Context) (oci.Descriptor, error)) error
	// PushManifest puts a manifest or index under ref's digest if it has one,
	// else under its tag.
	PushManifest(ctx context.Context, ref oci.Reference, mediaType string, data []byte) (oci.Descriptor, error)
	// Blob opens a blob of ref's repository.
	Blob(ctx context.Context, ref oci.Reference, d oci.Descriptor) (io.ReadCloser, error)
}

// Options are the surroundings of an exporter. What an Output does not need may
// stay zero.
type Options struct {
	Store    *image.Store // local images; records of compressed layers. Needed by type=image
	Registry Registry     // needed by pushes
	Temp     string       // directory for temporary files; empty: os.TempDir
	Stdout   io.Writer    // what dest=- means; nil: os.Stdout
	// Names are those of Result.Names that are known beforehand: a push sends
	// layers there while the build goes on.
	Names []oci.Reference
	Pool  *compress.Pool // shared by all exporters of a process; nil: one of its own
	Sink  progress.Sink  // takes Counters of Step; nil: nobody is told
	Step  progress.Step
	Now   func() time.Time // nil: time.Now
}

func (o Options) now() time.Time {
	if o.Now == nil {
		return time.Now()
	}
	return o.Now()
}

func (o Options) cores() int { return runtime.GOMAXPROCS(0) }

// New returns the exporter that out asks for. It does no I/O.
func New(out Output, o Options) (Exporter, error) {
	a, err := out.attributes()
	if err != nil {
		return nil, err
	}
	if o.Pool == nil {
		o.Pool = compress.NewPool(o.cores())
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if out.Type == TypeLocal || out.Type == TypeTar {
		return &files{o: o, out: out}, nil
	}
	if out.Type == TypeImage && a.push {
		return newBoth(out, o)
	}
	w, err := newWriter(out, a, o)
	if err != nil {
		return nil, err
	}
	e := &images{o: o, a: a, writer: w, layers: newLayers(o, a)}
	if p, ok := w.(placer); ok {
		e.layers.place = p.place
	}
	return e, nil
}

func newWriter(out Output, a attributes, o Options) (writer, error) {
	switch out.Type {
	case TypeOCI, TypeDocker:
		return &archive{dest: out.Dest, dir: !a.tar, docker: out.Type == TypeDocker, stdout: o.Stdout}, nil
	case TypeRegistry:
		return newPusher(o, a)
	case TypeImage:
		if o.Store == nil {
			return nil, errors.New("output type=image: no image store")
		}
		return &local{store: o.Store}, nil
	}
	return nil, fmt.Errorf("output type=%s: not known", out.Type)
}

// writer puts bundles where they belong.
type writer interface {
	write(ctx context.Context, list []*bundle) error
}

// placer is a writer that takes layers before the rest.
type placer interface {
	place(ctx context.Context, m *maker) (blob, error)
}

// images is the Exporter of all outputs that are images.
type images struct {
	o      Options
	a      attributes
	layers *layers
	writer writer
}

// Layer begins to compress l, and to upload it, in the background.
func (e *images) Layer(_ context.Context, l oci.Layer) error {
	if _, ok := e.writer.(*local); !ok {
		e.layers.start(l)
	}
	return nil
}

// Seal finds the diff ID of a layer that has none yet where the exporter reads
// its tar anyway, to compress it: one that Layer has got, or gets now. Otherwise
// ok is false.
func (e *images) Seal(ctx context.Context, l oci.Layer) (sealed oci.Layer, ok bool, err error) {
	if _, ok := e.writer.(*local); ok {
		return l, false, nil
	}
	return e.layers.seal(ctx, l)
}

// Export puts the result out.
func (e *images) Export(ctx context.Context, r oci.Result) (oci.Descriptor, error) {
	return e.export(ctx, []source{func(ctx context.Context) (*bundle, error) { return e.assemble(ctx, r) }})
}

// source makes the bundle of one image.
type source func(context.Context) (*bundle, error)

// export puts images out together, and returns the root of the last.
func (e *images) export(ctx context.Context, sources []source) (oci.Descriptor, error) {
	for again := false; ; again = true {
		var list []*bundle
		for _, s := range sources {
			b, err := s(ctx)
			if err != nil {
				return oci.Descriptor{}, err
			}
			list = append(list, b)
		}
		err := e.writer.write(ctx, list)
		if errors.Is(err, errStale) && !again {
			e.layers.forget()
			continue
		}
		return list[len(list)-1].root, err
	}
}

// Close ends what Layer began.
func (e *images) Close() error { return e.layers.close() }
