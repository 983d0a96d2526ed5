package child

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// join starts the command in the namespaces of the process c.Target, as a child
// of our parent's, and ends.
func join(ctl *Control, c *Config) error {
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
	if err := ctl.Ready(Setup{}, console); err != nil {
		return err
	}
	pid, err := c.Fork(&syscall.SysProcAttr{Setsid: true, Setctty: c.Terminal, Cloneflags: unix.CLONE_PARENT})
	if err != nil {
		return err
	}
	if err := WriteMessage(ctl, MsgPid, pid); err != nil {
		return err
	}
	unix.Exit(0)
	return nil
}
