package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// errLocked is the error of a lock that another process holds.
var errLocked = errors.New("locked by another process")

// lease is a file that is locked while its process lives. The kernel lets go
// of it however the process ends.
type lease struct {
	name string
	path string
	f    *os.File
}

func newLease(dir string) (*lease, error) {
	for {
		name := randomName(6)
		path := filepath.Join(dir, name)
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("take a lease: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			// Swept in the moment between: take another.
			f.Close()
			continue
		}
		if !sameFile(f, path) {
			f.Close()
			continue
		}
		return &lease{name: name, path: path, f: f}, nil
	}
}

func (l *lease) close() error {
	err := os.Remove(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // closed before
	}
	l.f.Close()
	return err
}

// hold lists id as something that is this process's to finish or remove.
func (l *lease) hold(id string) error {
	dir := l.path + ".d"
	err := os.WriteFile(filepath.Join(dir, id), nil, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(dir, 0o700); err == nil {
			err = os.WriteFile(filepath.Join(dir, id), nil, 0o600)
		}
	}
	return err
}

func (l *lease) drop(id string) { os.Remove(filepath.Join(l.path+".d", id)) }

func leaseAlive(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}

// claimLease locks the lease of a process that has ended; nil if it has not.
func claimLease(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		f.Close()
		return nil, nil
	}
	if !sameFile(f, path) {
		f.Close()
		return nil, nil
	}
	return f, nil
}

// sameFile reports whether path still names f: a lock on a file that has been
// removed meanwhile protects nothing.
func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// Lock holds name against other processes and other callers in this one. It
// waits until ctx is done.
func (s *Store) Lock(ctx context.Context, name string) (unlock func(), err error) {
	wait := time.Millisecond
	for {
		unlock, err := s.tryLock(name)
		if !errors.Is(err, errLocked) {
			return unlock, err
		}
		// flock(2) cannot be given up, so a wait that ctx ends has to poll.
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, context.Cause(ctx)
		case <-t.C:
		}
		wait = min(wait*2, 50*time.Millisecond)
	}
}

func (s *Store) tryLock(name string) (unlock func(), err error) {
	path := filepath.Join(s.dir, "locks", name)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, errLocked
			}
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		if sameFile(f, path) {
			return func() {
				os.Remove(path)
				f.Close()
			}, nil
		}
		f.Close()
	}
}
