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
	// own blobs are files that were hashed as they were made, just now.
	own bool
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

	sealed  chan struct{} // closed once diffID and tarSize are known, or will not be
	once    sync.Once     // of that
	diffID  oci.Digest    // empty: nobody has read the tar
	tarSize int64
	sealErr error // why the tar could not be read
}

func (w *work) seal(diffID oci.Digest, tarSize int64, err error) {
	w.once.Do(func() {
		w.diffID, w.tarSize, w.sealErr = diffID, tarSize, err
		close(w.sealed)
	})
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
	w := &work{done: make(chan struct{}), sealed: make(chan struct{})}
	p.running[key] = w
	p.wg.Go(func() {
		defer close(w.done)
		defer w.seal("", 0, nil)
		m := &maker{p: p, l: l, seal: w.seal}
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

// seal waits until the diff ID of l is known, where its tar is read anyway to be
// compressed; else ok is false.
func (p *layers) seal(ctx context.Context, l oci.Layer) (sealed oci.Layer, ok bool, err error) {
	if l.DiffID != "" || p.method.Type == compress.Uncompressed {
		return l, false, nil // without a diff ID an uncompressed tar is written twice
	}
	w := p.start(l)
	select {
	case <-w.sealed:
		l.DiffID, l.TarSize = w.diffID, w.tarSize
		return l, l.DiffID != "", w.sealErr
	case <-ctx.Done():
		return l, false, context.Cause(ctx)
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
	if b.own {
		return copyOwn(ctx, w, r, b.desc)
	}
	s := &sum{w: w, hash: sha256.New()}
	if err := copyAll(ctx, s, io.LimitReader(r, b.desc.Size+1), nil); err != nil {
		return fmt.Errorf("read layer %s: %w", b.desc.Digest, err)
	}
	if s.n != b.desc.Size || s.digest() != b.desc.Digest {
		return fmt.Errorf("read layer %s: got %d bytes of digest %s, want %d: %w", b.desc.Digest, s.n, s.digest(), b.desc.Size, ErrChanged)
	}
	return nil
}

// copyOwn copies a file that this process has just made, piece by piece so that
// ctx can end it in between.
func copyOwn(ctx context.Context, w io.Writer, r io.Reader, d oci.Descriptor) error {
	const piece = 32 << 20
	for left := d.Size; left > 0; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		// Of files this is copy_file_range(2).
		n, err := io.CopyN(w, r, min(left, piece))
		if err != nil {
			return fmt.Errorf("read layer %s: %w", d.Digest, err)
		}
		left -= n
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
