package executor

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/861fb494/build/llb"
)

// forwarder passes connections to a socket in dir on to the user's agent: the
// step gets a socket with the owner and mode that it asks for, and the user's
// own is left as it is.
type forwarder struct {
	dir      string
	listener net.Listener
	agent    string
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
}

// forward listens on a new socket for the agent at path until stop is called.
func (x *execution) forward(agent string, m llb.Mount) (socket string, stop func() error, err error) {
	tmp, err := x.Store.TempDir()
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp(tmp, "ssh-")
	if err != nil {
		return "", nil, err
	}
	socket = filepath.Join(dir, "agent")
	l, err := listen(dir, "agent")
	if err != nil {
		os.RemoveAll(dir)
		return "", nil, fmt.Errorf("forward ssh agent: %w", err)
	}
	f := &forwarder{dir: dir, listener: l, agent: agent, conns: map[net.Conn]bool{}}
	mode := os.FileMode(0o600)
	if m.ModeSet {
		mode = os.FileMode(m.Mode & 0o777)
	}
	err = os.Chown(socket, m.UID, m.GID)
	if err == nil {
		err = os.Chmod(socket, mode)
	}
	if err != nil {
		l.Close()
		os.RemoveAll(dir)
		return "", nil, fmt.Errorf("forward ssh agent: %w", err)
	}
	f.wg.Go(f.accept)
	return socket, f.stop, nil
}

// listen makes the socket name in dir, whose path may be longer than the 108
// bytes that unix(7) allows a socket's.
func listen(dir, name string) (*net.UnixListener, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	at := fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
	if err == nil {
		l.SetUnlinkOnClose(false) // at means something else by then
	}
	return l, err
}

func (f *forwarder) stop() error {
	f.listener.Close()
	f.mu.Lock()
	for c := range f.conns {
		c.Close()
	}
	f.conns = nil
	f.mu.Unlock()
	f.wg.Wait()
	return os.RemoveAll(f.dir)
}

func (f *forwarder) accept() {
	for {
		in, err := f.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // too many open files, say
			time.Sleep(10 * time.Millisecond)
			continue
		}
		out, err := net.Dial("unix", f.agent)
		if err != nil {
			in.Close() // the client says what it makes of that
			continue
		}
		if !f.track(in, out) {
			return
		}
		f.wg.Go(func() { f.join(in, out) })
	}
}

// join passes on in both directions until both have ended.
func (f *forwarder) join(in, out net.Conn) {
	var both sync.WaitGroup
	both.Go(func() { pipe(out, in) })
	both.Go(func() { pipe(in, out) })
	both.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range []net.Conn{in, out} {
		c.Close()
		delete(f.conns, c)
	}
}

// track has stop close the connections; false after stop.
func (f *forwarder) track(conns ...net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range conns {
		if f.conns == nil {
			c.Close()
			continue
		}
		f.conns[c] = true
	}
	return f.conns != nil
}

// pipe copies until one side ends, and tells the other. A side that fails has
// ended: there is nobody else to tell.
func pipe(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	_ = to.(*net.UnixConn).CloseWrite()
}
