package tree

import (
	"bytes"
	"os"
	"path"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Dir is a directory of the upper layer, open to have files put into it by
// several goroutines, with few system calls. The tree's other methods see what
// it does. Whoever holds it releases it.
type Dir struct {
	// Alone: nothing of lower layers is seen in the directory, so a file is new
	// if it is new in the upper layer.
	Alone bool

	path string
	fd   int
	refs atomic.Int32
	// made is what the file system makes of a new file: unknown, as asked for,
	// or something else (a default ACL, the group of the directory).
	made atomic.Int32
}

const (
	madeUnknown = iota
	madeAsAsked
	madeOddly
)

// OpenDir opens the directory p, which is there, for writing; like all that
// writes, it copies it up from lower layers.
func (t *Tree) OpenDir(p string) (*Dir, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.upper {
		return nil, wrap("open", p, unix.EROFS)
	}
	err := t.raise(p)
	if err == nil {
		err = t.touch(p)
	}
	fd := -1
	if err == nil {
		fd, err = t.dir(0, p)
	}
	if err == nil {
		fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	if err != nil {
		return nil, wrap("open", p, err)
	}
	d := &Dir{Alone: len(t.dirs[p]) == 1, path: p, fd: fd}
	d.refs.Store(1)
	return d, nil
}

// Path is the directory's path in the tree.
func (d *Dir) Path() string { return d.path }

// Hold makes d the caller's too, until another Release.
func (d *Dir) Hold() { d.refs.Add(1) }

// Release closes d when it is nobody's any more.
func (d *Dir) Release() {
	if d.refs.Add(-1) == 0 {
		unix.Close(d.fd)
	}
}

func (d *Dir) wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return wrap(op, path.Join(d.path, name), err)
}

// umask is the process's; 0777 where that is not known.
var umask = sync.OnceValue(func() uint32 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777
	}
	_, rest, _ := bytes.Cut(b, []byte("\nUmask:\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	n, err := strconv.ParseUint(string(line), 8, 32)
	if err != nil {
		return 0o777
	}
	return uint32(n)
})

// self is the user that makes files.
var self = sync.OnceValues(func() (uid, gid int) { return os.Geteuid(), os.Getegid() })

// Create makes the regular file name, open for writing, to be given to Finish
// with the same e. A name that is there is an fs.ErrExist.
func (d *Dir) Create(name string, e *Entry) (fd int, err error) {
	fd, err = unix.Openat(d.fd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, e.Perm()&0o777)
	return fd, d.wrap("create", name, err)
}

// Finish gives the file that Create has made the permissions, owner and time of
// e, which has no extended attributes, and closes it.
func (d *Dir) Finish(fd int, name string, e *Entry) error {
	err := d.finish(fd, name, e)
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	return d.wrap("set metadata of", name, err)
}

func (d *Dir) finish(fd int, name string, e *Entry) error {
	uid, gid := self()
	owned := e.UID == uid && e.GID == gid
	// Writing and chown take set-user-ID bits away.
	moded := owned && e.Perm()&(0o7000|umask()) == 0
	if moded && d.made.Load() == madeUnknown {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if st.Uid == uint32(e.UID) && st.Gid == uint32(e.GID) && st.Mode&0o7777 == e.Perm() {
			d.made.Store(madeAsAsked)
		} else {
			d.made.Store(madeOddly)
		}
	}
	if !moded || d.made.Load() == madeOddly {
		if err := unix.Fchown(fd, e.UID, e.GID); err != nil {
			return err
		}
		if err := unix.Fchmod(fd, e.Perm()); err != nil {
			return err
		}
	}
	ts, err := unix.TimeToTimespec(e.ModTime)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(d.fd, name, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// Remove removes the file name, which Create has made and Finish has not had.
func (d *Dir) Remove(fd int, name string) {
	unix.Close(fd)
	_ = unix.Unlinkat(d.fd, name, 0) // its directory is thrown away as well
}

// Link makes name a link to the file fromName in the open directory from.
func (d *Dir) Link(from int, fromName, name string) error {
	return d.wrap("link", name, unix.Linkat(from, fromName, d.fd, name, 0))
}
