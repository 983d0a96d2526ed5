package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/861fb494/build/executor/sandbox/cgroup"
	"github.com/861fb494/build/executor/sandbox/child"
	"github.com/861fb494/build/internal/oci"
	"golang.org/x/sys/unix"
)

// OCI runs processes with an OCI runtime, such as runc or crun.
//
// The runtime is started by a child of this program that is process 1 of a PID
// namespace and has a mount namespace of its own: it mounts the root filesystem
// and waits for the runtime's container, whose parent it becomes. When this
// process is killed, the kernel ends all of that.
type OCI struct {
	runtime  string
	stateDir string
	cgroups  *cgroup.Tree
	init     string // static program that calls Reexec; "" for this one
}

// NewOCI returns the sandbox that uses a runtime, named by path or as found in
// $PATH. For the time that a process runs it keeps a directory under stateDir,
// named by the Spec's ID.
func NewOCI(runtime, stateDir string) *OCI {
	return &OCI{runtime: runtime, stateDir: stateDir, cgroups: cgroup.Open(cgroup.DefaultRoot)}
}

// Sweep removes what killed processes left under the state directory. alive
// says whether the owner of a Spec's ID still lives.
func (o *OCI) Sweep(alive func(id string) bool) error {
	entries, err := os.ReadDir(o.stateDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("sweep OCI runtime state: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !alive(e.Name()) {
			errs = append(errs, os.RemoveAll(filepath.Join(o.stateDir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// Start implements Sandbox.
func (o *OCI) Start(ctx context.Context, s Spec) (Process, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	path, err := exec.LookPath(o.runtime)
	if err != nil {
		return nil, fmt.Errorf("OCI runtime: %w", err)
	}
	if s.ID == "" {
		s.ID = newID()
	}
	if s.CgroupParent == "" {
		s.CgroupParent = DefaultCgroupParent
	}
	if s.ShmSize <= 0 {
		s.ShmSize = child.DefaultShmSize
	}
	dir, err := filepath.Abs(filepath.Join(o.stateDir, s.ID))
	if err != nil {
		return nil, fmt.Errorf("OCI runtime: %w", err)
	}
	call := &child.RuntimeCall{Path: path, Bundle: dir, State: filepath.Join(dir, "state"), ID: s.ID}
	c := newConfig(s)
	c.Run = call
	before, after := splitMounts(s.withDevices().Mounts)
	if s.Init {
		exe := o.init
		if exe == "" {
			if exe, err = os.Executable(); err != nil {
				return nil, fmt.Errorf("OCI runtime: %w", err)
			}
		}
		s.Args = append([]string{initPath}, s.Args...)
		after = append(after, oci.Mount{Type: "bind", Source: exe, Target: initPath, Options: []string{"bind", "ro", "nosuid", "nodev"}})
	}
	c.Mounts, call.Mounts = childMounts(before), childMounts(after)
	if err := o.writeBundle(dir, s, after); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	attr := syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  unix.SIGKILL,
	}
	group := func() *cgroup.Group { return o.cgroups.Find(s.CgroupParent, s.ID) }
	p, err := launch(ctx, s, c, child.SupervisorName, &attr)
	if err != nil {
		return nil, errors.Join(err, group().Remove(), os.RemoveAll(dir))
	}
	p.spec, p.group = s, group()
	p.cleanup = func() error { return os.RemoveAll(dir) }
	return p, nil
}

// splitMounts separates mounts that are made in the root before the runtime
// starts from those on top of what the runtime mounts.
func splitMounts(mounts []oci.Mount) (before, after []oci.Mount) {
	for _, m := range mounts {
		top, _, _ := strings.Cut(strings.TrimPrefix(filepath.Clean(m.Target), "/"), "/")
		if top == "proc" || top == "sys" || top == "dev" {
			after = append(after, m)
		} else {
			before = append(before, m)
		}
	}
	return before, after
}

func (o *OCI) writeBundle(dir string, s Spec, after []oci.Mount) error {
	// Private: configurations hold environment variables.
	if err := os.MkdirAll(o.stateDir, 0o700); err != nil {
		return fmt.Errorf("make OCI bundle: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make OCI bundle: %w", err)
	}
	for _, d := range []string{"rootfs", "state", "mounts"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return fmt.Errorf("make OCI bundle: %w", err)
		}
	}
	if s.NetNS != "" && s.NetNS != Host {
		s.NetNS = filepath.Join(dir, child.NetNSFile)
		if err := os.WriteFile(s.NetNS, nil, 0o600); err != nil {
			return fmt.Errorf("make OCI bundle: %w", err)
		}
	}
	spec, err := runtimeSpec(s, filepath.Join(dir, "mounts"), after)
	if err != nil {
		return err
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("make OCI bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		return fmt.Errorf("make OCI bundle: %w", err)
	}
	return nil
}

// runRuntime makes the mounts, has the runtime start the container, and stays
// as process 1 until the container's first process ends.
func runRuntime(ctl *child.Control, c *child.Config) error {
	call := c.Run
	made, err := c.MountForRuntime()
	if err != nil {
		return err
	}
	if err := ctl.Made(made); err != nil {
		return err
	}
	args := []string{call.Path, "--root", call.State, "--log", filepath.Join(call.Bundle, "log"), "--log-format", "json",
		"run", "--detach", "--bundle", call.Bundle, "--pid-file", filepath.Join(call.Bundle, "pid")}
	console := newConsoleSocket(call.Bundle)
	if c.Terminal {
		if err := console.listen(); err != nil {
			return err
		}
		args = append(args, "--console-socket", console.path)
	}
	args = append(args, call.ID)
	env := []string{"PATH=" + defaultPath}
	pid, err := syscall.ForkExec(call.Path, args, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}})
	if err != nil {
		return fmt.Errorf("run %s: %w", call.Path, err)
	}
	master := -1
	if c.Terminal {
		// The runtime connects before it returns; if it fails before that, the
		// listener must not wait for it.
		if master, err = console.accept(pid); err != nil {
			return errors.Join(err, runtimeError(call.Bundle, "no terminal"))
		}
	}
	// The container's process may have ended before the runtime has.
	ended := reaper{}
	status, err := ended.wait(pid)
	if err != nil {
		return err
	}
	if status.ExitStatus() != 0 {
		return runtimeError(call.Bundle, fmt.Sprintf("exit code %d", status.ExitStatus()))
	}
	data, err := os.ReadFile(filepath.Join(call.Bundle, "pid"))
	if err != nil {
		return fmt.Errorf("OCI runtime: read process id: %w", err)
	}
	first, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return fmt.Errorf("OCI runtime: read process id: %w", err)
	}
	if err := ctl.Ready(child.Setup{Pid: first}, master); err != nil {
		return err
	}
	return supervise(first, ended)
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// runtimeError finds in the runtime's log why it failed.
func runtimeError(bundle, fallback string) error {
	text := fallback
	data, _ := os.ReadFile(filepath.Join(bundle, "log"))
	for line := range strings.Lines(string(data)) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Level == "error" {
			text = entry.Msg
		}
	}
	i := strings.Index(text, "exec: ")
	if i < 0 {
		i = strings.Index(text, "exec /")
	}
	if i >= 0 {
		e := &child.Failure{Code: 126, Text: text[i:]}
		if strings.Contains(text, "not found") || strings.Contains(text, "no such file") {
			e.Code = 127
		}
		return e
	}
	return fmt.Errorf("OCI runtime: %s", text)
}

// consoleSocket is where a runtime hands over the master of a terminal (runc's
// --console-socket).
type consoleSocket struct {
	path string
	fd   int
}

func newConsoleSocket(bundle string) *consoleSocket {
	return &consoleSocket{path: filepath.Join(bundle, "console"), fd: -1}
}

func (s *consoleSocket) listen() error {
	if len(s.path) > 107 {
		// The path of a socket has 108 bytes (unix(7)). Nothing else is in this
		// mount namespace that the name could clash with.
		dir, err := os.MkdirTemp("/tmp", "build-console-")
		if err != nil {
			return fmt.Errorf("set up terminal: %w", err)
		}
		s.path = filepath.Join(dir, "console")
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("set up terminal: socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: s.path}); err != nil {
		return fmt.Errorf("set up terminal: bind %s: %w", s.path, err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		return fmt.Errorf("set up terminal: listen: %w", err)
	}
	s.fd = fd
	return nil
}

// accept waits for the runtime, of process pid, to send the terminal, or to end.
func (s *consoleSocket) accept(pid int) (int, error) {
	defer unix.Close(s.fd)
	defer os.Remove(s.path)
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, fmt.Errorf("set up terminal: %w", err)
	}
	defer unix.Close(pidfd)
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(pidfd), Events: unix.POLLIN}}
	for fds[0].Revents == 0 {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return -1, fmt.Errorf("set up terminal: poll: %w", err)
		}
		if fds[0].Revents == 0 && fds[1].Revents != 0 {
			return -1, errors.New("set up terminal: the OCI runtime ended without one")
		}
	}
	conn, _, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("set up terminal: accept: %w", err)
	}
	defer unix.Close(conn)
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, oobn, _, _, err := unix.Recvmsg(conn, name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("set up terminal: receive: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) == 0 {
		return -1, fmt.Errorf("set up terminal: no descriptor received: %w", err)
	}
	got, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(got) == 0 {
		return -1, fmt.Errorf("set up terminal: no descriptor received: %w", err)
	}
	return got[0], nil
}
