package torture

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// turnstile counts the steps that are run, and who runs them: each asks it at
// its beginning and at its end.
type turnstile struct {
	*httptest.Server

	mu   sync.Mutex
	seen map[string][]passing // by step
}

// passing is one run of a step.
type passing struct {
	by           string
	begun, ended time.Time // ended is zero if it was not
}

func newTurnstile(t *testing.T) *turnstile {
	s := &turnstile{seen: map[string][]passing{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		f := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
		if len(f) != 3 {
			t.Errorf("a step asks for %s", r.URL)
			return
		}
		s.pass(f[0], f[1], f[2])
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *turnstile) pass(what, step, by string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if what == "begin" {
		s.seen[step] = append(s.seen[step], passing{by: by, begun: time.Now()})
		return
	}
	for i := range s.seen[step] {
		if p := &s.seen[step][i]; p.by == by && p.ended.IsZero() {
			p.ended = time.Now()
		}
	}
}

// ways are the targets of the builds that run at once, and the steps of each.
var ways = []struct {
	target string
	steps  []string
}{
	{"all", []string{"s0", "s1", "l0", "l1", "r0", "r1", "a0"}},
	{"left", []string{"s0", "s1", "l0", "l1"}},
	{"right", []string{"s0", "s1", "r0", "r1"}},
	{"base", []string{"s0", "s1"}},
	{"all", []string{"s0", "s1", "l0", "l1", "r0", "r1", "a0"}},
	{"left", []string{"s0", "s1", "l0", "l1"}},
	{"right", []string{"s0", "s1", "r0", "r1"}},
	{"other", []string{"s0", "s1", "o0"}},
}

// crowded is a Dockerfile of all these. Proxy variables are in no key, so that
// NO_PROXY can tell which build it is that runs a step; nothing uses a proxy.
func crowded(address string) string {
	run := func(step string) string {
		return fmt.Sprintf("RUN wget -q -O - %[1]s/begin/%[2]s-$ROUND/$NO_PROXY && sleep 0.05 && echo %[2]s > /%[2]s && wget -q -O - %[1]s/end/%[2]s-$ROUND/$NO_PROXY\n", address, step)
	}
	return "FROM busybox AS base\nARG ROUND\n" + run("s0") + run("s1") +
		"FROM base AS left\nARG ROUND\n" + run("l0") + run("l1") +
		"FROM base AS right\nARG ROUND\n" + run("r0") + run("r1") +
		"FROM base AS other\nARG ROUND\n" + run("o0") +
		"FROM busybox AS all\nARG ROUND\nCOPY --from=left /l1 /s1 /\nCOPY --from=right /r1 /\n" + run("a0")
}

// crowd runs one build of each of ways at once. victim, unless it is negative, is
// the number of the one that gets signal after a time.
func (r *root) crowd(t *testing.T, round int, file string, victim int, signal syscall.Signal, after time.Duration) {
	t.Helper()
	var wg sync.WaitGroup
	for i, w := range ways {
		cmd := r.command("--progress", "plain", "--network", "host", "--allow", "network.host", "--file", file, "--target", w.target,
			"--build-arg", fmt.Sprint("ROUND=", round), "--build-arg", fmt.Sprint("NO_PROXY=build", i), "-t", fmt.Sprint("crowd", i), filepath.Dir(file))
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if i == victim {
				timer := time.AfterFunc(after, func() { _ = cmd.Process.Signal(signal) }) // it may have ended
				defer timer.Stop()
			}
			if err := cmd.Wait(); err != nil && i != victim {
				t.Errorf("round %d, build %d: %v\n%s", round, i, err, out.String())
			}
		})
	}
	wg.Wait()
}

// Many builds at once do each step once, whoever it is that does it; where one is
// stopped or killed, the others do what it had begun.
func TestMany(t *testing.T) {
	l, rng := open(t), random(t)
	r := l.root(t)
	stile := newTurnstile(t)
	file := filepath.Join(r.out, "crowded")
	if err := os.WriteFile(file, []byte(crowded(stile.URL)), 0o644); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	rounds := 2 + max(*kills/10, 2)
	var takes time.Duration
	for round := range rounds {
		victim, signal, after := -1, syscall.SIGKILL, time.Duration(0)
		if round >= 2 {
			victim, after = rng.IntN(len(ways)), time.Duration(rng.Int64N(int64(takes)))
			if rng.IntN(2) == 0 {
				signal = syscall.SIGINT
			}
		}
		at := time.Now()
		r.crowd(t, round, file, victim, signal, after)
		if victim < 0 {
			takes = time.Since(at)
		}
		what := fmt.Sprintf("round %d, build %d gets %v after %v", round, victim, signal, after.Round(time.Millisecond/10))
		stile.check(t, round, victim, what)
		if t.Failed() {
			t.FailNow()
		}
	}
	r.sound(t, "many builds")
	r.right(t, "many builds")
	r.clean(t, "many builds")
	t.Logf("%d rounds of %d builds in %v", rounds, len(ways), time.Since(begun).Round(time.Second))
}

// check fails the test unless each step was run once; twice only if the build
// that was ended had begun it.
func (s *turnstile) check(t *testing.T, round, victim int, what string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := map[string]bool{}
	for i, w := range ways {
		for _, step := range w.steps {
			wanted[step] = wanted[step] || i != victim
		}
	}
	for step, must := range wanted {
		runs := s.seen[fmt.Sprint(step, "-", round)]
		again := len(runs) == 2 && runs[0].by == fmt.Sprint("build", victim) && !runs[1].ended.IsZero()
		switch {
		case len(runs) == 1 && (!runs[0].ended.IsZero() || !must), len(runs) == 0 && !must, again:
		default:
			t.Errorf("%s: step %s was run %d times: %v, want once", what, step, len(runs), runs)
		}
	}
}
