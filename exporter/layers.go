package exporter

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strconv"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/exporter/compress"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
)

// blob is bytes that an output consists of.
type blob struct {
	desc oci.Descriptor
	// open may be called several times. What it yields is not verified yet.
	open func(context.Context) (io.ReadCloser, error)
	// origins are repositories that have it, as "domain/path".
	origins []string
	// foreign blobs have URLs of their own and are not put out.
	foreign bool
	// placed is set where a placer has put it out already.
	placed bool
	// diffID and tarSize are known of layers.
	diffID  oci.Digest
	tarSize int64
}

// layers turns layers into blobs, each once, in the background, as soon as
// they are asked for.
type layers struct {
	o      Options
	method compress.Method
	force  bool // compress pulled layers anew too
	docker bool // Docker's media types instead of OCI's
	// place puts a layer's blob where the output wants it, and may come to
	// another descriptor than was recorded; nil: the blob is made and no more.
	place func(context.Context, *maker) (blob, error)
	slots chan struct{} // held while a layer is compressed

	ctx    context.Context // ended by close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	running map[string]*work
	temps   []string
}

// work is one layer on its way.
type work struct {
	done chan struct{}
	blob blob
	err  error
}

func newLayers(o Options, a attributes) *layers {
	ctx, cancel := context.WithCancel(context.Background())
	return &layers{
		o: o, method: a.method, force: a.force, docker: a.docker,
		slots: make(chan struct{}, o.cores()),
		ctx:   ctx, cancel: cancel, running: map[string]*work{},
	}
}

// start begins to make the blob of l, if that has not begun. It does not block.
func (p *layers) start(l oci.Layer) *work {
	key := l.ID
	if key == "" {
		key = l.DiffID.String()
	}
	if !l.Epoch.IsZero() { // the same files, another tar
		key += "@" + strconv.FormatInt(l.Epoch.Unix(), 10)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.running[key]; w != nil {
		return w
	}
	w := &work{done: make(chan struct{})}
	p.running[key] = w
	p.wg.Go(func() {
		defer close(w.done)
		m := &maker{p: p, l: l}
		if p.place != nil {
			w.blob, w.err = p.place(p.ctx, m)
		} else {
			w.blob, w.err = m.blob(p.ctx)
		}
	})
	return w
}

// forget lets all layers be made again.
func (p *layers) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.running)
}

// get waits for the blob of l.
func (p *layers) get(ctx context.Context, l oci.Layer) (blob, error) {
	w := p.start(l)
	select {
	case <-w.done:
		return w.blob, w.err
	case <-ctx.Done():
		return blob{}, context.Cause(ctx)
	}
}

// close stops what runs and removes the temporary files.
func (p *layers) close() error {
	p.cancel()
	p.wg.Wait()
	var err error
	for _, name := range p.temps {
		err = errors.Join(err, os.Remove(name))
	}
	p.temps = nil
	return err
}

// maker makes the blob of one layer.
type maker struct {
	p *layers
	l oci.Layer
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
	if b, ok := m.pulled(); ok {
		return b, nil
	}
	if d, ok := m.recorded(); ok && m.p.o.Store.Has(d.Digest) {
		s := m.p.o.Store
		return blob{desc: d, diffID: m.l.DiffID, tarSize: m.l.TarSize, open: func(context.Context) (io.ReadCloser, error) {
			return s.Open(d.Digest)
		}}, nil
	}
	if m.p.method.Type == compress.Uncompressed && m.l.DiffID != "" && m.l.TarSize > 0 && m.l.Tar != nil {
		return blob{
			desc:   oci.Descriptor{MediaType: m.mediaType(), Digest: m.l.DiffID, Size: m.l.TarSize},
			diffID: m.l.DiffID, tarSize: m.l.TarSize, open: m.l.Tar,
		}, nil
	}
	b, err := m.make(ctx)
	if err != nil {
		return b, fmt.Errorf("compress layer %s: %w", m.name(), err)
	}
	return b, nil
}

func (m *maker) name() string {
	if m.l.DiffID != "" {
		return m.l.DiffID.String()
	}
	return m.l.ID
}

// make compresses the layer's tar into a temporary file, and finds or checks
// its diff ID on the way.
func (m *maker) make(ctx context.Context) (blob, error) {
	p, l := m.p, m.l
	open := l.Tar
	if open == nil && l.Blob != nil {
		if packed, _ := m.bytes(); packed != nil {
			open = func(ctx context.Context) (io.ReadCloser, error) {
				r, err := packed(ctx)
				if err != nil {
					return nil, err
				}
				return image.Decompress(r)
			}
		}
	}
	if open == nil {
		return blob{}, errors.New("its files are not here")
	}
	// Hold a slot only while there is something to compress.
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return blob{}, context.Cause(ctx)
	}
	f, err := os.CreateTemp(p.o.Temp, "layer-*")
	if err != nil {
		return blob{}, err
	}
	defer f.Close()
	p.mu.Lock()
	p.temps = append(p.temps, f.Name())
	p.mu.Unlock()

	tar, err := open(ctx)
	if err != nil {
		return blob{}, err
	}
	defer tar.Close()
	packed, plain := &sum{w: f, hash: sha256.New()}, &sum{w: io.Discard, hash: sha256.New()}
	z, err := p.o.Pool.Writer(packed, p.method)
	if err != nil {
		return blob{}, err
	}
	report := p.o.counter("compressing " + m.name())
	err = copyAll(ctx, io.MultiWriter(z, plain), tar, func(n int64) { report(n, l.TarSize, false) })
	if e := z.Close(); err == nil {
		err = e
	}
	if err != nil {
		return blob{}, err
	}
	report(plain.n, plain.n, true)
	diffID := plain.digest()
	if l.DiffID != "" && l.DiffID != diffID {
		return blob{}, fmt.Errorf("its tar has the diff ID %s now: %w", diffID, ErrChanged)
	}
	d := oci.Descriptor{MediaType: m.mediaType(), Digest: packed.digest(), Size: packed.n}
	if s := p.o.Store; s != nil && p.method.Type != compress.Uncompressed {
		// A record that cannot be written costs time later, and is no reason to
		// fail now.
		_ = s.SetCompressed(diffID, p.method.Recipe(), d)
	}
	name := f.Name()
	return blob{desc: d, diffID: diffID, tarSize: plain.n, open: func(context.Context) (io.ReadCloser, error) {
		return os.Open(name)
	}}, nil
}

// sum counts and hashes what goes through.
type sum struct {
	w    io.Writer
	hash hash.Hash
	n    int64
}

func (s *sum) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.hash.Write(p[:n])
	s.n += int64(n)
	return n, err
}

func (s *sum) digest() oci.Digest {
	return digest.NewDigestFromBytes(digest.SHA256, s.hash.Sum(nil))
}

// copyAll copies r to w until its end or that of ctx; report, if not nil, is
// told the bytes so far.
func copyAll(ctx context.Context, w io.Writer, r io.Reader, report func(int64)) error {
	buf := make([]byte, 256<<10)
	var n int64
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		k, err := r.Read(buf)
		if k > 0 {
			if _, err := w.Write(buf[:k]); err != nil {
				return err
			}
			n += int64(k)
			if report != nil {
				report(n)
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// copyBlob copies b to w and verifies it.
func copyBlob(ctx context.Context, w io.Writer, b blob) error {
	r, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	s := &sum{w: w, hash: sha256.New()}
	if err := copyAll(ctx, s, io.LimitReader(r, b.desc.Size+1), nil); err != nil {
		return fmt.Errorf("read layer %s: %w", b.desc.Digest, err)
	}
	if s.n != b.desc.Size || s.digest() != b.desc.Digest {
		return fmt.Errorf("read layer %s: got %d bytes of digest %s, want %d: %w", b.desc.Digest, s.n, s.digest(), b.desc.Size, ErrChanged)
	}
	return nil
}

// counter reports progress of the thing called name at a rate that displays
// can follow.
func (o Options) counter(name string) func(current, total int64, done bool) {
	if o.Sink == nil {
		return func(int64, int64, bool) {}
	}
	var next int64
	return func(current, total int64, done bool) {
		if current < next && !done {
			return
		}
		next = current + 1<<20
		o.Sink.Emit(progress.Counter{
			Step: o.Step, Name: name, Current: current, Total: total, Unit: "B", Done: done, Time: o.now(),
		})
	}
}
