package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// running finds a container and connects to its supervisor.
func (cs *Containers) running(ctx context.Context, name string) (Info, *net.UnixConn, error) {
	info, err := cs.Find(name)
	if err != nil {
		return info, nil, err
	}
	conn, err := cs.dial(info.ID)
	if errors.Is(err, errNotRunning) {
		return info, nil, fmt.Errorf("container %s: %w", info.Name, err)
	}
	if err != nil {
		return info, nil, fmt.Errorf("reach container %s: %w", info.Name, err)
	}
	// A request that ctx ends loses its connection.
	context.AfterFunc(ctx, func() { conn.Close() })
	return info, conn, nil
}

// call sends a request and returns the answer.
func call(ctx context.Context, conn *net.UnixConn, req request) (response, error) {
	var resp response
	err := send(conn, req)
	if err == nil {
		err = receiveInto(conn, &resp, nil)
	}
	if ctx.Err() != nil {
		return resp, context.Cause(ctx)
	}
	if err == nil && resp.Error != "" {
		err = errors.New(resp.Error)
	}
	return resp, err
}

// Kill sends a signal to a container's process. With SIGKILL it returns when the
// container has ended.
func (cs *Containers) Kill(ctx context.Context, name string, sig syscall.Signal) error {
	info, conn, err := cs.running(ctx, name)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := call(ctx, conn, request{Op: "kill", Signal: int(sig)}); err != nil {
		return fmt.Errorf("signal container %s: %w", info.Name, err)
	}
	if sig != syscall.SIGKILL {
		return nil
	}
	_, err = cs.Wait(ctx, info.ID)
	return ignoreGone(err)
}

// Stop sends the container its stop signal, and SIGKILL if it still runs after
// timeout; nil is the container's own. It returns when the container has ended.
// One that is not running is no error.
func (cs *Containers) Stop(ctx context.Context, name string, timeout *time.Duration) error {
	info, err := cs.Find(name)
	if err != nil {
		return err
	}
	if timeout == nil {
		timeout = &info.StopTimeout
	}
	if err := cs.Kill(ctx, info.ID, info.stopSignal()); err != nil {
		return ignoreGone(err)
	}
	grace, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	_, err = cs.Wait(grace, info.ID)
	if err == nil || ctx.Err() != nil || grace.Err() == nil {
		return ignoreGone(err)
	}
	return ignoreGone(cs.Kill(ctx, info.ID, syscall.SIGKILL))
}

// ignoreGone drops the errors of a container that has ended, or that was
// removed at its end.
func ignoreGone(err error) error {
	if errors.Is(err, errNotRunning) || errors.Is(err, ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Wait waits for a container to end and returns its exit code.
func (cs *Containers) Wait(ctx context.Context, name string) (int, error) {
	info, conn, err := cs.running(ctx, name)
	if errors.Is(err, errNotRunning) {
		return cs.ended(ctx, info)
	}
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	resp, err := call(ctx, conn, request{Op: "wait"})
	if err == nil {
		return resp.Code, nil
	}
	if ctx.Err() != nil {
		return 0, err
	}
	return cs.ended(ctx, info) // the supervisor was killed, or has just ended
}

// ended is the exit code of a container without a socket: one that has ended,
// or is about to begin.
func (cs *Containers) ended(ctx context.Context, info Info) (int, error) {
	for {
		now, err := cs.read(info.ID)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("%w: %s was removed when it ended", ErrNotFound, info.Name)
		}
		if err != nil {
			return 0, err
		}
		if now.Status == Exited || !locked(filepath.Join(cs.Dir, info.ID, "lock")) {
			return now.ExitCode, nil
		}
		if err := sleep(ctx, logPoll); err != nil {
			return 0, err
		}
	}
}

// ExecOptions say what to run in a running container.
type ExecOptions struct {
	Args     []string `json:"args"`
	Env      []string `json:"env,omitempty"` // over the container's
	Dir      string   `json:"dir,omitempty"` // "": the container's
	User     string   `json:"user,omitempty"`
	Terminal bool     `json:"terminal,omitempty"`
}

// Exec runs a further process in a running container until it ends, and returns
// its exit code. Of the streams Started and Signals are not used.
func (cs *Containers) Exec(ctx context.Context, name string, o ExecOptions, s Streams) (code int, err error) {
	info, conn, err := cs.running(ctx, name)
	if err != nil {
		return CodeFailed, err
	}
	defer conn.Close()
	pipes, err := newPipes(s)
	if err != nil {
		return CodeFailed, err
	}
	defer pipes.close()
	fail := func(err error) (int, error) {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return CodeFailed, fmt.Errorf("exec in container %s: %w", info.Name, err)
	}
	if err := send(conn, request{Op: "exec", Exec: &o}, pipes.theirs[:]...); err != nil {
		return fail(err)
	}
	var resp response
	if err := receiveInto(conn, &resp, nil); err != nil {
		return fail(err)
	}
	if !resp.Started {
		_, err := fail(errors.New(resp.Error))
		return resp.Code, err
	}
	pipes.start(s)
	restore := followTerminal(s.Terminal, remoteTerminal{conn})
	err = receiveInto(conn, &resp, nil)
	restore()
	if err == nil && resp.Error != "" {
		err = errors.New(resp.Error)
	}
	if err != nil {
		return fail(err)
	}
	pipes.drain()
	return resp.Code, nil
}

// pipes stand between our streams and the process, which must not get hold of
// the user's terminal; nor must its supervisor, which would go on to read it.
type pipes struct {
	ours, theirs [3]*os.File
	wg           sync.WaitGroup // for the copiers of output
}

func newPipes(s Streams) (p *pipes, err error) {
	p = &pipes{}
	for i := range p.ours {
		if i == 0 && s.In == nil {
			p.theirs[0], err = os.Open(os.DevNull)
		} else if i == 0 {
			p.theirs[0], p.ours[0], err = os.Pipe()
		} else {
			p.ours[i], p.theirs[i], err = os.Pipe()
		}
		if err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

func (p *pipes) start(s Streams) {
	closeAll(p.theirs[:])
	if in := p.ours[0]; in != nil {
		// Nobody waits for it: it may be in a Read that never returns.
		go func() {
			_, _ = io.Copy(in, s.In) // a process need not read its input
			in.Close()
		}()
	}
	for i, w := range []io.Writer{1: s.Out, 2: s.Err} {
		if i == 0 {
			continue
		}
		if w == nil {
			w = io.Discard
		}
		p.wg.Go(func() { _, _ = io.Copy(w, p.ours[i]) }) // drain ends it, or w is gone
	}
}

// drain waits for the output of a process that has ended, but not for that of
// others it has left behind.
func (p *pipes) drain() {
	for _, f := range p.ours[1:] {
		f.SetReadDeadline(time.Now().Add(time.Second))
	}
	p.wg.Wait()
}

func (p *pipes) close() {
	for _, f := range append(p.ours[:], p.theirs[:]...) {
		if f != nil {
			f.Close()
		}
	}
}

// remoteTerminal is the terminal of an exec at the other end of a connection.
type remoteTerminal struct{ conn *net.UnixConn }

func (r remoteTerminal) Resize(columns, rows int) error {
	return send(r.conn, request{Op: "resize", Columns: columns, Rows: rows})
}
