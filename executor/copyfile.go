package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/pick"
	"github.com/861fb494/build/executor/source"
	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/ordered"
)

// act is something that a copy does in its turn: a call of the Hasher that adds
// up what was read, and for a file the copying, which is done side by side.
type act struct {
	kind    int
	matches int
	match   pick.Match
	item    pick.Item
	path    string      // at the destination
	dir     *tree.Dir   // of a file: where it goes
	newDir  bool        // and the file before it does not
	before  tree.Change // of a file: what the step made of it last time; no path: nothing
	digest  oci.Digest  // of a file's content; "" if it is not known what was copied
	gone    bool        // the file is not there any more
}

const (
	actSource = iota
	actBegin
	actEnd
	actItem
	actFile
)

func (c *copier) begin(ctx context.Context) {
	c.lane = ordered.New(ctx, ordered.Options[act]{
		Work: c.copyFiles, Take: c.done,
		Drop:  func(a *act) { release(a.dir) },
		Cost:  (*act).cost,
		Batch: 128, MaxCost: maxCost,
		// Two that make files in one directory wait for each other.
		Apart: func(a *act) bool { return a.newDir },
	})
}

// maxCost bounds what a batch copies, in bytes, and with dirCost how many
// directories wait open.
const (
	maxCost = 1 << 20
	dirCost = maxCost / 32
)

func (a *act) cost() int64 {
	if a.newDir {
		return a.item.Entry.Size + dirCost
	}
	return a.item.Entry.Size
}

func (c *copier) end() {
	c.lane.Close()
	release(c.dir)
	c.dir = nil
}

func release(d *tree.Dir) {
	if d != nil {
		d.Release()
	}
}

// file gives a file to those that copy.
func (c *copier) file(it pick.Item, p string) error {
	newDir := false
	if dir := path.Dir(p); c.dir == nil || c.dir.Path() != dir {
		newDir = true
		d, err := c.to.OpenDir(dir)
		if err != nil {
			return err
		}
		release(c.dir)
		c.dir = d
	}
	if !c.dir.Alone {
		if err := c.free(it, p); err != nil {
			return err
		}
	}
	a := act{kind: actFile, item: it, path: p, dir: c.dir, newDir: newDir}
	if before := c.previous.at(p); before != nil {
		a.before = *before
	}
	c.dir.Hold()
	return c.lane.Add(a)
}

// free is an error if a directory stands where the file p is to be.
func (c *copier) free(it pick.Item, p string) error {
	target, err := c.to.Quick(p)
	if err == nil && target.IsDir() {
		return inPlaceOfDirectory(it, p)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// done is told of each act in turn.
func (c *copier) done(a *act) {
	switch a.kind {
	case actSource:
		c.read.Source(a.matches)
	case actBegin:
		c.read.Begin(a.match)
	case actEnd:
		c.read.End()
	case actItem, actFile:
		if a.gone {
			return
		}
		c.read.Item(a.item, a.digest)
		if a.path == "" {
			return
		}
		if a.kind == actItem {
			a.digest = "" // what was known is of what stood there
		}
		c.known.Set(a.path, a.digest)
	}
}

func (c *copier) copyFiles(ctx context.Context, batch []act) error {
	for i := range batch {
		a := &batch[i]
		if a.kind != actFile {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.copyFile(ctx, a); err != nil {
			return fmt.Errorf("copy %s: %w", a.item.Entry.Path, err)
		}
	}
	return nil
}

// copyFile makes the file of a.
func (c *copier) copyFile(ctx context.Context, a *act) error {
	e := c.meta(a.item.Entry)
	if c.reuse(a, &e) {
		return nil
	}
	in, err := c.open(a.item.Entry.Path)
	if _, local := c.from.(*source.Context); local && errors.Is(err, fs.ErrNotExist) {
		a.gone = true // since its directory was read: a context is in use
		return nil
	}
	if err != nil {
		return err
	}
	defer in.close()
	name := path.Base(a.path)
	fd, err := -1, fs.ErrExist
	if len(e.Xattrs) == 0 {
		fd, err = a.dir.Create(name, &e)
	}
	if errors.Is(err, fs.ErrExist) {
		return c.replace(ctx, a, in, e)
	}
	if err != nil {
		return err
	}
	if a.digest, err = c.bytes(ctx, in, fd); err != nil {
		a.dir.Remove(fd, name)
		return err
	}
	return a.dir.Finish(fd, name, &e)
}

// replace makes the file of a where something stands in its way.
func (c *copier) replace(ctx context.Context, a *act, in *input, e tree.Entry) error {
	if err := c.free(a.item, a.path); err != nil {
		return err
	}
	out, err := c.to.Create(a.path)
	if err != nil {
		return err
	}
	a.digest, err = c.bytes(ctx, in, int(out.Fd()))
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return c.to.SetMeta(a.path, e)
}

// input is a regular file that is copied.
type input struct {
	source.Reading
	close func()
	fixed bool // it is of a layer, and does not change
}

func (c *copier) open(p string) (*input, error) {
	switch from := c.from.(type) {
	case *source.Context:
		r, err := from.Read(p)
		return &input{Reading: r, close: func() { unix.Close(r.FD) }}, err
	case *chainView:
		d, err := from.recorded(p)
		if err != nil {
			return nil, err
		}
		f, err := from.Open(p)
		if err != nil {
			return nil, err
		}
		return &input{Reading: source.Reading{FD: int(f.Fd()), Known: d}, close: func() { f.Close() }, fixed: true}, nil
	}
	return nil, fmt.Errorf("files of a %T cannot be copied", c.from)
}

// bytes copies in to the descriptor out. Where the digest of what is read is
// known, the bytes need not pass through this process. The digest is empty where
// it is not known what was read: Commit reads what was written then.
func (c *copier) bytes(ctx context.Context, in *input, out int) (oci.Digest, error) {
	if in.Known == "" {
		h := blake.Get()
		defer blake.Put(h)
		if _, err := pour(ctx, in.FD, out, -1, h); err != nil {
			return "", err
		}
		return blake.Digest(h), nil
	}
	n, err := c.copyKnown(ctx, in, out)
	if err != nil {
		return "", err
	}
	if in.fixed {
		c.unread.Store(true)
	}
	if !in.fixed && (n != in.Size || !in.Unchanged()) {
		return "", nil
	}
	return in.Known, nil
}

// smallFile is the size below which reading and writing is faster than having
// the kernel copy.
const smallFile = 256 << 10

// copyKnown copies all of in: as a clone where the file system has clones.
func (c *copier) copyKnown(ctx context.Context, in *input, out int) (int64, error) {
	if !c.noClones.Load() {
		err := unix.IoctlFileClone(out, in.FD)
		if err == nil {
			var st unix.Stat_t
			err = unix.Fstat(out, &st)
			return st.Size, err
		}
		// It is for all files: they are of one file system, mostly.
		c.noClones.Store(true)
	}
	if !in.fixed && in.Size < smallFile {
		return pour(ctx, in.FD, out, in.Size, nil)
	}
	var total int64
	for {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, err := unix.CopyFileRange(in.FD, nil, out, nil, 64<<20, 0)
		total += int64(max(n, 0))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil && total == 0 && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EDQUOT):
			return pour(ctx, in.FD, out, -1, nil) // other file systems cannot
		case err != nil:
			return total, os.NewSyscallError("copy_file_range", err)
		case n == 0:
			return total, nil
		}
	}
}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// pour reads in to its end, or till there are so many bytes, if that is not -1,
// and writes it to out and, if that is not nil, h.
func pour(ctx context.Context, in, out int, till int64, h *blake3.Hasher) (int64, error) {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	var total int64
	for {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, err := unix.Read(in, *buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return total, os.NewSyscallError("read", err)
		}
		if n == 0 {
			return total, nil
		}
		b := (*buf)[:n]
		if h != nil {
			h.Write(b)
		}
		for len(b) > 0 {
			w, err := unix.Write(out, b)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return total, os.NewSyscallError("write", err)
			}
			b = b[max(w, 0):]
		}
		if total += int64(n); total == till {
			return total, nil
		}
	}
}

// copyHashed copies r to w, and is the digest of what it copied.
func copyHashed(w io.Writer, r io.Reader) (oci.Digest, error) {
	h := blake.Get()
	defer blake.Put(h)
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	if _, err := io.CopyBuffer(io.MultiWriter(h, w), struct{ io.Reader }{r}, *buf); err != nil {
		return "", err
	}
	return blake.Digest(h), nil
}
