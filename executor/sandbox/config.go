package sandbox

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/861fb494/build/internal/oci"
)

// config is what the parent tells the re-executed child, once, over the control
// socket.
type config struct {
	// Run, for the child that prepares a root for an OCI runtime and starts it.
	Run *runtimeCall `json:",omitempty"`
	// Target, for a child that joins a running sandbox: a process in it.
	Target int `json:",omitempty"`

	Args     []string
	Env      []string
	Dir      string
	User     User
	Terminal bool
	Init     bool
	Rlimits  []Rlimit

	Root       oci.Mount
	ReadOnly   bool
	Mounts     []oci.Mount
	Hostname   string
	NetNS      string
	Privileged bool
	ShmSize    int64
	NoDev      bool // device nodes count only where the sandbox itself made them

	Cgroups  []string          // files to write "0" to, so as to join
	CgroupV2 bool              // there is nothing but version 2
	CgroupV1 map[string]string // controller: directory of our cgroup

	Caps       uint64 // bounding, permitted and effective set
	Ambient    bool   // the inheritable and ambient set too
	NoNewPrivs bool
	Seccomp    []byte // struct sock_filter's; empty: no filter
}

func newConfig(s Spec) *config {
	c := &config{
		Args: s.Args, Env: s.Env, Dir: s.Dir, User: s.User, Terminal: s.Terminal, Init: s.Init, Rlimits: s.Rlimits,
		Root: s.Root, ReadOnly: s.ReadOnly, Mounts: append([]oci.Mount(nil), s.Mounts...), Hostname: s.Hostname,
		NetNS: s.NetNS, Privileged: s.Privileged, ShmSize: s.ShmSize,
		Caps: defaultCaps, NoNewPrivs: !s.NewPrivileges,
	}
	if c.Dir == "" {
		c.Dir = "/"
	}
	if c.ShmSize <= 0 {
		c.ShmSize = defaultShmSize
	}
	if s.Privileged {
		c.Caps, c.Ambient, c.NoNewPrivs = allCaps(), true, false
	}
	return c
}

const defaultShmSize = 64 << 20 // Docker's

// Kinds of message that the child sends. The end of the stream after msgReady
// says that the command has been executed.
const (
	msgTerminal = 'T' // no payload, but the master of the terminal as a descriptor
	msgReady    = 'R' // all is set up; payload: setup
	msgPid      = 'P' // the process that a joining child started; payload: decimal
	msgError    = 'E' // payload: failure
)

// setup is what the child reports about what it has set up.
type setup struct {
	Made []madeDir `json:",omitempty"`
	Pid  int       `json:",omitempty"` // of the first process, in the child's PID namespace, if it is not the child
}

// failure is an error on its way from the child.
type failure struct {
	Text string
	Code int // of an ExecError, else 0
}

// maxMessage bounds a message; arguments and environment of execve(2) are at
// most a few MiB.
const maxMessage = 64 << 20

func writeMessage(w io.Writer, kind byte, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return err
	}
	msg := make([]byte, 5, 5+len(payload))
	msg[0] = kind
	binary.LittleEndian.PutUint32(msg[1:], uint32(len(payload)))
	_, err = w.Write(append(msg, payload...))
	return err
}

// readMessage returns io.EOF where the stream ends before a message.
func readMessage(r io.Reader) (kind byte, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(head[1:])
	if n > maxMessage {
		return 0, nil, fmt.Errorf("message of %d bytes", n)
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, errors.Join(err, io.ErrUnexpectedEOF)
	}
	return head[0], payload, nil
}
