package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// OpaqueXattr marks a directory of a layer that hides those below it.
// Source: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories".
const OpaqueXattr = "trusted.overlay.opaque"

// Names of the files that stand for whiteouts and opaque directories where the
// filesystem that holds a layer can have neither. They are those of layer tars,
// in which no other files can have such names.
const (
	WhiteoutMarker = ".wh." // and the name that is gone
	OpaqueMarker   = ".wh..wh..opq"
)

// Tree is a stack of layer directories read as one. It is safe for concurrent
// use, one call at a time.
type Tree struct {
	upper bool // layers[0] may be written to

	mu     sync.Mutex
	layers []*layerDir // topmost first
	// dirs remembers for each directory seen the layers that make it up,
	// topmost first.
	dirs map[string][]int
	// times are the modification times that directories get back on Close:
	// what is put into a directory does not change when it was made.
	times map[string]time.Time
}

// Close gives directories written to their modification times back and
// releases the tree's file descriptors.
func (t *Tree) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var first error
	for p, at := range t.times {
		fd, name, err := t.parent(0, p)
		if err == nil {
			ts, _ := unix.TimeToTimespec(at)
			err = unix.UtimesNanoAt(fd, name, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, ts}, unix.AT_SYMLINK_NOFOLLOW)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && first == nil {
			first = &fs.PathError{Op: "utimensat", Path: p, Err: err}
		}
	}
	clear(t.times)
	for _, l := range t.layers {
		l.forget()
		if l.root >= 0 {
			unix.Close(l.root)
		}
	}
	t.layers = nil
	return first
}

// Forget drops what is remembered of directories, after something else has
// written to the layers: a process that had them mounted.
func (t *Tree) Forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for d := range t.dirs {
		if d != "/" {
			delete(t.dirs, d)
		}
	}
	for _, l := range t.layers {
		l.forget()
	}
	clear(t.times)
}

// dir is an open directory of layer i; valid until the next call.
func (t *Tree) dir(i int, p string) (int, error) {
	l := t.layers[i]
	if l.sub >= 0 && l.subPath == p {
		return l.sub, nil
	}
	root, err := l.open()
	if err != nil {
		// Not a file that is not there: a layer that was.
		return -1, fmt.Errorf("open layer directory %s: %v", l.Dir, err)
	}
	if p == "/" {
		return root, nil
	}
	// No symbolic link is followed: a layer's directories are what the tree
	// says they are, also while somebody changes a user's directory.
	fd, err := unix.Openat2(root, p[1:], &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, err
	}
	l.forget()
	l.sub, l.subPath = fd, p
	return fd, nil
}

// parent is the open parent of p in layer i, and p's name in it.
func (t *Tree) parent(i int, p string) (int, string, error) {
	if p == "/" {
		fd, err := t.dir(i, p)
		return fd, ".", err
	}
	fd, err := t.dir(i, path.Dir(p))
	return fd, path.Base(p), err
}

func (t *Tree) stat(i int, p string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if strings.LastIndexByte(p, '/') == 0 && t.layers[i].lacks(p[1:]) {
		return st, unix.ENOENT
	}
	fd, name, err := t.parent(i, p)
	if err == nil {
		err = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	return st, err
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// xattrPath names p of layer i by way of an open directory, for the system
// calls on extended attributes, which have no *at form before Linux 6.13.
func (t *Tree) xattrPath(i int, p string) (string, error) {
	fd, name, err := t.parent(i, p)
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name, err
}

func (t *Tree) opaque(i int, p string) bool {
	name, err := t.xattrPath(i, p)
	if err != nil {
		return false
	}
	var b [1]byte
	n, err := unix.Lgetxattr(name, OpaqueXattr, b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// layersOf is the layers that make up the directory p.
func (t *Tree) layersOf(p string) ([]int, error) {
	if ls, ok := t.dirs[p]; ok {
		return ls, nil
	}
	up, err := t.layersOf(path.Dir(p))
	if err != nil {
		return nil, err
	}
	var ls []int
	for n, i := range up {
		st, err := t.stat(i, p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if len(ls) == 0 && !isWhiteout(&st) {
				return nil, unix.ENOTDIR
			}
			break
		}
		ls = append(ls, i)
		if n < len(up)-1 && t.opaque(i, p) {
			break
		}
	}
	if len(ls) == 0 {
		return nil, unix.ENOENT
	}
	t.dirs[p] = ls
	return ls, nil
}

// find is the layer that p is in and what it is there. skip leaves out the
// upper layer.
func (t *Tree) find(p string, skip bool) (int, unix.Stat_t, error) {
	up := t.dirs["/"]
	if p != "/" {
		var err error
		if up, err = t.layersOf(path.Dir(p)); err != nil {
			return -1, unix.Stat_t{}, err
		}
	}
	for _, i := range up {
		if skip && i == 0 && t.upper {
			continue
		}
		st, err := t.stat(i, p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && isWhiteout(&st) {
			break
		}
		return i, st, err
	}
	return -1, unix.Stat_t{}, unix.ENOENT
}

func (t *Tree) entry(i int, p string, st *unix.Stat_t) (Entry, error) {
	e := EntryOf(p, st)
	if e.Type() == unix.S_IFLNK {
		fd, name, err := t.parent(i, p)
		if err != nil {
			return e, err
		}
		b := make([]byte, max(st.Size, 255)+1)
		n, err := unix.Readlinkat(fd, name, b)
		if err != nil {
			return e, err
		}
		e.Link = string(b[:n])
	}
	return e, nil
}

// Lstat is the entry at path; no symbolic link in path is followed, and a path
// through one, or through a file, is a unix.ENOTDIR.
func (t *Tree) Lstat(p string) (Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, e, err := t.quick(p)
	if err == nil {
		e.Xattrs, err = t.xattrs(i, p)
	}
	return e, wrap("lstat", p, err)
}

// Quick is Lstat without extended attributes.
func (t *Tree) Quick(p string) (Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, e, err := t.quick(p)
	return e, wrap("lstat", p, err)
}

func (t *Tree) quick(p string) (int, Entry, error) {
	i, st, err := t.find(p, false)
	if err != nil {
		return i, Entry{}, err
	}
	e, err := t.entry(i, p, &st)
	return i, e, err
}

// Stamp is Quick and the inode change time and device beside: what changes
// when a file does.
func (t *Tree) Stamp(p string) (e Entry, ctime time.Time, dev uint64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, st, err := t.find(p, false)
	if err == nil {
		e, err = t.entry(i, p, &st)
	}
	return e, time.Unix(st.Ctim.Sec, st.Ctim.Nsec), st.Dev, wrap("lstat", p, err)
}

func wrap(op, p string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: p, Err: err}
}

func (t *Tree) xattrs(i int, p string) (map[string]string, error) {
	name, err := t.xattrPath(i, p)
	if err != nil {
		return nil, err
	}
	var small [512]byte
	list, err := Sized(small[:], func(b []byte) (int, error) { return unix.Llistxattr(name, b) })
	if errors.Is(err, unix.ENOTSUP) || err == nil && len(list) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out map[string]string
	for _, k := range strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if strings.HasPrefix(k, "trusted.overlay.") || strings.HasPrefix(k, "user.overlay.") {
			continue
		}
		var val [512]byte
		v, err := Sized(val[:], func(b []byte) (int, error) { return unix.Lgetxattr(name, k, b) })
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
			continue // gone meanwhile, or of a security module that does not tell
		}
		if err != nil {
			return nil, err
		}
		if out == nil {
			out = map[string]string{}
		}
		out[k] = string(v)
	}
	return out, nil
}

// Sized calls f with buf and, while that is too small (unix.ERANGE), with larger
// ones; it returns what f has filled.
func Sized(buf []byte, f func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := f(buf)
		if errors.Is(err, unix.ERANGE) && len(buf) < 1<<20 {
			buf = make([]byte, 4*len(buf))
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// Resolve follows symbolic links in all of path, or, with last false, in all
// but its last component, inside the root. Components that do not exist, or
// that would lie in a file, are kept as they are. More than 255 links are a
// unix.ELOOP.
func (t *Tree) Resolve(p string, last bool) (string, error) { return t.ResolveIn("/", p, last) }

// ResolveIn is Resolve with the directory base, itself resolved, for a root:
// absolute links begin there and ".." does not leave it.
func (t *Tree) ResolveIn(base, p string, last bool) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, err := Follow(base, p, last, func(at string) (string, bool, error) {
		i, st, err := t.find(at, false)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return "", false, nil
		}
		if err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
			return "", false, err
		}
		e, err := t.entry(i, at, &st)
		return e.Link, true, err
	})
	if err != nil {
		return "", wrap("resolve", p, err)
	}
	return at, nil
}

// ReadDir is the sorted names in the directory path.
func (t *Tree) ReadDir(p string) ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ls, err := t.layersOf(p)
	if err != nil {
		return nil, wrap("readdir", p, err)
	}
	if len(ls) == 1 {
		names, hidden, err := t.names(ls[0], p)
		if len(hidden) > 0 {
			names = slices.DeleteFunc(names, func(n string) bool { return hidden[n] })
		}
		slices.Sort(names)
		return names, wrap("readdir", p, err)
	}
	seen := map[string]bool{}
	var out []string
	for _, i := range ls {
		names, hidden, err := t.names(i, p)
		if err != nil {
			return nil, wrap("readdir", p, err)
		}
		for _, n := range names {
			if !seen[n] {
				seen[n] = true
				if !hidden[n] {
					out = append(out, n)
				}
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// names is the names in directory p of layer i, and those that are whiteouts.
func (t *Tree) names(i int, p string) ([]string, map[string]bool, error) {
	dir, err := t.dir(i, p)
	if err != nil {
		return nil, nil, err
	}
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fd), p)
	defer f.Close()
	list, err := f.ReadDir(-1)
	if err != nil {
		return nil, nil, err
	}
	names := make([]string, len(list))
	var hidden map[string]bool
	for k, d := range list {
		names[k] = d.Name()
		if d.Type()&fs.ModeCharDevice == 0 {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(dir, d.Name(), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, nil, err
		}
		if isWhiteout(&st) {
			if hidden == nil {
				hidden = map[string]bool{}
			}
			hidden[d.Name()] = true
		}
	}
	return names, hidden, nil
}

// Open opens the regular file path to be read. What is no regular file is a
// unix.EINVAL.
func (t *Tree) Open(p string) (*os.File, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, st, err := t.find(p, false)
	if err != nil {
		return nil, wrap("open", p, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, wrap("open", p, unix.EINVAL)
	}
	fd, name, err := t.parent(i, p)
	if err != nil {
		return nil, wrap("open", p, err)
	}
	// O_NONBLOCK: somebody may have put a fifo there since.
	f, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, wrap("open", p, err)
	}
	return os.NewFile(uintptr(f), p), nil
}
