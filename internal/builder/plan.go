package builder

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/861fb494/build/executor"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/solver"
)

// What is to become of a step, or has become of it.
const (
	StepCached  = "cached"
	StepRuns    = "runs"
	StepDepends = "depends" // cached after all if a step below comes out as before
	StepFailed  = "failed"
)

// PlanStep is a step of a plan, or of a build that has been.
type PlanStep struct {
	Name     string  `json:"name"`
	Position string  `json:"position,omitempty"` // "Dockerfile:7"
	Stage    string  `json:"stage,omitempty"`
	Platform string  `json:"platform,omitempty"`
	Status   string  `json:"status"`
	Why      string  `json:"why,omitempty"`
	Seconds  float64 `json:"seconds,omitempty"` // of a build that has been: how long it took
}

// Plan is the steps of a build, inputs first.
type Plan struct {
	Dockerfile string     `json:"dockerfile"`
	Context    string     `json:"context"`
	Time       time.Time  `json:"time,omitzero"` // of a build that has been
	Steps      []PlanStep `json:"steps"`
	Hints      []Hint     `json:"hints,omitempty"`
}

// Runs is how many steps are not known to be cached.
func (p Plan) Runs() int {
	n := 0
	for _, s := range p.Steps {
		if s.Status != StepCached {
			n++
		}
	}
	return n
}

// Explain says of each step of a build whether it is cached and, if not, why,
// and runs nothing. Base images and sources are looked up as a build would.
func (b *Builder) Explain(ctx context.Context, r Request) (Plan, error) {
	if r.Sink == nil {
		r.Sink = progress.Discard
	}
	j := newJob(b, r)
	defer j.close()
	for _, phase := range []func(context.Context) error{j.open, j.openLock, j.lower, j.permitted, j.pin, j.openImports} {
		if err := phase(ctx); err != nil {
			return Plan{}, j.locate(err)
		}
	}
	p, err := j.plan(ctx)
	if err == nil {
		p.Hints = j.hints(executor.New(j.host, j.session()), func(*llb.Node) bool { return true })
	}
	j.contexts.save()
	return p, err
}

// plan looks each step up as the solver would, and takes those that are not
// found for steps whose results are not known yet.
func (j *job) plan(ctx context.Context) (Plan, error) {
	w := executor.New(j.host, j.session())
	records := executor.Records{Store: j.Store}
	p := Plan{Dockerfile: j.contexts.dockerfileName, Context: j.project()}
	f := foresight{
		job: j, worker: w, records: records, results: map[oci.Digest]executor.Result{}, epochs: j.epochs(),
		dirty: solver.Dirty(j.graph), steps: map[oci.Digest]PlanStep{}, states: map[oci.Digest]string{}, visited: map[oci.Digest]bool{},
	}
	for _, n := range j.graph.Targets {
		if err := f.visit(ctx, n); err != nil {
			return p, err
		}
	}
	j.graph.Walk(func(n *llb.Node) {
		if s, ok := f.steps[n.Digest]; ok && s.Status != "" {
			p.Steps = append(p.Steps, s)
		}
	})
	return p, nil
}

// foresight is a plan being made, in the solver's order: a step that is found
// needs nothing of what is below it.
type foresight struct {
	*job
	worker  *executor.Worker
	records executor.Records
	results map[oci.Digest]executor.Result // of steps that are cached
	epochs  map[oci.Digest]time.Time
	dirty   map[oci.Digest]bool     // as solver.Dirty has it
	steps   map[oci.Digest]PlanStep // no Status is nothing to tell of
	states  map[oci.Digest]string   // the statuses, also of those
	visited map[oci.Digest]bool
}

func (f *foresight) visit(ctx context.Context, n *llb.Node) error {
	if f.visited[n.Digest] {
		return nil
	}
	f.visited[n.Digest] = true
	m := f.graph.Meta[n.Digest]
	noCache := f.NoCache || m.NoCache
	early := ""
	if _, ok := n.Op.(llb.Source); !ok && !noCache && !f.dirty[n.Digest] {
		r, err := f.get(ctx, n, solver.Key{Digest: n.Digest})
		if err == nil {
			f.found(n, r)
			return nil
		}
		var miss *solver.Miss
		if errors.As(err, &miss) {
			early = miss.Why // as the solver has it
		}
	}
	var missing *llb.Node
	var in []executor.Result
	for _, i := range n.Inputs {
		if err := f.visit(ctx, i); err != nil {
			return err
		}
		r, ok := f.results[i.Digest]
		if !ok && missing == nil {
			missing = i
		}
		in = append(in, r)
	}
	status, why, err := f.decide(ctx, n, in, missing, noCache)
	if err != nil {
		return f.locate(f.stepError(n, err))
	}
	if status == StepRuns {
		why = cmp.Or(early, why)
	}
	f.tell(n, status, why)
	return nil
}

// decide looks for the result of n by the content of its inputs.
func (f *foresight) decide(ctx context.Context, n *llb.Node, in []executor.Result, missing *llb.Node, noCache bool) (status, why string, err error) {
	if missing != nil {
		if s := f.steps[missing.Digest]; f.graph.Meta[missing.Digest].Internal && s.Why != "" {
			return f.states[missing.Digest], s.Why, nil // it is a part of this one
		}
		if _, ok := missing.Op.(llb.Source); ok {
			return StepDepends, f.toFetch(n, missing), nil
		}
		return StepDepends, f.nameOf(missing) + " comes first", nil
	}
	switch op := n.Op.(type) {
	case llb.Source:
		if op.Scheme == llb.Git || op.Scheme == llb.HTTP {
			r, err := f.records.Get(ctx, solver.Key{Digest: n.Digest})
			if err == nil {
				f.results[n.Digest] = r
			}
			return "", "", nil // else it would be downloaded
		}
		f.results[n.Digest], err = f.worker.Run(ctx, n, nil)
		return "", "", err
	case llb.Merge:
		f.results[n.Digest], err = f.worker.Run(ctx, n, in)
		return StepCached, "", err
	}
	if noCache {
		return StepRuns, "the cache is not used for this step", nil
	}
	key, err := f.worker.Key(ctx, n, in)
	if err != nil {
		return "", "", err
	}
	r, err := f.get(ctx, n, key)
	var miss *solver.Miss
	if errors.As(err, &miss) {
		return StepRuns, miss.Why, nil
	}
	if err == nil {
		f.results[n.Digest] = r
	}
	return StepCached, "", err
}

// toFetch says why the source from, a URL or a repository, comes before n.
func (f *foresight) toFetch(n, from *llb.Node) string {
	what := strings.TrimPrefix(f.nameOf(from), "[internal] ") + " comes first: "
	if f.worker.Known(n) {
		return what + "that changed, or is not here any more"
	}
	return what + "never built here"
}

// found is for a step that its own digest finds: so are those below it, as far
// as anybody asks.
func (f *foresight) found(n *llb.Node, r executor.Result) {
	f.results[n.Digest] = r
	f.tell(n, StepCached, "")
	for _, in := range n.Inputs {
		f.unasked(in)
	}
}

func (f *foresight) unasked(n *llb.Node) {
	if _, ok := f.steps[n.Digest]; ok {
		return
	}
	f.tell(n, StepCached, "")
	for _, in := range n.Inputs {
		f.unasked(in)
	}
}

func (f *foresight) tell(n *llb.Node, status, why string) {
	m := f.graph.Meta[n.Digest]
	f.states[n.Digest] = status
	if _, ok := n.Op.(llb.Source); ok || m.Internal || m.Name == "" {
		status = ""
	}
	s := PlanStep{Name: m.Name, Stage: m.Stage, Platform: m.Platform, Status: status, Why: why}
	if len(m.Positions) > 0 {
		s.Position = m.Positions[0].String()
	}
	f.steps[n.Digest] = s
}

// get looks a step up here, and in the caches that the build imports from.
func (f *foresight) get(ctx context.Context, n *llb.Node, k solver.Key) (executor.Result, error) {
	r, err := f.records.Get(ctx, k)
	if err == nil {
		why := f.tooOld(r.Layers, f.epochs[n.Digest])
		if why == nil {
			return r, nil
		}
		err = &solver.Miss{Why: why.Error()}
	}
	if r, ierr := f.remote.imports.Import(ctx, k); ierr == nil && f.tooOld(r.Layers, f.epochs[n.Digest]) == nil {
		return r, nil
	}
	return r, err
}

// nameOf is the name of the step n, or of the first below it that has one.
func (j *job) nameOf(n *llb.Node) string {
	if m := j.graph.Meta[n.Digest]; m.Name != "" && !m.Internal {
		return m.Name
	}
	for _, in := range n.Inputs {
		if name := j.nameOf(in); name != "" {
			return name
		}
	}
	return "a step"
}

// UncachedError is the error of a build with ExpectCached that would run steps.
type UncachedError struct{ Steps []PlanStep }

func (e *UncachedError) Error() string {
	var b strings.Builder
	if len(e.Steps) == 1 {
		b.WriteString("1 step was expected to be cached and is not:")
	} else {
		fmt.Fprintf(&b, "%d steps were expected to be cached and are not:", len(e.Steps))
	}
	for _, s := range e.Steps {
		fmt.Fprintf(&b, "\n  %s %s: %s", s.Position, s.Name, s.Why)
	}
	return b.String()
}

// expectCached fails if a step of the stages named, or any where none is, would
// run.
func (j *job) expectCached(ctx context.Context) error {
	if j.ExpectCached == nil {
		return nil
	}
	for _, name := range j.ExpectCached {
		known := false
		for _, m := range j.graph.Meta {
			known = known || strings.EqualFold(m.Stage, name)
		}
		if !known {
			return fmt.Errorf("--expect-cached: this build has no stage %q", name)
		}
	}
	p, err := j.plan(ctx)
	if err != nil {
		return err
	}
	var bad []PlanStep
	for _, s := range p.Steps {
		if s.Status == StepCached || len(j.ExpectCached) > 0 && !slices.ContainsFunc(j.ExpectCached, func(name string) bool { return strings.EqualFold(name, s.Stage) }) {
			continue
		}
		bad = append(bad, s)
	}
	if len(bad) > 0 {
		return &UncachedError{Steps: bad}
	}
	return nil
}

// lastFile is where it is kept what the last build did. Its own time is that
// build's.
const lastFile = "last.json"

// Last is what became of the steps of the last build, of any context.
func (b *Builder) Last() (Plan, error) {
	p, err := readLast(filepath.Join(b.Store.Dir(), lastFile))
	if errors.Is(err, os.ErrNotExist) {
		return p, errors.New("nothing has been built here yet")
	}
	if err != nil {
		err = fmt.Errorf("read what the last build did: %w", err)
	}
	return p, err
}

func readLast(path string) (p Plan, err error) {
	f, err := os.Open(path)
	if err != nil {
		return p, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return p, err
	}
	data, err := io.ReadAll(f)
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	p.Time = st.ModTime().UTC().Truncate(time.Second)
	return p, err
}

// saveLast keeps what became of the steps for Last. It is no reason for a build
// to fail.
func (j *job) saveLast(o *observer, hints []Hint) {
	p := Plan{Dockerfile: j.contexts.dockerfileName, Context: j.project(), Steps: o.steps, Hints: hints}
	data, err := json.Marshal(p)
	if err != nil {
		return
	}
	// A build that finds all its steps cached does what the last one did, and
	// touching a file is quicker than making one.
	path := filepath.Join(j.Store.Dir(), lastFile)
	if was, err := os.ReadFile(path); err == nil && bytes.Equal(was, data) && os.Chtimes(path, time.Time{}, time.Now()) == nil {
		return
	}
	_ = j.Store.WriteFile(lastFile, data)
}
