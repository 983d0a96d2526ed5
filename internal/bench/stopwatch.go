package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stopwatchVariable is set for a process that starts builds and times them. It
// is one of its own, since a child's peak memory as wait4 tells it is never less
// than what its parent had when it forked; see exec_mmap in Linux.
const stopwatchVariable = "BUILD_BENCH_STOPWATCH"

// order is what a stopwatch is told on standard input.
type order struct {
	Builds  []command // started together
	Timeout time.Duration
}

// command is one build: programs that run one after the other.
type command struct {
	Steps [][]string
	Env   []string // added to the environment
	Log   string   // the file that takes its output
}

// timing is what it answers.
type timing struct {
	Wall   float64 // seconds until all had ended
	CPU    float64 // seconds of all processes that were waited for
	Memory int64   // bytes: of each build its largest process's peak, added up
	Busy   float64 // seconds that the machine's processors worked
	Error  string  // of the first build that failed
}

// stopwatch carries out an order and returns the exit code.
func stopwatch(r io.Reader, w io.Writer) int {
	var o order
	if err := json.NewDecoder(r).Decode(&o); err != nil {
		fmt.Fprintln(os.Stderr, "stopwatch:", err)
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.Timeout)
	defer cancel()
	// What this process does for the first time when it starts a program takes as
	// long as some builds.
	_ = exec.CommandContext(ctx, "true").Run()
	if err := json.NewEncoder(w).Encode(o.run(ctx)); err != nil {
		return 1
	}
	return 0
}

func (o order) run(ctx context.Context) timing {
	type outcome struct {
		cpu    float64
		memory int64
		err    error
	}
	outcomes := make([]outcome, len(o.Builds))
	logs := make([]*os.File, len(o.Builds))
	for i, c := range o.Builds {
		var err error
		if logs[i], err = os.Create(c.Log); err != nil {
			return timing{Error: err.Error()}
		}
		defer logs[i].Close()
	}
	var wait sync.WaitGroup
	busy := busySeconds()
	start := time.Now()
	for i, c := range o.Builds {
		wait.Go(func() {
			out := &outcomes[i]
			out.cpu, out.memory, out.err = c.run(ctx, logs[i])
		})
	}
	wait.Wait()
	t := timing{Wall: time.Since(start).Seconds(), Busy: busySeconds() - busy}
	for _, out := range outcomes {
		t.CPU += out.cpu
		t.Memory += out.memory
		if out.err != nil && t.Error == "" {
			t.Error = out.err.Error()
		}
	}
	return t
}

func (c command) run(ctx context.Context, log *os.File) (cpu float64, memory int64, err error) {
	for _, argv := range c.Steps {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), c.Env...)
		cmd.Env = append(cmd.Env, stopwatchVariable+"=")
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 10 * time.Second
		err := cmd.Run()
		if s := cmd.ProcessState; s != nil {
			cpu += (s.UserTime() + s.SystemTime()).Seconds()
			if usage, ok := s.SysUsage().(*syscall.Rusage); ok {
				memory = max(memory, usage.Maxrss<<10)
			}
		}
		if err != nil {
			return cpu, memory, fmt.Errorf("%s: %w: %s", filepath.Base(argv[0]), errors.Join(err, context.Cause(ctx)), tail(c.Log))
		}
	}
	return cpu, memory, nil
}

// tail is the end of a log, in one line.
func tail(name string) string {
	text, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	text = bytes.TrimSpace(text)
	text = text[max(0, len(text)-500):]
	return strings.Join(strings.Fields(string(text)), " ")
}

// busySeconds is how long the machine's processors have worked, added up; see
// proc_stat(5).
func busySeconds() float64 {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	return parseBusy(string(text))
}

// parseBusy reads the first line of /proc/stat: user, nice, system, idle,
// iowait, irq, softirq, steal, in hundredths of a second.
func parseBusy(text string) float64 {
	line, _, _ := strings.Cut(text, "\n")
	var ticks float64
	for i, field := range strings.Fields(line) {
		if i == 0 || i == 4 || i == 5 || i > 8 { // the name; idle, iowait; guests, counted already
			continue
		}
		n, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return ticks / 100
}

// timed has a stopwatch run the commands.
func timed(ctx context.Context, o order) (timing, error) {
	self, err := os.Executable()
	if err != nil {
		return timing{}, err
	}
	in, err := json.Marshal(o)
	if err != nil {
		return timing{}, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), stopwatchVariable+"=1")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return timing{}, context.Cause(ctx)
	}
	if err != nil {
		return timing{}, fmt.Errorf("stopwatch: %w", err)
	}
	var t timing
	if err := json.Unmarshal(out, &t); err != nil {
		return timing{}, fmt.Errorf("stopwatch: %w", err)
	}
	return t, nil
}
