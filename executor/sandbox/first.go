package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"

	"github.com/861fb494/build/executor/sandbox/cgroup"
	"github.com/861fb494/build/executor/sandbox/child"
	"golang.org/x/sys/unix"
)

// errNoStub says that the kernel does not let us execute a stub.
var errNoStub = errors.New("a program in memory cannot be executed")

// place is where a sandbox is to be: namespaces that a thread is in, a cgroup, and
// what has been mounted before it was known what for.
type place struct {
	thread *thread
	group  *cgroup.Group
	ahead  child.Ahead
}

// newPlace makes the place of a sandbox. ahead says that it is not known yet what
// for.
func newPlace(group *cgroup.Group, ahead bool) (*place, error) {
	t, err := takeThread()
	if err != nil {
		return nil, err
	}
	p := &place{thread: t, group: group}
	t.do(func() {
		if err = t.enter(); err == nil && ahead {
			p.ahead = child.PrepareAhead()
		}
	})
	if err != nil {
		t.release(err)
		return nil, needsRoot(fmt.Errorf("start sandbox: %w", err))
	}
	return p, nil
}

// needsRoot says so where err is for want of that.
func needsRoot(err error) error {
	if errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
		return fmt.Errorf("%w (this sandbox needs root)", err)
	}
	return err
}

// leave gives the place up.
func (p *place) leave() (err error) {
	p.thread.do(func() {
		p.ahead.Close()
		err = p.thread.leave()
	})
	p.thread.release(err)
	return err
}

// start starts s, as c has it, in the place, which it gives up whatever the result.
// It returns child.ErrInside or errNoStub, and has done nothing, where it cannot be
// done in this way.
func (p *place) start(ctx context.Context, s Spec, c *child.Config) (*process, error) {
	st, err := newStreams(s)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start sandbox: %w", err), p.leave())
	}
	q := &process{ctx: ctx, streams: st}
	pid := 0
	var left error
	p.thread.do(func() {
		var prepared *child.Prepared
		if prepared, err = c.Prepare(p.ahead); err == nil {
			pid, err = execute(prepared, st, p.group)
		}
		q.made = prepared.Made
		prepared.Close()
		left = p.thread.leave()
	})
	p.thread.release(left)
	st.closeChild()
	if pid != 0 {
		q.proc, _ = os.FindProcess(pid) // never fails
	}
	if err = errors.Join(err, left); err != nil {
		if pid != 0 {
			q.proc.Kill()
			_, _ = q.proc.Wait() // it has failed, or is of no use
		}
		st.abort()
		return nil, errors.Join(startError(err), unmake(upperOf(s.Root), q.made))
	}
	st.start(nil)
	q.stop = context.AfterFunc(ctx, q.kill)
	return q, nil
}

// startError is err as Start returns it.
func startError(err error) error {
	var f *child.Failure
	if errors.As(err, &f) && f.Code != 0 {
		return &ExecError{Code: f.Code, Err: f.Text}
	}
	return fmt.Errorf("start sandbox: %w", err)
}

// execute starts the first process of a sandbox, and returns when it has executed
// the command. It is called by the thread that has prepared it.
func execute(p *child.Prepared, st *streams, group *cgroup.Group) (pid int, err error) {
	exe, err := p.Program.Open()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNoStub, err)
	}
	defer unix.Close(exe)
	var report [2]int
	if err := unix.Pipe2(report[:], unix.O_CLOEXEC); err != nil {
		return 0, fmt.Errorf("pipe: %w", err)
	}
	defer unix.Close(report[0])
	attr := syscall.ProcAttr{Sys: &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL}}
	for _, f := range st.child {
		attr.Files = append(attr.Files, f.Fd())
	}
	attr.Files = append(attr.Files, uintptr(report[1]))
	for _, fd := range p.Files {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	fd, closeGroup, err := group.FD()
	if err == nil {
		defer closeGroup()
		if fd >= 0 {
			attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, fd
		}
		pid, err = forkExec(exe, &attr)
	}
	unix.Close(report[1])
	if err != nil {
		return 0, err
	}
	said, err := readAll(report[0])
	if err == nil && len(said) > 0 {
		err = p.Failed(said)
	}
	return pid, err
}

// forkExec is syscall.ForkExec for the program in the descriptor exe.
func forkExec(exe int, attr *syscall.ProcAttr) (pid int, err error) {
	at, err := above(exe, attr.Files)
	if err != nil {
		return 0, err
	}
	defer unix.Close(at)
	pid, err = syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(at), []string{child.Name}, attr)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOEXEC) {
		err = fmt.Errorf("%w: %w", errNoStub, err)
	}
	return pid, err
}

// readAll reads to the end, without the runtime's poller.
func readAll(fd int) ([]byte, error) {
	var out []byte
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return out, fmt.Errorf("read report: %w", err)
		case n == 0:
			return out, nil
		default:
			out = append(out, buf[:n]...)
		}
	}
}

// stubsWork reports whether the kernel has what a stub needs to keep descriptors
// from the command (Linux 5.11).
var stubsWork = sync.OnceValue(func() bool {
	const none = 1<<31 - 1
	return unix.CloseRange(none, none, unix.CLOSE_RANGE_CLOEXEC) == nil
})
