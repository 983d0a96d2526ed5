package sandbox

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exec implements Process. A terminal of it is a new one in the same /dev/pts.
// The process outlives Wait's grace for output only if it is waited for.
func (p *process) Exec(ctx context.Context, s Spec) (Process, error) {
	if p.group == nil {
		return nil, errors.New("exec: not in a further process")
	}
	s.Root = p.spec.Root
	if err := s.check(); err != nil {
		return nil, err
	}
	c := newConfig(s)
	c.Target = p.Pid()
	c.Cgroups = p.group.Join()
	attr := syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	fd, closeGroup := p.group.FD()
	defer closeGroup()
	if fd >= 0 {
		attr.UseCgroupFD, attr.CgroupFD = true, fd
	}
	q, err := launch(ctx, s, c, &attr)
	if err != nil {
		return nil, err
	}
	q.spec = s
	return q, nil
}

// join starts the command in the namespaces of the process c.Target, as a child
// of our parent's, and ends.
func join(ctl *control, c *config) error {
	// The mount namespace can be entered only by what shares its root and
	// working directory with no other thread.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	pidfd, err := unix.PidfdOpen(c.Target, 0)
	if err != nil {
		return fmt.Errorf("join process %d: %w", c.Target, err)
	}
	const kinds = unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP
	if err := unix.Setns(pidfd, kinds); err != nil {
		return fmt.Errorf("join namespaces of process %d: %w", c.Target, err)
	}
	unix.Umask(0o022)
	console := -1
	if c.Terminal {
		pts, err := unix.Open("/dev/pts", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("set up terminal: open /dev/pts: %w", err)
		}
		if console, _, err = openTerminal(pts, c.User); err != nil {
			return fmt.Errorf("set up terminal: %w", err)
		}
	}
	if err := c.chdir(); err != nil {
		return err
	}
	if err := ctl.ready(setup{}, console); err != nil {
		return err
	}
	pid, err := c.fork(&syscall.SysProcAttr{Setsid: true, Setctty: c.Terminal, Cloneflags: unix.CLONE_PARENT})
	if err != nil {
		return err
	}
	if err := writeMessage(ctl, msgPid, pid); err != nil {
		return err
	}
	unix.Exit(0)
	return nil
}
