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
	"strings"
	"syscall"
	"time"
)

func main() {
	if os.Getenv(stopwatchVariable) != "" {
		os.Exit(stopwatch(os.Stdin, os.Stdout))
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
	timeout   time.Duration
	verbose   bool
}

func parseFlags(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.workloads, "w", "", "the `workloads` to run, with commas (default: all)")
	f.StringVar(&o.builders, "builders", "", "the `builders` to compare, with commas: build, buildkit, buildah, docker (default: all that are here)")
	f.IntVar(&o.rounds, "n", 5, "`rounds`: in each, every builder has its turn")
	f.StringVar(&o.out, "out", "", "write results to this `directory`")
	f.StringVar(&o.scratch, "root", "", "a `directory` to work in, on the file system to measure: 20 GB (default: a temporary one)")
	f.StringVar(&o.binary, "build", "", "build's `binary` (default: one is built)")
	f.StringVar(&o.network, "network", "host", "build's `network`, as the peers' steps have the host's; the default one is measured beside it")
	f.DurationVar(&o.timeout, "timeout", 10*time.Minute, "how long one build may take")
	f.BoolVar(&o.verbose, "v", false, "print each sample")
	f.Usage = func() {
		fmt.Fprintln(f.Output(), "usage: bench [flags]\n\nflags:")
		f.PrintDefaults()
		fmt.Fprintln(f.Output(), "\nworkloads:")
		for _, w := range workloads() {
			fmt.Fprintf(f.Output(), "  %-8s %s\n", w.name, w.title)
		}
	}
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q: workloads are given by -w", f.Arg(0))
	}
	if o.rounds < 1 {
		return o, fmt.Errorf("-n %d: want at least one round", o.rounds)
	}
	return o, nil
}

func run(ctx context.Context) (err error) {
	o, err := parseFlags(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return err
	case os.Geteuid() != 0:
		return errors.New("it needs root: the peers do, and so does reading their daemons' memory")
	}
	wanted, err := selectWorkloads(o.workloads)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.scratch, "build-bench-")
	if err != nil {
		return err
	}
	b := &bench{options: o, dir: dir}
	defer func() { err = errors.Join(err, b.close()) }()
	if b.binary, err = productAt(ctx, o.binary, dir); err != nil {
		return err
	}
	if err := b.start(ctx); err != nil {
		return err
	}
	report := b.describe(ctx)
	printMachine(os.Stdout, report)
	for _, w := range wanted {
		result, err := b.workload(ctx, w)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		report.Results = append(report.Results, result)
		printResult(os.Stdout, result, len(report.Results) == 1)
		if o.out != "" { // each time, so that a run that is stopped leaves something
			if err := report.write(o.out); err != nil {
				return err
			}
		}
	}
	return nil
}

// productAt is the path of the program to measure; it is built where none is
// given.
func productAt(ctx context.Context, given, dir string) (string, error) {
	if given != "" {
		return filepath.Abs(given)
	}
	path := filepath.Join(dir, "build")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/861fb494/build/cmd/build")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the binary: %w\n%s", err, out)
	}
	return path, nil
}

// selectWorkloads is the workloads called names, in their usual order.
func selectWorkloads(names string) ([]workload, error) {
	all := workloads()
	if names == "" {
		return all, nil
	}
	var wanted []workload
	for name := range strings.SplitSeq(names, ",") {
		found := false
		for _, w := range all {
			if w.name == name {
				wanted, found = append(wanted, w), true
			}
		}
		if !found {
			return nil, fmt.Errorf("no workload %q: -h lists them", name)
		}
	}
	return wanted, nil
}
