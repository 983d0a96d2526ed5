package layer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// Intact reports the first file under dir that is not there, or is of another
// type, size or modification time than the list of entries in r says: what a
// power cut, a disk that is full of errors, or somebody who writes in the wrong
// place does to a layer. It reads no file's content. A list that cannot be read
// is an ErrDamaged.
//
// Builds wait for it: it makes no Change of an entry, and looks files up in
// their directory.
func Intact(r io.Reader, dir string) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("read entries: %w", err)
	}
	body, err := checked(data)
	if err != nil {
		return err
	}
	o, err := newOpener(dir)
	if err != nil {
		return err
	}
	defer o.Close()
	l := looker{top: o.fd, at: -1}
	defer l.leave()
	d := decoder{rest: body}
	for n := uint64(0); ; n++ {
		kind := d.byte()
		if kind == bitEnd {
			if count := d.number(); d.bad || count != n || len(d.rest) > 0 {
				return ErrDamaged
			}
			return nil
		}
		s := d.stamp(kind, l.path)
		if d.bad {
			return ErrDamaged
		}
		l.path = s.path
		if kind&bitRemoved != 0 {
			continue
		}
		if err := l.look(s); err != nil {
			return err
		}
	}
}

// stamp is what of an entry can be seen without reading the file.
type stamp struct {
	path      []byte
	mode      uint32
	size      int64
	sec, nsec int64
}

// stamp reads an entry as change does. The path shares last's memory.
func (d *decoder) stamp(kind byte, last []byte) stamp {
	shared := d.limited(uint64(len(last)))
	s := stamp{path: append(last[:shared], d.take(d.number())...)}
	if kind&bitRemoved != 0 {
		return s
	}
	s.mode = uint32(d.number())
	d.number() // owner
	d.number() // group
	s.size = int64(d.number())
	s.sec = d.signed()
	s.nsec = int64(d.number())
	d.number() // inode
	d.number() // its names
	if kind&bitDigest != 0 {
		if n := d.number(); n == 0 {
			d.take(32)
		} else {
			d.take(n)
		}
	}
	if kind&bitHardLink != 0 {
		d.take(d.number())
	}
	if kind&bitXattrs != 0 {
		for range d.limited(uint64(len(d.rest))) {
			d.take(d.number())
			d.take(d.number())
		}
	}
	if kind&bitLink != 0 {
		d.take(d.number())
	}
	if kind&bitDevice != 0 {
		d.number()
		d.number()
	}
	return s
}

// looker looks at files in the order of a list, keeping the directory open that
// they are in.
type looker struct {
	top  int    // descriptor of the layer's directory
	path []byte // of the last entry
	dir  string // that is open as at; -1: none
	at   int
}

func (l *looker) leave() {
	if l.at >= 0 {
		unix.Close(l.at)
		l.at = -1
	}
}

func (l *looker) look(s stamp) error {
	p := string(s.path)
	dir, name := path.Split(p)
	if name == "" {
		name = "."
	}
	if l.at < 0 || dir != l.dir {
		l.leave()
		how := unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		}
		fd, err := unix.Openat2(l.top, "."+dir, &how)
		if err != nil {
			return &os.PathError{Op: "open", Path: dir, Err: err}
		}
		l.dir, l.at = dir, fd
	}
	var st unix.Stat_t
	if err := unix.Fstatat(l.at, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: p, Err: err}
	}
	if st.Mode&unix.S_IFMT != s.mode&unix.S_IFMT {
		return fmt.Errorf("%s is of another type", p)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	if st.Size != s.size {
		return fmt.Errorf("%s has %d bytes, not %d", p, st.Size, s.size)
	}
	if sec, nsec := st.Mtim.Unix(); !s.sameTime(sec, nsec) {
		return fmt.Errorf("%s was written to, at %s", p, time.Unix(sec, nsec).Format(time.DateTime))
	}
	return nil
}

// sameTime compares a file's time with the entry's, as far as the file system
// can hold that: there are those that end in 1901 and 2038, and coarse ones.
func (s stamp) sameTime(sec, nsec int64) bool {
	if s.sec != int64(int32(s.sec)) {
		return true
	}
	if s.sec != sec {
		return false
	}
	for _, unit := range []int64{1, 100, 1e3, 1e6, 1e7, 1e9} {
		if s.nsec-s.nsec%unit == nsec {
			return true
		}
	}
	return false
}

// Unreadable reports whether err is one of reading a layer that lies in the
// layer: its files are not what they were, or the disk does not give them.
func Unreadable(err error) bool {
	return errors.Is(err, errChanged) || errors.Is(err, ErrDamaged) || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EIO) ||
		errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EUCLEAN)
}

// errChanged is wrapped by errors about files that are not what the list of
// entries says.
var errChanged = errors.New("changed since the layer was made")
