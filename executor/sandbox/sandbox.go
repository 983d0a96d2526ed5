// Package sandbox runs one process in a root filesystem, isolated.
//
// It knows no graph and no cache: a Spec says what to mount and what to run.
package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/861fb494/build/internal/oci"
)

// Sandbox starts processes in root filesystems.
type Sandbox interface {
	// Start runs s and returns once the process has been executed, or cannot
	// be. When ctx is done the process and all it started are killed.
	Start(ctx context.Context, s Spec) (Process, error)
}

// Process is a started process.
type Process interface {
	// Wait waits for the process to end and for its output to be written; when
	// it returns nothing of the process is left: no mount, no cgroup. A
	// non-zero exit is an *ExitError. It may be called once.
	Wait() error
	Signal(os.Signal) error
	Resize(columns, rows int) error
	// Exec runs a further process in the same namespaces; of its Spec only the
	// fields about the process count.
	Exec(ctx context.Context, s Spec) (Process, error)
	// Pid is the process's id in the caller's PID namespace.
	Pid() int
}

// Spec says what to run, and in what.
//
// Mount points that miss in the root, those of the standard mounts too, are
// made and, if still empty, removed again after the process has ended.
type Spec struct {
	// ID names cgroup and bundle; unique among what runs. "" for a chosen one.
	ID string

	// The process.
	Args     []string
	Env      []string
	Dir      string // absolute, in the root; made if it does not exist
	User     User
	Stdin    io.Reader // nil: /dev/null. An *os.File is given to the process itself
	Stdout   io.Writer // nil: /dev/null
	Stderr   io.Writer // nil: /dev/null; not used with Terminal
	Terminal bool      // Stdin and Stdout are those of a pseudo-terminal
	Init     bool      // a minimal init is process 1: it reaps orphans and passes signals on
	Rlimits  []Rlimit
	// NewPrivileges lets set-user-ID programs such as sudo work: no_new_privs
	// is not set (prctl(2), PR_SET_NO_NEW_PRIVS).
	NewPrivileges bool

	// What it runs in.
	Root         oci.Mount   // the root filesystem; Target is ignored
	ReadOnly     bool        // the root is mounted read-only
	Devices      []Device    // beside the standard ones
	Mounts       []oci.Mount // on top of the standard ones (/proc, /sys, /dev …), in order
	Hostname     string
	NetNS        string // path of a network namespace; "" for a new, empty one (loopback only); Host for the caller's
	Privileged   bool   // all capabilities, no seccomp, no masked paths, the host's devices
	Resources    Resources
	CgroupParent string // under each controller's mount; "" is "build"
	ShmSize      int64  // bytes; 0: 64 MiB
}

// Host as Spec.NetNS shares the caller's network.
const Host = "host"

// Device is a device node that the process may use.
type Device struct {
	Path         string // absolute, in the root
	Mode         uint32 // type and permission bits, as in stat(2)
	Major, Minor uint32
	UID, GID     uint32
	// Access is what the process may do with it: some of "rwm", for read, write
	// and mknod. Start fails where the kernel cannot be had to hold a process to
	// one of reading and writing alone.
	Access string
}

// User is who the process runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
}

// Rlimit is a resource limit, by its name in setrlimit(2) in lower case without
// RLIMIT_: "nofile". A value of ^uint64(0) is unlimited.
type Rlimit struct {
	Name       string
	Soft, Hard uint64
}

// Resources are limits that a cgroup holds. Zero values: no limit.
type Resources struct {
	Memory int64   // bytes
	CPUs   float64 // 1.5: one and a half cores' time
	PIDs   int64
}

// ExitError is the end of a process with a non-zero status.
type ExitError struct {
	Code   int       // 128 + the signal's number for a signal
	Signal os.Signal // nil if it exited
	OOM    bool      // the memory limit killed it
}

func (e *ExitError) Error() string {
	switch {
	case e.OOM:
		return fmt.Sprintf("killed: out of memory (exit code %d)", e.Code)
	case e.Signal != nil:
		return fmt.Sprintf("killed by signal: %v (exit code %d)", e.Signal, e.Code)
	}
	return fmt.Sprintf("exit code %d", e.Code)
}

// ExecError says that the command of a Spec could not be executed.
type ExecError struct {
	Code int // as a shell's: 127 if there is no such command, 126 if it cannot be executed
	Err  string
}

func (e *ExecError) Error() string { return e.Err }

// Unwrap gives the exit status that a shell would, for callers to whom a
// command that does not start is one that fails.
func (e *ExecError) Unwrap() error { return &ExitError{Code: e.Code} }
