// Package shelf keeps the directories of layers: made aside and locked, put in
// place by a rename, deleted whatever is in them.
//
// Under a shelf's directory:
//
//	layers/ID   a finished layer
//	work/ID     one that is being made, locked (flock) by the process that does
//	work/ID~X   the same, where another process has work/ID just then
//	trash/X     is being deleted, or about to be work/ID; what is found there is
//	            deleted
//
// The IDs of layers belong to their makers, but for those that name a content
// ("sha256-…"), which two processes may make at the same time: the first that is
// finished counts, the other's is dropped.
package shelf

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Shelf is safe for concurrent use, by many processes too.
type Shelf struct {
	dir string

	spread     sync.Once
	spreadable bool // see mkdir

	mu   sync.Mutex
	made map[string]*work // by ID, of this process

	places places

	ahead sync.Mutex
	next  chan string // what Warm makes; nil: nothing

	erasing sync.WaitGroup // of PutSoon, and of Warm
}

// work is the directory of a layer that is being made.
type work struct {
	dir  string
	lock *os.File
}

// New opens the shelf in dir, which it makes if need be.
func New(dir string) (*Shelf, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s := &Shelf{dir: dir, made: map[string]*work{}}
	for _, sub := range []string{"layers", "work", "places", "trash"} {
		// Others must not reach the setuid programs of images.
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("open snapshots: %w", err)
		}
	}
	// Another process may be deleting the same; and what neither can delete
	// harms nobody.
	_ = empty(s.bin())
	s.sweepPlaces()
	return s, nil
}

// List is the IDs of finished layers.
func (s *Shelf) List() ([]string, error) {
	all, err := os.ReadDir(filepath.Join(s.dir, "layers"))
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(all))
	for i, e := range all {
		ids[i] = e.Name()
	}
	return ids, nil
}

func (s *Shelf) bin() string { return filepath.Join(s.dir, "trash") }

// Layer is the directory of finished layer id.
func (s *Shelf) Layer(id string) string { return filepath.Join(s.dir, "layers", id) }

// Begin makes the directory of a layer. One that is there without a lock was
// left by a process that is no more, and is replaced.
func (s *Shelf) Begin(id string) (dir string, err error) {
	if err := checkID(id); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made[id] != nil {
		return "", fmt.Errorf("it is prepared already: %w", fs.ErrExist)
	}
	w, err := s.begin(filepath.Join(s.dir, "work", id))
	if err != nil {
		return "", err
	}
	s.made[id] = w
	return w.dir, nil
}

func (s *Shelf) begin(first string) (*work, error) {
	dir := first
	for range 100 {
		err := s.mkdir(dir)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		made := err == nil
		lock, err := tryLock(dir)
		switch {
		case errors.Is(err, errLocked):
			dir = first + "~" + rand.Text()
			continue
		case errors.Is(err, fs.ErrNotExist):
			continue // between Mkdir and the lock, another process took it for left behind
		case err != nil:
			if made {
				err = errors.Join(err, os.Remove(dir))
			}
			return nil, err
		}
		if made && sameFile(lock, dir) {
			return &work{dir: dir, lock: lock}, nil
		}
		err = nil
		if !made && sameFile(lock, dir) {
			err = discard(s.bin(), dir)
		}
		lock.Close()
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("make %s: other processes keep taking it", dir)
}

var errLocked = errors.New("another process has it")

// tryLock locks the directory dir, or says errLocked.
func tryLock(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// Work is the directory of layer id that is being made: by this process, or by
// one before that has left it.
func (s *Shelf) Work(id string) (dir string, err error) {
	if err := checkID(id); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.made[id]; w != nil {
		return w.dir, nil
	}
	dir = filepath.Join(s.dir, "work", id)
	if _, err := os.Lstat(dir); err != nil {
		return "", fmt.Errorf("it is not prepared: %w", fs.ErrNotExist)
	}
	return dir, nil
}

// Put makes the directory at path, which is in that of Work(id), layer id, and
// deletes the rest. Where the layer is there already, it stays and path is
// deleted.
func (s *Shelf) Put(id, path string) error {
	if err := Rename(path, s.Layer(id)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return s.Drop(id)
}

// PutSoon is Put that deletes the rest in the background.
func (s *Shelf) PutSoon(id, path string) error {
	if err := Rename(path, s.Layer(id)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	left, done, err := s.unmake(id)
	defer done()
	if err == nil && left != "" {
		s.erasing.Go(func() { _ = erase(left) }) // or the next to open the shelf does
	}
	return err
}

// Wait waits until PutSoon's deletions have ended, and deletes what Warm has made
// for nobody; no more of either may begin.
func (s *Shelf) Wait() {
	s.erasing.Wait()
	if at := s.takeNext(); at != "" {
		os.Remove(at) // or the next to open the shelf does
	}
	s.places.clear()
}

// Rename is rename(2) that replaces nothing: an fs.ErrExist.
func Rename(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // not of this filesystem
		if _, err := os.Lstat(to); err == nil {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: unix.EEXIST}
		}
		return os.Rename(from, to)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// Drop deletes the directory of Work(id).
func (s *Shelf) Drop(id string) error {
	left, done, err := s.unmake(id)
	defer done()
	if err != nil || left == "" {
		return err
	}
	return erase(left)
}

// unmake takes the directory of Work(id) away: what is left of it, if anything, is
// to be deleted. done lets others take the ID.
func (s *Shelf) unmake(id string) (left string, done func(), err error) {
	done = func() {}
	s.mu.Lock()
	w := s.made[id]
	s.mu.Unlock()
	if w == nil {
		dir, err := s.Work(id)
		if err != nil {
			return "", done, err
		}
		left, err = throwAway(s.bin(), dir)
		return left, done, err
	}
	done = func() {
		s.mu.Lock()
		delete(s.made, id)
		s.mu.Unlock()
		w.lock.Close()
	}
	left, err = throwAway(s.bin(), w.dir)
	return left, done, err
}

// Remove deletes layer id: the one that this process is making, else the
// finished one and what dead processes have left of it. One that a live process
// is making stays. What is not there is no error.
func (s *Shelf) Remove(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	s.mu.Lock()
	own := s.made[id] != nil
	s.mu.Unlock()
	if own {
		return s.Drop(id)
	}
	if err := discard(s.bin(), s.Layer(id)); err != nil {
		return err
	}
	all, err := os.ReadDir(filepath.Join(s.dir, "work"))
	if err != nil {
		return err
	}
	for _, e := range all {
		if name, _, _ := strings.Cut(e.Name(), "~"); name != id {
			continue
		}
		if err := s.sweep(filepath.Join(s.dir, "work", e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Sweep deletes all that dead processes were making. It is for shelves whose
// layers no process takes over from another.
func (s *Shelf) Sweep() error {
	all, err := os.ReadDir(filepath.Join(s.dir, "work"))
	if err != nil {
		return err
	}
	for _, e := range all {
		if err := s.sweep(filepath.Join(s.dir, "work", e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// sweep deletes dir, unless a live process has it.
func (s *Shelf) sweep(dir string) error {
	lock, err := tryLock(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	return discard(s.bin(), dir)
}

func checkID(id string) error {
	for _, r := range id {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' {
			return fmt.Errorf("%q cannot be the ID of a layer", id)
		}
	}
	if id == "" {
		return errors.New("the ID of a layer is empty")
	}
	return nil
}
