package solver

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// Solver evaluates graphs. One Solver is shared by all builds of a process: a
// step that several of them want at the same time runs once.
type Solver[R any] struct {
	cache Cache[R]
	slots chan struct{}

	mu      sync.Mutex
	flights map[flightKey[R]]*flight[R]
}

// Options are those of New. The zero value works.
type Options struct {
	// Slots is how many steps may Run at once; 0: four for each processor,
	// since steps sleep and wait for networks.
	Slots int
}

// New makes a Solver that finds and leaves results in cache.
func New[R any](cache Cache[R], o Options) *Solver[R] {
	if o.Slots <= 0 {
		o.Slots = 4 * runtime.GOMAXPROCS(0)
	}
	return &Solver[R]{
		cache:   cache,
		slots:   make(chan struct{}, o.Slots),
		flights: map[flightKey[R]]*flight[R]{},
	}
}

// SolveOptions are those of one Solve. The zero value works.
type SolveOptions struct {
	Observer Observer // may be nil; may be a Warner too
	// NoCache runs each step that is needed, once, and records the results.
	NoCache bool
	// KeepGoing lets steps that do not need a failed one go on.
	KeepGoing bool
}

// Warner is an Observer that also hears of what went wrong beside a step that
// succeeded: its result could not be recorded, so that it will run again. Results
// are recorded while the steps upon them run: the call may come after the step's
// Done, and comes before Solve returns.
type Warner interface {
	Warn(n *llb.Node, err error)
}

// Waiter is an Observer that also hears when a step has been waiting for a second
// for another process that has locked it, to run it most likely.
type Waiter interface {
	Waiting(n *llb.Node)
}

// patience is how long a step waits before its Waiter hears of it.
const patience = time.Second

// Inexact is implemented by results that may be other than their node's digest
// says: a file of the context changed between pinning and copying. Such a
// result serves its own Solve and is not recorded. A step upon it is recorded
// under its key by content, which tells the truth, and not under its node's
// digest.
type Inexact interface {
	Inexact() bool
}

// Solve returns the results of g.Targets, in their order.
//
// The first step that fails stops the others, and its *StepError is the error
// returned. With KeepGoing, all that do not need it go on; the error then joins
// those of all steps that failed, the first one first, and the results of
// targets that were reached are returned with it. When ctx ends, Solve returns
// its error.
//
// Solve returns when nothing of it runs any more, except steps that other
// Solves wait for: see Worker. All results that it has had made are recorded
// then, those of a Solve that failed too.
func (s *Solver[R]) Solve(ctx context.Context, g llb.Graph, w Worker[R], o SolveOptions) ([]R, error) {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	b := &build[R]{
		solver: s, ctx: inner, cancel: cancel, worker: w, opts: o, meta: g.Meta,
		dirty: Dirty(g), visits: map[oci.Digest]*visit[R]{},
	}
	targets := make([]*visit[R], len(g.Targets))
	for i, n := range g.Targets {
		targets[i] = b.demand(n)
	}
	b.wg.Wait()
	results := make([]R, len(targets))
	all := true
	for i, v := range targets {
		results[i] = v.result
		all = all && v.ok
	}
	switch {
	case all:
		return results, nil
	case len(b.failures) == 0:
		return nil, ctx.Err()
	case o.KeepGoing:
		return results, errors.Join(b.failures...)
	}
	return nil, b.failures[0]
}

// Dirty are the nodes that must not be taken from the cache by their own digest,
// because something below them is run anew, or may be once its result has expired:
// they ask by the content of what that yields. A nil map says that there are none.
// (Nodes which themselves are not to be taken from the cache are not looked up at
// all.)
func Dirty(g llb.Graph) map[oci.Digest]bool {
	var d map[oci.Digest]bool
	g.Walk(func(n *llb.Node) {
		for _, in := range n.Inputs {
			e, _ := in.Op.(llb.Exec)
			if d[in.Digest] || g.Meta[in.Digest].NoCache || e.TTL > 0 {
				if d == nil {
					d = map[oci.Digest]bool{}
				}
				d[n.Digest] = true
			}
		}
	})
	return d
}

// build is one Solve. Its visits are its memo: each node is evaluated once,
// whatever the cache does.
type build[R any] struct {
	solver *Solver[R]
	ctx    context.Context // ends with the first failure
	cancel context.CancelFunc
	worker Worker[R]
	opts   SolveOptions
	meta   map[oci.Digest]llb.Meta
	dirty  map[oci.Digest]bool
	wg     sync.WaitGroup

	mu       sync.Mutex
	visits   map[oci.Digest]*visit[R]
	failures []error // *StepError, in the order in which they came
}

// visit is the evaluation of a node. What follows done is set before it is closed.
type visit[R any] struct {
	node *llb.Node
	done chan struct{}

	ok      bool // there is a result
	result  R
	inexact bool // the node's digest does not tell what the result was made of
}

// demand begins n's visit if this is the first that wants it.
func (b *build[R]) demand(n *llb.Node) *visit[R] {
	b.mu.Lock()
	defer b.mu.Unlock()
	v, ok := b.visits[n.Digest]
	if !ok {
		v = &visit[R]{node: n, done: make(chan struct{})}
		b.visits[n.Digest] = v
		b.wg.Go(func() {
			defer close(v.done)
			b.visit(v)
		})
	}
	return v
}

// visit finds or makes v's result, and records what became of it.
func (b *build[R]) visit(v *visit[R]) {
	st := &step[R]{build: b, v: v, node: v.node, meta: b.meta[v.node.Digest]}
	finished := false
	var err error
	defer func() {
		if !finished {
			err = died(recover())
			if st.started {
				st.end(false, err)
			}
		}
		if err != nil && !errors.Is(err, errInput) {
			b.fail(v.node, st.meta, err)
		}
	}()
	v.result, err = st.resolve()
	v.ok = err == nil
	finished = true
}

// died is the error of a step whose goroutine ended by a panic with the value
// p, or, where that is nil, by runtime.Goexit. The other builds of the process
// are not to die of it, and those who wait must hear of it.
func died(p any) error {
	if p == nil {
		return errors.New("the step's goroutine exited")
	}
	return fmt.Errorf("panic: %v\n%s", p, debug.Stack())
}

// errInput is the error of a step which was not reached, as one that it needs
// failed. It never leaves the package.
var errInput = errors.New("an input failed")

// fail notes the failure of a step. What fails because the Solve is over says
// nothing about the step and is not noted.
func (b *build[R]) fail(n *llb.Node, m llb.Meta, err error) {
	if m.Name == "" {
		m.Name = strings.TrimPrefix(fmt.Sprintf("%T", n.Op), "llb.")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() != nil {
		return
	}
	b.failures = append(b.failures, &StepError{Node: n, Meta: m, Err: err})
	if !b.opts.KeepGoing {
		b.cancel()
	}
}

// inputs are the results of n's inputs, evaluated concurrently, and whether one
// of them is inexact.
func (b *build[R]) inputs(n *llb.Node) (in []R, inexact bool, err error) {
	visits := make([]*visit[R], len(n.Inputs))
	for i, input := range n.Inputs {
		visits[i] = b.demand(input)
	}
	in = make([]R, len(visits))
	for i, v := range visits {
		<-v.done
		if !v.ok {
			// Not waiting for the rest is safe: Solve does.
			return nil, false, errInput
		}
		in[i] = v.result
		inexact = inexact || v.inexact
	}
	return in, inexact, nil
}
