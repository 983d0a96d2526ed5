package solver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// run is a step named name. Its result is "name(input,input)" unless the
// worker says otherwise.
func run(name string, inputs ...*llb.Node) *llb.Node {
	return llb.New(llb.Exec{Args: []string{name}}, inputs...)
}

func source(name string) *llb.Node {
	return llb.New(llb.Source{Scheme: llb.Local, Ref: name, Digest: oci.Digest("sha256:" + name)})
}

func name(n *llb.Node) string {
	switch op := n.Op.(type) {
	case llb.Exec:
		return op.Args[0]
	case llb.Source:
		return op.Ref
	}
	return "merge"
}

func graph(targets ...*llb.Node) llb.Graph { return llb.Graph{Targets: targets} }

// chain is n steps, one upon another.
func chain(n int) *llb.Node {
	node := source("base")
	for i := range n {
		node = run(fmt.Sprint("s", i), node)
	}
	return node
}

// store is a Cache in memory, with real locks. Several Solvers may share one.
type store struct {
	mu      sync.Mutex
	records map[oci.Digest]string
	gets    map[oci.Digest]int
	puts    map[oci.Digest]int
	locks   map[oci.Digest]chan struct{}
	held    map[oci.Digest]bool

	getErr error // of any Get, where set
	putErr error
	putFor time.Duration // what a Put takes
}

func newStore() *store {
	return &store{
		records: map[oci.Digest]string{}, gets: map[oci.Digest]int{}, puts: map[oci.Digest]int{},
		locks: map[oci.Digest]chan struct{}{}, held: map[oci.Digest]bool{},
	}
}

func (s *store) Get(ctx context.Context, k Key) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets[k.Digest]++
	if s.getErr != nil {
		return "", s.getErr
	}
	if r, ok := s.records[k.Digest]; ok {
		return r, nil
	}
	if k.Place == "" {
		return "", &Miss{}
	}
	return "", &Miss{Why: "never built here"}
}

func (s *store) Put(ctx context.Context, k Key, r string) error {
	select {
	case <-time.After(s.putFor):
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.puts[k.Digest]++
	if s.putErr != nil {
		return s.putErr
	}
	s.records[k.Digest] = r
	return nil
}

func (s *store) Lock(ctx context.Context, k Key) (func(), error) {
	s.mu.Lock()
	l, ok := s.locks[k.Digest]
	if !ok {
		l = make(chan struct{}, 1)
		s.locks[k.Digest] = l
	}
	s.mu.Unlock()
	select {
	case l <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.hold(k.Digest, true)
	return func() { s.hold(k.Digest, false); <-l }, nil
}

func (s *store) hold(d oci.Digest, held bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[d] = held
}

func (s *store) isHeld(d oci.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[d]
}

// worker counts what it is asked to do.
type worker struct {
	mu      sync.Mutex
	runs    map[string]int
	keys    map[string]int
	running int
	most    int // steps running at once, at the most

	do      func(ctx context.Context, n *llb.Node) error // instead of nothing
	content map[string]string                            // results that are not made of the inputs
}

func newWorker() *worker {
	return &worker{runs: map[string]int{}, keys: map[string]int{}, content: map[string]string{}}
}

func contentKey(n *llb.Node, in []string) Key {
	s := name(n)
	if _, ok := n.Op.(llb.Source); ok {
		s = string(n.Digest)
	}
	return Key{Digest: oci.Digest("key:" + s + "(" + strings.Join(in, ",") + ")"), Place: s}
}

func (w *worker) Key(ctx context.Context, n *llb.Node, in []string) (Key, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keys[name(n)]++
	return contentKey(n, in), nil
}

func (w *worker) Run(ctx context.Context, n *llb.Node, in []string) (string, error) {
	w.mu.Lock()
	w.runs[name(n)]++
	w.running++
	w.most = max(w.most, w.running)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.running--
	}()
	if w.do != nil {
		if err := w.do(ctx, n); err != nil {
			return "", err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if c, ok := w.content[name(n)]; ok {
		return c, nil
	}
	return value(name(n), in), nil
}

func value(name string, in []string) string { return name + "(" + strings.Join(in, ",") + ")" }

func (w *worker) ran() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.runs)
}

// diary is an Observer that writes down its calls.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) add(format string, a ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, a...))
}

func (d *diary) Started(n *llb.Node, _ time.Time) { d.add("%s started", name(n)) }
func (d *diary) Running(n *llb.Node, why string)  { d.add("%s runs: %s", name(n), why) }
func (d *diary) Warn(n *llb.Node, err error)      { d.add("%s warning: %v", name(n), err) }
func (d *diary) Done(n *llb.Node, cached bool, err error, _ time.Time) {
	switch {
	case err != nil:
		d.add("%s failed: %v", name(n), err)
	case cached:
		d.add("%s cached", name(n))
	default:
		d.add("%s done", name(n))
	}
}

// of is what d holds about one step.
func (d *diary) of(step string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var own []string
	for _, l := range d.lines {
		if rest, ok := strings.CutPrefix(l, step+" "); ok {
			own = append(own, rest)
		}
	}
	return strings.Join(own, "; ")
}

// newSolver makes a Solver that must have nothing in flight when the test ends.
func newSolver(t *testing.T, c Cache[string], slots int) *Solver[string] {
	t.Helper()
	s := New(c, Options{Slots: slots})
	t.Cleanup(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.flights) != 0 || len(s.slots) != 0 {
			t.Errorf("%d flights and %d slots are left", len(s.flights), len(s.slots))
		}
	})
	return s
}

func mustSolve(t *testing.T, s *Solver[string], g llb.Graph, w Worker[string], o SolveOptions) []string {
	t.Helper()
	r, err := s.Solve(t.Context(), g, w, o)
	if err != nil {
		t.Fatalf("Solve: %v", err)
	}
	return r
}

func checkRuns(t *testing.T, w *worker, want map[string]int) {
	t.Helper()
	if got := w.ran(); !maps.Equal(got, want) {
		t.Errorf("runs = %v, want %v", got, want)
	}
}

var errBroken = errors.New("broken")
