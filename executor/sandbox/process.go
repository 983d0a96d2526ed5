package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/861fb494/build/executor/sandbox/cgroup"
	"github.com/861fb494/build/executor/sandbox/child"
	"github.com/861fb494/build/internal/oci"
	"golang.org/x/sys/unix"
)

// process is a process in namespaces, of both sandboxes.
type process struct {
	ctx     context.Context // of Start: what Wait returns the cause of
	stop    func() bool     // ends the watch on ctx
	killed  atomic.Bool     // because ctx is done
	streams *streams
	spec    Spec
	made    []child.MadeDir
	group   *cgroup.Group // nil for a further process
	cleanup func() error  // what else is to be removed at the end; may be nil

	pid int // if it is not proc's: under an OCI runtime, where proc is process 1 around it

	mu   sync.Mutex
	proc *os.Process
}

func (p *process) process() *os.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proc
}

// kill ends the process, and with it, if it is the first of its PID namespace,
// all others there.
func (p *process) kill() {
	p.killed.Store(true)
	p.process().Kill()
}

// abandon ends a process that could not be set up.
func (p *process) abandon() {
	p.stop()
	p.proc.Kill()
	_, _ = p.proc.Wait() // "signal: killed"
	p.streams.abort()
}

// Pid implements Process.
func (p *process) Pid() int {
	if p.pid != 0 {
		return p.pid
	}
	return p.process().Pid
}

// childOf returns the one child that the process has.
func (p *process) childOf() int {
	self := strconv.Itoa(p.process().Pid)
	data, _ := os.ReadFile("/proc/" + self + "/task/" + self + "/children")
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return pid
}

// Signal implements Process.
func (p *process) Signal(sig os.Signal) error {
	if err := p.process().Signal(sig); err != nil {
		return fmt.Errorf("signal process %d: %w", p.Pid(), err)
	}
	return nil
}

// Resize implements Process.
func (p *process) Resize(columns, rows int) error {
	if p.streams.master == nil {
		return errors.New("resize: the process has no terminal")
	}
	raw, err := p.streams.master.SyscallConn()
	if err != nil {
		return fmt.Errorf("resize: %w", err)
	}
	size := unix.Winsize{Row: uint16(rows), Col: uint16(columns)}
	var ioctlErr error
	err = raw.Control(func(fd uintptr) { ioctlErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &size) })
	if err := errors.Join(err, ioctlErr); err != nil {
		return fmt.Errorf("resize: %w", err)
	}
	return nil
}

// Wait implements Process. When its context was done, the cause of that is what
// is returned.
func (p *process) Wait() error {
	state, err := p.proc.Wait()
	p.stop()
	if err != nil {
		return fmt.Errorf("wait for process: %w", err)
	}
	errs := []error{p.streams.finish()}
	oom := false
	if p.group != nil {
		oom = p.group.OOM()
		errs = append(errs, p.group.Remove())
	}
	errs = append(errs, unmake(upperOf(p.spec.Root), p.made))
	if p.cleanup != nil {
		errs = append(errs, p.cleanup())
	}
	return p.result(state, oom, errors.Join(errs...))
}

func (p *process) result(state *os.ProcessState, oom bool, err error) error {
	status, _ := state.Sys().(syscall.WaitStatus)
	switch {
	case p.killed.Load() && !state.Success():
		return context.Cause(p.ctx)
	case status.Signaled():
		return &ExitError{Code: 128 + int(status.Signal()), Signal: status.Signal(), OOM: oom}
	case status.ExitStatus() != 0:
		return &ExitError{Code: status.ExitStatus(), OOM: oom}
	}
	return err
}

// upperOf returns the host directory that takes what is written to a root, or "".
func upperOf(root oci.Mount) string {
	if root.Type == "overlay" {
		return optionValue(root.Options, "upperdir=")
	}
	return root.Source
}

func optionValue(options []string, prefix string) string {
	for _, o := range options {
		if v, ok := strings.CutPrefix(o, prefix); ok {
			return v
		}
	}
	return ""
}
