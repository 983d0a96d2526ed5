// Package flock locks open files against other processes, and against other
// descriptors of this one (flock(2)). A lock ends when its file is closed.
package flock

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Shared waits until no one else has f locked alone.
func Shared(f *os.File) error { return lock(f, unix.LOCK_SH) }

// Alone waits until no one else has f locked.
func Alone(f *os.File) error { return lock(f, unix.LOCK_EX) }

func lock(f *os.File, how int) error {
	for {
		switch err := unix.Flock(int(f.Fd()), how); err {
		case nil:
			return nil
		case unix.EINTR: // by a signal: the lock may still be had
		default:
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}
