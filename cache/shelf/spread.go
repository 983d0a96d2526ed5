package shelf

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// topDir is FS_TOPDIR_FL of linux/fs.h, "chattr +T": the directories made in one
// that has it have nothing to do with each other.
const topDir = 0x00020000

// mkdir makes the directory dir of a layer, which is to get files of its own by
// the thousand.
//
// Ext4 puts files near the directory they are in, and for minutes it makes none
// out of inodes that were just deleted there: it looks at each of them again for
// every file that is made (recently_deleted in fs/ext4/ialloc.c). A layer made
// soon after one was deleted, by a prune or where another build failed, took
// forty times as long as another. Told that the directories of layers are
// unrelated, it puts each where few are, chosen by a hash of its name; hence the
// random one at first. To make files in such a place the disk has to be read, which
// may take longer than a small step: a few layers of one process, none of which is
// deleted before the process ends unless something failed, share a place.
func (s *Shelf) mkdir(dir string) error {
	if !s.spreads() {
		return os.Mkdir(dir, 0o700)
	}
	at := s.takeNext()
	if at == "" {
		var err error
		at, err = s.aside()
		if gone(err) {
			return os.Mkdir(dir, 0o700)
		}
		if err != nil {
			return err
		}
	}
	err := Rename(at, dir)
	if gone(err) {
		return os.Mkdir(dir, 0o700)
	}
	if err != nil {
		os.Remove(at)
	}
	return err
}

// gone says that another process has deleted a place before it was locked.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, errLocked) }

// perPlace is how many layers are put in one place: enough for the disk to be read
// seldom, few enough for those that are made at once not to wait for each other.
const perPlace = 8

// places is where directories are made before they get their names: in one that ext4
// has put somewhere, to which it puts others near that are made in it. It is locked,
// so that nobody deletes it who takes this process for dead.
type places struct {
	mu   sync.Mutex
	dir  string // "" before the first
	lock *os.File
	used int
	old  []*os.File // of those before
}

// aside makes a directory where nothing gets lost if this process is killed.
func (s *Shelf) aside() (string, error) {
	p := &s.places
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dir == "" || p.used == perPlace {
		dir := filepath.Join(s.placesDir(), rand.Text())
		if err := os.Mkdir(dir, 0o700); err != nil {
			return "", err
		}
		lock, err := tryLock(dir)
		if err != nil {
			return "", err
		}
		p.leave()
		p.dir, p.lock, p.used = dir, lock, 0
	}
	p.used++
	at := filepath.Join(p.dir, rand.Text())
	err := os.Mkdir(at, 0o700)
	if err != nil {
		p.used = perPlace // whatever is wrong with it
	}
	return at, err
}

// leave gives the place up, and those before it out of which all have gone by now.
func (p *places) leave() {
	if p.lock != nil {
		p.old = append(p.old, p.lock)
	}
	p.dir, p.lock = "", nil
	p.old = slices.DeleteFunc(p.old, func(lock *os.File) bool {
		if err := os.Remove(lock.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false
		}
		lock.Close()
		return true
	})
}

// clear gives all up; what is not empty, the next to open the shelf deletes.
func (p *places) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leave()
	for _, lock := range p.old {
		lock.Close()
	}
	p.old = nil
}

// sweepPlaces deletes the places of dead processes.
func (s *Shelf) sweepPlaces() {
	all, err := os.ReadDir(s.placesDir())
	if err != nil {
		return
	}
	for _, e := range all {
		_ = s.sweep(filepath.Join(s.placesDir(), e.Name())) // what cannot be deleted harms nobody
	}
}

func (s *Shelf) placesDir() string { return filepath.Join(s.dir, "places") }

// Warm has the directory of the next layer made in the background: where few are,
// the disk has to be read for it. It is a hint, as often as somebody likes; Wait
// takes back what nobody used.
func (s *Shelf) Warm() {
	if !s.spreads() {
		return
	}
	s.ahead.Lock()
	defer s.ahead.Unlock()
	if s.next != nil {
		return
	}
	made := make(chan string, 1)
	s.next = made
	s.erasing.Go(func() {
		at, err := s.aside()
		if err != nil {
			at = "" // Begin finds out why
		}
		made <- at
	})
}

// takeNext is the directory that Warm has made; "" if it has made none.
func (s *Shelf) takeNext() string {
	s.ahead.Lock()
	made := s.next
	s.next = nil
	s.ahead.Unlock()
	if made == nil {
		return ""
	}
	return <-made
}

// spreads reports whether the filesystem can be told so.
func (s *Shelf) spreads() bool {
	s.spread.Do(func() {
		fd, err := unix.Open(s.placesDir(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
		if err == nil && flags&topDir == 0 {
			err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|topDir)
		}
		s.spreadable = err == nil
	})
	return s.spreadable
}
