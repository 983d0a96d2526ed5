package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
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

	mu   sync.Mutex
	free int // names of files that list nothing now: ".1" to this
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
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			os.Remove(path)
			return nil, fmt.Errorf("take a lease: lock %s: %w", path, err)
		}
		if err != nil {
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

// hold lists id as something that is this process's to finish or remove: as the
// name of an empty file. Files are used again, as to make one where many have been
// deleted takes ext4 up to a millisecond.
func (l *lease) hold(id string) error {
	dir := l.path + ".d"
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free > 0 {
		l.free--
		if os.Rename(l.freeName(l.free), filepath.Join(dir, id)) == nil {
			return nil
		}
	}
	err := os.WriteFile(filepath.Join(dir, id), nil, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(dir, 0o700); err == nil {
			err = os.WriteFile(filepath.Join(dir, id), nil, 0o600)
		}
	}
	return err
}

func (l *lease) drop(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if os.Rename(filepath.Join(l.path+".d", id), l.freeName(l.free)) == nil {
		l.free++
	}
}

func (l *lease) freeName(n int) string {
	return filepath.Join(l.path+".d", freePrefix+strconv.Itoa(n))
}

// freePrefix begins the names in a lease's directory that list nothing.
const freePrefix = "."

// leaseAlive reports whether the process of a lease lives. One of which that cannot be
// told does: what it uses is taken from it otherwise, and its steps are killed.
func leaseAlive(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
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

// freeLock is the file of a lock that is over: still locked, under a name that
// nobody asks for. It becomes that of the next lock, for the reason of lease.hold.
type freeLock struct {
	path string
	f    *os.File
}

// maxFreeLocks is how many are kept: as many as steps usually run at once.
const maxFreeLocks = 8

// reuse makes a free lock that at path, if there is one, and nothing at path.
func (s *Store) reuse(path string) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.unused)
	if n == 0 {
		return nil
	}
	l := s.unused[n-1]
	if unix.Renameat2(unix.AT_FDCWD, l.path, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE) != nil {
		return nil
	}
	s.unused = s.unused[:n-1]
	return l.f
}

// unlock gives up the lock f at path: its file is kept for reuse, or removed.
func (s *Store) unlock(path string, f *os.File) {
	s.mu.Lock()
	n := len(s.unused)
	free := filepath.Join(s.dir, "locks", freePrefix+s.lease.name+"-"+strconv.Itoa(n))
	if n < maxFreeLocks && !s.closed && unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, free, unix.RENAME_NOREPLACE) == nil {
		s.unused = append(s.unused, &freeLock{path: free, f: f})
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	os.Remove(path)
	f.Close()
}

// dropLocks removes the free locks; there will be no more.
func (s *Store) dropLocks() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, l := range s.unused {
		os.Remove(l.path)
		l.f.Close()
	}
	s.unused = nil
}

func (s *Store) tryLock(name string) (unlock func(), err error) {
	path := filepath.Join(s.dir, "locks", name)
	if f := s.reuse(path); f != nil {
		return func() { s.unlock(path, f) }, nil
	}
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
			return func() { s.unlock(path, f) }, nil
		}
		f.Close()
	}
}
