// Package ordered does work side by side and takes the results in their order.
package ordered

import (
	"context"
	"runtime"
	"sync"
)

// Options are those of New.
type Options[T any] struct {
	// Work does the work of some values, which were added one after the other.
	// Several goroutines call it.
	Work func(ctx context.Context, batch []T) error
	// Take takes a value whose work is done. It is called in the order of Add,
	// by one goroutine at a time. The value is not the callee's to keep.
	Take func(v *T)
	// Drop, if not nil, is told each value once nothing more is done with it,
	// taken or not.
	Drop func(v *T)
	// Cost is how much work a value is; a batch has at most Batch values, and
	// ends with the value that makes its cost MaxCost.
	Cost    func(v *T) int64
	Batch   int
	MaxCost int64
	// Apart, if not nil, says that a value is better not worked on beside those
	// before it: a batch that is a quarter full ends before it.
	Apart func(v *T) bool
}

// Pipeline is values on their way through Work and Take. It is for one goroutine.
type Pipeline[T any] struct {
	o      Options[T]
	ctx    context.Context
	cancel context.CancelFunc

	now   *batch[T] // being filled
	work  chan *batch[T]
	order chan *batch[T]
	free  chan *batch[T]

	goroutines sync.WaitGroup
	untaken    sync.WaitGroup // batches

	mu  sync.Mutex
	err error // the first
}

type batch[T any] struct {
	values []T
	cost   int64
	done   chan error // takes one
}

// New begins a pipeline. It has no goroutines until there is more than one batch.
// Close is to be called.
func New[T any](ctx context.Context, o Options[T]) *Pipeline[T] {
	p := &Pipeline[T]{o: o}
	p.ctx, p.cancel = context.WithCancel(ctx)
	p.now = p.fresh()
	return p
}

func (p *Pipeline[T]) fresh() *batch[T] { return &batch[T]{done: make(chan error, 1)} }

// Add adds a value. The error is one of the work on values before it, or the
// context's: there is no use in adding more.
func (p *Pipeline[T]) Add(v T) error {
	p.now.values = append(p.now.values, v)
	last := &p.now.values[len(p.now.values)-1] // not v itself, which would have to be allocated
	if p.o.Apart != nil && len(p.now.values) > p.o.Batch/4 && p.o.Apart(last) {
		v = *last
		clear(p.now.values[len(p.now.values)-1:])
		p.now.values = p.now.values[:len(p.now.values)-1]
		p.send()
		p.now.values = append(p.now.values, v)
		last = &p.now.values[0]
	}
	p.now.cost += p.o.Cost(last)
	if len(p.now.values) < p.o.Batch && p.now.cost < p.o.MaxCost {
		return nil
	}
	p.send()
	return p.failed()
}

// Drain returns when all values that were added are taken, or with the first
// error. More can be added then.
func (p *Pipeline[T]) Drain() error {
	switch {
	case len(p.now.values) == 0:
	case p.work == nil:
		p.note(p.o.Work(p.ctx, p.now.values))
		p.take(p.now)
	default:
		p.send()
	}
	p.untaken.Wait()
	return p.failed()
}

// Close ends the goroutines. What was not drained may not be taken.
func (p *Pipeline[T]) Close() {
	p.cancel()
	if p.work != nil {
		close(p.work)
		close(p.order)
	}
	p.goroutines.Wait()
	p.empty(p.now)
}

func (p *Pipeline[T]) note(err error) {
	if err == nil {
		return
	}
	p.mu.Lock()
	if p.err == nil {
		p.err = err
	}
	p.mu.Unlock()
	p.cancel()
}

func (p *Pipeline[T]) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	return p.ctx.Err()
}

// take takes the values of b, unless something has failed, and empties it.
func (p *Pipeline[T]) take(b *batch[T]) {
	for i := range b.values {
		if p.failed() == nil {
			p.o.Take(&b.values[i])
		}
	}
	p.empty(b)
}

func (p *Pipeline[T]) empty(b *batch[T]) {
	for i := range b.values {
		if p.o.Drop != nil {
			p.o.Drop(&b.values[i])
		}
	}
	clear(b.values)
	b.values, b.cost = b.values[:0], 0
}

// send gives the batch that was filled to the others, and begins another.
func (p *Pipeline[T]) send() {
	if p.work == nil {
		p.start()
	}
	p.untaken.Add(1)
	p.work <- p.now
	p.order <- p.now
	select {
	case p.now = <-p.free:
	default:
		p.now = p.fresh()
		p.now.values = make([]T, 0, p.o.Batch)
	}
}

func (p *Pipeline[T]) start() {
	// More than some workers wait for the one that takes, or for the disk.
	workers := min(runtime.GOMAXPROCS(0), 16)
	// Some batches ahead: the one that takes waits for the oldest.
	ahead := 2 * workers
	p.work, p.order = make(chan *batch[T], ahead), make(chan *batch[T], ahead)
	// All of them, with the one that is taken, those that wait on both sides of
	// order, and the one that is filled: each is made once.
	p.free = make(chan *batch[T], ahead+3)
	for range workers {
		p.goroutines.Go(func() {
			for b := range p.work {
				err := p.failed()
				if err == nil {
					err = p.o.Work(p.ctx, b.values)
				}
				b.done <- err
			}
		})
	}
	p.goroutines.Go(func() {
		for b := range p.order {
			p.note(<-b.done)
			p.take(b)
			select {
			case p.free <- b:
			default:
			}
			p.untaken.Done()
		}
	})
}
