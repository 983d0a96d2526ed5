// Dockerfuzz builds generated Dockerfiles in several ways that should agree.
//
// Each case is a Dockerfile over a generated context and generated base images
// with odd contents. It is built by the overlay and the plain driver, with and
// without cache, again, and again after a change that concerns no step; in two
// halves, the second upon an image of the store; and after a change that concerns
// some. It is carried out by hand, with directories and chroot, and built by the
// other builders that answer on this machine (buildctl, docker; buildah when it
// is named). What differs is made smaller and printed with its seed. It needs
// root and a static busybox.
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
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "dockerfuzz:", err)
		os.Exit(1)
	}
}

// options are the command line's.
type options struct {
	seed     uint64
	n        int
	duration time.Duration
	jobs     int
	binary   string
	dir      string
	replay   []string // files
	out      string
	shrink   time.Duration
	stop     int
	modes    bool
	plain    bool
	peers    string
}

func parseFlags() options {
	var o options
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().Unix()), "the first case's `seed`; the next ones follow it")
	flag.IntVar(&o.n, "n", 0, "`number` of cases; 0: until -duration is over")
	flag.DurationVar(&o.duration, "duration", time.Minute, "how long to go on, where -n sets no number")
	flag.IntVar(&o.jobs, "j", runtime.NumCPU(), "cases at the same time")
	flag.StringVar(&o.binary, "build", os.Getenv("BUILD"), "the `binary` to test (BUILD; default: one is built)")
	flag.StringVar(&o.dir, "dir", "/dev/shm", "where to work: a `directory` that overlayfs can use")
	flag.StringVar(&o.out, "out", "", "write each finding to a file in this `directory` as well")
	flag.DurationVar(&o.shrink, "shrink", time.Minute, "how long to make a finding smaller; 0: not at all")
	flag.IntVar(&o.stop, "stop", 10, "end after this many findings")
	flag.BoolVar(&o.modes, "modes", true, "compare drivers and cached builds")
	flag.BoolVar(&o.plain, "plain", true, "compare with steps carried out by hand")
	flag.StringVar(&o.peers, "peers", "all", "compare with these other `builders`, if they answer: all (buildctl and docker), none, or of buildctl, docker and buildah")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: dockerfuzz [flags] [FILE...]\n\nWith files it checks the cases in them, as they were printed.")
		flag.PrintDefaults()
	}
	flag.Parse()
	o.replay = flag.Args()
	return o
}

func run(ctx context.Context) (err error) {
	o := parseFlags()
	if os.Geteuid() != 0 {
		return errors.New("it needs root: it makes devices and foreign owners, and runs chroot")
	}
	if os.Getenv(inside) == "" {
		return again(ctx)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	syscall.Umask(0)
	f := &fuzzer{binary: o.binary, modes: o.modes, plain: o.plain}
	if f.dir, err = os.MkdirTemp(o.dir, "dockerfuzz-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmountBelow(f.dir), os.RemoveAll(f.dir)) }()
	if f.binary == "" {
		f.binary = filepath.Join(f.dir, "build")
		cmd := exec.CommandContext(ctx, "go", "build", "-o", f.binary, "github.com/861fb494/build/cmd/build")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build the binary: %w\n%s", err, out)
		}
	}
	if f.images, err = serveImages(); err != nil {
		return err
	}
	defer f.images.Close()
	f.common = filepath.Join(f.dir, "common")
	if err := os.Mkdir(f.common, 0o755); err != nil {
		return err
	}
	if err := applyLayer(f.common, f.images.common); err != nil {
		return err
	}
	if f.peers, err = peers(ctx, o.peers, f.dir); err != nil {
		return err
	}
	names := "none"
	for i, p := range f.peers {
		if names += ", " + p.name(); i == 0 {
			names = p.name()
		}
	}
	fmt.Printf("from seed %d; other builders: %s\n", o.seed, names)
	return f.all(ctx, o)
}

// inside is set for the process that has its own mounts.
const inside = "DOCKERFUZZ_INSIDE"

// again runs this program with mounts of its own, so that none is left behind.
func again(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, os.Args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Run(); err != nil {
		return errors.New("not all is well")
	}
	return nil
}

// all checks the cases, several at a time.
func (f *fuzzer) all(ctx context.Context, o options) error {
	if len(o.replay) == 0 {
		return f.loop(ctx, o, f.generate)
	}
	o.seed, o.n = 0, len(o.replay)
	return f.loop(ctx, o, func(i uint64) (*Case, error) {
		text, err := os.ReadFile(o.replay[i])
		if err != nil {
			return &Case{}, err
		}
		c, err := parseCase(text)
		if err != nil {
			return &Case{}, fmt.Errorf("%s: %w", o.replay[i], err)
		}
		return c, nil
	})
}

func (f *fuzzer) loop(ctx context.Context, o options, generate func(uint64) (*Case, error)) error {
	start := time.Now()
	var next, found atomic.Int64
	var wg sync.WaitGroup
	for range o.jobs {
		wg.Go(func() {
			for ctx.Err() == nil && int(found.Load()) < o.stop {
				i := next.Add(1) - 1
				if o.n > 0 && i >= int64(o.n) || o.n == 0 && time.Since(start) > o.duration {
					next.Add(-1)
					return
				}
				c, err := generate(o.seed + uint64(i))
				var result *finding
				if err == nil {
					result, err = f.check(ctx, c)
				}
				if ctx.Err() != nil {
					return
				}
				switch {
				case err != nil:
					found.Add(1)
					fmt.Printf("%s\n", c.text(fmt.Sprintf("seed %d: %v\n\n", c.Seed, err)))
				case result != nil:
					found.Add(1)
					f.report(ctx, o, c, result)
				}
			}
		})
	}
	wg.Wait()
	fmt.Printf("%d cases from seed %d, %d builds (%d by other builders) in %v; %d cases failed as they should; %d findings\n",
		next.Load(), o.seed, f.builds.Load(), f.theirs.Load(), time.Since(start).Round(time.Second), f.failed.Load(), found.Load())
	if found.Load() > 0 {
		return errors.New("not all builds agree")
	}
	return ctx.Err()
}

// report shrinks and prints.
func (f *fuzzer) report(ctx context.Context, o options, c *Case, result *finding) {
	seed := c.Seed
	if o.shrink > 0 {
		c, result = f.shrink(ctx, c, result, o.shrink)
	}
	text := c.text(fmt.Sprintf("seed %d: %s\n%s\n\n", seed, result.kind, result.text))
	fmt.Printf("%s\n", text)
	if o.out != "" {
		if err := os.WriteFile(filepath.Join(o.out, fmt.Sprintf("%d.txtar", seed)), text, 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "dockerfuzz:", err)
		}
	}
}
