package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// youngTemp is the age below which a temporary file is left alone though
// nobody holds its lock: its maker may not have locked it yet.
const youngTemp = time.Minute

func (s *Store) tempDir() string { return filepath.Join(s.dir, "ingest") }

// temp makes a temporary file and locks it for as long as it is open, so that
// another process can tell it from what a killed one left.
func (s *Store) temp() (*os.File, error) {
	s.swept.Do(func() { _ = s.sweepTemp() })
	f, err := os.CreateTemp(s.tempDir(), "*")
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(s.tempDir(), 0o755); err == nil {
			f, err = os.CreateTemp(s.tempDir(), "*")
		}
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		os.Remove(f.Name())
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// sweepTemp removes the temporary files of processes that are gone.
func (s *Store) sweepTemp() error {
	list, err := os.ReadDir(s.tempDir())
	if err != nil {
		return err
	}
	for _, e := range list {
		st, err := e.Info()
		if err != nil || s.now().Sub(st.ModTime()) < youngTemp {
			continue
		}
		p := filepath.Join(s.tempDir(), e.Name())
		f, err := os.OpenFile(p, os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.Remove(p)
		}
		f.Close()
	}
	return nil
}

// writeFile puts data at path, all of it or nothing, and on the disk.
func (s *Store) writeFile(path string, data []byte) error {
	f, err := s.temp()
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = finishFile(f, err); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		os.Remove(f.Name())
	}
	return err
}

// finishFile ends the writing of f, whose outcome so far is err: its bytes are
// on the disk, or f is removed.
func finishFile(f *os.File, err error) error {
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
