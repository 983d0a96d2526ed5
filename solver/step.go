package solver

import (
	"context"
	"errors"
	"time"

	"github.com/861fb494/build/llb"
)

// step is the way of one visit from node to result. It belongs to one goroutine.
type step[R any] struct {
	*build[R]
	v       *visit[R]
	node    *llb.Node // v's
	meta    llb.Meta
	started bool // the Observer waits for Done
}

// noCache says that the step is to be run whatever the cache holds.
func (s *step[R]) noCache() bool { return s.opts.NoCache || s.meta.NoCache }

// resolve is the solver's decision: by the node's digest, else by the content
// of its inputs, else by running it.
func (s *step[R]) resolve() (R, error) {
	var zero R
	own := Key{Digest: s.node.Digest}
	var why string
	if !s.noCache() && !s.dirty[s.node.Digest] {
		r, err := s.get(own)
		if err == nil {
			s.start()
			s.end(true, nil)
			return r, nil
		}
		if s.ctx.Err() != nil {
			return zero, s.ctx.Err()
		}
		// That it is damaged, say: the next look-up may find it removed.
		why = reason(err)
	}
	in, inexact, err := s.inputs(s.node)
	if err != nil {
		return zero, err
	}
	if s.ctx.Err() != nil {
		return zero, s.ctx.Err()
	}
	s.v.inexact = inexact
	s.start()
	r, cached, err := s.byContent(in, why)
	if err != nil {
		if s.ctx.Err() != nil {
			err = s.ctx.Err() // not what it did to the step
		}
		s.end(false, err)
		return zero, err
	}
	if isInexact(r) {
		s.v.inexact = true
	}
	if !s.v.inexact {
		s.wg.Go(func() { s.warn(s.solver.put(context.WithoutCancel(s.ctx), own, r)) })
	}
	s.end(cached, nil)
	return r, nil
}

// byContent finds the result by what the inputs hold, or has it made. why is a
// reason already known for its not being cached, or empty.
func (s *step[R]) byContent(in []R, why string) (r R, cached bool, err error) {
	key, err := s.worker.Key(s.ctx, s.node, in)
	if err != nil {
		return r, false, err
	}
	if s.noCache() {
		why = "the cache is not used for this step"
	} else {
		r, err = s.get(key)
		if err == nil {
			return r, true, nil
		}
		if s.ctx.Err() != nil {
			return r, false, s.ctx.Err()
		}
		if why == "" {
			why = reason(err)
		}
	}
	return s.fly(key, in, why)
}

// get looks for k in the Solver's cache, and then in those of the build. The
// error is the former's: its reason is about this machine.
func (s *step[R]) get(k Key) (R, error) {
	r, err := s.solver.cache.Get(s.ctx, k)
	if err == nil {
		err = refuse(s.worker, s.node, r)
	}
	from, ok := s.worker.(Importer[R])
	if err == nil || !ok || s.ctx.Err() != nil {
		return r, err
	}
	found, ierr := from.Import(s.ctx, k)
	if ierr == nil {
		ierr = refuse(s.worker, s.node, found)
	}
	if ierr != nil {
		return r, err
	}
	s.warn(s.solver.cache.Put(s.ctx, k, found))
	return found, nil
}

// reason is why a Get failed, for people. Any error but the context's is a miss: a
// damaged record never fails a build.
func reason(err error) string {
	var miss *Miss
	if errors.As(err, &miss) {
		return miss.Why
	}
	return "unusable record: " + err.Error()
}

// isInexact reports whether r says so of itself.
func isInexact(r any) bool {
	x, ok := r.(Inexact)
	return ok && x.Inexact()
}

// joinable says whether other builds may wait for this step's run. One that is
// run anew on demand, or with a secret or a socket of its build's user, is
// that build's own; its finished result is recorded as any other.
func (s *step[R]) joinable() bool {
	if s.noCache() {
		return false
	}
	if e, ok := s.node.Op.(llb.Exec); ok {
		for _, m := range e.Mounts {
			if m.Type == llb.MountSecret || m.Type == llb.MountSSH {
				return false
			}
		}
	}
	return true
}

func (s *step[R]) start() {
	if s.opts.Observer != nil {
		s.opts.Observer.Started(s.node, time.Now())
	}
	s.started = true
}

func (s *step[R]) running(why string) {
	if s.opts.Observer != nil {
		s.opts.Observer.Running(s.node, why)
	}
}

func (s *step[R]) end(cached bool, err error) {
	s.started = false
	if s.opts.Observer != nil {
		s.opts.Observer.Done(s.node, cached, err, time.Now())
	}
}

// warn passes on an error that fails nothing. That the build was stopped is none.
func (s *step[R]) warn(err error) {
	if err == nil || s.ctx.Err() != nil {
		return
	}
	if w, ok := s.opts.Observer.(Warner); ok {
		w.Warn(s.node, err)
	}
}
