package source

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/pick"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/parser/ignore"
)

// Stamp is what the file system says of a file; while it stays the same, so
// does the content.
type Stamp = cache.Stamp

// Stats remembers content digests of files by their stamps, from one build to
// the next. A nil Stats in Local remembers nothing.
type Stats interface {
	// Get is the digest of the file at the host path, if it was recorded with
	// the same stamp.
	Get(path string, s Stamp) (oci.Digest, bool)
	// Put records a digest. The stamp is old enough to tell the file from a
	// later one.
	Put(path string, s Stamp, d oci.Digest)
}

// Local is the user's directories: the context and the named contexts.
type Local struct {
	contexts map[string]*Context

	mu       sync.Mutex
	listings map[oci.Digest][]cache.Listed // of what was pinned
}

// NewLocal takes the contexts by name. They stay the caller's to close.
func NewLocal(contexts map[string]*Context) *Local {
	return &Local{contexts: contexts, listings: map[oci.Digest][]cache.Listed{}}
}

// Pin hashes the files that s selects.
func (l *Local) Pin(ctx context.Context, s llb.Source) (llb.Source, error) {
	c, ok := l.contexts[s.Ref]
	if !ok {
		return s, fmt.Errorf("there is no context %q", s.Ref)
	}
	sel := Selection(s.Select)
	var list []cache.Listed
	sel.List = func(e tree.Entry, sum string) {
		list = append(list, cache.Listed{Path: e.Path, Sum: sum, ModTime: e.ModTime})
	}
	d, err := pick.Digest(ctx, c, sel, c.Digest)
	if err != nil {
		return s, err
	}
	s.Digest = d
	l.mu.Lock()
	l.listings[d] = list
	l.mu.Unlock()
	return s, nil
}

// Listing is the files that a pinned digest was made of.
func (l *Local) Listing(d oci.Digest) []cache.Listed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.listings[d]
}

// Selection is s in pick's terms: what a context's files are hashed as.
func Selection(s llb.Select) pick.Selection {
	paths := s.Paths
	if len(paths) == 0 {
		paths = []string{"/"}
	}
	return pick.Selection{Sources: paths, Wildcards: s.Wildcards, Parents: s.Parents, Excludes: s.Excludes}
}

// Open is the directory itself.
func (l *Local) Open(_ context.Context, s llb.Source) (Content, error) {
	c, ok := l.contexts[s.Ref]
	if !ok {
		return Content{}, fmt.Errorf("there is no context %q", s.Ref)
	}
	return Content{Context: c}, nil
}

// Context is a directory of the user's without the files that its ignore file
// excludes. A directory that is excluded is there all the same if something in
// it is not. It is a pick.Tree.
type Context struct {
	dir    string
	tree   *tree.Tree
	ignore *ignore.Matcher
	stats  Stats

	devOnce sync.Once
	dev     uint64 // of the directory

	mu      sync.Mutex
	shown   map[string]bool // of excluded directories: whether anything in them is left
	digests map[string]pinned
}

type pinned struct {
	stamp  Stamp
	digest oci.Digest
	sure   bool // the stamp was old enough to be told from a later one
}

// OpenContext opens directory dir. m and stats may be nil.
func OpenContext(dir string, m *ignore.Matcher, stats Stats) (*Context, error) {
	t, err := tree.New("", []string{dir})
	if err != nil {
		return nil, fmt.Errorf("open context: %w", err)
	}
	return &Context{dir: dir, tree: t, ignore: m, stats: stats, shown: map[string]bool{}, digests: map[string]pinned{}}, nil
}

// Close releases the directory.
func (c *Context) Close() error { return c.tree.Close() }

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

func (c *Context) hide(e tree.Entry, err error) (tree.Entry, error) {
	if err == nil && !c.visible(e.Path, e.IsDir()) {
		return tree.Entry{}, &fs.PathError{Op: "lstat", Path: e.Path, Err: unix.ENOENT}
	}
	// A context's files are root's in the image, whoever's they are here, and
	// of their permissions the sticky, setuid and setgid bits count too.
	e.UID, e.GID = 0, 0
	if err == nil && e.Nlink > 1 && e.Type() == unix.S_IFREG && !c.single(e.Path) {
		// An inode's number says nothing beyond its filesystem.
		e.Nlink = 1
	}
	return e, err
}

// single reports whether p is on the filesystem of the directory itself.
func (c *Context) single(p string) bool {
	c.devOnce.Do(func() { _, _, c.dev, _ = c.tree.Stamp("/") })
	_, _, dev, err := c.tree.Stamp(p)
	return err == nil && dev == c.dev
}

// Lstat is the entry at p, owned by root. It has no extended attributes: of a
// context BuildKit keeps none, since file capabilities go when it sets the owner.
func (c *Context) Lstat(p string) (tree.Entry, error) { return c.Quick(p) }

// Quick is Lstat.
func (c *Context) Quick(p string) (tree.Entry, error) { return c.hide(c.tree.Quick(p)) }

// Resolve follows symbolic links inside the directory. What is excluded is no
// link.
func (c *Context) Resolve(p string, last bool) (string, error) {
	if c.ignore == nil {
		return c.tree.Resolve(p, last)
	}
	done, rest := "/", strings.Trim(p, "/")
	for links := 0; rest != ""; {
		name, tail, _ := strings.Cut(rest, "/")
		rest = tail
		switch name {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		done = path.Join(done, name)
		if rest == "" && !last {
			break
		}
		e, err := c.Quick(done)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || err == nil && e.Type() != unix.S_IFLNK {
			continue
		}
		if links++; err == nil && links > 255 {
			err = &fs.PathError{Op: "resolve", Path: p, Err: unix.ELOOP}
		}
		if err != nil {
			return "", err
		}
		done = path.Dir(done)
		if strings.HasPrefix(e.Link, "/") {
			done = "/"
		}
		rest = strings.Trim(strings.Trim(e.Link, "/")+"/"+rest, "/")
	}
	return done, nil
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

// Open opens a regular file.
func (c *Context) Open(p string) (*os.File, error) { return c.tree.Open(p) }

func (c *Context) stamp(p string) (Stamp, error) {
	e, ctime, dev, err := c.tree.Stamp(p)
	return Stamp{Size: e.Size, Mtime: e.ModTime, Ctime: ctime, Ino: e.Ino, Dev: dev}, err
}

// Digest is the content digest of the regular file e, read only if its stamp is
// new.
func (c *Context) Digest(_ context.Context, e tree.Entry) (oci.Digest, error) {
	s, err := c.stamp(e.Path)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	p, ok := c.digests[e.Path]
	c.mu.Unlock()
	if ok && p.stamp == s {
		return p.digest, nil
	}
	host := path.Join(c.dir, e.Path)
	if c.stats != nil {
		if d, ok := c.stats.Get(host, s); ok {
			c.pin(e.Path, pinned{stamp: s, digest: d, sure: true})
			return d, nil
		}
	}
	sure := settled(s, time.Now())
	d, err := c.hash(e.Path)
	if err != nil {
		return "", err
	}
	after, err := c.stamp(e.Path)
	if err != nil {
		return "", err
	}
	sure = sure && after == s
	c.pin(e.Path, pinned{stamp: after, digest: d, sure: sure})
	if sure && c.stats != nil {
		c.stats.Put(host, s, d)
	}
	return d, nil
}

func (c *Context) pin(p string, v pinned) {
	c.mu.Lock()
	c.digests[p] = v
	c.mu.Unlock()
}

// settled reports whether a file with stamp s, read from now on, cannot change
// without its stamp changing too: its times lie further back than the clock
// that stamps files is coarse. A whole second of mtime and ctime is what a file
// system with coarse times would show.
func settled(s Stamp, now time.Time) bool {
	grain := 20 * time.Millisecond
	if s.Ctime.Nanosecond() == 0 {
		grain = 2 * time.Second
	}
	return now.Sub(s.Ctime) > grain && now.Sub(s.Mtime) > grain
}

// Pinned is the digest that the regular file p was pinned with, if its stamp
// still proves it. A file that is copied without being read again is asked
// about before and after.
func (c *Context) Pinned(p string) (oci.Digest, bool) {
	c.mu.Lock()
	v, ok := c.digests[p]
	c.mu.Unlock()
	if !ok || !v.sure {
		return "", false
	}
	s, err := c.stamp(p)
	return v.digest, err == nil && s == v.stamp
}

func (c *Context) hash(p string) (oci.Digest, error) {
	f, err := c.tree.Open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := blake3.New()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	if _, err := io.CopyBuffer(h, onlyReader{f}, *buf); err != nil {
		return "", fmt.Errorf("read %s: %w", p, err)
	}
	return oci.Digest("blake3:" + hex.EncodeToString(h.Sum(nil))), nil
}

// onlyReader hides WriteTo, so that io.CopyBuffer uses its buffer.
type onlyReader struct{ io.Reader }

var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}
