// Package child makes what a sandbox has: namespaces entered, all mounts in there, what
// the command must not do given up.
//
// It does so on a thread of the builder, which leaves the rest to a first process that
// knows nothing else (see Prepare), or where a sandbox executes this program again, as
// the first process itself, which executes the command in the end. The
// work of that one is done while the program's packages are being initialised, by an
// init function: most of the time that a program like this one takes to start
// goes into packages that are of no use here. So that the runtime initialises
// this package early (it goes by import path, among those whose imports are
// ready: The Go Programming Language Specification, "Program initialization"),
// it imports little.
package child

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"github.com/861fb494/build/executor/sandbox/stub"
	"golang.org/x/sys/unix"
)

// Name is the argv[0] by which this program knows that it is a sandbox's child.
// SupervisorName is that of a child which stays beside the command and is
// finished by the importing package. Both have the socket to the parent as
// descriptor ControlFD.
const (
	Name           = "build-sandbox"
	SupervisorName = "build-sandbox-init"
	ControlFD      = 3
)

func init() {
	if len(os.Args) == 0 || os.Args[0] != Name {
		return
	}
	ctl, c, err := Open()
	if err == nil && c.Target != 0 {
		err = join(ctl, c)
	} else if err == nil {
		err = run(ctl, c)
	}
	ctl.Fail(err)
}

// Open prepares this process, and reads what it is to do.
func Open() (*Control, *Config, error) {
	// Namespaces, capabilities and the seccomp filter belong to a thread; the
	// one that they were set on has to be the one that executes the command.
	runtime.LockOSThread()
	ctl := &Control{fd: ControlFD}
	// Not that of who builds: mount points, and what the command makes, have the
	// same modes everywhere.
	unix.Umask(0o022)
	// The host's descriptors that our parent's parent left open must not reach
	// the command, nor may its processes read ours.
	if err := closeOnExec(ControlFD); err != nil {
		return ctl, nil, err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return ctl, nil, fmt.Errorf("prctl PR_SET_DUMPABLE: %w", err)
	}
	_, payload, err := ReadMessage(ctl)
	if err != nil {
		return ctl, nil, fmt.Errorf("read what to run: %w", err)
	}
	if err := ctl.takeStreams(); err != nil {
		return ctl, nil, fmt.Errorf("read what to run: %w", err)
	}
	c := &Config{}
	if err := json.Unmarshal(payload, c); err != nil {
		return ctl, nil, fmt.Errorf("read what to run: %w", err)
	}
	for _, path := range c.Cgroups {
		if err := os.WriteFile(path, []byte("0"), 0); err != nil {
			return ctl, nil, fmt.Errorf("join cgroup: %w", err)
		}
	}
	return ctl, c, nil
}

// run makes the root filesystem in the new namespaces and executes the command
// in it.
func run(ctl *Control, c *Config) error {
	if err := c.Enter(ctl); err != nil {
		return err
	}
	if c.Terminal {
		if err := takeTerminal(); err != nil {
			return err
		}
	}
	return c.exec()
}

// Enter moves this process into the sandbox, and tells the parent so.
func (c *Config) Enter(ctl *Control) error {
	console, made, err := c.enter()
	if err != nil {
		return err
	}
	if err := ctl.Made(made); err != nil {
		return err
	}
	return ctl.Ready(Setup{}, console)
}

// enter moves this process into the sandbox: network, mounts, root, host name.
// It returns the master of the terminal, if there is to be one, or -1.
func (c *Config) enter() (console int, made []MadeDir, err error) {
	if err := c.enterNetwork(); err != nil {
		return -1, nil, err
	}
	p := new(stub.Program)
	addNewCgroupNS(p)
	addNewKeyring(p)
	if err := p.Run(); err != nil {
		return -1, nil, err
	}
	r, err := c.mountAll()
	if err != nil {
		return -1, nil, err
	}
	console = -1
	if c.Terminal {
		if console, err = r.openConsole(c.User); err != nil {
			return -1, nil, err
		}
	}
	if err := r.pivot(); err != nil {
		return -1, nil, err
	}
	return console, r.made(), c.chdir()
}

// enterNetwork gives this thread its network and its host name.
func (c *Config) enterNetwork() error {
	if c.NetNS != "" {
		if err := setns(c.NetNS, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("join network namespace: %w", err)
		}
	}
	if c.MakeNetNS {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network namespace: %w", err)
		}
	}
	if c.NewNetNS {
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	if c.Hostname != "" {
		if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", c.Hostname, err)
		}
	}
	return nil
}

// addNewCgroupNS makes the cgroup that the process is in the top one of those that
// it sees.
func addNewCgroupNS(p *stub.Program) {
	p.Add(stub.Call{
		What: "unshare cgroup namespace", Number: unix.SYS_UNSHARE, Args: []stub.Arg{stub.Int(unix.CLONE_NEWCGROUP)},
		Tolerate: []syscall.Errno{unix.EINVAL}, // a kernel without
	})
}

// addNewKeyring makes a session keyring of its own: the host's may hold secrets.
func addNewKeyring(p *stub.Program) {
	p.Add(stub.Call{
		What: "new session keyring", Number: unix.SYS_KEYCTL, Args: []stub.Arg{stub.Int(unix.KEYCTL_JOIN_SESSION_KEYRING), p.String("_ses.build")},
		Tolerate: []syscall.Errno{unix.ENOSYS, unix.EPERM},
	})
}

// closeOnExec marks all descriptors from first on, so that execve(2) closes
// them.
func closeOnExec(first int) error {
	err := unix.CloseRange(uint(first), ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return nil
	}
	// Before Linux 5.11.
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

func setns(path string, kind int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, kind); err != nil {
		return fmt.Errorf("setns %s: %w", path, err)
	}
	return nil
}

// loopbackUp brings the loopback device of a new network namespace up.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set up loopback: socket: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("set up loopback: %w", err)
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("set up loopback: %w", err)
	}
	return nil
}

// Control is the child's end of the socket to its parent. It is used without
// the runtime's poller, which would start threads.
type Control struct {
	fd      int
	streams []int // descriptors that came along, for 0, 1 and 2
}

func (c *Control) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(3*4))
	var oobn int
	n, err := retry(func() (n int, err error) {
		n, oobn, _, _, err = unix.Recvmsg(c.fd, p, oob, unix.MSG_CMSG_CLOEXEC)
		return n, err
	})
	if err == nil && oobn > 0 {
		err = c.keep(oob[:oobn])
	}
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return n, err
}

func (c *Control) keep(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return err
		}
		c.streams = append(c.streams, fds...)
	}
	return nil
}

// takeStreams makes what came along this process's standard streams.
func (c *Control) takeStreams() error {
	if len(c.streams) != 3 {
		return fmt.Errorf("%d streams came along, want 3", len(c.streams))
	}
	for i, fd := range c.streams {
		if err := unix.Dup3(fd, i, 0); err != nil {
			return fmt.Errorf("dup: %w", err)
		}
	}
	for _, fd := range c.streams {
		unix.Close(fd)
	}
	return nil
}

func (c *Control) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n, err := retry(func() (int, error) { return unix.Write(c.fd, p[done:]) })
		if err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// Made tells the parent which mount points are to be removed in the end.
func (c *Control) Made(dirs []MadeDir) error {
	if len(dirs) == 0 {
		return nil
	}
	return WriteMessage(c, MsgMade, dirs)
}

// Ready sends s and, if it is not -1, the descriptor fd, which it closes.
func (c *Control) Ready(s Setup, fd int) error {
	if fd >= 0 {
		defer unix.Close(fd)
		if err := unix.Sendmsg(c.fd, []byte{MsgTerminal, 0, 0, 0, 0}, unix.UnixRights(fd), nil, 0); err != nil {
			return fmt.Errorf("send terminal: %w", err)
		}
	}
	return WriteMessage(c, MsgReady, s)
}

// Fail reports err, and ends this process. If the report does not get through,
// the parent sees the stream end.
func (c *Control) Fail(err error) {
	f := &Failure{Text: err.Error()}
	errors.As(err, &f)
	_ = WriteMessage(c, MsgError, f)
	os.Exit(1)
}
