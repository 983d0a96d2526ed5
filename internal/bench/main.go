// Bench compares build with the other builders of a machine.
//
// It builds the same things with build and with each other builder that it
// finds on PATH (buildctl with a running buildkitd, buildah, docker), in turns,
// and prints time, CPU, memory and state on disk beside each other, and what the
// machine itself can do. Nothing in a daemon's cache is removed: what is to be
// built anew has contents that nobody has seen. It needs root, a static busybox
// and docker-registry.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/861fb494/build/internal/bench/limits"
)

func main() {
	limits.Child()
	if os.Getenv(stopwatchVariable) != "" {
		os.Exit(stopwatch(os.Stdin, os.Stdout))
	}
	if len(os.Args) == 4 && os.Args[1] == copyCommand {
		if err := limits.CopyTree(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the command line's.
type options struct {
	workloads string // comma-separated, "" all
	builders  string
	rounds    int
	out       string
	scratch   string
	binary    string
	network   string
	profile   string
	timeout   time.Duration
	verbose   bool
	limits    bool
	scale     bool
	sizes     map[string][]int  // by curve
	versions  map[string]string // by builder, where it does not tell its own
	from      []string          // files, the newest last
	called    string
	doc       string
}

func parseFlags(args []string) (options, error) {
	o := options{sizes: map[string][]int{}, versions: map[string]string{}}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.workloads, "w", "", "the `workloads` to run, with commas (default: all)")
	f.StringVar(&o.builders, "builders", "", "the `builders` to compare, with commas: build, buildkit, buildah, docker, alone (default: all that are here)")
	f.IntVar(&o.rounds, "n", 0, "`rounds`: in each, every builder has its turn (default 5; of curves 3)")
	f.StringVar(&o.out, "out", "", "write results to this `directory`")
	f.StringVar(&o.scratch, "root", "", "a `directory` to work in, on the file system to measure: 35 GB (default: a temporary one)")
	f.StringVar(&o.binary, "build", "", "build's `binary` (default: one is built)")
	f.StringVar(&o.network, "network", "host", "build's `network`, as the peers' steps have the host's; the default one is measured beside it")
	f.StringVar(&o.profile, "profile", "", "write where build's own time went to this `file`: profiling disturbs what is measured")
	f.DurationVar(&o.timeout, "timeout", 10*time.Minute, "how long one build may take")
	f.BoolVar(&o.limits, "limits", true, "measure what the machine can do as well")
	f.BoolVar(&o.scale, "scale", false, "measure curves of build by itself, or of -builders; -w names curves")
	f.Func("sizes", "sizes of a curve, as `CURVE=N,N,…` (repeatable)", func(v string) error {
		name, sizes, err := parseSizes(v)
		o.sizes[name] = sizes
		return err
	})
	f.Func("version", "the version of a builder that does not tell it, as `BUILDER=VERSION` (repeatable)", func(v string) error {
		name, version, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("want BUILDER=VERSION")
		}
		o.versions[name] = version
		return nil
	})
	f.Func("from", "measure nothing: take the results in this `file` that an earlier run wrote (repeatable: workloads that a later file has are taken from that)", func(v string) error {
		o.from = append(o.from, v)
		return nil
	})
	f.StringVar(&o.called, "called", "", "`name` of results that stand beside others in a document: those of builders that would disturb the others' turns, say")
	f.StringVar(&o.doc, "doc", "", "write tables and pictures into this Markdown `file`, between its marks, and beside it")
	f.BoolVar(&o.verbose, "v", false, "print each sample")
	f.Usage = func() {
		fmt.Fprintln(f.Output(), "usage: bench [flags]\n\nflags:")
		f.PrintDefaults()
		fmt.Fprintln(f.Output(), "\nworkloads:")
		for _, w := range new(bench).workloads() {
			fmt.Fprintf(f.Output(), "  %-12s%s\n", w.name, w.title)
		}
		fmt.Fprintln(f.Output(), "\ncurves:")
		for _, c := range new(bench).curves() {
			fmt.Fprintf(f.Output(), "  %-10s%s: %v\n", c.name, c.title, c.sizes)
		}
	}
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q: workloads are given by -w", f.Arg(0))
	}
	switch {
	case o.rounds < 0:
		return o, fmt.Errorf("-n %d: want at least one round", o.rounds)
	case o.rounds == 0 && o.scale:
		o.rounds = 3
	case o.rounds == 0:
		o.rounds = 5
	}
	return o, nil
}

func run(ctx context.Context) error {
	o, err := parseFlags(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return err
	}
	var report Report
	if len(o.from) > 0 {
		report, err = readReports(o.from)
	} else {
		report, err = measure(ctx, o)
	}
	if err != nil {
		return err
	}
	if len(o.from) > 0 && o.out != "" {
		if err := report.write(o.out); err != nil {
			return err
		}
	}
	if o.doc != "" {
		return report.document(o.doc)
	}
	return nil
}

// measure is a whole run. It prints what it finds when it has found it.
func measure(ctx context.Context, o options) (_ Report, err error) {
	if os.Geteuid() != 0 {
		return Report{}, errors.New("it needs root: the peers do, and so does reading their daemons' memory")
	}
	dir, err := os.MkdirTemp(o.scratch, "build-bench-")
	if err != nil {
		return Report{}, err
	}
	b := &bench{options: o, dir: dir, id: serial(), made: map[string][]job{}}
	defer func() { err = errors.Join(err, b.close()) }()
	if b.binary, err = productAt(ctx, o.binary, dir); err != nil {
		return Report{}, err
	}
	if o.scale {
		return b.scale(ctx)
	}
	wanted, err := selectNamed(b.workloads(), func(w workload) string { return w.name }, o.workloads)
	if err != nil {
		return Report{}, err
	}
	if err := b.start(ctx); err != nil {
		return Report{}, err
	}
	report := b.describe()
	printMachine(os.Stdout, report)
	if !report.compares() {
		fmt.Println("no peers: these figures compare nothing")
	}
	for _, w := range wanted {
		result, err := b.workload(ctx, w)
		if err != nil {
			return report, fmt.Errorf("%s: %w", w.name, err)
		}
		report.Results = append(report.Results, result)
		printResult(os.Stdout, result, len(report.Results) == 1)
		if o.out != "" { // each time, so that a run that is stopped leaves something
			if err := report.write(o.out); err != nil {
				return report, err
			}
		}
	}
	if o.limits {
		// These delete many files: see discard.
		if report.Limits, err = limits.Measure(ctx, dir); err != nil {
			return report, fmt.Errorf("measure the machine's limits: %w", err)
		}
		fmt.Println()
		for _, l := range report.Limits {
			fmt.Println(l)
		}
	}
	if o.profile != "" {
		if err := mergeProfiles(b.profiles(), o.profile); err != nil {
			return report, fmt.Errorf("profile: %w", err)
		}
	}
	if o.out != "" {
		err = report.write(o.out)
	}
	return report, err
}

// productAt is the path of the program to measure; it is built where none is
// given.
func productAt(ctx context.Context, given, dir string) (string, error) {
	if given != "" {
		return rewritten(given, dir)
	}
	path := filepath.Join(dir, "linked")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/861fb494/build/cmd/build")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the binary: %w\n%s", err, out)
	}
	return rewritten(path, dir)
}

// rewritten copies a program into dir, in one write. How a file was written is how
// the kernel's cache has it, in single pages or in huge ones, and decides about a
// third of the start of a large program: here all builders' are alike.
func rewritten(program, dir string) (string, error) {
	text, err := os.ReadFile(program)
	if err != nil {
		return "", err
	}
	to, err := os.MkdirTemp(dir, "program-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(to, filepath.Base(program)) // by which some tell what they are to do
	return path, os.WriteFile(path, text, 0o755)
}

// selectNamed is those of all that names lists, with commas, in that order; ""
// lists all.
func selectNamed[T any](all []T, name func(T) string, names string) ([]T, error) {
	if names == "" {
		return all, nil
	}
	var wanted []T
	for want := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(x T) bool { return name(x) == want })
		if i < 0 {
			return nil, fmt.Errorf("-w: there is no %q: -h lists them", want)
		}
		wanted = append(wanted, all[i])
	}
	return wanted, nil
}
