package solver

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// flightKey finds a flight: by the step's key by content, and the one build
// that may join it, or nil for any.
type flightKey[R any] struct {
	only   *build[R]
	digest oci.Digest
}

// flight is a step being run for all who wait for it. It does not end with the
// build that began it, but when its last waiter leaves.
type flight[R any] struct {
	key    flightKey[R]
	owner  *build[R] // began it; its Worker does the work
	cancel context.CancelFunc
	// running is closed when Run is about to begin; not if that is not needed.
	running chan struct{}
	done    chan struct{}
	// recorded is closed after done, when nothing of the flight is left.
	recorded chan struct{}

	waiters int // guarded by Solver.mu

	// Set before done is closed.
	result   R
	cached   bool // somebody else had made it meanwhile
	err      error
	orphaned bool // its owner had left before it ended

	// Set before recorded is closed.
	putErr error // the result could not be recorded
}

// fly waits for the result of the step, in the flight that is under way or in a
// new one.
func (s *step[R]) fly(key Key, in []R, why string) (r R, cached bool, err error) {
	for {
		f := s.board(key, in)
		if err := s.await(f, why); err != nil {
			return r, false, err
		}
		// A result is recorded while the steps upon it run.
		s.wg.Go(func() {
			<-f.recorded
			s.warn(f.putErr)
		})
		if f.owner != s.build && (f.ownersMatter() || f.err == nil && refuse(s.worker, s.node, f.result) != nil) {
			continue
		}
		return f.result, f.cached, f.err
	}
}

// ownersMatter says that what came of f, which is done, is due to the build
// that began it: its session ended, or its files changed while they were read.
// Another build has to see for itself.
func (f *flight[R]) ownersMatter() bool {
	if f.err != nil {
		return f.orphaned || errors.Is(f.err, context.Canceled)
	}
	return isInexact(f.result)
}

// board joins the flight of key, or begins it.
func (s *step[R]) board(key Key, in []R) *flight[R] {
	fk := flightKey[R]{digest: key.Digest}
	if !s.joinable() {
		fk.only = s.build
	}
	so := s.solver
	so.mu.Lock()
	defer so.mu.Unlock()
	if f, ok := so.flights[fk]; ok {
		f.waiters++
		return f
	}
	// The context of the first waiter must not end the flight for the others.
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.ctx))
	f := &flight[R]{
		key: fk, owner: s.build, cancel: cancel, waiters: 1,
		running: make(chan struct{}), done: make(chan struct{}), recorded: make(chan struct{}),
	}
	so.flights[fk] = f
	go so.run(ctx, f, job[R]{s.node, key, in, !s.noCache()})
	return f
}

// await waits until f is done or the build is over; an error is the build's.
func (s *step[R]) await(f *flight[R], why string) error {
	running := f.running
	for {
		select {
		case <-running:
			s.running(why)
			running = nil
		case <-f.done:
			select {
			case <-running:
				s.running(why)
			default:
			}
			return nil
		case <-s.ctx.Done():
			if s.solver.leave(f) {
				// Nobody else waits for it to put down what it holds.
				<-f.recorded
			}
			return s.ctx.Err()
		}
	}
}

// leave takes one waiter off f. The last one stops it, and from then on nobody
// joins it.
func (s *Solver[R]) leave(f *flight[R]) (last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.waiters--
	if f.waiters > 0 {
		return false
	}
	s.remove(f)
	return true
}

// remove takes f off the flights, if it still is one, and ends its context.
// The caller holds s.mu.
func (s *Solver[R]) remove(f *flight[R]) {
	if s.flights[f.key] == f {
		delete(s.flights, f.key)
	}
	f.cancel()
}

// job is what a flight is to do.
type job[R any] struct {
	node *llb.Node
	key  Key
	in   []R
	look bool // in the cache, whether somebody else has done it
}

// run is a flight's goroutine. All waiters wait for it, in the end.
func (s *Solver[R]) run(ctx context.Context, f *flight[R], j job[R]) {
	defer close(f.recorded)
	unlock, err := s.lock(ctx, f, j)
	if err != nil {
		err = fmt.Errorf("lock the step: %w", err)
	} else {
		defer unlock()
	}
	s.settle(ctx, f, j, err)
	if f.err == nil && !f.cached && !isInexact(f.result) {
		runtime.Gosched() // the steps upon it go first
		// It is made, whatever becomes of the builds that wanted it.
		f.putErr = s.put(context.WithoutCancel(ctx), j.key, f.result)
	}
}

// settle has what f is to yield made, unless err, and tells the waiters.
func (s *Solver[R]) settle(ctx context.Context, f *flight[R], j job[R], err error) {
	defer close(f.done)
	defer func() {
		// To be seen now: the owner's context also ends by this failure.
		f.orphaned = f.owner.ctx.Err() != nil
		s.mu.Lock()
		defer s.mu.Unlock()
		s.remove(f) // who comes now finds the result in the cache, once it is not locked
	}()
	finished := false
	defer func() {
		if !finished {
			f.err = died(recover())
		}
	}()
	if err == nil {
		err = s.fill(ctx, f, j)
	}
	f.err = err
	finished = true
}

// fill makes f's result: look again, take a slot, run.
func (s *Solver[R]) fill(ctx context.Context, f *flight[R], j job[R]) error {
	if j.look {
		// Why it is not there has been found out before: the digest alone will do.
		if r, err := s.cache.Get(ctx, Key{Digest: j.key.Digest}); err == nil && refuse(f.owner.worker, j.node, r) == nil {
			f.result, f.cached = r, true
			return nil
		}
	}
	r, err := s.slotted(ctx, f, j)
	if err != nil {
		return err
	}
	f.result = r
	return nil
}

// put records r, which somebody uses already. A panic is an error.
func (s *Solver[R]) put(ctx context.Context, k Key, r R) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = died(p)
		}
	}()
	return s.cache.Put(ctx, k, r)
}

func (s *Solver[R]) lock(ctx context.Context, f *flight[R], j job[R]) (unlock func(), err error) {
	defer func() {
		if p := recover(); p != nil {
			err = died(p)
		}
	}()
	if w, ok := f.owner.opts.Observer.(Waiter); ok {
		t := time.AfterFunc(patience, func() { w.Waiting(j.node) })
		defer t.Stop()
	}
	return s.cache.Lock(ctx, j.key)
}

// slotted runs the step in a slot. Slots are held only while running: a step
// that waits for its inputs, or for a lock, while holding one deadlocks a deep
// graph.
func (s *Solver[R]) slotted(ctx context.Context, f *flight[R], j job[R]) (r R, err error) {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return r, ctx.Err()
	}
	defer func() { <-s.slots }()
	if ctx.Err() != nil { // the free slot may have won
		return r, ctx.Err()
	}
	if err := f.owner.ctx.Err(); err != nil {
		// Its owner is about to leave. Who else waits runs it with a Worker
		// whose build is not over.
		return r, err
	}
	close(f.running)
	return f.owner.worker.Run(ctx, j.node, j.in)
}
