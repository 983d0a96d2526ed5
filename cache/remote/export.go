package remote

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/exporter/compress"
	"github.com/861fb494/build/internal/oci"
)

// Options are those of Export.
type Options struct {
	Method compress.Method
	Pool   *compress.Pool
	Images *image.Store // knows what layers are once they are compressed, and has blobs
	Temp   string       // directory for temporary files
	Parts  bool         // put out what keys are made of
	// Entries lists what a layer changes, if that is known without fetching it.
	Entries func(oci.Layer) ([]tree.Change, bool)
	Mounts  MountOptions
}

// Stats are of an Export.
type Stats struct {
	Records, Layers int
	Mounts          []MountStats
	Sent            int64 // bytes
}

// uploads is how many blobs are made and sent at a time.
const uploads = 4

// Export writes records, and the layers that they name, to p. A layer has its
// diff ID, and Tar, or Blob and Compressed. One with a Blob that was not imported
// is a base image's: it is named and not sent.
func Export(ctx context.Context, p Place, records []Record, o Options) (Stats, error) {
	e := &export{place: p, o: o, at: map[layerKey]int{}, blobs: map[oci.Digest]oci.Descriptor{}}
	e.index.Version = version
	for _, r := range records {
		e.add(r)
	}
	err := e.run(ctx)
	stats := Stats{Records: len(e.index.Records), Layers: len(e.layers), Mounts: e.mounts, Sent: e.sent.Load()}
	if err != nil {
		return stats, fmt.Errorf("export cache to %s: %w", p, err)
	}
	return stats, nil
}

// layerKey tells layers apart. One that was built here upon a local image and one
// that was pulled may have the same bytes; and two steps may make the same, each
// at its time, which the image's history tells.
type layerKey struct {
	diffID, content oci.Digest
	created         int64
}

func keyOf(l oci.Layer) layerKey { return layerKey{l.DiffID, l.Content, l.Created.UnixNano()} }

type export struct {
	place  Place
	o      Options
	index  index
	at     map[layerKey]int
	layers []oci.Layer
	mounts []MountStats
	sent   atomic.Int64

	mu    sync.Mutex
	blobs map[oci.Digest]oci.Descriptor
}

// add takes in a record. What a reader would refuse is left out.
func (e *export) add(r Record) {
	out := indexRecord{Created: r.Created.UTC(), Expires: r.Expires.UTC(), Layers: []int{}}
	for _, k := range r.Keys {
		if k != "" && !slices.Contains(out.Keys, k) {
			out.Keys = append(out.Keys, k)
		}
	}
	if e.o.Parts {
		for _, p := range r.Parts {
			if len(p.Name) <= maxText && len(p.Value) <= maxText {
				out.Parts = append(out.Parts, p)
			}
		}
	}
	if len(out.Parts) > maxParts {
		out.Parts = nil
	}
	if len(r.Layers) > maxChain || len(out.Keys) == 0 {
		return
	}
	for _, l := range r.Layers {
		out.Layers = append(out.Layers, e.number(l))
	}
	e.index.Records = append(e.index.Records, out)
}

func (e *export) number(l oci.Layer) int {
	k := keyOf(l)
	n, ok := e.at[k]
	if !ok {
		n = len(e.layers)
		e.at[k] = n
		e.layers = append(e.layers, l)
		x := indexLayer{DiffID: l.DiffID, Content: l.Content, TarSize: l.TarSize, Created: l.Created.UTC()}
		if !l.Epoch.IsZero() {
			at := l.Epoch.Unix()
			x.Epoch = &at
		}
		e.index.Layers = append(e.index.Layers, x)
	}
	return n
}

func (e *export) run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(uploads)
	for i, l := range e.layers {
		g.Go(func() error {
			if err := e.layer(gctx, l, &e.index.Layers[i]); err != nil {
				return fmt.Errorf("layer %s: %w", l.DiffID, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := e.exportMounts(ctx); err != nil {
		return err
	}
	if e.index.Layers == nil {
		e.index.Layers = []indexLayer{}
	}
	if e.index.Records == nil {
		e.index.Records = []indexRecord{}
	}
	if e.index.Mounts == nil {
		e.index.Mounts = []indexMount{}
	}
	data, err := encode(e.index)
	if err != nil {
		return err
	}
	// What a reader refuses is not written.
	if _, err := parseIndex(data); err != nil || len(data) > maxIndex {
		return errors.Join(err, fmt.Errorf("its index has %d bytes", len(data)))
	}
	config := descriptor(indexType, data)
	if err := e.place.Put(ctx, config, e.counted(bytesOf(data)), nil); err != nil {
		return err
	}
	manifest, err := newManifest(config, e.list())
	if err != nil {
		return err
	}
	return e.place.Commit(ctx, manifest)
}

// list is the blobs that the index names, each once.
func (e *export) list() []oci.Descriptor {
	out := []oci.Descriptor{}
	seen := map[oci.Digest]bool{"": true}
	add := func(digests ...oci.Digest) {
		for _, d := range digests {
			if !seen[d] {
				seen[d] = true
				out = append(out, e.blobs[d])
			}
		}
	}
	for _, l := range e.index.Layers {
		add(l.Blob, l.Entries)
	}
	for _, m := range e.index.Mounts {
		add(m.List)
		add(m.Packs...)
	}
	return out
}

// layer puts out a layer's blob and its entries.
func (e *export) layer(ctx context.Context, l oci.Layer, out *indexLayer) error {
	if changes, ok := e.o.Entries(l); ok {
		data, err := packEntries(changes, l.Epoch)
		if err != nil {
			return err
		}
		if d := descriptor(entriesType, data); d.Size <= maxEntries {
			if err := e.place.Put(ctx, d, e.counted(bytesOf(data)), nil); err != nil {
				return err
			}
			out.Entries = e.note(d)
		}
	}
	if l.Blob != nil && !l.Imported {
		return nil // of a base image
	}
	d, err := e.blob(ctx, l)
	if err == nil {
		out.Blob = e.note(d)
	}
	return err
}

func (e *export) note(d oci.Descriptor) oci.Digest {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.blobs[d.Digest] = oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	return d.Digest
}

// counted counts what is sent.
func (e *export) counted(open func() (io.ReadCloser, error)) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		r, err := open()
		if err != nil {
			return nil, err
		}
		return &counter{ReadCloser: r, n: &e.sent}, nil
	}
}

type counter struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// blob sees to it that the layer's blob is there. What is known to have been
// compressed the same way is not made again where the place has it.
func (e *export) blob(ctx context.Context, l oci.Layer) (oci.Descriptor, error) {
	if l.Blob != nil && l.Compressed != nil {
		d := *l.Blob
		open := func() (io.ReadCloser, error) { return l.Compressed(ctx) }
		return d, e.place.Put(ctx, d, e.counted(open), e.origins(d, l.Origin))
	}
	if l.Tar == nil {
		return oci.Descriptor{}, errors.New("its files are not here")
	}
	recipe := e.o.Method.Recipe()
	if e.o.Images != nil {
		if d, ok := e.o.Images.Compressed(l.DiffID, recipe); ok {
			d.MediaType = e.o.Method.MediaType()
			if e.o.Images.Has(d.Digest) {
				open := func() (io.ReadCloser, error) { return e.o.Images.Open(d.Digest) }
				return d, e.place.Put(ctx, d, e.counted(open), e.origins(d, ""))
			}
			if has, err := e.place.Has(ctx, d); err != nil || has {
				return d, err
			}
		}
	}
	f, d, err := e.compress(ctx, l)
	if err != nil {
		return d, err
	}
	defer os.Remove(f)
	if e.o.Images != nil {
		// A record that cannot be written costs time later and no more.
		_ = e.o.Images.SetCompressed(l.DiffID, recipe, d)
	}
	open := func() (io.ReadCloser, error) { return os.Open(f) }
	return d, e.place.Put(ctx, d, e.counted(open), e.origins(d, ""))
}

// origins are the repositories that have a blob.
func (e *export) origins(d oci.Descriptor, origin string) []string {
	var out []string
	if ref, err := oci.ParseReference(origin); origin != "" && err == nil {
		out = append(out, ref.Repository())
	}
	if e.o.Images != nil {
		out = append(out, e.o.Images.Origins(d.Digest)...)
	}
	return out
}

// compress makes the layer's blob in a temporary file.
func (e *export) compress(ctx context.Context, l oci.Layer) (name string, d oci.Descriptor, err error) {
	tar, err := l.Tar(ctx)
	if err != nil {
		return "", d, err
	}
	defer tar.Close()
	f, err := os.CreateTemp(e.o.Temp, "cache-*")
	if err != nil {
		return "", d, err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	packed, plain := sha256.New(), sha256.New()
	z, err := e.o.Pool.Writer(io.MultiWriter(f, packed), e.o.Method)
	if err != nil {
		return "", d, err
	}
	_, err = io.Copy(io.MultiWriter(z, plain), &ending{ctx, tar})
	if cerr := z.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return "", d, err
	}
	if got := digest.NewDigest(digest.SHA256, plain); got != l.DiffID {
		return "", d, fmt.Errorf("its tar has the diff ID %s now: the layer's files were changed", got)
	}
	size, err := f.Seek(0, io.SeekCurrent)
	return f.Name(), oci.Descriptor{MediaType: e.o.Method.MediaType(), Digest: digest.NewDigest(digest.SHA256, packed), Size: size}, err
}

// ending is a reader that ends with its context.
type ending struct {
	ctx context.Context
	r   io.Reader
}

func (e *ending) Read(p []byte) (int, error) {
	if err := context.Cause(e.ctx); err != nil {
		return 0, err
	}
	return e.r.Read(p)
}
