package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// place makes ready to put something at path: the parents are there in the
// upper layer, and nothing stands at path in it. It returns the open parent,
// and whether a whiteout or a file stood at path in the upper layer.
// A directory at path is a unix.EISDIR.
func (t *Tree) place(p string) (dir int, name string, hidden bool, err error) {
	if !t.upper {
		return -1, "", false, unix.EROFS
	}
	if p == "/" {
		return -1, "", false, unix.EISDIR
	}
	if err := t.raise(path.Dir(p)); err != nil {
		return -1, "", false, err
	}
	_, st, err := t.find(p, false)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return -1, "", false, unix.EISDIR
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return -1, "", false, err
	}
	if err := t.touch(path.Dir(p)); err != nil {
		return -1, "", false, err
	}
	dir, name, err = t.parent(0, p)
	if err != nil {
		return -1, "", false, err
	}
	// A whiteout or a file; what has other names keeps them.
	err = unix.Unlinkat(dir, name, 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return -1, "", false, err
	}
	return dir, name, err == nil, nil
}

// raise copies the directory p, and its parents, up into the upper layer.
func (t *Tree) raise(p string) error {
	ls, err := t.layersOf(p)
	if err != nil {
		return err
	}
	if ls[0] == 0 {
		return nil
	}
	if err := t.raise(path.Dir(p)); err != nil {
		return err
	}
	if err := t.touch(path.Dir(p)); err != nil {
		return err
	}
	st, err := t.stat(ls[0], p)
	if err != nil {
		return err
	}
	e, err := t.entry(ls[0], p, &st)
	if err != nil {
		return err
	}
	if e.Xattrs, err = t.xattrs(ls[0], p); err != nil {
		return err
	}
	dir, name, err := t.parent(0, p)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(dir, name, 0o700); err != nil {
		return err
	}
	t.dirs[p] = append([]int{0}, ls...)
	return t.setMeta(p, e)
}

// touch remembers the modification time of a directory that is about to be
// written to, for Close.
func (t *Tree) touch(p string) error {
	if _, ok := t.times[p]; ok {
		return nil
	}
	st, err := t.stat(0, p)
	if err != nil {
		return err
	}
	t.times[p] = time.Unix(st.Mtim.Sec, st.Mtim.Nsec)
	return nil
}

// Mkdir makes a directory; its parent exists. Like all that write, it copies
// parents up from lower layers as overlayfs would: mode, owner, xattrs and
// times. An existing path is an fs.ErrExist.
func (t *Tree) Mkdir(p string, perm uint32) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, _, err := t.find(p, false); err == nil {
		return wrap("mkdir", p, unix.EEXIST)
	}
	dir, name, covered, err := t.place(p)
	if err != nil {
		return wrap("mkdir", p, err)
	}
	if err := unix.Mkdirat(dir, name, 0o700); err != nil {
		return wrap("mkdir", p, err)
	}
	if err := unix.Fchmodat(dir, name, perm&0o7777, 0); err != nil {
		return wrap("mkdir", p, err)
	}
	t.dirs[p] = []int{0}
	if covered {
		return wrap("mkdir", p, t.setOpaque(p))
	}
	return wrap("mkdir", p, t.cover(p))
}

// cover makes the new directory p opaque if lower layers have one there.
func (t *Tree) cover(p string) error {
	for _, i := range t.dirs[path.Dir(p)] {
		if i == 0 {
			continue
		}
		st, err := t.stat(i, p)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return t.setOpaque(p)
		}
		if err == nil {
			return nil
		}
	}
	return nil
}

func (t *Tree) setOpaque(p string) error {
	name, err := t.xattrPath(0, p)
	if err != nil {
		return err
	}
	err = unix.Lsetxattr(name, OpaqueXattr, []byte("y"), 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
		err = t.mark(p, OpaqueMarker)
	}
	return err
}

// mark makes the empty file name in directory p of the upper layer.
func (t *Tree) mark(p, name string) error {
	dir, err := t.dir(0, p)
	if err != nil {
		return err
	}
	err = unix.Mknodat(dir, name, unix.S_IFREG, 0)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// Create makes or replaces a regular file, empty, mode 0600, and opens it for
// writing. A directory in its place is a unix.EISDIR.
func (t *Tree) Create(p string) (*os.File, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	dir, name, _, err := t.place(p)
	if err != nil {
		return nil, wrap("create", p, err)
	}
	fd, err := unix.Openat(dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, wrap("create", p, err)
	}
	return os.NewFile(uintptr(fd), p), nil
}

// Symlink makes or replaces (not a directory) a symbolic link.
func (t *Tree) Symlink(target, p string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	dir, name, _, err := t.place(p)
	if err == nil {
		err = unix.Symlinkat(target, dir, name)
	}
	return wrap("symlink", p, err)
}

// Mknod makes or replaces (not a directory) a device, fifo or socket of the
// type and permissions of mode. A character device 0:0 is refused: it would be
// a whiteout.
func (t *Tree) Mknod(p string, mode, major, minor uint32) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if mode&unix.S_IFMT == unix.S_IFCHR && major == 0 && minor == 0 {
		return wrap("mknod", p, fmt.Errorf("a character device 0:0 cannot be in a layer: %w", unix.EINVAL))
	}
	dir, name, _, err := t.place(p)
	if err == nil {
		err = unix.Mknodat(dir, name, mode&unix.S_IFMT|0o600, int(unix.Mkdev(major, minor)))
	}
	if err == nil {
		err = unix.Fchmodat(dir, name, mode&0o7777, 0)
	}
	return wrap("mknod", p, err)
}

// Link makes or replaces (not a directory) a hard link to existing, which is
// copied up if a lower layer has it.
func (t *Tree) Link(existing, p string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return wrap("link", p, t.link(existing, p))
}

func (t *Tree) link(existing, p string) error {
	i, st, err := t.find(existing, false)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EPERM
	}
	if existing == p {
		return nil
	}
	if i != 0 || !t.upper {
		if err := t.copyUp(i, existing, &st); err != nil {
			return err
		}
	}
	if _, _, _, err := t.place(p); err != nil {
		return err
	}
	from, fromName, err := t.parent(0, existing)
	if err != nil {
		return err
	}
	// parent keeps one directory open a layer: the second call may close the
	// first one's.
	from, err = unix.FcntlInt(uintptr(from), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	dir, name, err := t.parent(0, p)
	if err != nil {
		return err
	}
	return unix.Linkat(from, fromName, dir, name, 0)
}

// copyUp copies what is no directory from layer i to the upper one.
func (t *Tree) copyUp(i int, p string, st *unix.Stat_t) error {
	e, err := t.entry(i, p, st)
	if err != nil {
		return err
	}
	if e.Xattrs, err = t.xattrs(i, p); err != nil {
		return err
	}
	src, srcName, err := t.parent(i, p)
	if err != nil {
		return err
	}
	in := -1
	if e.Type() == unix.S_IFREG {
		if in, err = unix.Openat(src, srcName, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		defer unix.Close(in)
	}
	dir, name, _, err := t.place(p)
	if err != nil {
		return err
	}
	switch e.Type() {
	case unix.S_IFREG:
		fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		to, from := os.NewFile(uintptr(fd), p), os.NewFile(uintptr(dup(in)), p)
		_, err = to.ReadFrom(from)
		from.Close()
		if cerr := to.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	case unix.S_IFLNK:
		err = unix.Symlinkat(e.Link, dir, name)
	default:
		err = unix.Mknodat(dir, name, e.Type()|0o600, int(unix.Mkdev(e.Major, e.Minor)))
	}
	if err != nil {
		return err
	}
	return t.setMeta(p, e)
}

func dup(fd int) int {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1 // the read that follows says EBADF
	}
	return n
}

// RemoveAll removes path and what is in it. What is not there is no error.
func (t *Tree) RemoveAll(p string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return wrap("remove", p, t.remove(p, false))
}

// Whiteout removes path and marks it as removed for the lower layers that this
// one will be put upon, whether the tree has them now or not.
func (t *Tree) Whiteout(p string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return wrap("whiteout", p, t.remove(p, true))
}

func (t *Tree) remove(p string, mark bool) error {
	if !t.upper {
		return unix.EROFS
	}
	if p == "/" {
		return unix.EBUSY
	}
	if _, _, err := t.find(p, false); err != nil {
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, fs.ErrNotExist) && !mark {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := t.raise(path.Dir(p)); err != nil {
		return err
	}
	if err := t.touch(path.Dir(p)); err != nil {
		return err
	}
	_, _, below := t.find(p, true)
	if err := t.erase(p); err != nil {
		return err
	}
	if below != nil && !mark {
		return nil
	}
	dir, name, err := t.parent(0, p)
	if err != nil {
		return err
	}
	err = unix.Mknodat(dir, name, unix.S_IFCHR, 0)
	if errors.Is(err, unix.EPERM) {
		err = t.mark(path.Dir(p), WhiteoutMarker+name)
	}
	return err
}

// erase removes p from the upper layer.
func (t *Tree) erase(p string) error {
	dir, name, err := t.parent(0, p)
	if err != nil {
		return err
	}
	err = unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return t.drop(p)
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	ls, _, err := t.names(0, p)
	if err != nil {
		return err
	}
	for _, n := range ls {
		if err := t.erase(path.Join(p, n)); err != nil {
			return err
		}
	}
	dir, name, err = t.parent(0, p)
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil {
		return err
	}
	return t.drop(p)
}

// drop forgets what is remembered of directory p.
func (t *Tree) drop(p string) error {
	if l := t.layers[0]; l.sub >= 0 && (l.subPath == p || strings.HasPrefix(l.subPath, p+"/")) {
		l.forget()
	}
	delete(t.times, p)
	if _, ok := t.dirs[p]; !ok {
		return nil
	}
	for d := range t.dirs {
		if d == p || strings.HasPrefix(d, p+"/") {
			delete(t.dirs, d)
		}
	}
	return nil
}

// Clear hides what lower layers have in the directory path, those of this tree
// and those that the layer will be put upon: the directory becomes opaque.
func (t *Tree) Clear(p string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.upper {
		return wrap("clear", p, unix.EROFS)
	}
	err := t.raise(p)
	if err == nil {
		err = t.setOpaque(p)
	}
	if err != nil {
		return wrap("clear", p, err)
	}
	for d := range t.dirs {
		if d == p || p == "/" || strings.HasPrefix(d, p+"/") {
			delete(t.dirs, d)
		}
	}
	if p == "/" {
		t.dirs["/"] = []int{0}
	}
	return nil
}

// SetMeta sets permission bits, owner, xattrs and modification time of path
// (not followed) to those of e: owner first, since chown clears setuid bits
// and file capabilities. Xattrs that e lacks are left alone. A directory keeps
// the time through what is put into it afterwards.
func (t *Tree) SetMeta(p string, e Entry) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.upper {
		return wrap("set metadata of", p, unix.EROFS)
	}
	i, st, err := t.find(p, false)
	if err != nil {
		return wrap("set metadata of", p, err)
	}
	switch {
	case i == 0:
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		err = t.raise(p)
	default:
		err = t.copyUp(i, p, &st)
	}
	if err == nil {
		e.Mode = st.Mode&unix.S_IFMT | e.Perm()
		err = t.setMeta(p, e)
	}
	return wrap("set metadata of", p, err)
}

func (t *Tree) setMeta(p string, e Entry) error {
	dir, name, err := t.parent(0, p)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(dir, name, e.UID, e.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown to %d:%d: %w", e.UID, e.GID, err)
	}
	if e.Type() != unix.S_IFLNK {
		if err := unix.Fchmodat(dir, name, e.Perm(), 0); err != nil {
			return err
		}
	}
	if len(e.Xattrs) > 0 {
		full, err := t.xattrPath(0, p)
		if err != nil {
			return err
		}
		for _, k := range sortedKeys(e.Xattrs) {
			if err := unix.Lsetxattr(full, k, []byte(e.Xattrs[k]), 0); err != nil {
				return fmt.Errorf("set xattr %s: %w", k, err)
			}
		}
	}
	if e.IsDir() {
		t.times[p] = e.ModTime
	}
	ts, err := unix.TimeToTimespec(e.ModTime)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
