package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"github.com/861fb494/build/executor/sandbox/child"
	"golang.org/x/sys/unix"
)

// started is a child of this program that waits to be told what to do.
type started struct {
	proc *os.Process
	conn *os.File // our end of the control socket
}

// startChild starts a child of this program, by a name of package child's.
func startChild(name string, attr *syscall.SysProcAttr) (*started, error) {
	exe, err := sealedExe()
	if err != nil {
		return nil, fmt.Errorf("start sandbox: %w", err)
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("start sandbox: %w", err)
	}
	proc, err := startProcess(exe, name, &os.ProcAttr{
		Dir: "/",
		// The child lives for milliseconds: one thread, no collection.
		Env:   []string{"GOMAXPROCS=1", "GOGC=off"},
		Files: []*os.File{nil, nil, nil, theirs}, // its streams come with what it is to do
		Sys:   attr,
	})
	theirs.Close()
	if err != nil {
		ours.Close()
		return nil, needsRoot(fmt.Errorf("start sandbox: %w", err))
	}
	return &started{proc: proc, conn: ours}, nil
}

// end ends a child that has been told nothing.
func (f *started) end() {
	f.conn.Close()
	f.proc.Kill()
	_, _ = f.proc.Wait() // "signal: killed"
}

// launch starts a child and has it do c.
func launch(ctx context.Context, s Spec, c *child.Config, name string, attr *syscall.SysProcAttr) (*process, error) {
	f, err := startChild(name, attr)
	if err != nil {
		return nil, err
	}
	return f.launch(ctx, s, c)
}

// launch has the child do c, and returns when the command has been executed.
func (f *started) launch(ctx context.Context, s Spec, c *child.Config) (*process, error) {
	st, err := newStreams(s)
	if err != nil {
		f.end()
		return nil, fmt.Errorf("start sandbox: %w", err)
	}
	defer f.conn.Close()
	p := &process{ctx: ctx, proc: f.proc, streams: st}
	p.stop = context.AfterFunc(ctx, p.kill)
	if err := p.handshake(f.conn, c); err != nil {
		p.abandon()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if left := unmake(upperOf(s.Root), p.made); left != nil {
			err = errors.Join(err, left)
		}
		return nil, err
	}
	return p, nil
}

// handshake tells the child what to do and hears how that went.
func (p *process) handshake(conn *os.File, c *child.Config) error {
	// Only now, so that it is done while the child starts.
	if err := setFilter(c); err != nil {
		return err
	}
	// A child that ends before it has read everything says why.
	sendErr := child.WriteMessage(&rightsWriter{conn: conn, files: p.streams.child[:]}, 0, c)
	p.streams.closeChild()
	r := &rightsReader{conn: conn}
	defer r.close()
	ready, adopted := false, c.Target == 0
	for {
		kind, payload, err := child.ReadMessage(r)
		switch {
		case err == io.EOF && ready && adopted:
			p.streams.start(r.take())
			return nil
		case err != nil:
			if sendErr != nil {
				err = sendErr
			}
			return fmt.Errorf("start sandbox: %w: %w", errEarly, err)
		case kind == child.MsgTerminal: // the descriptor is in r
		case kind == child.MsgMade:
			if err := json.Unmarshal(payload, &p.made); err != nil {
				return fmt.Errorf("start sandbox: %w", err)
			}
		case kind == child.MsgReady:
			var s child.Setup
			if err := json.Unmarshal(payload, &s); err != nil {
				return fmt.Errorf("start sandbox: %w", err)
			}
			ready = true
			if s.Pid != 0 {
				p.pid = p.childOf()
			}
		case kind == child.MsgPid:
			if err := p.adopt(payload); err != nil {
				return fmt.Errorf("start sandbox: %w", err)
			}
			adopted = true
		case kind == child.MsgError:
			return childError(payload)
		}
	}
}

// setFilter gives c the filter of system calls.
func setFilter(c *child.Config) error {
	if c.Privileged || c.Run != nil {
		return nil
	}
	filter, err := seccompFilter(c.Caps)
	if err != nil {
		return fmt.Errorf("start sandbox: %w", err)
	}
	c.Seccomp = filter
	return nil
}

// errEarly is the error for a child that ended without a word.
var errEarly = errors.New("its first process ended early")

func childError(payload []byte) error {
	var f child.Failure
	if err := json.Unmarshal(payload, &f); err != nil {
		return fmt.Errorf("start sandbox: %w", err)
	}
	if f.Code != 0 {
		return &ExecError{Code: f.Code, Err: f.Text}
	}
	return fmt.Errorf("start sandbox: %s", f.Text)
}

// adopt goes over from the child, which ends, to the process that it started in
// another sandbox's namespaces, as a child of ours.
func (p *process) adopt(payload []byte) error {
	pid, err := strconv.Atoi(string(payload))
	if err != nil {
		return err
	}
	proc, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	p.mu.Lock()
	joiner := p.proc
	p.proc = proc
	p.mu.Unlock()
	_, _ = joiner.Wait() // it has done its work, however it ended
	if p.ctx.Err() != nil {
		p.kill() // what came before was for the child
	}
	return nil
}

// starter is the thread that starts all children. The kernel kills a child with
// Pdeathsig when the thread ends that started it, and a thread of the runtime
// may end at any time; this one lasts as long as the process.
var starter struct {
	once     sync.Once
	requests chan func()
}

func startProcess(exe int, name string, attr *os.ProcAttr) (proc *os.Process, err error) {
	starter.once.Do(func() {
		starter.requests = make(chan func())
		go func() {
			runtime.LockOSThread()
			for f := range starter.requests {
				f()
			}
		}()
	})
	done := make(chan struct{})
	starter.requests <- func() {
		defer close(done)
		var at int
		files := make([]uintptr, len(attr.Files))
		for i, f := range attr.Files {
			if f != nil {
				files[i] = f.Fd()
			}
		}
		if at, err = above(exe, files); err == nil {
			proc, err = os.StartProcess("/proc/self/fd/"+strconv.Itoa(at), []string{name}, attr)
			unix.Close(at)
		}
	}
	<-done
	return proc, err
}

// above returns a copy of exe that is out of the way of those numbers on which
// package syscall puts descriptors in the child before it executes the path: in
// the order of files, from the highest of them on, and one pipe of its own.
func above(exe int, files []uintptr) (int, error) {
	top := 0
	for _, f := range files {
		top = max(top, int(f))
	}
	fd, err := unix.FcntlInt(uintptr(exe), unix.F_DUPFD_CLOEXEC, top+len(files)+8)
	if err != nil {
		return -1, fmt.Errorf("copy the descriptor of this program: %w", err)
	}
	return fd, nil
}

// socketPair returns two ends, the first for this process's poller, the second
// to be inherited.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "sandbox"), os.NewFile(uintptr(fds[1]), "sandbox"), nil
}

// rightsWriter writes to a Unix socket; descriptors of files go along with the
// first byte.
type rightsWriter struct {
	conn  *os.File
	files []*os.File
}

func (w *rightsWriter) Write(p []byte) (n int, err error) {
	if len(w.files) == 0 {
		return w.conn.Write(p)
	}
	fds := make([]int, len(w.files))
	for i, f := range w.files {
		fds[i] = int(f.Fd())
	}
	raw, err := w.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	rawErr := raw.Write(func(fd uintptr) bool {
		n, err = unix.SendmsgN(int(fd), p, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if err = errors.Join(rawErr, err); err != nil {
		return 0, err
	}
	w.files = nil
	if n < len(p) {
		more, err := w.conn.Write(p[n:])
		return n + more, err
	}
	return n, nil
}

// rightsReader reads from a Unix socket and keeps the descriptor that comes
// along.
type rightsReader struct {
	conn *os.File
	file *os.File
}

func (r *rightsReader) Read(p []byte) (n int, err error) {
	raw, err := r.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	oob := make([]byte, unix.CmsgSpace(4))
	var oobn int
	rawErr := raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, err = unix.Recvmsg(int(fd), p, oob, unix.MSG_CMSG_CLOEXEC)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if rawErr != nil {
		return 0, rawErr
	}
	if err != nil {
		return 0, err
	}
	if oobn > 0 {
		if err := r.keep(oob[:oobn]); err != nil {
			return n, err
		}
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (r *rightsReader) keep(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return err
		}
		for _, fd := range fds {
			r.close()
			if err := unix.SetNonblock(fd, true); err != nil {
				return err
			}
			r.file = os.NewFile(uintptr(fd), "terminal")
		}
	}
	return nil
}

// take returns the descriptor, and no longer closes it.
func (r *rightsReader) take() *os.File {
	f := r.file
	r.file = nil
	return f
}

func (r *rightsReader) close() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}
