package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/docker/go-units"

	"github.com/861fb494/build/exporter"
	"github.com/861fb494/build/internal/builder"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress/display"
	"github.com/861fb494/build/llb/dockerfile"
)

// open opens the state directory with the options that the user gave.
func (g *globals) open(ctx context.Context, driver, runtime string) (*builder.Builder, error) {
	root, err := g.stateDir()
	if err != nil {
		return nil, err
	}
	return builder.Open(ctx, root, builder.Options{Driver: driver, OCIRuntime: runtime, Registries: g.registryConfig})
}

// boundGarbage has no garbage collected before 8 MB have been allocated, which is
// more than a cached build of some thousand files takes. From then on as much as that
// may be allocated anew each time, or a fifth of what is in use where that is more: to
// collect by the share alone, as is usual, takes a build of many small steps most of
// its time where the share is small, and one of many files most of its memory where
// it is large.
func boundGarbage() {
	debug.SetGCPercent(200) // of 4 MB, at first
	afterCollection(200)
}

// afterCollection sets the share, which is percent, anew when garbage has been
// collected next.
func afterCollection(percent int) {
	runtime.AddCleanup(new([64]byte), func(percent int) {
		// NextGC is what was in use, and percent of that. runtime/metrics would say
		// it outright, for half a millisecond of each start.
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		next := garbagePercent(m.NextGC * 100 / uint64(100+percent))
		if next != percent {
			debug.SetGCPercent(next)
		}
		afterCollection(next)
	}, percent)
}

// garbagePercent is how much may be allocated when so many bytes are in use, as a
// percentage of that.
func garbagePercent(live uint64) int {
	const room = 8 << 20
	return int(min(max(100*room/max(live, 1), 20), 200))
}

// needsRoot tells those who are not root of it, before they meet the first file
// that they cannot give an owner.
func needsRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("building images and running containers needs root for now: try sudo")
	}
	return nil
}

// runBuild is where the command line ends and the builder begins.
func runBuild(ctx context.Context, g *globals, o buildOptions) (err error) {
	if os.Getenv("GOGC") == "" {
		boundGarbage()
	}
	keep, unbounded, err := keepStorage(os.Getenv("BUILD_KEEP_STORAGE"))
	if err != nil {
		return usagef("BUILD_KEEP_STORAGE: %w", err)
	}
	if o.Frontend.Call.Name == "" {
		if err := needsRoot(); err != nil {
			return err
		}
		if err := o.Output.prepare(); err != nil {
			return err
		}
	}
	b, err := g.open(ctx, o.Driver, o.Steps.OCIRuntime)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close(ctx)) }()
	if b.Notice != "" {
		fmt.Fprintln(g.stderr, "build:", b.Notice)
	}
	var swept sync.WaitGroup
	swept.Go(func() {
		if err := b.Sweep(ctx); err != nil {
			g.debugf("sweep: %v", err)
		}
	})
	defer swept.Wait()
	request := o.request(g)
	if request.Call != "" {
		return runCall(ctx, g, b, request, o.Frontend.Call)
	}
	// Whoever read what the build says and is gone (build … 2>&1 | head) ends it, in
	// order, and not the program before it has cleaned up.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	building, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	options := display.Options{Broken: func(err error) {
		if errors.Is(err, syscall.EPIPE) { // a full disk is no reason to stop
			stop(err)
		}
	}}
	var show display.Display = display.Quiet(g.stderr)
	if f, ok := g.stderr.(*os.File); ok {
		if show, err = display.New(o.Progress, f, options); err != nil {
			return err
		}
	} else if o.Progress != "quiet" {
		show = display.Plain(g.stderr, options)
	}
	request.Sink = show
	res, err := b.Build(building, request)
	cerr := show.Close()
	switch {
	case errors.Is(cerr, syscall.EPIPE):
		return exitStatus(128 + int(syscall.SIGPIPE)) // nobody is there to be told
	case err == nil:
		err = cerr
	}
	if err != nil {
		return failed(g.stderr, show, err)
	}
	if err := o.Output.print(g, res); err != nil {
		return err
	}
	if !unbounded {
		autoPrune(ctx, g, b, keep)
	}
	return nil
}

// prepare finds files beside the image that cannot be written, and removes the ID of
// the build before, which is no longer true should this one fail.
func (o outputOptions) prepare() error {
	for _, f := range []struct{ flag, path string }{{"iidfile", o.IIDFile}, {"metadata-file", o.MetadataFile}} {
		if f.path == "" {
			continue
		}
		if err := exporter.CheckFile(f.path); err != nil {
			return fmt.Errorf("--%s: %w", f.flag, err)
		}
	}
	if st, err := os.Stat(o.IIDFile); err == nil && st.Mode().IsRegular() {
		if err := os.Remove(o.IIDFile); err != nil {
			return fmt.Errorf("--iidfile: %w", err)
		}
	}
	return nil
}

// autoPrune keeps the state directory within so many bytes, 0 for the default. What
// goes wrong with it is no matter of the build that succeeded.
func autoPrune(ctx context.Context, g *globals, b *builder.Builder, keep int64) {
	pinned, err := g.pinned()
	if err == nil {
		var r builder.PruneResult
		if r, err = b.AutoPrune(ctx, keep, pinned); r.Bytes() > 0 {
			fmt.Fprintf(g.stderr, "build: pruned %s of what was used longest ago ('build prune --help')\n", units.HumanSize(float64(r.Bytes())))
		}
	}
	if err != nil {
		fmt.Fprintln(g.stderr, "build: prune:", err)
	}
}

// failed prints what there is to say of a failed build, and returns an error
// that says nothing more.
func failed(w io.Writer, show display.Display, err error) error {
	if bad := (*builder.RequestError)(nil); errors.As(err, &bad) {
		return &usageError{err: err}
	}
	var b *builder.BuildError
	if !errors.As(err, &b) || errors.Is(err, context.Canceled) {
		return err
	}
	if perr := (display.Failure{Step: b.Name, Output: show.Output(b.Step), Position: b.Position, Excerpt: b.Excerpt, Err: err}).Print(w); perr != nil {
		return err
	}
	return exitStatus(exitFailure)
}

// allStages is what --expect-cached means without a value: a word that no stage
// can have for a name.
const allStages = "*"

// request is the builder's form of what the command line says.
func (o buildOptions) request(g *globals) builder.Request {
	r := builder.Request{
		Context: o.Context, File: o.File, Stdin: g.stdin,
		Frontend: dockerfile.Options{
			Target: o.Frontend.Target, BuildArgs: o.Frontend.Args, Labels: o.Frontend.Labels, Contexts: o.Frontend.Contexts,
			NoCacheFilter: o.Cache.NoCacheStages,
			Network:       o.Steps.Network, Hosts: o.Steps.Hosts, ShmSize: o.Steps.ShmSize, Ulimits: o.Steps.Ulimits,
			CgroupParent: o.Steps.CgroupParent,
		},
		Platforms: o.Frontend.Platforms,
		Call:      o.Frontend.Call.Name,
		Pull:      o.Cache.Pull, NoCache: o.Cache.NoCache,
		Locked: o.Cache.Locked, Offline: o.Cache.Offline,
		CacheFrom: o.Cache.From, CacheTo: o.Cache.To,
		Tags: o.Output.Tags, Annotations: o.Output.Annotations,
		Seal: o.Output.Quiet || o.Output.IIDFile != "" || o.Output.MetadataFile != "", Squash: o.Output.Squash, Reproducible: o.Output.Reproducible,
		Secrets: map[string]builder.Secret{}, SSH: map[string]builder.SSH{}, Allow: o.Steps.Allow, AllowDevices: o.Steps.AllowDevices,
		Memory: o.Steps.Memory, CPUs: o.Steps.CPUs, NoNewPrivileges: o.Steps.NoNewPrivileges,
	}
	if len(o.Cache.ExpectCached) > 0 {
		r.ExpectCached = slices.DeleteFunc(slices.Clone(o.Cache.ExpectCached), func(s string) bool { return s == allStages })
	}
	for _, s := range o.Session.Secrets {
		r.Secrets[s.ID] = builder.Secret{File: s.File, Env: s.Env}
	}
	for _, s := range o.Session.SSH {
		r.SSH[s.ID] = builder.SSH{Paths: s.Paths, Raw: s.Raw}
	}
	o.Output.outputs(&r)
	return r
}

// outputs adds where the result goes.
func (o outputOptions) outputs(r *builder.Request) {
	for _, w := range o.Outputs {
		r.Outputs = append(r.Outputs, exporter.Output{Type: w.Type, Dest: w.Dest, Attrs: o.attrs(w.Attrs)})
	}
	isImage := func(w exporter.Output) bool { return w.Type == exporter.TypeImage }
	if o.Load && len(r.Outputs) > 0 && !slices.ContainsFunc(r.Outputs, isImage) {
		r.Outputs = append(r.Outputs, exporter.Output{Type: exporter.TypeImage, Attrs: o.attrs(nil)})
	}
	if o.Push {
		r.Outputs = append(r.Outputs, exporter.Output{Type: exporter.TypeImage, Attrs: o.attrs(map[string]string{"push": "true"})})
	}
}

// named reports whether there is an image, somewhere, that has the names: files alone
// have none.
func (o outputOptions) named() bool {
	hasNames := func(w outputOption) bool {
		return w.Type != exporter.TypeLocal && w.Type != exporter.TypeTar && w.Type != "cacheonly"
	}
	return len(o.Outputs) == 0 || o.Load || o.Push || slices.ContainsFunc(o.Outputs, hasNames)
}

// attrs adds the flags on compression to an output's attributes, which count
// more.
func (o outputOptions) attrs(of map[string]string) map[string]string {
	a := map[string]string{}
	if o.Compression != "" {
		a["compression"] = o.Compression
	}
	if o.CompressionLevel != nil {
		a["compression-level"] = strconv.Itoa(*o.CompressionLevel)
	}
	for k, v := range of {
		a[k] = v
	}
	return a
}

// print says what was built: on standard output the ID, if it was asked for.
func (o outputOptions) print(g *globals, res *builder.Response) error {
	if o.IIDFile != "" {
		if err := os.WriteFile(o.IIDFile, []byte(res.ID.String()), 0o644); err != nil {
			return fmt.Errorf("--iidfile: %w", err)
		}
	}
	if o.MetadataFile != "" {
		if err := writeMetadata(o.MetadataFile, o.Tags, res); err != nil {
			return fmt.Errorf("--metadata-file: %w", err)
		}
	}
	switch {
	case o.Quiet:
		if _, err := fmt.Fprintln(g.stdout, res.ID); err != nil {
			return fmt.Errorf("%s was built, but its ID could not be told: %w", res.ID, err)
		}
	case !res.Sealed:
		id := res.ID.Encoded()[:12]
		fmt.Fprintf(g.stderr, "Built %s, which has no name: 'build tag %s NAME' gives it one.\n", id, id)
	default:
		tags := o.Tags
		if !o.named() {
			tags = nil
		}
		for _, t := range tags {
			fmt.Fprintf(g.stderr, "Built %s %s\n", t.Familiar(), res.ID)
		}
		if len(tags) == 0 {
			fmt.Fprintf(g.stderr, "Built %s\n", cmp.Or(res.ID, oci.Digest("image")))
		}
	}
	return nil
}
