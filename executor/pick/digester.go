package pick

import (
	"context"
	"errors"
	"runtime"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/oci"
)

// digester hashes steps in their order, and asks for the contents in them out of
// it: one goroutine walks and adds steps, some read files, one hashes.
type digester struct {
	ctx     context.Context
	h       *Hasher
	content Content
	list    func(e *tree.Entry, sum Sum)

	now   *batch // being filled
	group *errgroup.Group
	order chan *batch // to the one that hashes
	work  chan *batch // to those that read
	free  chan *batch
}

// batch is some steps, of which a goroutine reads the contents.
type batch struct {
	steps []step
	bytes int64
	done  chan error // takes one
}

// What a step is; see Hasher.
const (
	stepSource = iota
	stepBegin
	stepItem
	stepEnd
)

type step struct {
	kind    int
	matches int
	match   Match
	item    Item
	content oci.Digest
}

// A batch is full with so many steps, or so many bytes to be read.
const (
	batchSteps = 64
	batchBytes = 1 << 20
)

// errStopped is that adding has no use any more; wait says why.
var errStopped = errors.New("stopped")

func newDigester(ctx context.Context, h *Hasher, content Content, list func(*tree.Entry, Sum)) *digester {
	d := &digester{ctx: ctx, h: h, content: content, list: list}
	d.now = &batch{done: make(chan error, 1)}
	return d
}

func (d *digester) add(s step) error {
	b := d.now
	b.steps = append(b.steps, s)
	if s.kind == stepItem && s.item.Entry.Type() == unix.S_IFREG {
		b.bytes += s.item.Entry.Size
	}
	if len(b.steps) < batchSteps && b.bytes < batchBytes {
		return nil
	}
	return d.send()
}

// start makes the goroutines, for who has more than one batch.
func (d *digester) start() {
	readers := runtime.GOMAXPROCS(0)
	d.group, d.ctx = errgroup.WithContext(d.ctx)
	// Some batches ahead: the one that hashes waits for the oldest.
	d.order, d.work, d.free = make(chan *batch, 4*readers), make(chan *batch, 4*readers), make(chan *batch, 4*readers)
	for range readers {
		d.group.Go(func() error {
			for b := range d.work {
				b.done <- d.read(b)
			}
			return nil
		})
	}
	d.group.Go(func() error {
		for b := range d.order {
			if err := <-b.done; err != nil {
				return err
			}
			d.hash(b)
			select {
			case d.free <- b:
			default:
			}
		}
		return nil
	})
}

// send gives the batch that was filled to the others, and begins another.
func (d *digester) send() error {
	if d.group == nil {
		d.start()
	}
	for _, to := range []chan *batch{d.work, d.order} {
		select {
		case to <- d.now:
		case <-d.ctx.Done():
			return errStopped
		}
	}
	select {
	case b := <-d.free:
		clear(b.steps)
		b.steps, b.bytes = b.steps[:0], 0
		d.now = b
	default:
		d.now = &batch{steps: make([]step, 0, batchSteps), done: make(chan error, 1)}
	}
	return nil
}

// flush is for the last batch.
func (d *digester) flush() error {
	if d.group != nil {
		return d.send()
	}
	if err := d.read(d.now); err != nil {
		return err
	}
	d.hash(d.now)
	return nil
}

// wait is for the end of the goroutines.
func (d *digester) wait() error {
	if d.group == nil {
		return nil
	}
	close(d.work)
	close(d.order)
	return d.group.Wait()
}

func (d *digester) read(b *batch) error {
	for i := range b.steps {
		s := &b.steps[i]
		if s.kind != stepItem || s.item.Entry.Type() != unix.S_IFREG || s.item.Linked {
			continue
		}
		var err error
		if s.content, err = d.content(d.ctx, s.item.Entry); err != nil {
			return err
		}
	}
	return nil
}

func (d *digester) hash(b *batch) {
	for i := range b.steps {
		s := &b.steps[i]
		switch s.kind {
		case stepSource:
			d.h.Source(s.matches)
		case stepBegin:
			d.h.Begin(s.match)
		case stepItem:
			text := d.h.item(&s.item, s.content)
			if d.list != nil {
				sum := blake3.Sum256(text)
				d.list(&s.item.Entry, Sum(sum[:8]))
			}
		case stepEnd:
			d.h.End()
		}
	}
}
