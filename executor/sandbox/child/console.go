package child

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// openConsole makes a pseudo-terminal in the /dev/pts of the sandbox, mounts it
// on /dev/console, makes it the standard streams of this process, and returns
// its master.
func (r *rootfs) openConsole(owner User) (master int, err error) {
	pts, err := r.open("/dev/pts")
	if err != nil {
		return -1, fmt.Errorf("set up terminal: open /dev/pts: %w", err)
	}
	defer unix.Close(pts)
	master, n, err := openTerminal(pts, owner)
	if err != nil {
		return -1, fmt.Errorf("set up terminal: %w", err)
	}
	tree, err := unix.OpenTree(pts, strconv.Itoa(n), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("set up terminal: bind /dev/console: %w", err)
	}
	defer unix.Close(tree)
	if err := r.mountFD(tree, "/dev/console"); err != nil {
		return -1, fmt.Errorf("set up terminal: bind /dev/console: %w", err)
	}
	return master, nil
}

// openTerminal makes a pseudo-terminal in the devpts that pts is the top of, and
// makes its slave, of number n, descriptors 0, 1 and 2.
func openTerminal(pts int, owner User) (master, n int, err error) {
	master, err = unix.Openat(pts, "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, 0, fmt.Errorf("open ptmx: %w", err)
	}
	if n, err = unix.IoctlGetInt(master, unix.TIOCGPTN); err != nil {
		return -1, 0, fmt.Errorf("ioctl TIOCGPTN: %w", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return -1, 0, fmt.Errorf("ioctl TIOCSPTLCK: %w", err)
	}
	slave, err := unix.Openat(pts, strconv.Itoa(n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, 0, fmt.Errorf("open /dev/pts/%d: %w", n, err)
	}
	defer unix.Close(slave)
	// The user is to be able to open it again, as /dev/stdout say.
	if err := unix.Fchown(slave, int(owner.UID), -1); err != nil {
		return -1, 0, fmt.Errorf("chown /dev/pts/%d: %w", n, err)
	}
	for fd := range 3 {
		if err := unix.Dup3(slave, fd, 0); err != nil {
			return -1, 0, fmt.Errorf("dup /dev/pts/%d: %w", n, err)
		}
	}
	return master, n, nil
}

// takeTerminal makes descriptor 0 the terminal that controls this process's session.
func takeTerminal() error {
	if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("set up terminal: ioctl TIOCSCTTY: %w", err)
	}
	return nil
}
