package child

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Mount is oci.Mount, which is described there.
type Mount struct {
	Type    string
	Source  string
	Target  string
	Options []string
	Sub     string
	Data    []byte
}

// User is who the command runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// Rlimit is a resource limit: a resource of setrlimit(2), and its name.
type Rlimit struct {
	Resource   int
	Name       string
	Soft, Hard uint64
}

// Strings are strings of any bytes, which JSON's are not: a secret in a variable is
// seldom UTF-8.
type Strings []string

// MarshalJSON implements json.Marshaler.
func (s Strings) MarshalJSON() ([]byte, error) {
	all := make([][]byte, len(s))
	for i, t := range s {
		all[i] = []byte(t)
	}
	return json.Marshal(all)
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *Strings) UnmarshalJSON(data []byte) error {
	var all [][]byte
	if err := json.Unmarshal(data, &all); err != nil {
		return err
	}
	*s = make(Strings, len(all))
	for i, t := range all {
		(*s)[i] = string(t)
	}
	return nil
}

// Config is what the parent tells its child, once, over the control socket.
type Config struct {
	// Run, for a child that prepares a root for an OCI runtime and starts it.
	Run *RuntimeCall `json:",omitempty"`
	// Target, for a child that joins a running sandbox: a process in it.
	Target int `json:",omitempty"`

	Args     Strings
	Env      Strings
	Dir      string
	User     User
	Terminal bool
	Rlimits  []Rlimit

	Root       Mount
	Upper      string // host directory that takes what is written to the root; "" if there is none
	ReadOnly   bool
	Mounts     []Mount
	Hostname   string
	NetNS      string // "" for the one that this process is in
	NewNetNS   bool   // it is a new one
	MakeNetNS  bool   // it has yet to be made
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

	ahead   []made // what was mounted before this was known
	outside bool   // it is not the first process that reads it: see Prepare
}

// Kinds of message that the child sends. The end of the stream after MsgReady
// says that the command has been executed.
const (
	MsgTerminal = 'T' // no payload, but the master of the terminal as a descriptor
	MsgMade     = 'M' // mount points have been made; payload: []MadeDir
	MsgReady    = 'R' // all is set up; payload: Setup
	MsgPid      = 'P' // the process that a joining child started; payload: decimal
	MsgError    = 'E' // payload: Failure
)

// Setup is what the child reports about what it has set up.
type Setup struct {
	Pid int `json:",omitempty"` // of the first process, in the child's PID namespace, if it is not the child
}

// RuntimeCall is how an OCI runtime is to be run.
type RuntimeCall struct {
	Path   string
	Bundle string // a directory with config.json, rootfs and mounts
	State  string
	ID     string
	// Mounts are mounted in Bundle/mounts, each at its number, for the runtime
	// to bind where it mounts something itself.
	Mounts []Mount
}

// Failure is an error on its way to the parent.
type Failure struct {
	Text string
	Code int // exit code, if it is the command that cannot be executed; else 0
}

func (f *Failure) Error() string { return f.Text }

// maxMessage bounds a message; arguments and environment of execve(2) are at
// most a few MiB.
const maxMessage = 64 << 20

// WriteMessage writes one message, v as JSON.
func WriteMessage(w io.Writer, kind byte, v any) error {
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

// ReadMessage reads one message. It returns io.EOF where the stream ends before a message.
func ReadMessage(r io.Reader) (kind byte, payload []byte, err error) {
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
