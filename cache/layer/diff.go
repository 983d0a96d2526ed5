package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
)

// DiffOptions are those of Diff.
type DiffOptions struct {
	// Whole says that the directory holds the whole tree rather than only what
	// a layer changes: what is in lower and not there has been removed.
	Whole bool
	// Markers says that removals may be marked by files named ".wh.x" and
	// ".wh..wh..opq", as tree.Tree makes them where whiteouts cannot be made.
	Markers bool
	// Unchanged reports that a regular file is known to have the content that
	// it has in the lower layers, so that it need not be read. May be nil.
	Unchanged func(path string, ino uint64, ctime unix.Timespec) bool
}

// Diff lists what the layer directory dir changes in the tree lower, as
// Driver.Changes has it: sorted, with the parents of what is changed, without
// what equals the lower entry, opaque directories and replaced types resolved
// into removals. Modification times of directories do not count; of other
// entries they do. A regular file with the metadata of the lower one is
// compared byte by byte. Hard links between a file that changed and one that
// did not are not seen: the former is a file of its own.
//
// With lower nil it lists what the directory says: whiteouts as Removed, opaque
// directories as Opaque, and everything else there is, the root included.
func Diff(ctx context.Context, dir string, lower *tree.Tree, o DiffOptions) iter.Seq2[tree.Change, error] {
	return func(yield func(tree.Change, error) bool) {
		d := differ{ctx: ctx, lower: lower, o: o, yield: yield}
		if n := runtime.GOMAXPROCS(0); n > 1 {
			d.slots = min(n, maxAhead)
		}
		if err := d.root(dir); err != nil && !errors.Is(err, errStop) {
			yield(tree.Change{}, fmt.Errorf("list changes of %s: %w", dir, err))
		}
	}
}

// errStop ends a walk whose caller has enough.
var errStop = errors.New("stopped")

type differ struct {
	ctx   context.Context
	lower *tree.Tree
	o     DiffOptions
	yield func(tree.Change, error) bool
	slots int // see lookahead
	// parents are the directories that lead to where the walk is and have
	// not been listed: they are as in lower, so far.
	parents []tree.Change
	first   firsts
}

// emit lists c, and the parents that are not listed yet.
func (d *differ) emit(c tree.Change) error {
	for _, p := range d.parents {
		if !d.yield(p, nil) {
			return errStop
		}
	}
	d.parents = d.parents[:0]
	if !d.yield(c, nil) {
		return errStop
	}
	return nil
}

func (d *differ) root(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	e, err := scan(int(f.Fd()), ".", "/")
	if err != nil {
		return err
	}
	c := tree.Change{Entry: e.Entry}
	low := tree.Entry{Mode: unix.S_IFDIR | 0o755}
	if d.lower == nil {
		c.Opaque = e.opaque
	} else if l, err := d.lower.Lstat("/"); err == nil {
		low = l
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if d.lower == nil || !sameMeta(&e.Entry, &low) {
		if err := d.emit(c); err != nil {
			return err
		}
	}
	return d.dir(d.read(f, "/"), "/", true, d.o.Whole || e.opaque)
}

// dir lists the changes in the directory p, read as l. below says that lower
// has a directory there, whole that nothing of it is seen through l.
func (d *differ) dir(l *listing, p string, below, whole bool) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	if l.err != nil {
		return l.err
	}
	below = below && d.lower != nil
	names, gone, found := l.names, l.gone, l.found
	next := lookahead{d: d, dir: l.dir, todo: found}
	defer next.stop()
	if whole = whole || l.hides; whole && below {
		under, err := d.lower.ReadDir(p)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		gone = nil
		for _, n := range under {
			if _, ok := slices.BinarySearch(names, n); !ok {
				gone = append(gone, n)
			}
		}
	}
	for len(names)+len(gone) > 0 {
		if len(names) == 0 || len(gone) > 0 && gone[0] < names[0] {
			if err := d.removed(join(p, gone[0]), below); err != nil {
				return err
			}
			gone = gone[1:]
			continue
		}
		if len(found) == 0 {
			var err error
			if found, err = scanAll(int(l.dir.Fd()), p, names[:min(len(names), maxScan)]); err != nil {
				return err
			}
			next.todo = found
		}
		if err := d.one(&next, names[0], &found[0], below, whole); err != nil {
			return err
		}
		names, found = names[1:], found[1:]
	}
	return nil
}

// maxScan is how many names of a directory are read at once.
const maxScan = 1024

// removed lists the removal of p, if there is something to remove.
func (d *differ) removed(p string, below bool) error {
	if d.lower != nil {
		if !below {
			return nil
		}
		if _, err := d.lower.Quick(p); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return d.emit(tree.Change{Entry: tree.Entry{Path: p}, Removed: true})
}

// one lists the changes of e, which is name in in.dir, and of what is in it.
func (d *differ) one(in *lookahead, name string, e *found, below, whole bool) error {
	p := e.Path
	if e.whiteout {
		return d.removed(p, below)
	}
	var low tree.Entry
	if below {
		var err error
		low, err = d.lower.Lstat(p)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		low.Xattrs = portable(low.Xattrs)
	}
	c := tree.Change{Entry: e.Entry}
	if !e.IsDir() {
		same, err := d.same(in.dir, name, e, &low)
		if err != nil || same {
			return err
		}
		if e.Nlink > 1 {
			if c.HardLink = d.first.get(e.Ino); c.HardLink == "" {
				d.first.set(e.Ino, p)
			}
		}
		return d.emit(c)
	}
	sub := in.take(name, p)
	defer sub.close()
	if sub.err != nil {
		return sub.err
	}
	if d.lower == nil {
		if c.Opaque = e.opaque; d.o.Markers && !c.Opaque {
			err := unix.Faccessat(int(sub.dir.Fd()), opaque, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW)
			c.Opaque = err == nil
		}
	}
	if d.lower != nil && sameMeta(&e.Entry, &low) {
		d.parents = append(d.parents, c)
	} else if err := d.emit(c); err != nil {
		return err
	}
	if err := d.dir(sub, p, low.IsDir(), whole || e.opaque); err != nil {
		return err
	}
	if n := len(d.parents); n > 0 && d.parents[n-1].Path == p {
		d.parents = d.parents[:n-1]
	}
	return nil
}

// sameMeta compares all but times, sizes and content.
func sameMeta(a, b *tree.Entry) bool {
	return a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID &&
		a.Major == b.Major && a.Minor == b.Minor && a.Link == b.Link &&
		maps.Equal(a.Xattrs, b.Xattrs)
}

// same reports whether e, which is name in dir and no directory, is the lower
// entry low.
func (d *differ) same(dir *os.File, name string, e *found, low *tree.Entry) (bool, error) {
	if !sameMeta(&e.Entry, low) || e.Size != low.Size || !e.ModTime.Equal(low.ModTime) {
		return false, nil
	}
	if e.Type() != unix.S_IFREG || e.Size == 0 {
		return true, nil
	}
	if d.o.Unchanged != nil && d.o.Unchanged(e.Path, e.Ino, e.ctime) {
		return true, nil
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, &os.PathError{Op: "open", Path: e.Path, Err: err}
	}
	a := os.NewFile(uintptr(fd), e.Path)
	defer a.Close()
	b, err := d.lower.Open(e.Path)
	if err != nil {
		return false, err
	}
	defer b.Close()
	return sameContent(d.ctx, a, b)
}

func sameContent(ctx context.Context, a, b io.Reader) (bool, error) {
	x, y := copyBuffers.Get().(*[]byte), copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(x)
	defer copyBuffers.Put(y)
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := io.ReadFull(a, *x)
		m, err2 := io.ReadFull(b, *y)
		if !bytes.Equal((*x)[:n], (*y)[:m]) {
			return false, nil
		}
		for _, e := range []error{err, err2} {
			if e != nil && e != io.EOF && e != io.ErrUnexpectedEOF {
				return false, e
			}
		}
		if err != nil || err2 != nil {
			return err != nil && err2 != nil, nil
		}
	}
}
