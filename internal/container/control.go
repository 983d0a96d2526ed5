package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/executor/sandbox"
)

// The control socket is of SOCK_SEQPACKET: a message is a JSON object. Requests
// of a connection are answered in order:
//
//	{"op":"kill","signal":15}                -> {} or {"error":"…"}
//	{"op":"resize","columns":80,"rows":24}   -> {} or {"error":"…"}
//	{"op":"wait"}                            -> {"code":0} when it has ended
//	{"op":"exec","exec":{…}} and the standard streams as descriptors
//	                                         -> {"started":true}, then {"code":0}
//
// After exec the connection is that process's: kill and resize mean it, have no
// answer, and the end of the connection kills it.
type request struct {
	Op      string       `json:"op"`
	Signal  int          `json:"signal,omitempty"`
	Columns int          `json:"columns,omitempty"`
	Rows    int          `json:"rows,omitempty"`
	Exec    *ExecOptions `json:"exec,omitempty"`
}

type response struct {
	Error   string `json:"error,omitempty"`
	Code    int    `json:"code"`
	Started bool   `json:"started,omitempty"`
}

// maxMessage bounds a message; the command of an exec is the longest.
const maxMessage = 128 << 10

type control struct {
	listener *net.UnixListener
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[*net.UnixConn]bool
}

// listen opens the control socket and serves it until stopControl.
func (su *supervisor) listen(ctx context.Context) (*control, error) {
	os.Remove(filepath.Join(su.c.dir, "control"))
	ct := &control{conns: map[*net.UnixConn]bool{}}
	err := atSocket(su.c.dir, func(addr *net.UnixAddr) (err error) {
		ct.listener, err = net.ListenUnix("unixpacket", addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	ct.listener.SetUnlinkOnClose(false)
	ct.wg.Go(func() {
		for {
			conn, err := ct.listener.AcceptUnix()
			if err != nil {
				return
			}
			ct.mu.Lock()
			ct.conns[conn] = true
			ct.mu.Unlock()
			ct.wg.Go(func() {
				su.serve(ctx, conn)
				ct.mu.Lock()
				delete(ct.conns, conn)
				ct.mu.Unlock()
				conn.Close()
			})
		}
	})
	return ct, nil
}

// stopControl closes the socket. Those who wait have been answered.
func (su *supervisor) stopControl() {
	ct := su.control
	if ct == nil {
		return
	}
	ct.listener.Close()
	ct.mu.Lock()
	for c := range ct.conns {
		c.CloseRead() // what is being answered still is
	}
	ct.mu.Unlock()
	ct.wg.Wait()
	os.Remove(filepath.Join(su.c.dir, "control"))
}

// atSocket calls f with the socket's address by way of a descriptor of its
// directory, whose path may be longer than an address can be (unix(7)).
func atSocket(dir string, f func(*net.UnixAddr) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	path := "/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/control"
	return f(&net.UnixAddr{Name: path, Net: "unixpacket"})
}

func (su *supervisor) serve(ctx context.Context, conn *net.UnixConn) {
	for {
		req, files, err := receive(conn)
		if err != nil {
			closeAll(files)
			return
		}
		var resp response
		switch req.Op {
		case "wait":
			<-su.ended
			resp.Code = su.state.ExitCode
		case "exec":
			su.serveExec(ctx, conn, req, files)
			return
		default:
			err = su.command(req)
		}
		closeAll(files)
		if err != nil {
			resp.Error = err.Error()
		}
		if send(conn, resp) != nil {
			return
		}
	}
}

func (su *supervisor) command(req request) error {
	su.mu.Lock()
	p := su.process
	su.mu.Unlock()
	if p == nil {
		return errors.New("the container has not started yet")
	}
	switch req.Op {
	case "kill":
		if err := p.Signal(syscall.Signal(req.Signal)); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		return nil
	case "resize":
		return p.Resize(req.Columns, req.Rows)
	}
	return fmt.Errorf("unknown request %q", req.Op)
}

// serveExec runs a further process for the connection. A client that is gone
// hears nothing of it; receive finds that out.
func (su *supervisor) serveExec(ctx context.Context, conn *net.UnixConn, req request, files []*os.File) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, err := su.startExec(ctx, req, files)
	if err != nil {
		closeAll(files)
		_ = send(conn, response{Error: err.Error(), Code: codeOf(err)})
		return
	}
	_ = send(conn, response{Started: true})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			req, files, err := receive(conn)
			closeAll(files)
			switch {
			case err != nil:
				cancel()
				return
			case req.Op == "kill":
				_ = p.Signal(syscall.Signal(req.Signal)) // these have no answer
			case req.Op == "resize":
				_ = p.Resize(req.Columns, req.Rows)
			}
		}
	})
	err = p.Wait()
	closeAll(files)
	resp := response{}
	var exit *sandbox.ExitError
	switch {
	case errors.As(err, &exit):
		resp.Code = exit.Code
	case err != nil:
		resp.Code, resp.Error = CodeFailed, err.Error()
	}
	_ = send(conn, resp)
	conn.CloseRead()
	wg.Wait()
}

func (su *supervisor) startExec(ctx context.Context, req request, files []*os.File) (sandbox.Process, error) {
	su.mu.Lock()
	p := su.process
	su.mu.Unlock()
	if p == nil || req.Exec == nil || len(files) != 3 {
		return nil, errors.New("exec: the container is not running")
	}
	o := req.Exec
	c := Config{Env: mergeEnv(su.c.Env, o.Env), User: su.c.User}
	if o.Terminal {
		c.Env = mergeEnv([]string{"TERM=xterm"}, c.Env)
	}
	if o.User != "" {
		if err := c.setUser(o.User, openInProcess(p.Pid())); err != nil {
			return nil, err
		}
	}
	return p.Exec(ctx, sandbox.Spec{
		Args: o.Args, Env: c.Env, Dir: firstOf(o.Dir, su.c.Dir), User: c.User,
		Terminal: o.Terminal, NewPrivileges: true, Privileged: su.c.Privileged,
		Stdin: files[0], Stdout: files[1], Stderr: files[2],
	})
}

func send(conn *net.UnixConn, v any, files ...*os.File) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return fmt.Errorf("the request is longer than %d bytes", maxMessage)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(b, oob, nil)
	return err
}

func receive(conn *net.UnixConn) (req request, files []*os.File, err error) {
	err = receiveInto(conn, &req, &files)
	return req, files, err
}

func receiveInto(conn *net.UnixConn, v any, files *[]*os.File) error {
	buf := make([]byte, maxMessage)
	oob := make([]byte, 256)
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			f := os.NewFile(uintptr(fd), "stream")
			if files == nil {
				f.Close()
				continue
			}
			*files = append(*files, f)
		}
	}
	return json.Unmarshal(buf[:n], v)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// errNotRunning is the error of a request to a container without a supervisor.
var errNotRunning = errors.New("the container is not running")

// dial connects to a container's supervisor.
func (cs *Containers) dial(id string) (conn *net.UnixConn, err error) {
	err = atSocket(filepath.Join(cs.Dir, id), func(addr *net.UnixAddr) (err error) {
		conn, err = net.DialUnix("unixpacket", nil, addr)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, errNotRunning
	}
	return conn, err
}
