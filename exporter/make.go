package exporter

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/exporter/compress"
	"github.com/861fb494/build/internal/oci"
)

// maker makes the blob of one layer.
type maker struct {
	p *layers
	l oci.Layer
	// seal is told the layer's diff ID as soon as its tar has been read, or why
	// that failed. May be nil.
	seal func(diffID oci.Digest, tarSize int64, err error)
}

// pulled is the blob as it came, if the layer has one and it may stay so.
func (m *maker) pulled() (blob, bool) {
	p, l := m.p, m.l
	if l.Blob == nil || p.force && (p.method.Level != nil || compressionOf(l.Blob.MediaType) != p.method.Type) {
		return blob{}, false
	}
	b := blob{desc: *l.Blob, diffID: l.DiffID, tarSize: l.TarSize, foreign: len(l.Blob.URLs) > 0}
	b.desc.Annotations = nil
	if !b.foreign {
		b.desc.MediaType = layerType(b.desc.MediaType, p.docker)
	}
	b.open, b.origins = m.bytes()
	if b.open == nil {
		if l.Tar != nil && len(b.origins) == 0 {
			return blob{}, false // its bytes are not to be had: make others
		}
		b.open = func(context.Context) (io.ReadCloser, error) {
			return nil, fmt.Errorf("layer %s: its blob is not here; pull the image it came with", b.desc.Digest)
		}
	}
	return b, true
}

// bytes opens a pulled layer's blob, from the store, from where it was pulled
// from, or from a repository that has it; nil if there is no way.
func (m *maker) bytes() (open func(context.Context) (io.ReadCloser, error), origins []string) {
	o, l := m.p.o, m.l
	d := *l.Blob
	if ref, err := oci.ParseReference(l.Origin); l.Origin != "" && err == nil {
		origins = append(origins, ref.Repository())
	}
	if o.Store != nil {
		origins = append(origins, o.Store.Origins(d.Digest)...)
		if o.Store.Has(d.Digest) {
			return func(context.Context) (io.ReadCloser, error) { return o.Store.Open(d.Digest) }, origins
		}
	}
	if l.Compressed != nil || o.Registry == nil || len(origins) == 0 {
		return l.Compressed, origins
	}
	from, err := oci.ParseReference(origins[0])
	if err != nil {
		return nil, origins
	}
	from = oci.Reference{Domain: from.Domain, Path: from.Path, Digest: d.Digest}
	return func(ctx context.Context) (io.ReadCloser, error) { return o.Registry.Blob(ctx, from, d) }, origins
}

// recorded is the descriptor that the layer had when it was compressed the
// same way before.
func (m *maker) recorded() (oci.Descriptor, bool) {
	s := m.p.o.Store
	if s == nil || m.l.DiffID == "" || m.p.method.Type == compress.Uncompressed {
		return oci.Descriptor{}, false
	}
	d, ok := s.Compressed(m.l.DiffID, m.p.method.Recipe())
	d.MediaType = m.mediaType()
	return d, ok
}

func (m *maker) mediaType() string { return layerType(m.p.method.MediaType(), m.p.docker) }

// blob is the layer's blob, with its bytes at hand.
func (m *maker) blob(ctx context.Context) (blob, error) {
	if b, ok := m.ready(); ok {
		return b, nil
	}
	g, err := m.begin(ctx)
	if err != nil {
		return blob{}, err
	}
	return g.wait(ctx)
}

// ready is the layer's blob where nothing is to be compressed for it.
func (m *maker) ready() (blob, bool) {
	if b, ok := m.pulled(); ok {
		return b, true
	}
	if d, ok := m.recorded(); ok && m.p.o.Store.Has(d.Digest) {
		s := m.p.o.Store
		return blob{desc: d, diffID: m.l.DiffID, tarSize: m.l.TarSize, open: func(context.Context) (io.ReadCloser, error) {
			return s.Open(d.Digest)
		}}, true
	}
	if m.p.method.Type == compress.Uncompressed && m.l.DiffID != "" && m.l.TarSize > 0 && m.l.Tar != nil {
		return blob{
			desc:   oci.Descriptor{MediaType: m.mediaType(), Digest: m.l.DiffID, Size: m.l.TarSize},
			diffID: m.l.DiffID, tarSize: m.l.TarSize, open: m.l.Tar,
		}, true
	}
	return blob{}, false
}

func (m *maker) name() string {
	if m.l.DiffID != "" {
		return m.l.DiffID.String()
	}
	return m.l.ID
}

// begin begins to compress the layer's tar into a temporary file, once there is
// a slot for that.
func (m *maker) begin(ctx context.Context) (*growing, error) {
	p := m.p
	open := m.tar()
	if open == nil {
		return nil, m.failed(errors.New("its files are not here"))
	}
	// Hold a slot only while there is something to compress.
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	f, err := os.CreateTemp(p.o.Temp, "layer-*")
	if err != nil {
		<-p.slots
		return nil, m.failed(err)
	}
	p.mu.Lock()
	p.temps = append(p.temps, f.Name())
	p.mu.Unlock()
	g := newGrowing(f)
	p.wg.Go(func() {
		defer func() { <-p.slots }()
		b, err := m.compress(ctx, open, g)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			err = m.failed(err)
			if m.seal != nil {
				m.seal("", 0, err)
			}
		}
		g.end(b, err)
	})
	return g, nil
}

func (m *maker) failed(err error) error { return fmt.Errorf("compress layer %s: %w", m.name(), err) }

// tar opens the layer's tar; nil if there is no way to have it.
func (m *maker) tar() func(context.Context) (io.ReadCloser, error) {
	if m.l.Tar != nil || m.l.Blob == nil {
		return m.l.Tar
	}
	packed, _ := m.bytes()
	if packed == nil {
		return nil
	}
	return func(ctx context.Context) (io.ReadCloser, error) {
		r, err := packed(ctx)
		if err != nil {
			return nil, err
		}
		return image.Decompress(r)
	}
}

// compress writes the layer to g, and finds or checks its diff ID on the way.
func (m *maker) compress(ctx context.Context, open func(context.Context) (io.ReadCloser, error), g *growing) (blob, error) {
	p, l := m.p, m.l
	tar, err := open(ctx)
	if err != nil {
		return blob{}, err
	}
	defer tar.Close()
	packed, plain := &sum{w: g, hash: sha256.New()}, &sum{w: io.Discard, hash: sha256.New()}
	z, err := p.o.Pool.Writer(packed, p.method)
	if err != nil {
		return blob{}, err
	}
	report := p.o.counter("compressing " + m.name())
	err = copyAll(ctx, io.MultiWriter(z, plain), tar, func(n int64) { report(n, l.TarSize, false) })
	diffID := plain.digest()
	if err == nil && l.DiffID != "" && l.DiffID != diffID {
		err = fmt.Errorf("its tar has the diff ID %s now: %w", diffID, ErrChanged)
	}
	if err == nil && m.seal != nil {
		m.seal(diffID, plain.n, nil)
	}
	if e := z.Close(); err == nil {
		err = e
	}
	if err != nil {
		return blob{}, err
	}
	report(plain.n, plain.n, true)
	d := oci.Descriptor{MediaType: m.mediaType(), Digest: packed.digest(), Size: packed.n}
	if s := p.o.Store; s != nil && p.method.Type != compress.Uncompressed {
		// A record that cannot be written costs time later, and is no reason to
		// fail now.
		_ = s.SetCompressed(diffID, p.method.Recipe(), d)
	}
	return blob{desc: d, diffID: diffID, tarSize: plain.n, own: true, open: func(ctx context.Context) (io.ReadCloser, error) {
		if g.whole() {
			return os.Open(g.file.Name())
		}
		again, err := m.begin(ctx)
		if err != nil {
			return nil, err
		}
		return again.open()
	}}, nil
}
