package image

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Draft is a file that appears under its name whole or not at all. It has no
// name before Commit (open(2), O_TMPFILE), so that not even a killed process
// leaves one; on file systems that cannot do that it has a name of its own, and
// the next draft in the directory removes what a killed process left.
type Draft struct {
	*os.File
	dir   string
	named bool
}

const (
	draftPrefix = ".draft-"
	linkPrefix  = ".link-" // of one that has had no name: it is locked before it gets this
	draftSuffix = ".tmp"
	// youngDraft is the age below which a draft is left alone though nobody
	// holds its lock: its maker may not have locked it yet.
	youngDraft = time.Minute
)

// NewDraft begins a file in dir with the permissions that the process's umask
// makes of perm. The caller ends it with Commit or Discard.
func NewDraft(dir string, perm os.FileMode) (*Draft, error) {
	fd, err := unix.Open(dir, unix.O_WRONLY|unix.O_TMPFILE|unix.O_CLOEXEC, uint32(perm.Perm()))
	switch {
	case err == nil:
		return &Draft{File: os.NewFile(uintptr(fd), dir), dir: dir}, nil
	case !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EINVAL):
		return nil, &os.PathError{Op: "create a file in", Path: dir, Err: err}
	}
	return newNamedDraft(dir, perm)
}

func newNamedDraft(dir string, perm os.FileMode) (*Draft, error) {
	sweepDrafts(dir, time.Now())
	f, err := os.OpenFile(draftName(dir, draftPrefix), os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return nil, err
	}
	d := &Draft{File: f, dir: dir, named: true}
	// The lock tells it from what a killed process left.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Discard()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return d, nil
}

func draftName(dir, prefix string) string {
	return filepath.Join(dir, prefix+rand.Text()[:10]+draftSuffix)
}

// Commit closes the draft and gives it its name, which may be another file's;
// on an error it is gone. It does not sync.
func (d *Draft) Commit(path string) error {
	defer d.Discard()
	if d.named {
		if err := os.Rename(d.Name(), path); err != nil {
			return err
		}
		d.named = false
		return d.Close()
	}
	self := fmt.Sprintf("/proc/self/fd/%d", d.Fd())
	link := func(to string) error {
		err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, to, unix.AT_SYMLINK_FOLLOW)
		if err != nil {
			return &os.LinkError{Op: "link", Old: "draft", New: to, Err: err}
		}
		return nil
	}
	err := link(path)
	if errors.Is(err, os.ErrExist) {
		// linkat(2) does not replace files. The lock is for the moment in
		// which the draft has a name.
		temp := draftName(d.dir, linkPrefix)
		if err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			err = link(temp)
		}
		if err == nil {
			if err = os.Rename(temp, path); err != nil {
				os.Remove(temp)
			}
		}
	}
	if err != nil {
		return err
	}
	return d.Close()
}

// Discard throws the draft away. After Commit it does nothing.
func (d *Draft) Discard() {
	if d.named {
		os.Remove(d.Name())
		d.named = false
	}
	d.Close()
}

// sweepDrafts removes drafts of processes that are gone.
func sweepDrafts(dir string, now time.Time) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range list {
		locked := strings.HasPrefix(e.Name(), linkPrefix)
		if !locked && !strings.HasPrefix(e.Name(), draftPrefix) || !strings.HasSuffix(e.Name(), draftSuffix) {
			continue
		}
		st, err := e.Info()
		if err != nil || !locked && now.Sub(st.ModTime()) < youngDraft {
			continue
		}
		p := filepath.Join(dir, e.Name())
		f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.Remove(p)
		}
		f.Close()
	}
}

// Sweep removes what killed processes were writing.
func (s *Store) Sweep() { sweepDrafts(s.draftDir(), s.now()) }

func (s *Store) draftDir() string { return filepath.Join(s.dir, "ingest") }

// draft begins a file of the store's.
func (s *Store) draft() (*Draft, error) {
	s.swept.Do(func() { sweepDrafts(s.draftDir(), s.now()) })
	d, err := NewDraft(s.draftDir(), 0o644)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(s.draftDir(), 0o755); err == nil {
			d, err = NewDraft(s.draftDir(), 0o644)
		}
	}
	return d, err
}

// writeFile puts data at path, all of it or nothing, and on the disk.
func (s *Store) writeFile(path string, data []byte) error {
	d, err := s.draft()
	if err != nil {
		return err
	}
	defer d.Discard()
	if _, err := d.Write(data); err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return err
	}
	return d.Commit(path)
}
