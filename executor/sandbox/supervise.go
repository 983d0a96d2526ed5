package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/861fb494/build/executor/sandbox/child"
	"golang.org/x/sys/unix"
)

// Reexec becomes a process of a sandbox, and does not return, when this process
// was started to be one. Else it returns at once. It is to be called first thing
// in main. (Most processes of a sandbox do not even get here: see package
// child.)
func Reexec() {
	if len(os.Args) == 0 {
		return
	}
	switch os.Args[0] {
	case initPath:
		runtimeInit(os.Args[1:])
	case child.SupervisorName:
		ctl, c, err := child.Open()
		if err == nil && c.Run != nil {
			err = runRuntime(ctl, c)
		} else if err == nil {
			err = superviseCommand(ctl, c)
		}
		ctl.Fail(err)
	}
}

// superviseCommand starts the command as a child and stays process 1, to reap
// what is orphaned and to pass signals on, until the command ends; then it ends
// with its exit code. It returns only with an error.
func superviseCommand(ctl *child.Control, c *child.Config) error {
	if err := c.Enter(ctl); err != nil {
		return err
	}
	pid, err := c.Fork(&syscall.SysProcAttr{Setsid: true, Setctty: c.Terminal})
	if err != nil {
		return err
	}
	return supervise(pid, reaper{})
}

// supervise is process 1 until the process pid, a child of this one, ends, and
// then ends with its exit code. It returns only with an error.
func supervise(pid int, ended reaper) error {
	signals := make(chan os.Signal, 32)
	signal.Notify(signals)
	// The parent waits for the streams and for the control socket to end.
	for fd := range child.ControlFD + 1 {
		unix.Close(fd)
	}
	go func() {
		for s := range signals {
			if s != syscall.SIGCHLD && s != syscall.SIGURG {
				syscall.Kill(pid, s.(syscall.Signal))
			}
		}
	}()
	status, err := ended.wait(pid)
	switch {
	case err != nil:
		syscall.Exit(126)
	case status.Signaled():
		syscall.Exit(128 + int(status.Signal()))
	}
	syscall.Exit(status.ExitStatus())
	return nil
}

// initPath is where this program is bound in a container of an OCI runtime that
// is to have an init; by that name it knows that it is it.
const initPath = "/dev/.build-init"

// runtimeInit is the init in a container of an OCI runtime, which has set up all
// else. It does not return.
func runtimeInit(args []string) {
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // so that the command cannot get at this program's file; 0 is always taken
	path, err := child.LookPath(args[0], os.Environ())
	if err == nil {
		var pid int
		pid, err = syscall.ForkExec(path, args, &syscall.ProcAttr{
			Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true, Foreground: isTerminal(0)},
		})
		if err != nil {
			err = child.ExecFailed(path, err)
		} else {
			err = supervise(pid, reaper{})
		}
	}
	fmt.Fprintln(os.Stderr, err)
	var e *child.Failure
	if errors.As(err, &e) {
		os.Exit(e.Code)
	}
	os.Exit(1)
}

func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// reaper is what process 1 has to be: it waits for all that is orphaned, and
// keeps how it ended for who asks later.
type reaper map[int]syscall.WaitStatus

// wait waits for the process pid.
func (r reaper) wait(pid int) (syscall.WaitStatus, error) {
	for {
		if status, ok := r[pid]; ok {
			return status, nil
		}
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case status.Exited() || status.Signaled():
			r[got] = status
		}
	}
}
