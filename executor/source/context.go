package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/parser/ignore"
)

// Context is a directory of the user's without the files that its ignore file
// excludes. A directory that is excluded is there all the same if something in
// it is not. It is a pick.Tree, and a pick.Lister: a directory is read once, by
// several goroutines ahead of who walks, and remembered until Refresh.
type Context struct {
	dir    string
	root   int // open
	dev    uint64
	tree   *tree.Tree
	ignore *ignore.Matcher
	stats  Stats

	mu       sync.Mutex
	shown    map[string]bool // of excluded directories: whether anything in them is left
	listings map[string]*directory
	before   map[string]*directory // as they were before Refresh
	singles  map[string]*directory // of one file each, of which a digest was asked, by its path

	ahead ahead
}

// OpenContext opens directory dir. m and stats may be nil.
func OpenContext(dir string, m *ignore.Matcher, stats Stats) (*Context, error) {
	t, err := tree.New("", []string{dir})
	if err != nil {
		return nil, fmt.Errorf("open context: %w", err)
	}
	c := &Context{
		dir: dir, tree: t, ignore: m, stats: stats, shown: map[string]bool{},
		listings: map[string]*directory{}, before: map[string]*directory{}, singles: map[string]*directory{},
	}
	var st unix.Stat_t
	if c.root, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
		err = unix.Fstat(c.root, &st)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("open context: %w", &fs.PathError{Op: "open", Path: dir, Err: err})
	}
	c.dev = st.Dev
	return c, nil
}

// Close releases the directory.
func (c *Context) Close() error {
	c.ahead.stop()
	if c.root > 0 {
		unix.Close(c.root)
	}
	return c.tree.Close()
}

// Dir is the directory's path on the host.
func (c *Context) Dir() string { return c.dir }

// visible reports whether the entry at p, which is there, is not excluded.
func (c *Context) visible(p string, dir bool) bool {
	if c.ignore == nil || p == "/" || !c.ignore.Match(p, dir) {
		return true
	}
	if !dir || c.ignore.Prunable(p) {
		return false
	}
	c.mu.Lock()
	shown, ok := c.shown[p]
	c.mu.Unlock()
	if ok {
		return shown
	}
	names, err := c.tree.ReadDir(p)
	for _, n := range names {
		if err != nil || shown {
			break
		}
		child := path.Join(p, n)
		if e, err := c.tree.Quick(child); err == nil {
			shown = c.visible(child, e.IsDir())
		}
	}
	c.mu.Lock()
	c.shown[p] = shown
	c.mu.Unlock()
	return shown
}

// Lstat is the entry at p, owned by root. It has no extended attributes: of a
// context BuildKit keeps none, since file capabilities go when it sets the owner.
func (c *Context) Lstat(p string) (tree.Entry, error) { return c.Quick(p) }

// Quick is Lstat.
func (c *Context) Quick(p string) (tree.Entry, error) {
	if l, i, ok := c.listed(p); ok {
		return c.entry(p, l, i), nil
	}
	e, err := c.tree.Quick(p)
	if err == nil && !c.visible(e.Path, e.IsDir()) {
		return tree.Entry{}, &fs.PathError{Op: "lstat", Path: e.Path, Err: unix.ENOENT}
	}
	if err == nil && e.Nlink > 1 && e.Type() == unix.S_IFREG && !c.single(p) {
		e.Nlink = 1 // an inode's number says nothing beyond its filesystem
	}
	// A context's files are root's in the image, whoever's they are here.
	e.UID, e.GID = 0, 0
	return e, err
}

// single reports whether p is on the filesystem of the directory itself.
func (c *Context) single(p string) bool {
	_, _, dev, err := c.tree.Stamp(p)
	return err == nil && dev == c.dev
}

// Resolve follows symbolic links inside the directory. What is excluded is no
// link.
func (c *Context) Resolve(p string, last bool) (string, error) {
	if c.ignore == nil {
		return c.tree.Resolve(p, last)
	}
	at, err := tree.Follow("/", p, last, func(at string) (string, bool, error) {
		e, err := c.Quick(at)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return "", false, nil
		}
		return e.Link, err == nil && e.Type() == unix.S_IFLNK, err
	})
	if errors.Is(err, unix.ELOOP) {
		err = &fs.PathError{Op: "resolve", Path: p, Err: err}
	}
	return at, err
}

// ReadDir is the sorted names in directory p.
func (c *Context) ReadDir(p string) ([]string, error) {
	names, err := c.tree.ReadDir(p)
	if err != nil || c.ignore == nil {
		return names, err
	}
	kept := names[:0]
	for _, n := range names {
		child := path.Join(p, n)
		e, err := c.tree.Quick(child)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since it was listed
		}
		if err != nil {
			return nil, err
		}
		if c.visible(child, e.IsDir()) {
			kept = append(kept, n)
		}
	}
	return kept, nil
}

// Open opens the regular file p to be read; what is none is a unix.EINVAL.
func (c *Context) Open(p string) (*os.File, error) {
	r, err := c.Read(p)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(r.FD), p), nil
}

// open opens p, through no symbolic link, and without waiting if somebody has
// put a fifo there.
func (c *Context) open(p string) (int, unix.Stat_t, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	var st unix.Stat_t
	fd, err := unix.Openat2(c.root, strings.TrimPrefix(p, "/"), &how)
	if err != nil {
		return -1, st, err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

// Digest is the content digest of the regular file e, read only if its stamp is
// new.
func (c *Context) Digest(ctx context.Context, e tree.Entry) (oci.Digest, error) {
	l, i, err := c.file(e.Path)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	known := l.content(i)
	c.mu.Unlock()
	if known.state&hashed != 0 {
		return blake.DigestOf(known.sum), nil
	}
	stamp := l.stamp(i)
	if c.stats != nil {
		if sum, ok := c.stats.Get(l.host, l.Name(i), stamp); ok {
			c.know(l, i, content{sum, hashed | sure})
			return blake.DigestOf(sum), nil
		}
	}
	now := time.Now()
	sum, before, after, err := c.hash(ctx, e.Path)
	if err != nil {
		return "", err
	}
	known = content{sum, hashed}
	if before == stamp && before == after && settled(before, now) {
		known.state |= sure | fresh
	}
	c.know(l, i, known)
	return blake.DigestOf(sum), nil
}

// know notes what is known of the content of file i of l.
func (c *Context) know(l *directory, i int, known content) {
	c.mu.Lock()
	l.know(i, known)
	c.mu.Unlock()
}

// settled reports whether a file with stamp s, read from now on, cannot change
// without its stamp changing too: its times lie further back than the clock
// that stamps files is coarse. A whole second of mtime and ctime is what a file
// system with coarse times would show.
func settled(s Stamp, now time.Time) bool {
	grain := 20 * time.Millisecond
	if s.Ctime%int64(time.Second) == 0 {
		grain = 2 * time.Second
	}
	before := now.Add(-grain).UnixNano()
	return s.Ctime < before && s.Mtime < before
}

// Known is the digest of the regular file p that its stamp proves, as the stamp
// was when the directory was last read; false for none.
func (c *Context) Known(p string) (oci.Digest, bool) {
	l, i, ok := c.listed(p)
	if !ok {
		return "", false
	}
	c.mu.Lock()
	known := l.content(i)
	c.mu.Unlock()
	if known.state&sure == 0 {
		return "", false
	}
	return blake.DigestOf(known.sum), true
}

// Reading is a regular file of a context that is being read.
type Reading struct {
	FD    int
	Size  int64
	Known oci.Digest // of the content, if the stamp proves it; "" else

	stamp Stamp
}

// Read opens the regular file p to be read; what is none is a unix.EINVAL. The
// descriptor is the caller's to close.
func (c *Context) Read(p string) (Reading, error) {
	fd, st, err := c.open(p)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		err = unix.EINVAL
	}
	if err != nil {
		return Reading{}, &fs.PathError{Op: "open", Path: p, Err: err}
	}
	r := Reading{FD: fd, Size: st.Size, stamp: stampOf(&st)}
	if l, i, err := c.file(p); err == nil {
		c.mu.Lock()
		known := l.content(i)
		c.mu.Unlock()
		if known.state&sure != 0 && l.stamp(i) == r.stamp {
			r.Known = blake.DigestOf(known.sum)
		}
	}
	return r, nil
}

// Unchanged reports whether the file is still as it was when it was opened: with
// Known, that what was read since is what was known.
func (r *Reading) Unchanged() bool {
	var st unix.Stat_t
	return unix.Fstat(r.FD, &st) == nil && stampOf(&st) == r.stamp
}

func stampOf(st *unix.Stat_t) Stamp {
	return Stamp{
		Size:  st.Size,
		Mtime: st.Mtim.Sec*int64(time.Second) + st.Mtim.Nsec,
		Ctime: st.Ctim.Sec*int64(time.Second) + st.Ctim.Nsec,
		Ino:   st.Ino, Dev: st.Dev,
	}
}

// hash reads the regular file p, and tells its stamp before and after that.
func (c *Context) hash(ctx context.Context, p string) (sum cache.Sum, before, after Stamp, err error) {
	r, err := c.Read(p)
	if err != nil {
		return sum, before, after, err
	}
	defer unix.Close(r.FD)
	h := blake.Get()
	defer blake.Put(h)
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	var st unix.Stat_t
	if _, err = io.CopyBuffer(h, reader{ctx, r.FD}, *buf); err == nil {
		err = unix.Fstat(r.FD, &st)
	}
	if err != nil {
		return sum, before, after, &fs.PathError{Op: "read", Path: p, Err: err}
	}
	h.Sum(sum[:0])
	return sum, r.stamp, stampOf(&st), nil
}

// reader reads a descriptor, without what os.File does for those that could be
// waited for.
type reader struct {
	ctx context.Context
	fd  int
}

func (r reader) Read(p []byte) (int, error) {
	for {
		if err := r.ctx.Err(); err != nil {
			return 0, err
		}
		n, err := unix.Read(r.fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

var (
	buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}
)
