package builder

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// SSH is what a build may use of its user's keys: those of an agent, by its
// socket, or those in files.
type SSH struct {
	Paths []string // one socket, or keys; empty: the socket in $SSH_AUTH_SOCK
	Raw   bool     // pass connections on to the socket as they are, whatever listens there
}

// agents are the sockets that steps and git get. Behind each is an agent that
// lists and signs: a step can neither add keys to the user's nor lock it.
type agents struct {
	sockets map[string]string // path by id
	close   []func()
}

// openAgents begins to serve the user's agents and keys. dir is a directory for
// their sockets.
func openAgents(wanted map[string]SSH, dir string) (_ *agents, err error) {
	a := &agents{sockets: map[string]string{}}
	defer func() {
		if err != nil {
			a.stop()
		}
	}()
	for id, s := range wanted {
		if err := a.open(id, s, dir); err != nil {
			return nil, fmt.Errorf("--ssh %s: %w", id, err)
		}
	}
	return a, nil
}

func (a *agents) stop() {
	for _, f := range slices.Backward(a.close) {
		f()
	}
	a.close = nil
}

// socket is the path of the socket of the agent called id.
func (a *agents) socket(id string) (string, error) {
	if s, ok := a.sockets[id]; ok {
		return s, nil
	}
	return "", fs.ErrNotExist
}

func (a *agents) open(id string, s SSH, dir string) error {
	paths := s.Paths
	if len(paths) == 0 {
		paths = []string{os.Getenv("SSH_AUTH_SOCK")}
		if paths[0] == "" {
			return errors.New("SSH_AUTH_SOCK is not set: start an agent, or name its socket or keys")
		}
	}
	connect, err := agentOf(paths)
	if err != nil {
		return err
	}
	if s.Raw {
		if connect != nil || len(paths) != 1 {
			return errors.New("raw needs one socket")
		}
		a.sockets[id] = paths[0]
		return nil
	}
	if connect == nil {
		connect = func() (agent.ExtendedAgent, io.Closer, error) {
			conn, err := net.Dial("unix", paths[0])
			if err != nil {
				return nil, nil, err
			}
			return agent.NewClient(conn), conn, nil
		}
	}
	return a.listen(id, dir, connect)
}

// connector gives the agent that is to answer one connection. Its Closer, if it
// is not nil, is closed after that.
type connector func() (agent.ExtendedAgent, io.Closer, error)

// agentOf holds the keys in the files paths. It is nil for one path that is a
// socket.
func agentOf(paths []string) (connector, error) {
	ring := agent.NewKeyring()
	for _, p := range paths {
		st, err := os.Stat(p)
		switch {
		case err != nil:
			return nil, err
		case st.Mode()&fs.ModeSocket == 0:
			err = addKey(ring, p)
		case len(paths) > 1:
			err = fmt.Errorf("%s is a socket: it cannot be given together with others, or keys", p)
		default:
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return func() (agent.ExtendedAgent, io.Closer, error) { return ring.(agent.ExtendedAgent), nil, nil }, nil
}

// maxKey bounds a key's file.
const maxKey = 100 << 10

func addKey(ring agent.Agent, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKey))
	if err != nil {
		return err
	}
	key, err := ssh.ParseRawPrivateKey(data)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return fmt.Errorf("the key %s is protected by a passphrase: add it to an agent (ssh-add %s) and give that with --ssh default", path, path)
	}
	if err == nil {
		err = ring.Add(agent.AddedKey{PrivateKey: key, Comment: filepath.Base(path)})
	}
	if err != nil {
		return fmt.Errorf("key %s: %w", path, err)
	}
	return nil
}

// maxSocket is the longest path that a socket can have (unix(7), sun_path).
const maxSocket = 107

// listen serves the agent on a socket in dir, or where that would be too long a
// name, among the system's temporary files.
func (a *agents) listen(id, dir string, connect connector) error {
	home, err := os.MkdirTemp(dir, "agent-")
	if err == nil && len(home)+len("/socket") > maxSocket {
		os.Remove(home)
		home, err = os.MkdirTemp("", "build-agent-")
	}
	if err != nil {
		return err
	}
	a.close = append(a.close, func() { os.RemoveAll(home) })
	path := filepath.Join(home, "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	s := &agentServer{listener: l, connect: connect, conns: map[net.Conn]bool{}}
	a.close = append(a.close, s.stop)
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	s.wg.Go(s.accept)
	a.sockets[id] = path
	return nil
}

// agentServer answers on one socket until it is stopped.
type agentServer struct {
	listener net.Listener
	connect  connector
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // nil: stopped
}

func (s *agentServer) stop() {
	s.listener.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *agentServer) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		stopped := s.conns == nil
		if !stopped {
			s.conns[c] = true
			s.wg.Go(func() { s.serve(c) })
		}
		s.mu.Unlock()
		if stopped {
			c.Close()
		}
	}
}

func (s *agentServer) serve(c net.Conn) {
	defer func() {
		c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	a, closer, err := s.connect()
	if err != nil {
		return // the client says what it makes of that
	}
	if closer != nil {
		defer closer.Close()
	}
	// Its error is the end of the connection.
	_ = agent.ServeAgent(readOnlyAgent{a}, c)
}

// readOnlyAgent lists keys and signs with them.
type readOnlyAgent struct{ agent.ExtendedAgent }

var errReadOnly = errors.New("a build can only use the agent's keys")

func (readOnlyAgent) Add(agent.AddedKey) error   { return errReadOnly }
func (readOnlyAgent) Remove(ssh.PublicKey) error { return errReadOnly }
func (readOnlyAgent) RemoveAll() error           { return errReadOnly }
func (readOnlyAgent) Lock([]byte) error          { return errReadOnly }
func (readOnlyAgent) Unlock([]byte) error        { return errReadOnly }
func (readOnlyAgent) Extension(string, []byte) ([]byte, error) {
	return nil, agent.ErrExtensionUnsupported
}
