package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// superviseCommand starts the command as a child and stays process 1, to reap
// what is orphaned and to pass signals on, until the command ends; then it ends
// with its exit code. It returns only with an error.
func (c *config) superviseCommand(ctl *control) error {
	pid, err := c.fork(&syscall.SysProcAttr{Setsid: true, Setctty: c.Terminal})
	if err != nil {
		return err
	}
	return supervise(pid)
}

// supervise is process 1 until the process pid, a child of this one, ends, and
// then ends with its exit code. It returns only with an error.
func supervise(pid int) error {
	signals := make(chan os.Signal, 32)
	signal.Notify(signals)
	// The parent waits for the streams and for the control socket to end.
	for fd := range controlFD + 1 {
		unix.Close(fd)
	}
	go func() {
		for s := range signals {
			if s != syscall.SIGCHLD && s != syscall.SIGURG {
				syscall.Kill(pid, s.(syscall.Signal))
			}
		}
	}()
	status, err := reap(pid)
	switch {
	case err != nil:
		os.Exit(126)
	case status.Signaled():
		os.Exit(128 + int(status.Signal()))
	}
	os.Exit(status.ExitStatus())
	return nil
}

// initPath is where this program is bound in a container of an OCI runtime that
// is to have an init; by that name it knows that it is it.
const initPath = "/dev/.build-init"

// runtimeInit is the init in a container of an OCI runtime, which has set up all
// else. It does not return.
func runtimeInit(args []string) {
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // so that the command cannot get at this program's file
	path, err := lookPath(args[0], os.Environ())
	if err == nil {
		var pid int
		pid, err = syscall.ForkExec(path, args, &syscall.ProcAttr{
			Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true, Foreground: isTerminal(0)},
		})
		if err != nil {
			err = execFailed(path, err)
		} else {
			err = supervise(pid)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	var e *ExecError
	if errors.As(err, &e) {
		os.Exit(e.Code)
	}
	os.Exit(1)
}

func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// reap waits for the process pid, and meanwhile for all orphans.
func reap(pid int) (syscall.WaitStatus, error) {
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case got == pid && (status.Exited() || status.Signaled()):
			return status, nil
		}
	}
}

// fork starts the command as a child of this thread, with what restrict leaves.
func (c *config) fork(attr *syscall.SysProcAttr) (pid int, err error) {
	if err := c.restrict(); err != nil {
		return 0, err
	}
	path, err := lookPath(c.Args[0], c.Env)
	if err != nil {
		return 0, err
	}
	// The child takes on the user by itself; of user 0 it has what this thread
	// has now.
	if err := c.setCaps(0); err != nil {
		return 0, err
	}
	if c.Ambient && c.User.UID != 0 {
		for n := range uintptr(64) {
			if c.Caps&(1<<n) != 0 {
				attr.AmbientCaps = append(attr.AmbientCaps, n)
			}
		}
	}
	attr.Credential = &syscall.Credential{Uid: c.User.UID, Gid: c.User.GID, Groups: c.User.Groups}
	defaultSignals()
	pid, err = syscall.ForkExec(path, c.Args, &syscall.ProcAttr{Env: c.Env, Files: []uintptr{0, 1, 2}, Sys: attr})
	if err != nil {
		return 0, execFailed(path, err)
	}
	return pid, nil
}
