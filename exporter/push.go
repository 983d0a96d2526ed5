package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/861fb494/build/internal/oci"
)

// uploads is how many blobs are sent to a registry at a time, as many as
// Docker sends.
const uploads = 5

// pusher pushes to registries.
type pusher struct {
	o        Options
	names    []oci.Reference // known before the result is: layers go there early
	byDigest bool
	slots    chan struct{} // held while a blob is sent
}

func newPusher(o Options, a attributes) (*pusher, error) {
	if o.Registry == nil {
		return nil, errors.New("push: no registry client")
	}
	return &pusher{o: o, names: slices.Concat(o.Names, a.names), byDigest: a.byDigest, slots: make(chan struct{}, uploads)}, nil
}

// errStale is that a layer came out otherwise than recorded. The record is
// right by then: Export begins again.
var errStale = errors.New("the record of the compressed layer does not match")

// place sends a layer to the repositories known so far, and does not make what
// they have.
func (w *pusher) place(ctx context.Context, m *maker) (blob, error) {
	if d, ok := m.recorded(); ok {
		if _, pulled := m.pulled(); !pulled {
			b, err := w.placeRecorded(ctx, m, d)
			if !errors.Is(err, errStale) {
				return b, err
			}
		}
	}
	if _, ok := m.ready(); ok || len(w.names) == 0 {
		b, err := m.blob(ctx)
		if err != nil {
			return b, err
		}
		b.placed = true
		return b, w.send(ctx, b, w.names)
	}
	return w.placeMade(ctx, m)
}

// placeMade sends a layer while it is compressed. The first repository gets it so;
// the others of its registry can mount it from there.
func (w *pusher) placeMade(ctx context.Context, m *maker) (blob, error) {
	g, err := m.begin(ctx)
	if err != nil {
		return blob{}, err
	}
	others := slices.DeleteFunc(slices.Clone(w.names), func(n oci.Reference) bool { return n.Repository() == w.names[0].Repository() })
	s := &streamed{maker: m, kept: len(others) > 0, g: g}
	err = w.stream(ctx, s, w.names[0])
	b, failed := s.current().wait(ctx)
	if failed != nil {
		return b, failed // which is why it was not sent
	}
	if err != nil {
		return b, err
	}
	w.sent(&b, w.names[0])
	b.placed = true
	return b, w.send(ctx, b, others)
}

func (w *pusher) stream(ctx context.Context, s *streamed, to oci.Reference) error {
	open := func() (io.ReadCloser, error) {
		r, err := s.open(ctx)
		if err != nil {
			return nil, err
		}
		return &counted{ReadCloser: r, report: w.o.counter("pushing " + s.maker.name())}, nil
	}
	return w.slot(ctx, func() error { return w.o.Registry.PushStream(ctx, to, open, s.desc) })
}

// streamed is a blob that is sent while it is made.
type streamed struct {
	maker *maker
	kept  bool // it is to be sent elsewhere too

	mu sync.Mutex
	g  *growing
}

func (s *streamed) current() *growing {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.g
}

// open is for each try to send it. One that follows one that came far has it made
// again.
func (s *streamed) open(ctx context.Context) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept {
		return s.g.open()
	}
	r, err := s.g.openOnce()
	if !errors.Is(err, errFreed) {
		return r, err
	}
	again, err := s.maker.begin(ctx)
	if err != nil {
		return nil, err
	}
	s.g, s.kept = again, true
	return again.open()
}

func (s *streamed) desc(ctx context.Context) (oci.Descriptor, error) { return s.current().desc(ctx) }

// slot calls f while it holds one of the slots.
func (w *pusher) slot(ctx context.Context, f func() error) error {
	select {
	case w.slots <- struct{}{}:
		defer func() { <-w.slots }()
		return f()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// placeRecorded sends a layer that is known by its record, and makes it only
// where a repository lacks it.
func (w *pusher) placeRecorded(ctx context.Context, m *maker, d oci.Descriptor) (blob, error) {
	make := sync.OnceValues(func() (blob, error) { return m.blob(ctx) })
	b := blob{desc: d, diffID: m.l.DiffID, tarSize: m.l.TarSize}
	if s := w.o.Store; s != nil {
		b.origins = s.Origins(d.Digest)
	}
	b.open = func(ctx context.Context) (io.ReadCloser, error) {
		made, err := make()
		if err != nil {
			return nil, err
		}
		if made.desc.Digest != d.Digest {
			return nil, errStale
		}
		return made.open(ctx)
	}
	b.placed = true
	return b, w.send(ctx, b, w.names)
}

// send makes sure that the repositories of names have b.
func (w *pusher) send(ctx context.Context, b blob, names []oci.Reference) error {
	if b.foreign {
		return nil
	}
	seen := map[string]bool{}
	for _, name := range names {
		if seen[name.Repository()] {
			continue
		}
		seen[name.Repository()] = true
		if err := w.sendTo(ctx, b, name); err != nil {
			return err
		}
		w.sent(&b, name)
	}
	return nil
}

// sent notes that the repository of name has b.
func (w *pusher) sent(b *blob, name oci.Reference) {
	if w.o.Store != nil && b.diffID != "" && b.desc.Digest != b.diffID {
		// The next repository of that registry can mount it from here. A
		// lost record costs an upload and no more. Of an uncompressed
		// layer there is none: Save takes it for one that came so.
		_ = w.o.Store.AddOrigin(b.desc.Digest, name.Repository())
	}
	b.origins = append(b.origins, name.Repository())
}

func (w *pusher) sendTo(ctx context.Context, b blob, name oci.Reference) error {
	mount := ""
	for _, o := range b.origins {
		if path, ok := strings.CutPrefix(o, name.Domain+"/"); ok && path != name.Path {
			mount = path
			break
		}
	}
	open := func() (io.ReadCloser, error) {
		r, err := b.open(ctx)
		if err != nil {
			return nil, err
		}
		return &counted{ReadCloser: r, total: b.desc.Size, report: w.o.counter("pushing " + b.desc.Digest.String())}, nil
	}
	return w.slot(ctx, func() error { return w.o.Registry.PushBlob(ctx, name, b.desc, open, mount) })
}

// counted reports what has been read.
type counted struct {
	io.ReadCloser
	n, total int64
	report   func(current, total int64, done bool)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n += int64(n)
	c.report(c.n, c.total, err == io.EOF)
	return n, err
}

// write sends what place has not, and the manifests last: a tag never names an
// image that is not whole.
func (w *pusher) write(ctx context.Context, list []*bundle) error {
	for _, b := range list {
		if len(b.names) == 0 {
			return errors.New("push: the image has no name to push it to: give it one with --tag")
		}
		for _, n := range b.names {
			if n.Digest != "" && n.Digest != b.root.Digest {
				return fmt.Errorf("push %s: the image's digest is %s", n.Familiar(), b.root.Digest)
			}
		}
		if err := w.writeOne(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

func (w *pusher) writeOne(ctx context.Context, b *bundle) error {
	repositories := map[string]oci.Reference{}
	for _, n := range b.names {
		repositories[n.Repository()] = oci.Reference{Domain: n.Domain, Path: n.Path}
	}
	group, gctx := errgroup.WithContext(ctx)
	for _, repository := range repositories {
		sent := map[oci.Digest]bool{}
		send := func(one blob) {
			if !sent[one.desc.Digest] {
				sent[one.desc.Digest] = true
				group.Go(func() error { return w.send(gctx, one, []oci.Reference{repository}) })
			}
		}
		early := false
		for _, n := range w.names {
			early = early || n.Repository() == repository.Repository()
		}
		for _, img := range b.images {
			send(blob{desc: img.config.desc, open: img.config.open})
			for _, l := range img.layers {
				if !l.placed || !early {
					send(l)
				}
			}
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, name := range b.names {
		for _, d := range b.documents {
			at := name
			if at.Digest = ""; d.desc.Digest != b.root.Digest || w.byDigest || at.Tag == "" {
				at.Digest = d.desc.Digest
			}
			if _, err := w.o.Registry.PushManifest(ctx, at, d.desc.MediaType, d.data); err != nil {
				return fmt.Errorf("push %s: %w", name.Familiar(), err)
			}
		}
	}
	return nil
}
