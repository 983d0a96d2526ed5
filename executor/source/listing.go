package source

import (
	"errors"
	"io/fs"
	"math"
	"path"
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
// context: it is kept small, and without pointers, which the garbage collector
// would have to look at.
type file struct {
	size, mtime, ctime int64 // as in a Stamp
	ino                uint64
	mode, nlink        uint32
	nameEnd            uint32 // in the directory's names
	more               uint32 // 1 + the index in the directory's more; 0: there is none
}

// more is what few files have.
type more struct {
	link    string
	dev     uint64
	rdev    uint64
	modTime time.Time // where nanoseconds since 1970 do not tell it
}

// content is what is known of a file's content.
type content struct {
	sum   cache.Sum // of a regular file
	state uint8
}

const (
	hashed = 1 << iota // sum is known
	sure               // sum is of the file with that stamp, and would not be of another one
	fresh              // it was not known from an earlier build
)

// directory is a directory as it was read. It is done once ready is closed;
// after that only the contents change.
type directory struct {
	c     *Context
	dir   string // in the context, with a slash at its end
	host  string // on the host, likewise
	ready chan struct{}
	names string // one after the other
	files []file
	more  []more
	dev   uint64 // of files that have no more
	err   error

	// The context's lock guards it. Nil until there is something to know.
	contents []content
}

// directory is the directory p, not read yet.
func (c *Context) directory(p string) *directory {
	p = strings.TrimSuffix(p, "/") + "/"
	return &directory{c: c, dir: p, host: strings.TrimSuffix(c.dir, "/") + p, ready: make(chan struct{})}
}

func (l *directory) Len() int               { return len(l.files) }
func (l *directory) IsDir(i int) bool       { return l.files[i].mode&unix.S_IFMT == unix.S_IFDIR }
func (l *directory) Entry(i int) tree.Entry { return l.c.entry(l.dir+l.Name(i), l, i) }

func (l *directory) Name(i int) string {
	begin := uint32(0)
	if i > 0 {
		begin = l.files[i-1].nameEnd
	}
	return l.names[begin:l.files[i].nameEnd]
}

func (l *directory) find(name string) (int, bool) {
	return sort.Find(len(l.files), func(i int) int { return strings.Compare(name, l.Name(i)) })
}

func (l *directory) stamp(i int) Stamp {
	f := &l.files[i]
	s := Stamp{Size: f.size, Mtime: f.mtime, Ctime: f.ctime, Ino: f.ino, Dev: l.dev}
	if f.more > 0 {
		s.Dev = l.more[f.more-1].dev
	}
	return s
}

// content is what is known of file i's; the context's lock is held.
func (l *directory) content(i int) content {
	if l.contents == nil {
		return content{}
	}
	return l.contents[i]
}

// know notes what is known of file i's; the context's lock is held.
func (l *directory) know(i int, c content) {
	if l.contents == nil {
		l.contents = make([]content, len(l.files))
	}
	l.contents[i] = c
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
	l = c.directory(p)
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
	if before.contents == nil {
		return
	}
	at := 0
	for i := range l.files {
		name := l.Name(i)
		for at < before.Len() && before.Name(at) < name {
			at++
		}
		if at < before.Len() && before.Name(at) == name && before.contents[at].state&hashed != 0 && before.stamp(at) == l.stamp(i) {
			l.know(i, before.contents[at])
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
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	l.dev = st.Dev
	l.files = make([]file, 0, len(names))
	kept := names[:0]
	for _, n := range names {
		err := l.add(fd, n)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since it was listed, or left out
		}
		if err != nil {
			return err
		}
		kept = append(kept, n)
	}
	l.names = strings.Join(kept, "")
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

// add adds the file name of the open directory dir. What is not there, or is not
// to be seen, is an fs.ErrNotExist.
func (l *directory) add(dir int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	// A device 0:0 is what stands for a removed file in layers, and cannot
	// be in one.
	if kind == unix.S_IFCHR && st.Rdev == 0 {
		return fs.ErrNotExist
	}
	if l.c.ignore != nil && !l.c.visible(l.dir+name, kind == unix.S_IFDIR) {
		return fs.ErrNotExist
	}
	end := uint64(len(name))
	if n := len(l.files); n > 0 {
		end += uint64(l.files[n-1].nameEnd)
	}
	if end > math.MaxUint32 {
		return unix.EOVERFLOW
	}
	s := stampOf(&st)
	f := file{
		size: s.Size, mtime: s.Mtime, ctime: s.Ctime, ino: s.Ino,
		mode: st.Mode, nlink: uint32(st.Nlink), nameEnd: uint32(end),
	}
	m := more{dev: st.Dev}
	if at := time.Unix(st.Mtim.Sec, st.Mtim.Nsec); !time.Unix(0, f.mtime).Equal(at) {
		m.modTime = at
	}
	switch kind {
	case unix.S_IFREG, unix.S_IFDIR:
	case unix.S_IFLNK:
		b := make([]byte, max(st.Size, 255)+1)
		n, err := unix.Readlinkat(dir, name, b)
		if err != nil {
			return err
		}
		m.link = string(b[:n])
	default:
		m.rdev = st.Rdev
	}
	if m != (more{dev: l.dev}) {
		l.more = append(l.more, m)
		f.more = uint32(len(l.more))
	}
	l.files = append(l.files, f)
	return nil
}

// listed is the directory of the file at p, and the file's number in it, if that
// directory has been listed and has it.
func (c *Context) listed(p string) (l *directory, i int, ok bool) {
	at := strings.LastIndexByte(p, '/')
	dir := p[:max(at, 1)]
	c.mu.Lock()
	l = c.listings[dir]
	c.mu.Unlock()
	if l == nil || p == "/" {
		return nil, 0, false
	}
	<-l.ready
	i, ok = l.find(p[at+1:])
	return l, i, ok
}

// file is where there is what is known of the file at p: a directory and the
// file's number in it.
func (c *Context) file(p string) (*directory, int, error) {
	if l, i, ok := c.listed(p); ok {
		return l, i, nil
	}
	e, ctime, dev, err := c.tree.Stamp(p)
	if err != nil {
		return nil, 0, err
	}
	dir, name := path.Split(p)
	l := c.directory(dir)
	l.dev, l.names = dev, name
	l.files = []file{{size: e.Size, mtime: e.ModTime.UnixNano(), ctime: ctime.UnixNano(), ino: e.Ino, nameEnd: uint32(len(name))}}
	close(l.ready)
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.singles[p]; old != nil && old.stamp(0) == l.stamp(0) {
		return old, 0, nil
	}
	c.singles[p] = l
	return l, 0, nil
}

// entry is file i of l, which is at p, as a COPY sees it.
func (c *Context) entry(p string, l *directory, i int) tree.Entry {
	f := &l.files[i]
	e := tree.Entry{Path: p, Mode: f.mode, ModTime: time.Unix(0, f.mtime), Ino: f.ino, Nlink: uint64(f.nlink)}
	dev := l.dev
	if f.more > 0 {
		m := &l.more[f.more-1]
		e.Link, e.Major, e.Minor = m.link, unix.Major(m.rdev), unix.Minor(m.rdev)
		if dev = m.dev; !m.modTime.IsZero() {
			e.ModTime = m.modTime
		}
	}
	if e.Type() == unix.S_IFREG {
		e.Size = f.size
		if dev != c.dev {
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
