package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/internal/testbase"
)

// bench is one run of the benchmark.
type bench struct {
	options  options
	dir      string // scratch, removed at the end
	binary   string
	id       string // of this run: what it builds first is new to everyone
	registry *testbase.Registry
	images   *images
	found    []builder
	missing  []string
	served   *mirror          // nil until a workload needs it
	made     map[string][]job // by builder: what it is to forget
	runs     int

	discarded int // trees put aside, see discard
}

// start starts what the builds need, and looks for builders.
func (b *bench) start(ctx context.Context) error {
	for _, sub := range []string{"registry", "images", "contexts", "state", "logs", "profiles", "discarded"} {
		if err := os.Mkdir(filepath.Join(b.dir, sub), 0o755); err != nil {
			return err
		}
	}
	var err error
	if b.registry, err = testbase.StartRegistry(filepath.Join(b.dir, "registry")); err != nil {
		return err
	}
	b.images = &images{dir: filepath.Join(b.dir, "images"), registryDir: filepath.Join(b.dir, "registry"), registry: b.registry, bodies: map[string]*body{}, pushed: map[string]bool{}}
	b.found, b.missing, err = b.builders(ctx)
	return err
}

// close ends and removes what start made.
func (b *bench) close() error {
	if b.registry != nil {
		b.registry.Close()
	}
	var err error
	if b.served != nil {
		err = b.served.close()
	}
	return errors.Join(err, removeAll(b.dir))
}

// removeAll removes a tree; what is mounted in it is taken off first.
func removeAll(dir string) error {
	if err := unmountBelow(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

func unmountBelow(dir string) error {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for _, p := range slices.Backward(mountsBelow(string(text), dir)) {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	return nil
}

// discard has the tree dir go. One of many files is only put aside till the end:
// ext4 without a journal passes over the inodes of what was deleted in the last
// minutes one by one when a file is made. What the benchmark deletes is build's
// own and no daemon's, so that build alone would be slowed down.
func (b *bench) discard(dir string) error {
	if err := unmountBelow(dir); err != nil {
		return err
	}
	if countFiles(dir) <= maxDeleted {
		return os.RemoveAll(dir)
	}
	b.discarded++
	return os.Rename(dir, filepath.Join(b.dir, "discarded", strconv.Itoa(b.discarded)))
}

// maxDeleted is how many files a tree has that is deleted at once. Those that take
// much room, of a few large files, are.
const maxDeleted = 2000

// countFiles is how many files there are below dir, itself included; 0 if it is not
// there.
func countFiles(dir string) int {
	n := 0
	_ = filepath.WalkDir(dir, func(_ string, _ fs.DirEntry, err error) error {
		if err == nil {
			n++
		}
		return nil
	})
	return n
}

// mountsBelow lists the mount points below dir in the text of /proc/mounts, in
// its order; names with spaces, which are escaped there, are not ours.
func mountsBelow(mounts, dir string) []string {
	var points []string
	for line := range strings.Lines(mounts) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			points = append(points, fields[1])
		}
	}
	return points
}

// workload runs all rounds of a workload. What cannot be done is told in the
// result; an error means that there is no point in going on.
func (b *bench) workload(ctx context.Context, w workload) (_ Result, err error) {
	result := Result{Name: w.name, Title: w.title}
	those := slices.DeleteFunc(slices.Clone(b.found), func(is builder) bool {
		return is.onlyRuns && !w.runs || is.argv(job{out: w.out, alone: w.alone}) == nil
	})
	dir := filepath.Join(b.dir, "contexts", fileName(w.name))
	defer func() { err = errors.Join(err, b.tidy(context.WithoutCancel(ctx), w, dir, those)) }()
	if len(w.after) > 0 {
		err = b.disk(ctx, w, dir, those, &result)
	} else {
		err = b.rounds(ctx, w, dir, those, &result)
	}
	if ctx.Err() != nil {
		return result, context.Cause(ctx)
	}
	if err != nil {
		result.Failure = err.Error()
	}
	return result, nil
}

// fileName is a workload's name where "+" may mean something.
func fileName(workload string) string { return strings.ReplaceAll(workload, "+", "-") }

// rounds primes the builders and gives them their turns.
func (b *bench) rounds(ctx context.Context, w workload, dir string, those []builder, result *Result) error {
	contexts, err := b.writeContexts(ctx, w, dir)
	if err != nil {
		return err
	}
	sizes := make([]int64, len(those))
	for i, is := range those {
		b.tell("%s: %s gets ready", w.name, is.name)
		result.Entries = append(result.Entries, Entry{Builder: is.name})
		sizes[i] = diskUse(is.state)
		if err := b.prime(ctx, w, is, contexts); err != nil {
			result.Entries[i].Failure = err.Error()
		}
	}
	for round := range b.options.rounds {
		for turn := range those {
			i := turn
			if round%2 == 1 {
				i = len(those) - 1 - turn
			}
			e := &result.Entries[i]
			if e.Failure != "" || ctx.Err() != nil {
				continue
			}
			if w.forget && those[i].own {
				err = errors.Join(b.discard(those[i].state), b.prime(ctx, w, those[i], contexts))
			}
			var s Sample
			if err == nil {
				s, err = b.sample(ctx, w, those[i], contexts)
			}
			if err != nil {
				e.Failure = err.Error()
				continue
			}
			e.Samples = append(e.Samples, s)
			b.tell("%s: %s, round %d: %.3f s, CPU %.2f s, others' CPUs %.2f", w.name, e.Builder, round+1, s.Wall, s.CPU, s.Foreign)
		}
	}
	for i, is := range those {
		if is.state != "" {
			result.Entries[i].State = diskUse(is.state) - sizes[i]
		}
	}
	return nil
}

// tell prints what is going on, where that is wanted.
func (b *bench) tell(format string, args ...any) {
	if b.options.verbose {
		fmt.Printf("  "+format+"\n", args...)
	}
}

// writeContexts writes a context for each of the builds at once.
func (b *bench) writeContexts(ctx context.Context, w workload, dir string) ([]string, error) {
	var contexts []string
	for i := range max(1, w.builds) {
		sub := filepath.Join(dir, fmt.Sprint(i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return nil, err
		}
		if w.files != nil {
			if err := w.files(ctx, sub, i); err != nil {
				return nil, fmt.Errorf("write context: %w", err)
			}
		}
		contexts = append(contexts, sub)
	}
	return contexts, nil
}

// prime does what is not measured, before the first round.
func (b *bench) prime(ctx context.Context, w workload, is builder, contexts []string) error {
	if tmp := slices.IndexFunc(is.env, func(s string) bool { return strings.HasPrefix(s, "TMPDIR=") }); tmp >= 0 {
		if err := os.MkdirAll(strings.TrimPrefix(is.env[tmp], "TMPDIR="), 0o755); err != nil {
			return err
		}
	}
	if w.primed == primeSame {
		if err := b.dockerfiles(ctx, w, contexts, b.id); err != nil {
			return err
		}
		w.out, w.noCache = nothing, false
		_, err := b.timed(ctx, w, is, contexts)
		return err
	}
	kind := w.base
	if w.primed == primeTool {
		kind = "busybox"
	}
	base, err := b.images.push(ctx, kind, "")
	if err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "contexts", "prime")
	if err := write(dir, "Dockerfile", "FROM "+base+"\nCOPY Dockerfile /\n"); err != nil {
		return err
	}
	_, err = b.timed(ctx, workload{name: w.name}, is, []string{dir})
	return err
}

// dockerfiles writes those of a workload's contexts.
func (b *bench) dockerfiles(ctx context.Context, w workload, contexts []string, serial string) error {
	of := ""
	if w.newBase {
		of = serial
	}
	image := w.image
	if image == nil {
		image = func(ctx context.Context, serial string) (string, error) { return b.images.push(ctx, w.base, serial) }
	}
	base, err := image(ctx, of)
	if err != nil {
		return err
	}
	if !w.fresh {
		serial = b.id
	}
	for i, dir := range contexts {
		if err := write(dir, "Dockerfile", w.dockerfile(base, serial, i)); err != nil {
			return err
		}
	}
	return nil
}

// serial is 16 characters that were not there before.
func serial() string { return fmt.Sprintf("%016x", time.Now().UnixNano()) }

// sample is one turn of a builder.
func (b *bench) sample(ctx context.Context, w workload, is builder, contexts []string) (Sample, error) {
	serial := serial()
	if err := b.dockerfiles(ctx, w, contexts, serial); err != nil {
		return Sample{}, err
	}
	if w.change != nil {
		for _, dir := range contexts {
			if err := w.change(dir, serial); err != nil {
				return Sample{}, fmt.Errorf("change context: %w", err)
			}
		}
	}
	if w.warm {
		before := w
		before.out = nothing
		if _, err := b.timed(ctx, before, is, contexts); err != nil {
			return Sample{}, err
		}
	}
	return b.timed(ctx, w, is, contexts)
}

// timed builds the contexts at once and measures that.
func (b *bench) timed(ctx context.Context, w workload, is builder, contexts []string) (Sample, error) {
	b.runs++
	o := order{Timeout: b.options.timeout}
	var pushed []string
	for i, dir := range contexts {
		name := fmt.Sprintf("%s-%d", fileName(w.name), i)
		j := job{context: dir, tag: "bench/" + name, out: w.out, noCache: w.noCache, alone: w.alone, dest: filepath.Join(b.dir, "out.tar")}
		if w.out.pushes() {
			j.tag = fmt.Sprintf("bench/%s-%d", name, b.runs) // a repository that has no layers yet
			pushed = append(pushed, j.tag)
		}
		if b.options.profile != "" {
			j.profile = filepath.Join(b.profiles(), fmt.Sprintf("%d-%d", b.runs, i))
		}
		if err := os.Remove(j.dest); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Sample{}, err
		}
		if is.release != nil && w.out != nothing && !slices.ContainsFunc(b.made[is.name], func(o job) bool { return o.tag == j.tag }) {
			b.made[is.name] = append(b.made[is.name], j)
		}
		o.Builds = append(o.Builds, command{Steps: is.argv(j), Env: is.env, Log: filepath.Join(b.dir, "logs", fmt.Sprintf("%s-%s", is.name, name))})
	}
	unix.Sync() // what was written before is not this build's
	if err := touch(w.touch); err != nil {
		return Sample{}, err
	}
	forgetPeaks(is.daemons)
	before := daemonCPU(is.daemons)
	t, err := timed(ctx, o)
	if err != nil {
		return Sample{}, err
	}
	if t.Error != "" {
		return Sample{}, errors.New(t.Error)
	}
	s := Sample{Wall: t.Wall, CPU: t.CPU + daemonCPU(is.daemons) - before, Client: t.Memory, Daemon: peakMemory(is.daemons)}
	s.Foreign = max(0, t.Busy-s.CPU) / t.Wall
	s.Output, err = b.outputSize(ctx, w.out, pushed)
	return s, err
}

// outputSize is what a build put out, in bytes: one that put out nothing has
// failed, whatever it says.
func (b *bench) outputSize(ctx context.Context, out output, pushed []string) (int64, error) {
	if out == ociTar {
		fi, err := os.Stat(filepath.Join(b.dir, "out.tar"))
		if err != nil {
			return 0, err
		}
		return fi.Size(), nil
	}
	var sum int64
	for _, tag := range pushed {
		n, err := b.images.size(ctx, tag)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// tidy removes what a workload left.
func (b *bench) tidy(ctx context.Context, w workload, dir string, those []builder) error {
	errs := []error{b.discard(dir), os.RemoveAll(filepath.Join(b.dir, "out.tar"))}
	for _, is := range those {
		if is.own {
			errs = append(errs, b.discard(is.state))
			continue
		}
		for _, j := range b.made[is.name] {
			if err := is.release(ctx, j); err != nil { // its daemon keeps more than it should
				fmt.Fprintln(os.Stderr, "bench:", err)
			}
		}
	}
	clear(b.made)
	if w.newBase || w.out.pushes() {
		errs = append(errs, b.images.empty())
	}
	return errors.Join(errs...)
}
