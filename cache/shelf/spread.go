package shelf

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

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
// random one at first.
func (s *Shelf) mkdir(dir string) error {
	if !s.spreads() {
		return os.Mkdir(dir, 0o700)
	}
	at := s.takeNext()
	if at == "" {
		var err error
		if at, err = s.aside(); err != nil {
			return err
		}
	}
	err := Rename(at, dir)
	if errors.Is(err, fs.ErrNotExist) { // another process has emptied the trash
		return os.Mkdir(dir, 0o700)
	}
	if err != nil {
		os.Remove(at)
	}
	return err
}

// aside makes a directory in the trash, where nothing gets lost if this process is
// killed.
func (s *Shelf) aside() (string, error) {
	at := filepath.Join(s.bin(), rand.Text())
	return at, os.Mkdir(at, 0o700)
}

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
		fd, err := unix.Open(s.bin(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
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
