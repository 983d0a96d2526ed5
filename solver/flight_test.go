package solver

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// sleeper is a worker whose steps take d, and stop when their context ends.
func sleeper(d time.Duration) *worker {
	w := newWorker()
	w.do = func(ctx context.Context, _ *llb.Node) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return w
}

// outcome is what a Solve came to.
type outcome struct {
	results []string
	err     error
	after   time.Duration
}

// solve begins a Solve and returns where its outcome will come.
func solve(ctx context.Context, s *Solver[string], g llb.Graph, w Worker[string], o SolveOptions) <-chan outcome {
	ch := make(chan outcome, 1)
	began := time.Now()
	go func() {
		r, err := s.Solve(ctx, g, w, o)
		ch <- outcome{r, err, time.Since(began)}
	}()
	return ch
}

func secret(name string) *llb.Node {
	return llb.New(llb.Exec{Args: []string{name}, Mounts: []llb.Mount{{Type: llb.MountSecret, ID: "token", Target: "/t"}}})
}

func TestInputsRunConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := graph(run("top", run("a"), run("b"), run("c")))
		got := <-solve(t.Context(), newSolver(t, newStore(), 3), g, sleeper(time.Second), SolveOptions{})
		if got.err != nil || got.after != 2*time.Second {
			t.Errorf("took %v, %v; want 2s", got.after, got.err)
		}
	})
}

func TestSolvesShareFlights(t *testing.T) {
	tests := []struct {
		name string
		node *llb.Node
		o    SolveOptions
		meta llb.Meta
		runs [2]int // of the first Solve's worker and of the second's
		d    string // what the second observes
	}{
		{"exec", run("a"), SolveOptions{}, llb.Meta{}, [2]int{1, 0},
			"started; runs: never built here; done"},
		// The second waits for the first's lock and finds its result.
		{"secret", secret("a"), SolveOptions{}, llb.Meta{}, [2]int{1, 0}, "started; cached"},
		{"no cache", run("a"), SolveOptions{NoCache: true}, llb.Meta{}, [2]int{1, 1},
			"started; runs: the cache is not used for this step; done"},
		{"no cache for the node", run("a"), SolveOptions{}, llb.Meta{NoCache: true}, [2]int{1, 1},
			"started; runs: the cache is not used for this step; done"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStore()
				s := newSolver(t, st, 0)
				g := graph(tt.node)
				g.Meta = map[oci.Digest]llb.Meta{tt.node.Digest: tt.meta}
				w1, w2, d := sleeper(time.Minute), sleeper(time.Minute), &diary{}
				first := solve(t.Context(), s, g, w1, tt.o)
				time.Sleep(time.Second)
				o := tt.o
				o.Observer = d
				second := solve(t.Context(), s, g, w2, o)
				for _, ch := range []<-chan outcome{first, second} {
					if got := <-ch; got.err != nil || got.results[0] != "a()" {
						t.Errorf("Solve = %q, %v", got.results, got.err)
					}
				}
				if got := [2]int{w1.runs["a"], w2.runs["a"]}; got != tt.runs {
					t.Errorf("runs = %v, want %v", got, tt.runs)
				}
				if d.of("a") != tt.d {
					t.Errorf("second observed %q, want %q", d.of("a"), tt.d)
				}
			})
		})
	}
}

// A step with a secret that fails for one build says nothing about another's.
func TestSecretFailureIsNotShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSolver(t, newStore(), 0)
		w1, w2 := newWorker(), newWorker()
		w1.do = func(context.Context, *llb.Node) error { time.Sleep(time.Minute); return errBroken }
		// Two targets with equal keys are joined within one Solve.
		first := solve(t.Context(), s, graph(secret("a"), run("b", secret("a"))), w1, SolveOptions{})
		time.Sleep(time.Second)
		second := solve(t.Context(), s, graph(secret("a")), w2, SolveOptions{})
		if got := <-first; !errors.Is(got.err, errBroken) {
			t.Errorf("first Solve: %v, want %v", got.err, errBroken)
		}
		if got := <-second; got.err != nil {
			t.Errorf("second Solve: %v", got.err)
		}
		checkRuns(t, w1, map[string]int{"a": 1})
		checkRuns(t, w2, map[string]int{"a": 1})
	})
}

// Two nodes that differ and whose inputs turn out the same are one step.
func TestEqualContentRunsOnce(t *testing.T) {
	tests := []struct {
		name string
		op   llb.Exec
		o    SolveOptions
	}{
		{"plain", llb.Exec{Args: []string{"x"}}, SolveOptions{}},
		{"secret", secret("x").Op.(llb.Exec), SolveOptions{}},
		{"no cache", llb.Exec{Args: []string{"x"}}, SolveOptions{NoCache: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := sleeper(time.Second)
				w.content["a"], w.content["b"] = "same", "same"
				g := graph(llb.New(tt.op, run("a")), llb.New(tt.op, run("b")))
				got := <-solve(t.Context(), newSolver(t, newStore(), 0), g, w, tt.o)
				if got.err != nil || got.results[0] != got.results[1] {
					t.Errorf("Solve = %q, %v", got.results, got.err)
				}
				checkRuns(t, w, map[string]int{"a": 1, "b": 1, "x": 1})
			})
		})
	}
}

func TestOnlyTheLastWaiterCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStore()
		s := newSolver(t, st, 1)
		var stopped time.Duration
		began := time.Now()
		w := newWorker()
		w.do = func(ctx context.Context, _ *llb.Node) error {
			<-ctx.Done()
			stopped = time.Since(began)
			time.Sleep(5 * time.Second) // cleans up
			return ctx.Err()
		}
		g := graph(run("a"))
		ctx1, cancel1 := context.WithCancel(t.Context())
		ctx2, cancel2 := context.WithTimeout(t.Context(), time.Minute)
		defer cancel2()
		first := solve(ctx1, s, g, w, SolveOptions{})
		time.Sleep(time.Second)
		d := &diary{}
		second := solve(ctx2, s, g, newWorker(), SolveOptions{Observer: d})
		time.Sleep(time.Second)
		cancel1()
		if got := <-first; !errors.Is(got.err, context.Canceled) || got.after != 2*time.Second {
			t.Errorf("first Solve: %v after %v, want %v at once", got.err, got.after, context.Canceled)
		}
		got := <-second
		if !errors.Is(got.err, context.DeadlineExceeded) {
			t.Errorf("second Solve: %v, want %v", got.err, context.DeadlineExceeded)
		}
		if stopped != time.Minute {
			t.Errorf("the step was stopped after %v, want when the last waiter left, after 1m", stopped)
		}
		// The last waiter waits for the step to have put down what it held.
		if got.after != 64*time.Second {
			t.Errorf("second Solve returned after %v, want 1m4s", got.after)
		}
		if got, want := d.of("a"), "started; runs: never built here; failed: context deadline exceeded"; got != want {
			t.Errorf("observed %q, want %q", got, want)
		}
	})
}

func TestFlightOutlivesItsOwner(t *testing.T) {
	tests := []struct {
		name   string
		closed error // of the step, once its owner's session is closed; nil: it goes on
		want   [2]int
	}{
		{"goes on", nil, [2]int{1, 0}},
		{"session closed", errors.New("session closed"), [2]int{1, 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSolver(t, newStore(), 0)
				ctx1, cancel1 := context.WithCancel(t.Context())
				w1, w2 := sleeper(time.Minute), sleeper(time.Minute)
				if tt.closed != nil {
					w1.do = func(context.Context, *llb.Node) error {
						<-ctx1.Done()
						return tt.closed
					}
				}
				first := solve(ctx1, s, graph(run("a")), w1, SolveOptions{})
				time.Sleep(time.Second)
				second := solve(t.Context(), s, graph(run("a")), w2, SolveOptions{})
				time.Sleep(time.Second)
				cancel1()
				if got := <-first; !errors.Is(got.err, context.Canceled) {
					t.Errorf("first Solve: %v, want %v", got.err, context.Canceled)
				}
				if got := <-second; got.err != nil || got.results[0] != "a()" {
					t.Errorf("second Solve = %q, %v", got.results, got.err)
				}
				if got := [2]int{w1.runs["a"], w2.runs["a"]}; got != tt.want {
					t.Errorf("runs = %v, want %v", got, tt.want)
				}
			})
		})
	}
}

// Who comes while a stopped step is still ending does not join it.
func TestDyingFlightIsNotJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSolver(t, newStore(), 0)
		w := newWorker()
		w.do = func(ctx context.Context, _ *llb.Node) error {
			<-ctx.Done()
			time.Sleep(time.Minute)
			return ctx.Err()
		}
		ctx, cancel := context.WithCancel(t.Context())
		first := solve(ctx, s, graph(run("a")), w, SolveOptions{})
		time.Sleep(time.Second)
		cancel()
		synctest.Wait()
		w2 := newWorker()
		if got := <-solve(t.Context(), s, graph(run("a")), w2, SolveOptions{}); got.err != nil || got.after != time.Minute {
			t.Errorf("second Solve: %v after %v, want success once the lock is free, after 1m", got.err, got.after)
		}
		<-first
		checkRuns(t, w2, map[string]int{"a": 1})
	})
}

func TestFirstFailureIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorker(), &diary{}
		w.do = func(ctx context.Context, n *llb.Node) error {
			if name(n) == "bad" {
				time.Sleep(time.Second)
				return errBroken
			}
			<-ctx.Done()
			return errors.New("killed by signal")
		}
		g := graph(run("top", run("slow"), run("bad"), run("slower")))
		got := <-solve(t.Context(), newSolver(t, newStore(), 0), g, w, SolveOptions{Observer: d})
		var se *StepError
		if !errors.As(got.err, &se) || name(se.Node) != "bad" || got.after != time.Second {
			t.Errorf("Solve: %v after %v, want the failure of bad after 1s", got.err, got.after)
		}
		for _, step := range []string{"slow", "slower"} {
			if o, want := d.of(step), "started; runs: never built here; failed: context canceled"; o != want {
				t.Errorf("observed of %s %q, want %q", step, o, want)
			}
		}
	})
}

func TestCancelledSolve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSolver(t, newStore(), 1)
		w := newWorker()
		w.do = func(ctx context.Context, _ *llb.Node) error {
			<-ctx.Done()
			return errors.New("killed by signal")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		// b waits for the slot, top for its inputs.
		got := <-solve(ctx, s, graph(run("top", run("a"), run("b"))), w, SolveOptions{KeepGoing: true})
		if got.err == nil || got.err != context.DeadlineExceeded || got.after != time.Minute {
			t.Errorf("Solve: %v after %v, want %v", got.err, got.after, context.DeadlineExceeded)
		}
		if _, err := s.Solve(ctx, graph(run("c")), w, SolveOptions{}); err != context.DeadlineExceeded {
			t.Errorf("Solve with an ended context: %v", err)
		}
		if n := len(w.ran()); n != 1 {
			t.Errorf("%d steps ran, want 1", n)
		}
	})
}

func TestWaitingForALockHoldsNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStore()
		a := run("a")
		unlock, err := st.Lock(t.Context(), contentKey(a, nil)) // another process runs it
		if err != nil {
			t.Fatal(err)
		}
		s := newSolver(t, st, 1)
		w := sleeper(time.Second)
		held := solve(t.Context(), s, graph(a), w, SolveOptions{})
		synctest.Wait()
		if got := <-solve(t.Context(), s, graph(run("b")), w, SolveOptions{}); got.err != nil || got.after != time.Second {
			t.Errorf("Solve of b: %v after %v", got.err, got.after)
		}
		unlock()
		if got := <-held; got.err != nil {
			t.Error(got.err)
		}
	})
}

// A result is recorded, and its key locked, while the step upon it runs; Solve
// waits for it.
func TestRecordedBesideTheNext(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error // of b
		want time.Duration
	}{
		{"success", nil, 2*time.Minute + 90*time.Second},
		{"failure", errors.New("broken"), time.Minute + 90*time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st, w := newStore(), sleeper(time.Minute)
				st.putFor = 90 * time.Second
				sleep := w.do
				w.do = func(ctx context.Context, n *llb.Node) error {
					if err := sleep(ctx, n); err != nil || name(n) == "a" {
						return err
					}
					return tt.err
				}
				a := run("a")
				b := run("b", a)
				done := solve(t.Context(), newSolver(t, st, 1), graph(b), w, SolveOptions{})
				time.Sleep(time.Minute + time.Second)
				synctest.Wait()
				checkRuns(t, w, map[string]int{"a": 1, "b": 1})
				key := contentKey(a, nil).Digest
				if !st.isHeld(key) {
					t.Error("a's key is not locked while its result is recorded")
				}
				got := <-done
				if got.after != tt.want || (got.err != nil) != (tt.err != nil) {
					t.Errorf("Solve: %v after %v, want %v after %v", got.err, got.after, tt.err, tt.want)
				}
				for _, d := range []oci.Digest{key, a.Digest} {
					if st.isHeld(d) || st.records[d] == "" {
						t.Errorf("when Solve has returned, record %s is %q and locked: %v", d, st.records[d], st.isHeld(d))
					}
				}
			})
		})
	}
}

// patient is an Observer that counts what it hears of waiting.
type patient struct{ heard atomic.Int64 }

func (*patient) Started(*llb.Node, time.Time)           {}
func (*patient) Running(*llb.Node, string)              {}
func (*patient) Done(*llb.Node, bool, error, time.Time) {}
func (p *patient) Waiting(*llb.Node)                    { p.heard.Add(1) }

func TestWaitingIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, p := newStore(), &patient{}
		a := run("a")
		unlock, err := st.Lock(t.Context(), contentKey(a, nil)) // another process runs it
		if err != nil {
			t.Fatal(err)
		}
		s := newSolver(t, st, 1)
		held := solve(t.Context(), s, graph(a), sleeper(time.Minute), SolveOptions{Observer: p})
		for _, step := range []struct {
			after time.Duration
			want  int64
		}{{patience - 1, 0}, {1, 1}, {time.Hour, 1}} {
			time.Sleep(step.after)
			synctest.Wait()
			if got := p.heard.Load(); got != step.want {
				t.Errorf("%v later it has heard of %d waits, want %d", step.after, got, step.want)
			}
		}
		unlock()
		if got := <-held; got.err != nil {
			t.Error(got.err)
		}
		<-solve(t.Context(), s, graph(run("b")), sleeper(time.Minute), SolveOptions{Observer: p})
		if got := p.heard.Load(); got != 1 {
			t.Errorf("it has heard of %d waits, want none of what runs itself", got)
		}
	})
}

func TestFailuresAreShared(t *testing.T) {
	tests := []struct {
		name string
		fail func() error
		want string
	}{
		{"error", func() error { return errBroken }, "broken"},
		{"panic", func() error { panic("no") }, "panic: no"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSolver(t, newStore(), 1)
				w, w2 := newWorker(), newWorker()
				w.do = func(context.Context, *llb.Node) error { time.Sleep(time.Minute); return tt.fail() }
				first := solve(t.Context(), s, graph(run("a")), w, SolveOptions{})
				time.Sleep(time.Second)
				second := solve(t.Context(), s, graph(run("a")), w2, SolveOptions{})
				for _, ch := range []<-chan outcome{first, second} {
					if got := <-ch; got.err == nil || !strings.Contains(got.err.Error(), tt.want) {
						t.Errorf("Solve: %v, want %s", got.err, tt.want)
					}
				}
				checkRuns(t, w2, map[string]int{})
			})
		})
	}
}

// A build does not take from another's flight what it has no use for.
func TestRefuseOfFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSolver(t, newStore(), 0)
		node := run("a")
		theirs := sleeper(time.Second)
		theirs.content["a"] = "bad"
		first := solve(t.Context(), s, graph(node), theirs, SolveOptions{})
		time.Sleep(time.Second / 2)
		w := &choosy{&importing{worker: newWorker()}, []string{"bad"}}
		got := <-solve(t.Context(), s, graph(node), w, SolveOptions{})
		if got.err != nil || got.results[0] != "a()" || got.after != time.Second/2 {
			t.Errorf("Solve = %q, %v, after %v, want what its own worker makes, once the other is done", got.results, got.err, got.after)
		}
		if got := <-first; got.err != nil || got.results[0] != "bad" {
			t.Errorf("the other Solve = %q, %v", got.results, got.err)
		}
	})
}
