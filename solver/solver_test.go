package solver

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

func TestDiamondRunsOnce(t *testing.T) {
	base := source("base")
	a, b := run("a", base), run("b", base)
	top := run("top", a, b)
	for _, o := range []SolveOptions{{}, {NoCache: true}} {
		w := newWorker()
		got := mustSolve(t, newSolver(t, newStore(), 0), graph(top, a, top), w, o)
		want := []string{"top(a(base()),b(base()))", "a(base())", "top(a(base()),b(base()))"}
		if !slices.Equal(got, want) {
			t.Errorf("Solve with %+v = %q, want %q", o, got, want)
		}
		checkRuns(t, w, map[string]int{"base": 1, "a": 1, "b": 1, "top": 1})
	}
}

func TestNoTargets(t *testing.T) {
	if got := mustSolve(t, newSolver(t, newStore(), 0), graph(), newWorker(), SolveOptions{}); len(got) != 0 {
		t.Errorf("Solve of nothing = %q", got)
	}
}

func TestHitNeedsNoInputs(t *testing.T) {
	c := newStore()
	s := newSolver(t, c, 0)
	base := source("base")
	top := run("top", run("mid", base))
	mustSolve(t, s, graph(top), newWorker(), SolveOptions{})
	before := c.gets[base.Digest]

	w, d := newWorker(), &diary{}
	mustSolve(t, s, graph(top), w, SolveOptions{Observer: d})
	checkRuns(t, w, map[string]int{})
	if len(w.keys) != 0 || c.gets[base.Digest] != before {
		t.Errorf("a hit asked for keys %v and looked up its input %d times", w.keys, c.gets[base.Digest]-before)
	}
	if got, want := strings.Join(d.lines, "; "), "top started; top cached"; got != want {
		t.Errorf("observed %q, want %q", got, want)
	}
}

func TestEarlyCutOff(t *testing.T) {
	c := newStore()
	s := newSolver(t, c, 0)
	w := newWorker()
	w.content["gen"] = "same"
	mustSolve(t, s, graph(run("top", run("gen", source("v1")))), w, SolveOptions{})

	w, d := newWorker(), &diary{}
	w.content["gen"] = "same"
	top := run("top", run("gen", source("v2")))
	got := mustSolve(t, s, graph(top), w, SolveOptions{Observer: d})
	if got[0] != "top(same)" {
		t.Errorf("Solve = %q", got)
	}
	checkRuns(t, w, map[string]int{"v2": 1, "gen": 1})
	if got, want := d.of("top"), "started; cached"; got != want {
		t.Errorf("observed of top %q, want %q", got, want)
	}
	// A hit by content is recorded under the node's own digest too.
	w = newWorker()
	mustSolve(t, s, graph(top), w, SolveOptions{})
	if len(w.keys) != 0 {
		t.Errorf("third solve asked for keys of %v, want none", w.keys)
	}
}

func TestDeepAndWide(t *testing.T) {
	t.Run("500 deep, one slot", func(t *testing.T) {
		w := newWorker()
		mustSolve(t, newSolver(t, newStore(), 1), graph(chain(500)), w, SolveOptions{})
		if len(w.runs) != 501 || w.most != 1 {
			t.Errorf("%d steps ran, %d at once; want 501, 1", len(w.runs), w.most)
		}
	})
	t.Run("10000 deep", func(t *testing.T) {
		w := newWorker()
		for i := range 10000 { // results that do not grow with depth
			w.content[fmt.Sprint("s", i)] = "short"
		}
		began := time.Now()
		mustSolve(t, newSolver(t, newStore(), 2), graph(chain(10000)), w, SolveOptions{})
		if d := time.Since(began); d > 20*time.Second { // what grows with the square takes minutes
			t.Errorf("took %v", d)
		}
		if len(w.runs) != 10001 {
			t.Errorf("%d steps ran, want 10001", len(w.runs))
		}
	})
	t.Run("1000 wide", func(t *testing.T) {
		var in []*llb.Node
		for i := range 1000 {
			in = append(in, run(fmt.Sprint("w", i), source("base")))
		}
		w := newWorker()
		w.do = func(context.Context, *llb.Node) error { runtime.Gosched(); return nil }
		mustSolve(t, newSolver(t, newStore(), 7), graph(run("top", in...)), w, SolveOptions{})
		if len(w.runs) != 1002 || w.most > 7 {
			t.Errorf("%d steps ran, %d at once; want 1002, at most 7", len(w.runs), w.most)
		}
	})
}

// What builds on a result that expires is not looked up by its own digest, which
// would hide that the result has expired.
func TestExpiry(t *testing.T) {
	brief := llb.New(llb.Exec{Args: []string{"brief"}, TTL: 60}, source("base"))
	above := run("above", brief)
	g := graph(run("top", above, run("other", source("base"))))
	for _, tt := range []struct {
		name    string
		content string // what brief yields the second time; empty: the same
		want    map[string]int
	}{
		{"same content", "", map[string]int{"brief": 1}},
		{"other content", "new", map[string]int{"brief": 1, "above": 1, "top": 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st := newStore()
			s := newSolver(t, st, 0)
			mustSolve(t, s, g, newWorker(), SolveOptions{})
			w := newWorker()
			mustSolve(t, s, g, w, SolveOptions{})
			checkRuns(t, w, map[string]int{})

			maps.DeleteFunc(st.records, func(_ oci.Digest, r string) bool { return strings.HasPrefix(r, "brief(") })
			if tt.content != "" {
				w.content["brief"] = tt.content
			}
			mustSolve(t, s, g, w, SolveOptions{})
			checkRuns(t, w, tt.want)
		})
	}
}

func TestNoCache(t *testing.T) {
	base := source("base")
	a := run("a", base)
	b := run("b", a)
	c := run("c", b)
	other := run("other", base)
	g := graph(run("top", c, other))
	names := []string{"base", "a", "b", "c", "other", "top"}
	marked := g
	marked.Meta = map[oci.Digest]llb.Meta{b.Digest: {NoCache: true}}
	tests := []struct {
		name    string
		g       llb.Graph
		o       SolveOptions
		b       string // what b yields the second time; empty: the same
		want    []string
		lookups []string // nodes looked up by their own digest
	}{
		{"cached", g, SolveOptions{}, "", nil, []string{"top"}},
		{"whole solve", g, SolveOptions{NoCache: true}, "", names, nil},
		{"one node, same content", marked, SolveOptions{}, "", []string{"b"}, []string{"a", "other"}},
		{"one node, other content", marked, SolveOptions{}, "new", []string{"b", "c", "top"}, []string{"a", "other"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st := newStore()
			s := newSolver(t, st, 0)
			mustSolve(t, s, g, newWorker(), SolveOptions{})
			st.gets = map[oci.Digest]int{}
			st.puts = map[oci.Digest]int{}

			w := newWorker()
			if tt.b != "" {
				w.content["b"] = tt.b
			}
			got := mustSolve(t, s, tt.g, w, tt.o)
			want := map[string]int{}
			for _, n := range tt.want {
				want[n] = 1
			}
			checkRuns(t, w, want)
			var lookups []string
			tt.g.Walk(func(n *llb.Node) {
				if st.gets[n.Digest] > 0 {
					lookups = append(lookups, name(n))
				}
				if want[name(n)] > 0 && st.puts[n.Digest] != 1 {
					t.Errorf("%s was recorded %d times under its own digest, want once", name(n), st.puts[n.Digest])
				}
			})
			slices.Sort(lookups)
			if !slices.Equal(lookups, tt.lookups) {
				t.Errorf("looked up by own digest: %q, want %q", lookups, tt.lookups)
			}
			// The next build finds what this one left.
			w = newWorker()
			again := mustSolve(t, s, g, w, SolveOptions{})
			checkRuns(t, w, map[string]int{})
			if !slices.Equal(again, got) {
				t.Errorf("next Solve = %q, want %q", again, got)
			}
		})
	}
}

func TestFailureNamesTheLine(t *testing.T) {
	base := source("base")
	bad := run("bad", base)
	top := run("top", bad)
	for _, keepGoing := range []bool{false, true} {
		g := graph(top)
		g.Meta = map[oci.Digest]llb.Meta{bad.Digest: {
			Name:      "[2/3] RUN bad",
			Positions: []llb.Position{{File: "Dockerfile", Line: 7, Until: 8}},
		}}
		w, d := newWorker(), &diary{}
		w.do = func(_ context.Context, n *llb.Node) error {
			if n == bad {
				return errBroken
			}
			return nil
		}
		_, err := newSolver(t, newStore(), 0).Solve(t.Context(), g, w, SolveOptions{Observer: d, KeepGoing: keepGoing})
		var se *StepError
		if !errors.As(err, &se) || se.Node != bad || !errors.Is(err, errBroken) {
			t.Fatalf("Solve: %v, want a StepError of bad", err)
		}
		if got, want := err.Error(), "Dockerfile:7: [2/3] RUN bad: broken"; got != want {
			t.Errorf("error %q, want %q", got, want)
		}
		if got, want := d.of("bad"), "started; runs: never built here; failed: broken"; got != want {
			t.Errorf("observed of bad %q, want %q", got, want)
		}
		if got := d.of("top"); got != "" {
			t.Errorf("observed of top %q, want nothing", got)
		}
	}
}

func TestKeepGoing(t *testing.T) {
	bad, worse := run("bad"), run("worse")
	good := run("good", run("below"))
	g := graph(run("upon", bad, good), good, worse)
	w := newWorker()
	w.do = func(_ context.Context, n *llb.Node) error {
		if n == bad || n == worse {
			return errBroken
		}
		return nil
	}
	got, err := newSolver(t, newStore(), 1).Solve(t.Context(), g, w, SolveOptions{KeepGoing: true})
	if want := []string{"", "good(below())", ""}; !slices.Equal(got, want) {
		t.Errorf("Solve = %q, want %q", got, want)
	}
	if err == nil || strings.Count(err.Error(), "broken") != 2 {
		t.Errorf("error %v, want two failures", err)
	}
	checkRuns(t, w, map[string]int{"bad": 1, "worse": 1, "below": 1, "good": 1})
}

// keyErr is a worker whose keys fail.
type keyErr struct{ *worker }

func (keyErr) Key(context.Context, *llb.Node, []string) (Key, error) { return Key{}, errBroken }

func TestKeyFails(t *testing.T) {
	d := &diary{}
	_, err := newSolver(t, newStore(), 0).Solve(t.Context(), graph(run("a")), keyErr{newWorker()}, SolveOptions{Observer: d})
	if got, want := fmt.Sprint(err), "Exec: broken"; got != want {
		t.Errorf("error %q, want %q", got, want)
	}
	if got, want := d.of("a"), "started; failed: broken"; got != want {
		t.Errorf("observed %q, want %q", got, want)
	}
}

func TestBrokenCache(t *testing.T) {
	tests := []struct {
		name string
		st   func(*store)
		want string
	}{
		{"damaged records", func(s *store) { s.getErr = errors.New("bad checksum") },
			"started; runs: unusable record: bad checksum; done"},
		{"full disk", func(s *store) { s.putErr = errors.New("no space left") },
			"started; runs: never built here; done; warning: no space left; warning: no space left"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st, d := newStore(), &diary{}
			tt.st(st)
			got := mustSolve(t, newSolver(t, st, 0), graph(run("a")), newWorker(), SolveOptions{Observer: d})
			// Warnings may come before Done.
			heard := strings.Split(d.of("a"), "; ")
			slices.SortStableFunc(heard, func(a, b string) int {
				return cmp.Compare(strings.Index(a, "warning"), strings.Index(b, "warning"))
			})
			if got[0] != "a()" || strings.Join(heard, "; ") != tt.want {
				t.Errorf("Solve = %q, observed %q; want a() and %q", got, heard, tt.want)
			}
		})
	}
}

func TestWorkerPanics(t *testing.T) {
	tests := []struct {
		name string
		do   func()
		want string
	}{
		{"panic", func() { panic("out of cheese") }, "panic: out of cheese"},
		{"exit of the goroutine", runtime.Goexit, "the step's goroutine exited"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSolver(t, newStore(), 1)
			w, d := newWorker(), &diary{}
			w.do = func(context.Context, *llb.Node) error { tt.do(); return nil }
			_, err := s.Solve(t.Context(), graph(run("top", run("a"))), w, SolveOptions{Observer: d})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
			if !strings.HasPrefix(d.of("a"), "started; runs: never built here; failed: "+tt.want) {
				t.Errorf("observed %q", d.of("a"))
			}
			mustSolve(t, s, graph(run("top", run("a"))), newWorker(), SolveOptions{}) // lock and slot are free
		})
	}
}

// keyPanic is a worker whose keys panic.
type keyPanic struct{ *worker }

func (keyPanic) Key(context.Context, *llb.Node, []string) (Key, error) { panic("out of keys") }

func TestKeyPanics(t *testing.T) {
	d := &diary{}
	_, err := newSolver(t, newStore(), 0).Solve(t.Context(), graph(run("top", run("a"))), keyPanic{newWorker()}, SolveOptions{Observer: d})
	if err == nil || !strings.Contains(err.Error(), "panic: out of keys") {
		t.Errorf("error %v, want the panic", err)
	}
	if !strings.HasPrefix(d.of("a"), "started; failed: panic") || d.of("top") != "" {
		t.Errorf("observed of a %q, of top %q", d.of("a"), d.of("top"))
	}
}

func TestLockIsHeldAroundRunOnly(t *testing.T) {
	synctest.Test(t, lockIsHeldAroundRunOnly)
}

func lockIsHeldAroundRunOnly(t *testing.T) {
	st := newStore()
	a := run("a", source("base"))
	g := graph(run("b", a))
	keys := map[string]Key{
		"base": contentKey(source("base"), nil),
		"a":    contentKey(a, []string{"base()"}),
		"b":    contentKey(g.Targets[0], []string{"a(base())"}),
	}
	w := newWorker()
	w.do = func(_ context.Context, n *llb.Node) error {
		time.Sleep(time.Second) // what the step is upon is recorded meanwhile
		for step, k := range keys {
			if got, want := st.isHeld(k.Digest), step == name(n); got != want {
				t.Errorf("while %s runs, the lock of %s is held: %v, want %v", name(n), step, got, want)
			}
		}
		return nil
	}
	for _, o := range []SolveOptions{{}, {NoCache: true}} {
		mustSolve(t, newSolver(t, st, 0), g, w, o)
	}
	checkRuns(t, w, map[string]int{"base": 2, "a": 2, "b": 2})
}

func TestTwoProcessesRunOnce(t *testing.T) {
	st := newStore()
	w := newWorker()
	w.do = func(context.Context, *llb.Node) error { time.Sleep(time.Millisecond); return nil }
	g := graph(chain(20))
	var wg sync.WaitGroup
	results := make([]string, 4)
	for i := range results {
		s := newSolver(t, st, 2)
		wg.Go(func() {
			r, err := s.Solve(t.Context(), g, w, SolveOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			results[i] = r[0]
		})
	}
	wg.Wait()
	for step, n := range w.ran() {
		if n != 1 {
			t.Errorf("%s ran %d times", step, n)
		}
	}
	for _, r := range results {
		if r != results[0] {
			t.Errorf("results differ: %q and %q", r, results[0])
		}
	}
}

// torn is a result that may be inexact.
type torn string

func (r torn) Inexact() bool { return strings.HasPrefix(string(r), "torn") }

type tornCache struct{ *store }

func (c tornCache) Get(ctx context.Context, k Key) (torn, error) {
	r, err := c.store.Get(ctx, k)
	return torn(r), err
}
func (c tornCache) Put(ctx context.Context, k Key, r torn) error {
	return c.store.Put(ctx, k, string(r))
}

type tornWorker struct{}

func (tornWorker) Key(_ context.Context, n *llb.Node, in []torn) (Key, error) {
	return contentKey(n, []string{fmt.Sprint(in)}), nil
}
func (tornWorker) Run(_ context.Context, n *llb.Node, in []torn) (torn, error) {
	if name(n) == "copy" {
		return "torn", nil
	}
	return torn(name(n)), nil
}

func TestInexactResultsAreNotRecordedUnderThePin(t *testing.T) {
	st := newStore()
	cp := run("copy", source("base"))
	mid := run("mid", cp)
	top := run("top", mid)
	s := New[torn](tornCache{st}, Options{})
	if _, err := s.Solve(t.Context(), graph(top), tornWorker{}, SolveOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*llb.Node{cp, mid, top} {
		if r, ok := st.records[n.Digest]; ok {
			t.Errorf("%s is recorded under its own digest as %q", name(n), r)
		}
	}
	want := []oci.Digest{"key:mid([torn])", "key:top([mid])"}
	for _, k := range want {
		if _, ok := st.records[k]; !ok {
			t.Errorf("nothing is recorded under %s", k)
		}
	}
	if r, ok := st.records["key:copy([base])"]; ok {
		t.Errorf("the inexact result %q is recorded", r)
	}
}

// TestRandomGraphs compares with an evaluator that knows neither cache nor
// concurrency, over builds in which sources change.
func TestRandomGraphs(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		st := newStore()
		s := newSolver(t, st, 1+rnd.IntN(4))
		for range 5 {
			g := randomGraph(rnd)
			var want []string
			memo := map[oci.Digest]string{}
			for _, n := range g.Targets {
				want = append(want, naive(n, memo))
			}
			w := newWorker()
			got, err := s.Solve(t.Context(), g, squash{w}, SolveOptions{NoCache: rnd.IntN(5) == 0})
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("seed %d: Solve = %q, %v, want %q", seed, got, err, want)
			}
			for step, n := range w.ran() {
				if n > 1 && !strings.HasPrefix(step, "same") {
					t.Errorf("seed %d: %s ran %d times", seed, step, n)
				}
			}
		}
	}
}

// squash is a worker whose steps named "same…" yield the same for any input.
type squash struct{ *worker }

func (w squash) Run(ctx context.Context, n *llb.Node, in []string) (string, error) {
	if _, err := w.worker.Run(ctx, n, in); err != nil {
		return "", err
	}
	return squashed(n, in), nil
}

func squashed(n *llb.Node, in []string) string {
	if strings.HasPrefix(name(n), "same") {
		return "same"
	}
	if len(in) == 0 {
		return string(n.Digest)
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(value(name(n), in))))
}

func naive(n *llb.Node, memo map[oci.Digest]string) string {
	if r, ok := memo[n.Digest]; ok {
		return r
	}
	var in []string
	for _, i := range n.Inputs {
		in = append(in, naive(i, memo))
	}
	memo[n.Digest] = squashed(n, in)
	return memo[n.Digest]
}

func randomGraph(rnd *rand.Rand) llb.Graph {
	g := llb.Graph{Meta: map[oci.Digest]llb.Meta{}}
	var nodes []*llb.Node
	for i := range 2 + rnd.IntN(3) {
		nodes = append(nodes, source(fmt.Sprint("src", i, "v", rnd.IntN(2))))
	}
	for i := range 1 + rnd.IntN(30) {
		kind := "step"
		if rnd.IntN(4) == 0 {
			kind = "same"
		}
		var in []*llb.Node
		for range rnd.IntN(4) {
			in = append(in, nodes[rnd.IntN(len(nodes))])
		}
		n := run(fmt.Sprint(kind, i), in...)
		nodes = append(nodes, n)
		if rnd.IntN(8) == 0 {
			g.Meta[n.Digest] = llb.Meta{NoCache: true}
		}
	}
	for range 1 + rnd.IntN(3) {
		g.Targets = append(g.Targets, nodes[rnd.IntN(len(nodes))])
	}
	return g
}

// importing is a worker with results from elsewhere.
type importing struct {
	*worker
	have map[oci.Digest]string
	mu   sync.Mutex
	asks []string
}

func (w *importing) Import(_ context.Context, k Key) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asks = append(w.asks, string(k.Digest))
	if r, ok := w.have[k.Digest]; ok {
		return r, nil
	}
	return "", errBroken
}

func TestImport(t *testing.T) {
	base := source("base")
	mid := run("mid", base)
	top := run("top", mid)
	for _, tt := range []struct {
		name string
		have map[oci.Digest]string
		o    SolveOptions
		runs map[string]int
		want string
	}{
		{"by the node's own digest", map[oci.Digest]string{top.Digest: "far"}, SolveOptions{}, map[string]int{}, "far"},
		{"by content", map[oci.Digest]string{contentKey(mid, []string{"base()"}).Digest: "far"}, SolveOptions{}, map[string]int{"base": 1, "top": 1}, "top(far)"},
		{"nothing", nil, SolveOptions{}, map[string]int{"base": 1, "mid": 1, "top": 1}, "top(mid(base()))"},
		{"without the cache", map[oci.Digest]string{top.Digest: "far"}, SolveOptions{NoCache: true}, map[string]int{"base": 1, "mid": 1, "top": 1}, "top(mid(base()))"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newStore()
			s := newSolver(t, c, 0)
			w := &importing{worker: newWorker(), have: tt.have}
			if got := mustSolve(t, s, graph(top), w, tt.o); got[0] != tt.want {
				t.Errorf("Solve = %q, want %q", got[0], tt.want)
			}
			checkRuns(t, w.worker, tt.runs)
			if tt.o.NoCache && len(w.asks) > 0 {
				t.Errorf("asked for %q though the cache is not to be used", w.asks)
			}
			// What was imported is here now: another build asks nobody.
			later := &importing{worker: newWorker()}
			if got := mustSolve(t, s, graph(top), later, SolveOptions{}); got[0] != tt.want {
				t.Errorf("second Solve = %q, want %q", got[0], tt.want)
			}
			checkRuns(t, later.worker, map[string]int{})
			if len(later.asks) > 0 {
				t.Errorf("second Solve asked for %q", later.asks)
			}
		})
	}
}

// choosy is a worker that has no use for some results.
type choosy struct {
	*importing
	not []string
}

func (w *choosy) Refuse(_ *llb.Node, r string) error {
	if slices.Contains(w.not, r) {
		return errors.New("it is " + r)
	}
	return nil
}

func TestRefuse(t *testing.T) {
	base := source("base")
	mid := run("mid", base)
	top := run("top", mid)
	content := contentKey(mid, []string{"base()"}).Digest
	for _, tt := range []struct {
		name       string
		here, have map[oci.Digest]string // recorded, and to be imported
		runs       map[string]int
		want, why  string
	}{
		{"by the node's own digest", map[oci.Digest]string{mid.Digest: "bad"}, nil, map[string]int{"base": 1, "mid": 1, "top": 1}, "top(mid(base()))", "it is bad"},
		{"by content", map[oci.Digest]string{content: "bad"}, nil, map[string]int{"base": 1, "mid": 1, "top": 1}, "top(mid(base()))", "it is bad"},
		{"imported", nil, map[oci.Digest]string{mid.Digest: "bad"}, map[string]int{"base": 1, "mid": 1, "top": 1}, "top(mid(base()))", "never built here"},
		{"here, a better one elsewhere", map[oci.Digest]string{mid.Digest: "bad"}, map[oci.Digest]string{mid.Digest: "good"}, map[string]int{"top": 1}, "top(good)", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newStore()
			maps.Copy(c.records, tt.here)
			w := &choosy{&importing{worker: newWorker(), have: tt.have}, []string{"bad"}}
			d := &diary{}
			if got := mustSolve(t, newSolver(t, c, 0), graph(top), w, SolveOptions{Observer: d}); got[0] != tt.want {
				t.Errorf("Solve = %q, want %q", got[0], tt.want)
			}
			checkRuns(t, w.worker, tt.runs)
			if want := "mid runs: " + tt.why; tt.why != "" && !slices.Contains(d.lines, want) {
				t.Errorf("the observer heard %q, want %q", d.lines, want)
			}
		})
	}
}
