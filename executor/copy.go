package executor

import (
	"context"
	"encoding/hex"
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
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// origin is what a Copy reads: a context or a chain.
type origin interface {
	pick.Tree
	Open(p string) (*os.File, error)
}

// origin opens input i.
func (e *edit) origin(ctx context.Context, i int) (origin, error) {
	r := e.in[i]
	if r.Local != nil {
		c, err := e.w.Local.Open(ctx, *r.Local)
		if err != nil {
			return nil, err
		}
		// What is copied is what is there now; see edit.torn.
		if e.read[i] == nil {
			c.Context.Refresh()
		}
		return c.Context, nil
	}
	if v, ok := e.views[i]; ok {
		return v, nil
	}
	v, err := e.w.view(ctx, e.n, r)
	if err != nil {
		return nil, err
	}
	if e.views == nil {
		e.views = map[int]*chainView{}
	}
	e.views[i] = v
	return v, nil
}

func (e *edit) copy(ctx context.Context, a llb.Copy) error {
	from, err := e.origin(ctx, a.Input)
	if err != nil {
		return err
	}
	sources, err := copySelection(a).Prepare()
	if err != nil {
		return err
	}
	c := copier{edit: e, from: from, dest: a.Dest, read: e.reading(a.Input)}
	if c.mode, err = parseMode(a.Mode); err != nil {
		return err
	}
	if a.Owner != "" {
		c.chowned = true
		c.who, err = e.owner(a.Owner)
	} else if !a.Keep {
		c.who = &owner{}
	}
	if err != nil {
		return err
	}
	for _, s := range sources {
		matches, err := s.Find(ctx, from, a.Wildcards)
		if err != nil {
			return err
		}
		c.read.Source(len(matches))
		for _, m := range matches {
			if err := c.take(ctx, m, s.Filter, a.Unpack); err != nil {
				return err
			}
		}
	}
	return nil
}

// reading is where what is read of input i is added up: the sources that a step
// has of a context come in the order in which they were pinned. What is read of a
// chain cannot change.
func (e *edit) reading(i int) *pick.Hasher {
	if e.in[i].Local == nil {
		return pick.NewHasher(false)
	}
	if e.read[i] == nil {
		e.read[i] = pick.NewHasher(false)
	}
	return e.read[i]
}

// take copies one thing that a source names, or extracts it.
func (c *copier) take(ctx context.Context, m pick.Match, f pick.Filter, unpack bool) error {
	c.read.Begin(m)
	defer c.read.End()
	if unpack && !m.Dir {
		done, err := c.unpack(ctx, m, f)
		if err != nil {
			return fmt.Errorf("extract %s: %w", m.Name, err)
		}
		if done {
			return nil
		}
	}
	return c.match(ctx, m, f)
}

// copier is one Copy action being applied.
type copier struct {
	*edit
	from origin
	dest string
	read *pick.Hasher
	mode mode
	who  *owner // nil: each its source's
	// chowned: who was asked for, not a default; archives keep their owners else.
	chowned bool
}

// parents makes the directories above a destination.
func (c *copier) parents(p string) error {
	who := c.who
	if !c.chowned {
		who = nil
	}
	return c.mkdirAll(p, c.mode.forParents(), who)
}

// match copies one thing that a source names.
func (c *copier) match(ctx context.Context, m pick.Match, f pick.Filter) error {
	above := c.dest
	if !isDirPath(c.dest) {
		above = path.Dir(c.dest)
	}
	at, err := c.to.Resolve(above, true)
	if err != nil {
		return err
	}
	if err := c.parents(at); err != nil {
		return err
	}
	at, err = c.to.Resolve(c.dest, true)
	if err != nil {
		return err
	}
	t, err := c.to.Quick(at)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !m.Dir && exists && t.IsDir() {
		at = path.Join(at, path.Base(m.Name))
	}
	if err := c.parents(path.Dir(at)); err != nil {
		return err
	}
	if m.Dir && !exists {
		if err := c.parents(at); err != nil {
			return err
		}
	}
	return pick.Walk(ctx, c.from, m, f, func(it pick.Item) error {
		return c.item(it, at)
	})
}

// item copies one entry to where it belongs below at.
func (c *copier) item(it pick.Item, at string) error {
	p := path.Join(at, it.Rel)
	src := it.Entry
	if src.Type() != unix.S_IFREG || it.Linked {
		c.read.Item(it, "")
	}
	target, err := c.to.Quick(p)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if src.IsDir() {
		return c.directory(it, p, target, exists)
	}
	if exists && target.IsDir() {
		return fmt.Errorf("cannot put %s in place of the directory %s", path.Base(src.Path), p)
	}
	delete(c.known, p) // of what stood there
	kind := src.Type()
	switch {
	case it.Linked:
		if err := c.to.Link(path.Join(at, it.HardLink), p); err != nil {
			return err
		}
		return nil
	case kind == unix.S_IFREG:
		err = c.regular(it, p)
	case kind == unix.S_IFLNK:
		err = c.to.Symlink(src.Link, p)
	case kind == unix.S_IFSOCK:
		// A socket is of no use without its process: an empty file stands for it.
		var f *os.File
		if f, err = c.to.Create(p); err == nil {
			err = f.Close()
		}
	default:
		err = c.to.Mknod(p, kind|0o600, src.Major, src.Minor)
	}
	if err != nil {
		return err
	}
	return c.to.SetMeta(p, c.meta(src))
}

// meta is what the copy of src gets: mode and owner as asked for.
func (c *copier) meta(src tree.Entry) tree.Entry {
	if src.Type() != unix.S_IFLNK {
		src.Mode = c.mode.of(src.Mode)
	}
	return c.owned(src, c.who)
}

func (c *copier) directory(it pick.Item, p string, target tree.Entry, exists bool) error {
	src := it.Entry
	if exists && !target.IsDir() {
		return fmt.Errorf("cannot copy the directory %s onto %s, which is none", path.Base(src.Path), p)
	}
	if !exists {
		if err := c.to.Mkdir(p, src.Perm()); err != nil {
			return err
		}
		return c.to.SetMeta(p, c.meta(src))
	}
	switch {
	case it.Leading:
		// As with BuildKit it takes the mode of the one that leads there, and
		// nothing else.
		target.Mode = target.Type() | src.Perm()
		target.Xattrs = nil
		return c.to.SetMeta(p, target)
	case it.Rel == "":
		// The destination itself keeps mode and owner, and takes the time.
		target.ModTime = src.ModTime
		target.Xattrs = nil
		return c.to.SetMeta(p, target)
	}
	return c.to.SetMeta(p, c.meta(src))
}

// regular copies a file's bytes and learns their digest on the way.
func (c *copier) regular(it pick.Item, p string) error {
	src := it.Entry
	in, err := c.from.Open(src.Path)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := c.to.Create(p)
	if err != nil {
		return err
	}
	d, err := c.bytes(in, out, src)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", src.Path, err)
	}
	c.read.Item(it, d)
	if d != "" {
		c.known[p] = d
	}
	return nil
}

// bytes copies in to out. Where the digest of what is read is known, the bytes
// need not pass through this process. The digest is empty where it is not known
// what was read.
func (c *copier) bytes(in, out *os.File, src tree.Entry) (oci.Digest, error) {
	switch from := c.from.(type) {
	case *source.Context:
		if d, ok := from.Pinned(src.Path, in); ok {
			n, err := out.ReadFrom(in)
			if err != nil {
				return "", err
			}
			// Unchanged before and after: what was copied is what was pinned.
			if _, still := from.Pinned(src.Path, in); still && n == src.Size {
				return d, nil
			}
			return "", nil // Commit reads what was written
		}
	case *chainView:
		d, err := from.recorded(src.Path)
		if err != nil || d == "" {
			return copyHashed(out, in)
		}
		_, err = out.ReadFrom(in)
		return d, err
	}
	return copyHashed(out, in)
}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

func copyHashed(w io.Writer, r io.Reader) (oci.Digest, error) {
	h := blake3.New()
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := r.Read(*buf)
		if n > 0 {
			h.Write((*buf)[:n])
			if _, err := w.Write((*buf)[:n]); err != nil {
				return "", err
			}
		}
		if err == io.EOF {
			return oci.Digest("blake3:" + hex.EncodeToString(h.Sum(nil))), nil
		}
		if err != nil {
			return "", err
		}
	}
}
