package chunked

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
)

// Snapshot is a directory as it is found, to be put into packs.
type Snapshot struct {
	// Estimate is how many bytes of content there are, as the file system says.
	// One that compresses says too little.
	Estimate int64

	root  *os.File
	files []file
	left  omissions
}

// file is an entry of a snapshot.
type file struct {
	tree.Change
	stamp     stamp
	links     uint64 // names of a file
	allocated int64  // bytes on the disk, at most
	pieces    []piece
	gone      bool // left out after all
}

// stamp is what the file system says of a file: if it is the same, so is the
// file, see settled.
type stamp struct {
	ino, dev     uint64
	size         int64
	mtime, ctime int64 // nanoseconds since 1970
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{ino: st.Ino, dev: st.Dev, size: st.Size, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano()}
}

// grain is more than the clock that stamps files is coarse.
const grain = 20 * time.Millisecond

// settled reports whether a file with this stamp, read from now on, cannot
// change without its stamp changing too: its times lie further back than the
// clock that stamps files is coarse.
func (s stamp) settled(now time.Time) bool { return s.wait(now) <= 0 }

// wait is how long it takes until the stamp is settled.
func (s stamp) wait(now time.Time) time.Duration {
	g := grain
	if s.ctime%int64(time.Second) == 0 {
		g = 2 * time.Second // a file system with coarse times, it seems
	}
	return g - time.Duration(now.UnixNano()-max(s.ctime, s.mtime))
}

// Omission is a file that was left out.
type Omission struct{ Path, Why string }

// omissions counts files that were left out, and keeps the first of them.
type omissions struct {
	list []Omission
	n    int
}

const maxOmissions = 100

func (o *omissions) add(path, why string) {
	if o.n++; len(o.list) < maxOmissions {
		o.list = append(o.list, Omission{path, why})
	}
}

// Scan walks the directory dir. What others do there meanwhile is seen or not
// seen. The snapshot is to be closed.
func Scan(ctx context.Context, dir string) (*Snapshot, error) {
	root, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{root: root}
	w := scanner{Snapshot: s, ctx: ctx, first: map[[2]uint64]string{}}
	f, err := lstat(int(root.Fd()), ".", "/")
	if err == nil {
		s.files = append(s.files, f)
		err = w.dir(root, "/")
	}
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	return s, nil
}

// Close releases the directory.
func (s *Snapshot) Close() error { return s.root.Close() }

// Left is what was left out so far, and why: the first of them, and how many
// there are.
func (s *Snapshot) Left() (first []Omission, n int) { return s.left.list, s.left.n }

// Len is how many files there are, directories and all.
func (s *Snapshot) Len() int {
	n := 0
	for i := range s.files {
		if !s.files[i].gone {
			n++
		}
	}
	return n
}

// scanner is a Scan under way.
type scanner struct {
	*Snapshot
	ctx   context.Context
	first map[[2]uint64]string // paths of files that may have other names, by device and inode
}

// dir lists what is in d, the directory p.
func (w *scanner) dir(d *os.File, p string) error {
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := w.entry(int(d.Fd()), name, join(p, name)); err != nil {
			return err
		}
	}
	return nil
}

func join(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}

// entry lists p, which is name in the open directory dir, and what is in it.
func (w *scanner) entry(dir int, name, p string) error {
	f, err := lstat(dir, name, p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it went in between
	}
	if err != nil {
		w.left.add(p, err.Error())
		return nil
	}
	if why := special(f.Type()); why != "" {
		w.left.add(p, why)
		return nil
	}
	if err = checkPath(p); err == nil {
		err = checkMeta(&f.Change)
	}
	if err != nil {
		w.left.add(p, err.Error())
		return nil
	}
	if len(w.files) == maxEntries {
		return fmt.Errorf("more than %d files", maxEntries)
	}
	if f.IsDir() {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return nil // it went in between
		}
		if err != nil {
			return &os.PathError{Op: "open", Path: p, Err: err}
		}
		w.files = append(w.files, f)
		sub := os.NewFile(uintptr(fd), p)
		defer sub.Close()
		return w.dir(sub, p)
	}
	w.add(f)
	return nil
}

// add adds what is no directory.
func (w *scanner) add(f file) {
	if f.links > 1 {
		key := [2]uint64{f.stamp.dev, f.stamp.ino}
		if f.HardLink = w.first[key]; f.HardLink == "" {
			w.first[key] = f.Path
		}
	}
	if hasContent(&f.Change) {
		w.Estimate += f.allocated
	}
	w.files = append(w.files, f)
}

// special says what a file is that is not kept.
func special(kind uint32) string {
	switch kind {
	case unix.S_IFSOCK:
		return "it is a socket"
	case unix.S_IFIFO:
		return "it is a named pipe"
	case unix.S_IFBLK, unix.S_IFCHR:
		return "it is a device"
	}
	return ""
}

// lstat is what name in the open directory dir is; p is its path.
func lstat(dir int, name, p string) (file, error) {
	var f file
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return f, fmt.Errorf("stat it: %w", err)
	}
	f.Path, f.Mode, f.UID, f.GID = p, st.Mode, int(st.Uid), int(st.Gid)
	f.ModTime = time.Unix(st.Mtim.Sec, st.Mtim.Nsec)
	f.stamp = stampOf(&st)
	switch f.Type() {
	case unix.S_IFREG:
		f.Size = st.Size
		f.allocated = min(st.Size, st.Blocks*512)
		f.links = uint64(st.Nlink)
	case unix.S_IFLNK:
		f.links = uint64(st.Nlink)
		b := make([]byte, 4097)
		n, err := unix.Readlinkat(dir, name, b)
		if err != nil {
			return f, fmt.Errorf("read the link: %w", err)
		}
		f.Link = string(b[:n])
	case unix.S_IFDIR:
	default:
		return f, nil
	}
	if err := layer.Xattrs(dir, name, &f.Entry); err != nil {
		return f, fmt.Errorf("read its extended attributes: %w", err)
	}
	return f, nil
}
