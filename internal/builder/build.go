package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/861fb494/build/cache/remote"
	"github.com/861fb494/build/executor"
	"github.com/861fb494/build/executor/cdi"
	"github.com/861fb494/build/executor/pick"
	"github.com/861fb494/build/executor/source"
	"github.com/861fb494/build/exporter"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/llb/dockerfile"
	"github.com/861fb494/build/parser"
	"github.com/861fb494/build/solver"
)

// Request is one build.
type Request struct {
	Context   string    // a directory; "-": an archive or a Dockerfile on Stdin; a URL
	File      string    // the Dockerfile; "": Dockerfile in Context; "-": Stdin
	Stdin     io.Reader // what "-" reads
	Frontend  dockerfile.Options
	Platforms []oci.Platform // empty: this machine's

	Call    string // CallCheck, CallOutline or CallTargets: tell that, build nothing
	Pull    bool   // ask the registry what tags are
	NoCache bool
	// Locked takes what tags, URLs and branches are from the lock file beside the
	// Dockerfile, and fails for one that is not in it; see Lock.
	Locked bool
	// Offline sends no request to anybody: what is not here is an error. Steps
	// have the network that they have without it.
	Offline bool
	// ExpectCached fails the build before it begins if a step of these stages
	// would run; of any stage, where it is empty and not nil.
	ExpectCached []string

	CacheFrom, CacheTo []remote.Spec // checked

	Tags    []oci.Reference
	Outputs []exporter.Output
	Seal    bool // an image is made though nothing names it or puts it out
	Squash  bool // the layers that the build makes become one
	// Reproducible makes images of which nothing depends on when and where they
	// are built, as far as their steps do not: see reproducible.go.
	Reproducible bool
	Annotations  map[string]string

	Secrets map[string]Secret
	SSH     map[string]SSH // by id
	Allow   []string       // entitlements: "network.host", "security.insecure", "device"
	// AllowDevices are single devices that are allowed, by their names and by
	// the aliases that the Dockerfile knows them under.
	AllowDevices map[string]string
	Memory       int64 // bytes a step; 0: no limit
	CPUs         float64
	// NoNewPrivileges is --security-opt no-new-privileges.
	NoNewPrivileges bool

	Sink progress.Sink
}

// Calls: what is told of a Dockerfile instead of building it.
const (
	CallCheck   = "check"   // what the linter finds: Response.Warnings
	CallOutline = "outline" // the target's parameters: Response.Outline
	CallTargets = "targets" // the stages: Response.Targets
)

// Secret is where a secret is read when a step asks for it.
type Secret struct{ File, Env string } // one of them

// Response is a finished build.
type Response struct {
	// ID is the image's: the digest of its configuration, of an index where the
	// build has several platforms. Of a build that nothing named or put out it
	// is the name under which the result is kept: see Builder.Tag.
	ID         oci.Digest
	Descriptor oci.Descriptor // of what the last output wrote; zero without any
	Sealed     bool
	Images     []oci.PlatformImage
	Warnings   []dockerfile.Warning
	Outline    dockerfile.Outline
	Targets    dockerfile.Targets
	Dockerfile *parser.File // nil if it was not found
	Steps, Ran int          // of the graph; of those, how many were not cached
}

// Build runs one build. The response is never nil: what is known of a build that
// failed is in it. An error that has a place in the Dockerfile is a *BuildError.
func (b *Builder) Build(ctx context.Context, r Request) (*Response, error) {
	if r.Sink == nil {
		r.Sink = progress.Discard
	}
	j := newJob(b, r)
	defer j.close()
	err := j.run(ctx)
	j.result.Warnings = j.warnings
	if err != nil {
		err = j.locate(err)
	}
	return &j.result, err
}

func (j *job) run(ctx context.Context) error {
	for _, phase := range []func(context.Context) error{j.sensible, j.open, j.openLock, j.lower, j.permitted, j.pin, j.hintLock, j.openImports, j.expectCached, j.solveAgain} {
		if err := phase(ctx); err != nil {
			return err
		}
		if j.Call != "" && j.file != nil {
			return nil
		}
	}
	return nil
}

func newJob(b *Builder, r Request) *job {
	return &job{Builder: b, Request: r, devices: sync.OnceValue(func() *cdi.Registry { return cdi.Load(cdi.Dirs) })}
}

// job is one build under way.
type job struct {
	*Builder
	Request

	contexts *contexts
	local    *source.Local
	remote   *remoteImages
	mounts   mountUses
	from     map[string]source.Source // by scheme
	lock     pinning                  // nil: nothing is locked
	file     *parser.File
	lowered  []*dockerfile.Result // one a platform
	index    bool                 // the result is an index, be it of one image
	graph    llb.Graph            // of all platforms; targets in their order

	devices func() *cdi.Registry
	agents  *agents

	steps     []executor.Result // of the graph's targets
	rewritten map[string]string // IDs of imported layers that are to be written anew: see rewriteKey

	result   Response
	warnings []dockerfile.Warning
}

func (j *job) close() {
	if j.contexts != nil {
		j.contexts.close()
	}
	if j.agents != nil {
		j.agents.stop()
	}
}

// lower reads the Dockerfile into the graph, once for each platform.
func (j *job) lower(ctx context.Context) error {
	var err error
	defer func() { j.result.Dockerfile = j.file }()
	if j.file, err = parser.ParseWith(j.contexts.dockerfileName, j.contexts.dockerfile, parser.Options{Read: j.include, AnyFrontend: hasKey(j.Frontend.BuildArgs, "BUILDKIT_SYNTAX")}); err != nil {
		return err
	}
	if j.Call == CallTargets {
		j.result.Targets, err = dockerfile.ListTargets(j.file)
		return err
	}
	j.knowFilter()
	j.knowArgs()
	platforms := j.Platforms
	if len(platforms) == 0 {
		platforms = []oci.Platform{{}}
	}
	o := j.Frontend
	o.MultiPlatform = len(platforms) > 1
	if j.index, err = asIndex(o.BuildArgs["BUILDKIT_MULTI_PLATFORM"], len(platforms)); err != nil {
		return err
	}
	o.Ignore = j.contexts.ignore
	o.Date = j.date
	o.NoCache = j.NoCache
	o.Dated = j.Reproducible
	images := source.ImageOptions{Pull: j.Pull, Offline: j.Offline}
	o.AllStages = j.Call == CallCheck && o.Target == ""
	if _, ok := j.lock.(*locker); ok {
		o.AllStages, images.Pins = true, oldPins{pins{j.Builder}}
	}
	if j.remote, err = j.newRemote(images, j.Sink); err != nil {
		return err
	}
	j.remote.lock = j.lock
	for _, p := range platforms {
		o.Platform = p
		res, err := dockerfile.Lower(ctx, j.file, j.remote, o)
		j.warn(res.Warnings)
		if err != nil {
			return err
		}
		j.lowered = append(j.lowered, res)
		j.result.Outline = j.lowered[0].Outline
		j.graph.Targets = append(j.graph.Targets, res.Graph.Targets...)
		for d, m := range res.Graph.Meta {
			j.graph.Join(d, m)
		}
	}
	return nil
}

// pin gives each source that has none its digest: contexts, URLs, repositories.
func (j *job) pin(ctx context.Context) error {
	j.from = j.sources()
	return j.pinSchemes(ctx, llb.Local, llb.Registry, llb.Layout, llb.HTTP, llb.Git)
}

func (j *job) pinSchemes(ctx context.Context, schemes ...string) error {
	pinned := map[oci.Digest]llb.Op{}
	var list []*llb.Node
	j.graph.Walk(func(n *llb.Node) {
		if s, ok := n.Op.(llb.Source); ok && s.Digest == "" && slices.Contains(schemes, s.Scheme) {
			list = append(list, n)
		}
	})
	ops := make([]llb.Op, len(list))
	g, gctx := errgroup.WithContext(ctx)
	for i, n := range list {
		g.Go(func() error {
			s := n.Op.(llb.Source)
			from, ok := j.from[s.Scheme]
			if !ok {
				return j.stepError(n, fmt.Errorf("sources of kind %q are not available", s.Scheme))
			}
			p, err := from.Pin(gctx, s)
			if err != nil {
				return j.stepError(n, j.explainMissing(s, n, err))
			}
			ops[i] = p
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, n := range list {
		pinned[n.Digest] = ops[i]
	}
	var err error
	j.graph, err = j.graph.Rewrite(func(n *llb.Node) (llb.Op, error) {
		if op, ok := pinned[n.Digest]; ok {
			return op, nil
		}
		return n.Op, nil
	})
	return err
}

func (j *job) stepError(n *llb.Node, err error) error {
	m := j.graph.Meta[n.Digest]
	if len(m.Positions) == 0 {
		// A source has no place of its own: that of the step that needs it.
		j.graph.Walk(func(user *llb.Node) {
			if slices.Contains(user.Inputs, n) && len(m.Positions) == 0 {
				m = j.graph.Meta[user.Digest]
			}
		})
	}
	return &solver.StepError{Node: n, Meta: m, Err: err}
}

// explainMissing says why a file of the context is not there.
func (j *job) explainMissing(s llb.Source, n *llb.Node, err error) error {
	var missing *pick.NotFoundError
	if s.Scheme != llb.Local || !errors.As(err, &missing) || missing.Why != "" {
		return err
	}
	c := j.contexts.byName[s.Ref]
	if c == nil {
		return err
	}
	host := filepath.Join(c.Dir(), missing.Path)
	if _, err := os.Lstat(host); err == nil {
		excluded := cmp.Or(j.contexts.ignoreName, "the ignore file") + " excludes it"
		if to, err := os.Readlink(host); err == nil {
			excluded = fmt.Sprintf("it is a symbolic link to %s, which is not in the context", to)
			if j.contexts.ignoreName != "" {
				excluded += ", or excluded by " + j.contexts.ignoreName
			}
		}
		return fmt.Errorf("%w in the build context: %s", missing, excluded)
	}
	where, hint := c.Dir(), ""
	if s.Ref == "context" && j.contexts.temp != "" {
		if j.contexts.dockerfileName == "-" && j.File != "-" {
			return fmt.Errorf("%w: there is a Dockerfile and no build context; 'build --file - DIRECTORY' reads a Dockerfile from standard input and has one", missing)
		}
		where = j.project()
	}
	j.graph.Walk(func(user *llb.Node) {
		if slices.Contains(user.Inputs, n) && strings.Contains(j.graph.Meta[user.Digest].Name, "..") {
			hint = `; a path cannot leave the context, so "../x" means "x"`
		}
	})
	return fmt.Errorf("%w in the build context %s%s", missing, where, hint)
}

// sources opens what comes from outside, by scheme.
func (j *job) sources() map[string]source.Source {
	return map[string]source.Source{
		llb.Local:    j.local,
		llb.Registry: j.remote,
		llb.HTTP:     lockedHTTP{j.httpSource(), j.lock},
		llb.Git:      lockedGit{j.gitSource(), j.lock},
	}
}

func (j *job) gitSource() *source.Git {
	return source.NewGit(filepath.Join(j.Store.Dir(), "git"), j.gitOptions())
}

func (j *job) gitOptions() source.GitOptions {
	return source.GitOptions{
		SSHSocket: j.agents.sockets["default"],
		Secret:    j.secret,
		Offline:   j.Offline,
		Temp:      j.Store.TempDir,
	}
}

func (j *job) httpSource() *source.HTTP {
	h := source.NewHTTP(filepath.Join(j.Store.Dir(), "http"), nil)
	h.Secret, h.Offline, h.Temp = j.secret, j.Offline, j.Store.TempDir
	return h
}

func (j *job) secret(name string) ([]byte, bool) {
	data, err := j.readSecret(name)
	return data, err == nil
}

// project is what the user would call the thing that is built.
func (j *job) project() string {
	if j.Context == "-" || isURL(j.Context) {
		return j.Context
	}
	dir, err := filepath.Abs(j.Context)
	if err != nil {
		return j.Context
	}
	return dir
}

func (j *job) session() executor.Session {
	return executor.Session{
		Sources: j.from, Local: j.local, Fetcher: j.remote, Secret: func(_ context.Context, id string) ([]byte, error) { return j.readSecret(id) }, SSH: j.agents.socket,
		Devices: j.devices, Meta: j.graph.Meta, Project: j.project(), Progress: j.Sink, Memory: j.Memory, CPUs: j.CPUs,
		NoNewPrivileges: j.NoNewPrivileges, Execs: j.execs(), RestoreMount: j.restoreMount, MountUsed: j.mountUsed,
	}
}

// execs is how many steps of the graph run a process.
func (j *job) execs() int {
	n := 0
	j.graph.Walk(func(node *llb.Node) {
		if _, ok := node.Op.(llb.Exec); ok {
			n++
		}
	})
	return n
}

// maxSecret bounds a secret, as BuildKit does.
const maxSecret = 500 << 10

func (j *job) readSecret(id string) ([]byte, error) {
	s, ok := j.Secrets[id]
	if !ok {
		return nil, fs.ErrNotExist
	}
	if s.Env != "" {
		return []byte(os.Getenv(s.Env)), nil
	}
	f, err := os.Open(s.File)
	if err != nil {
		return nil, fmt.Errorf("secret %s: %v", id, err) // %v: not one that was not given
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(data) > maxSecret {
		err = fmt.Errorf("%s is larger than %d bytes", s.File, maxSecret)
	}
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", id, err)
	}
	return data, nil
}

// solveAndExport runs the graph and puts the result out.
func (j *job) solveAndExport(ctx context.Context) error {
	obs := newObserver(j.graph, j.Sink, j.NoCache)
	out, err := j.outputs()
	if err != nil {
		return err
	}
	defer out.close()
	w := &worker{Worker: executor.New(j.host, j.session()), job: j, imports: j.remote.imports, out: out, spine: spine(j.graph.Targets), epochs: j.epochs()}
	if j.Squash {
		w.spine = nil // the layers of steps are none of the image's
	}
	results, err := j.solver.Solve(ctx, j.graph, w, solver.SolveOptions{Observer: obs, NoCache: j.NoCache})
	j.graph.Walk(func(*llb.Node) { j.result.Steps++ })
	j.result.Ran = obs.ran
	var last sync.WaitGroup
	defer last.Wait()
	last.Go(j.contexts.save)
	hints := j.hints(w.Worker, func(n *llb.Node) bool { return obs.hasRun(n) && !j.NoCache && !j.graph.Meta[n.Digest].NoCache })
	last.Go(func() { j.saveLast(obs, hints) })
	j.giveHints(w.Worker, hints)
	j.steps = slices.Clone(results)
	if err == nil && j.Squash {
		err = j.squash(ctx, w.Worker, results)
	}
	if err != nil {
		return err
	}
	if !j.Seal && len(j.Tags) == 0 && len(j.Outputs) == 0 {
		j.result.ID, err = j.keep(ctx, w.Worker, results)
	} else {
		err = j.export(ctx, w.Worker, out, results)
	}
	if err != nil {
		return err
	}
	return j.exportCaches(ctx)
}

// spine is the nodes whose layers the targets' images consist of.
func spine(targets []*llb.Node) map[oci.Digest]bool {
	on := map[oci.Digest]bool{}
	var walk func(*llb.Node)
	walk = func(n *llb.Node) {
		if on[n.Digest] {
			return
		}
		on[n.Digest] = true
		switch n.Op.(type) {
		case llb.Merge:
			for _, in := range n.Inputs {
				walk(in)
			}
		case llb.Exec, llb.File:
			walk(n.Inputs[0])
		}
	}
	for _, t := range targets {
		walk(t)
	}
	return on
}

// worker is an executor that hands layers to the outputs as they are made.
type worker struct {
	*executor.Worker
	job     *job
	imports *imports
	out     *outputs
	spine   map[oci.Digest]bool
	epochs  map[oci.Digest]time.Time
}

// Run implements solver.Worker.
func (w *worker) Run(ctx context.Context, n *llb.Node, in []executor.Result) (executor.Result, error) {
	if w.spine[n.Digest] {
		for i, r := range in {
			if w.spine[n.Inputs[i].Digest] { // it may have been cached
				w.out.begin(ctx, builtHere(r.Layers), w.epochs[n.Inputs[i].Digest])
			}
		}
	}
	r, err := w.Worker.Run(ctx, n, in)
	if err == nil && w.spine[n.Digest] {
		w.out.begin(ctx, r.Layers, w.epochs[n.Digest])
	}
	return r, err
}

// builtHere is the layers that are no image's: those are fetched while the step
// runs that is about to, and are not to be fetched twice.
func builtHere(layers []oci.Layer) []oci.Layer {
	return slices.DeleteFunc(slices.Clone(layers), func(l oci.Layer) bool { return l.Blob != nil })
}

// Refuse implements solver.Chooser.
func (w *worker) Refuse(n *llb.Node, r executor.Result) error {
	return w.job.tooOld(r.Layers, w.epochs[n.Digest])
}

// Import implements solver.Importer.
func (w *worker) Import(ctx context.Context, k solver.Key) (executor.Result, error) {
	return w.imports.Import(ctx, k)
}
