package builder

import (
	"sync"
	"time"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
)

// observer tells the user's display what the solver does.
type observer struct {
	graph   llb.Graph
	sink    progress.Sink
	noCache bool // why a step runs goes without saying

	mu    sync.Mutex
	seen  map[oci.Digest]time.Time // when it began
	why   map[oci.Digest]string
	ran   int // steps that were not cached
	steps []PlanStep
}

func newObserver(g llb.Graph, sink progress.Sink, noCache bool) *observer {
	return &observer{graph: g, sink: sink, noCache: noCache, seen: map[oci.Digest]time.Time{}, why: map[oci.Digest]string{}}
}

// Started implements solver.Observer.
func (o *observer) Started(n *llb.Node, at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	// A step that is found by its own digest needs no inputs, so nobody has
	// heard of them; to the user they are cached like itself.
	for _, in := range n.Inputs {
		o.cached(in, at)
	}
	o.announce(n, at)
}

func (o *observer) cached(n *llb.Node, at time.Time) {
	if _, ok := o.seen[n.Digest]; ok {
		return
	}
	for _, in := range n.Inputs {
		o.cached(in, at)
	}
	o.announce(n, at)
	o.note(n, StepCached, "", at)
	o.sink.Emit(progress.Done{Step: n.Digest, Cached: true, Time: at})
}

// note adds the step to what is told of the build afterwards.
func (o *observer) note(n *llb.Node, status, why string, at time.Time) {
	m := o.graph.Meta[n.Digest]
	if _, ok := n.Op.(llb.Source); ok || m.Internal || m.Name == "" {
		return
	}
	s := PlanStep{Name: m.Name, Stage: m.Stage, Platform: m.Platform, Status: status, Why: why}
	if len(m.Positions) > 0 {
		s.Position = m.Positions[0].String()
	}
	if status != StepCached {
		s.Seconds = at.Sub(o.seen[n.Digest]).Seconds()
	}
	o.steps = append(o.steps, s)
}

func (o *observer) announce(n *llb.Node, at time.Time) {
	if _, ok := o.seen[n.Digest]; ok {
		return
	}
	o.seen[n.Digest] = at
	m := o.graph.Meta[n.Digest]
	e := progress.Started{Step: n.Digest, Name: m.Name, Internal: m.Internal || m.Name == "", Time: at}
	if len(o.graph.Targets) > 1 {
		e.Platform = m.Platform
	}
	if len(m.Positions) > 0 {
		e.Position = m.Positions[0].String()
	}
	for _, in := range n.Inputs {
		e.Inputs = append(e.Inputs, in.Digest)
	}
	o.sink.Emit(e)
}

// Running implements solver.Observer.
func (o *observer) Running(n *llb.Node, why string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := n.Op.(llb.Source); ok {
		return
	}
	o.ran++
	o.why[n.Digest] = why
	if why != "" && !o.noCache {
		o.sink.Emit(progress.Missed{Step: n.Digest, Why: why, Time: time.Now()})
	}
}

// hasRun reports whether the step n was not cached. It is not to be called while
// steps run.
func (o *observer) hasRun(n *llb.Node) bool {
	_, ran := o.why[n.Digest]
	return ran
}

// Done implements solver.Observer.
func (o *observer) Done(n *llb.Node, cached bool, err error, at time.Time) {
	o.mu.Lock()
	switch {
	case cached:
		o.note(n, StepCached, "", at)
	case err != nil:
		o.note(n, StepFailed, err.Error(), at)
	default:
		o.note(n, StepRuns, o.why[n.Digest], at)
	}
	o.mu.Unlock()
	o.sink.Emit(progress.Done{Step: n.Digest, Cached: cached, Err: shown(err), Time: at})
}

// Waiting implements solver.Waiter.
func (o *observer) Waiting(n *llb.Node) {
	o.sink.Emit(progress.Log{Step: n.Digest, Stream: 2, Data: []byte("waiting for another build that runs this step\n"), Time: time.Now()})
}

// Warn implements solver.Warner.
func (o *observer) Warn(n *llb.Node, err error) {
	o.sink.Emit(progress.Warning{Message: o.graph.Meta[n.Digest].Name + ": " + err.Error(), Detail: "the result is used, but will not be found by the next build"})
}

// internalStep runs f as a step that the display shows: f's error ends it.
func internalStep(sink progress.Sink, id, name string, f func(progress.Step) error) error {
	step := progress.Step(id)
	sink.Emit(progress.Started{Step: step, Name: name, Time: time.Now()})
	err := f(step)
	sink.Emit(progress.Done{Step: step, Err: shown(err), Time: time.Now()})
	return err
}
