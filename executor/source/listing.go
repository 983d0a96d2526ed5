package source

import (
	"errors"
	"io/fs"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/pick"
)

// file is what a directory has under a name. There is one for each file of a
// context: it is kept small.
type file struct {
	name        string
	stamp       Stamp
	mode, nlink uint32
	more        *more

	// The context's lock guards these.
	hashed bool
	sure   bool      // sum is of the file with that stamp, and would not be of another one
	sum    cache.Sum // of a regular file's content
}

// more is what few files have.
type more struct {
	link    string
	rdev    uint64
	modTime time.Time // where nanoseconds since 1970 do not tell it
}

// directory is a directory as it was read. It is done once ready is closed;
// after that only the digests in it change.
type directory struct {
	c     *Context
	dir   string // with a slash at its end
	ready chan struct{}
	files []file
	err   error
}

func (l *directory) Len() int               { return len(l.files) }
func (l *directory) Name(i int) string      { return l.files[i].name }
func (l *directory) IsDir(i int) bool       { return l.files[i].mode&unix.S_IFMT == unix.S_IFDIR }
func (l *directory) Entry(i int) tree.Entry { return l.c.entry(l.dir+l.files[i].name, &l.files[i]) }

func (l *directory) find(name string) *file {
	// Not slices.BinarySearchFunc: it reads all of each file, the digests too.
	i, ok := sort.Find(len(l.files), func(i int) int { return strings.Compare(name, l.files[i].name) })
	if !ok {
		return nil
	}
	return &l.files[i]
}

// List implements pick.Lister.
func (c *Context) List(dir string) (pick.Listing, error) {
	l := c.list(dir)
	return l, l.err
}

// list is the directory p, read now if nobody has yet.
func (c *Context) list(p string) *directory {
	c.mu.Lock()
	l := c.listings[p]
	if l != nil {
		c.mu.Unlock()
		<-l.ready
		return l
	}
	l = &directory{c: c, dir: strings.TrimSuffix(p, "/") + "/", ready: make(chan struct{})}
	before := c.before[p]
	c.listings[p] = l
	c.mu.Unlock()
	defer close(l.ready)
	if l.err = l.read(p); l.err != nil {
		l.err = &fs.PathError{Op: "readdir", Path: p, Err: l.err}
		return l
	}
	if before != nil {
		l.remember(before)
		c.mu.Lock()
		delete(c.before, p)
		c.mu.Unlock()
	}
	return l
}

// Refresh has directories read again: the files may have changed. What is known
// of those that have not stays known.
func (c *Context) Refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, l := range c.listings {
		select {
		case <-l.ready:
			c.before[p] = l
			delete(c.listings, p)
		default: // being read now
		}
	}
	clear(c.shown)
}

// remember takes over the digests of files that are as they were.
func (l *directory) remember(before *directory) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	old := before.files
	for i := range l.files {
		f := &l.files[i]
		for len(old) > 0 && old[0].name < f.name {
			old = old[1:]
		}
		if len(old) > 0 && old[0].name == f.name && old[0].hashed && old[0].stamp == f.stamp {
			f.sum, f.hashed, f.sure = old[0].sum, true, old[0].sure
		}
	}
}

// read reads the directory p, and the metadata of what is in it.
func (l *directory) read(p string) error {
	how := unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		// Not through a link: the directory is what its path says, also while
		// somebody changes it.
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	name := strings.TrimPrefix(p, "/")
	if name == "" {
		name = "."
	}
	fd, err := unix.Openat2(l.c.root, name, &how)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return err
	}
	slices.Sort(names)
	compact(names)
	l.files = make([]file, 0, len(names))
	for _, n := range names {
		f, err := readFile(fd, n)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since it was listed
		}
		if err != nil {
			return err
		}
		// A device 0:0 is what stands for a removed file in layers, and cannot
		// be in one.
		if f.mode&unix.S_IFMT == unix.S_IFCHR && f.more.rdev == 0 {
			continue
		}
		if l.c.ignore == nil || l.c.visible(l.dir+n, f.mode&unix.S_IFMT == unix.S_IFDIR) {
			l.files = append(l.files, f)
		}
	}
	return nil
}

// readNames is the names in the directory fd.
func readNames(fd int) ([]string, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	var names []string
	for {
		n, err := unix.ReadDirent(fd, *buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent((*buf)[:n], -1, names)
	}
}

// compact has the names share one piece of memory.
func compact(names []string) {
	rest := strings.Join(names, "")
	for i, n := range names {
		names[i], rest = rest[:len(n)], rest[len(n):]
	}
}

func readFile(dir int, name string) (file, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return file{}, err
	}
	f := file{name: name, stamp: stampOf(&st), mode: st.Mode, nlink: uint32(st.Nlink)}
	if at := time.Unix(st.Mtim.Sec, st.Mtim.Nsec); !time.Unix(0, f.stamp.Mtime).Equal(at) {
		f.more = &more{modTime: at}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
		return f, nil
	case unix.S_IFLNK:
		b := make([]byte, max(st.Size, 255)+1)
		n, err := unix.Readlinkat(dir, name, b)
		if err != nil {
			return f, err
		}
		f.extra().link = string(b[:n])
	default:
		f.extra().rdev = st.Rdev
	}
	return f, nil
}

func (f *file) extra() *more {
	if f.more == nil {
		f.more = &more{}
	}
	return f.more
}

// listed is the file at p if its directory has been listed and has it.
func (c *Context) listed(p string) *file {
	at := strings.LastIndexByte(p, '/')
	dir := p[:max(at, 1)]
	c.mu.Lock()
	l := c.listings[dir]
	c.mu.Unlock()
	if l == nil || p == "/" {
		return nil
	}
	<-l.ready
	return l.find(p[at+1:])
}

// file is what is known of the file at p.
func (c *Context) file(p string) (*file, error) {
	if f := c.listed(p); f != nil {
		return f, nil
	}
	e, ctime, dev, err := c.tree.Stamp(p)
	if err != nil {
		return nil, err
	}
	s := Stamp{Size: e.Size, Mtime: e.ModTime.UnixNano(), Ctime: ctime.UnixNano(), Ino: e.Ino, Dev: dev}
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.singles[p]
	if f == nil || f.stamp != s {
		f = &file{stamp: s}
		c.singles[p] = f
	}
	return f, nil
}

// entry is f, which is at p, as a COPY sees it.
func (c *Context) entry(p string, f *file) tree.Entry {
	e := tree.Entry{
		Path: p, Mode: f.mode, ModTime: time.Unix(0, f.stamp.Mtime),
		Ino: f.stamp.Ino, Nlink: uint64(f.nlink),
	}
	if f.more != nil {
		e.Link, e.Major, e.Minor = f.more.link, unix.Major(f.more.rdev), unix.Minor(f.more.rdev)
		if !f.more.modTime.IsZero() {
			e.ModTime = f.more.modTime
		}
	}
	if e.Type() == unix.S_IFREG {
		e.Size = f.stamp.Size
		if f.stamp.Dev != c.dev {
			e.Nlink = 1 // an inode's number says nothing beyond its filesystem
		}
	}
	return e
}

// ahead lists directories before somebody asks.
type ahead struct {
	mu      sync.Mutex
	queue   []string // the next one is the last
	running int
	closed  bool
	wg      sync.WaitGroup
}

// Ahead implements pick.Lister.
func (c *Context) Ahead(dirs []string) {
	a := &c.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := len(dirs) - 1; i >= 0 && !a.closed; i-- {
		a.queue = append(a.queue, dirs[i])
	}
	for a.running < min(runtime.GOMAXPROCS(0), len(a.queue)) {
		a.running++
		a.wg.Go(func() { a.run(c) })
	}
}

func (a *ahead) run(c *Context) {
	for {
		a.mu.Lock()
		if len(a.queue) == 0 {
			a.running--
			a.mu.Unlock()
			return
		}
		p := a.queue[len(a.queue)-1]
		a.queue = a.queue[:len(a.queue)-1]
		a.mu.Unlock()
		c.list(p)
	}
}

func (a *ahead) stop() {
	a.mu.Lock()
	a.closed, a.queue = true, nil
	a.mu.Unlock()
	a.wg.Wait()
}
