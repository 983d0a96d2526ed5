package executor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/pick"
	"github.com/861fb494/build/internal/ordered"
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
	e.watches = append(e.watches, e.w.watch(ctx, v.layers))
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
	c := copier{edit: e, from: from, dest: a.Dest, read: e.reading(a.Input), alone: a.Unpack || a.Parents}
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
	c.begin(ctx)
	defer c.end()
	for _, s := range sources {
		matches, err := s.Find(ctx, from, a.Wildcards)
		if err != nil {
			return err
		}
		if err := c.lane.Add(act{kind: actSource, matches: len(matches)}); err != nil {
			return err
		}
		for _, m := range matches {
			if err := c.take(ctx, m, s.Filter, a.Unpack); err != nil {
				return err
			}
		}
	}
	return c.lane.Drain()
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
	if err := c.apart(m); err != nil {
		return err
	}
	if err := c.lane.Add(act{kind: actBegin, match: m}); err != nil {
		return err
	}
	done := false
	if unpack && !m.Dir {
		var err error
		if done, err = c.unpack(ctx, m, f); err != nil {
			return fmt.Errorf("extract %s: %w", m.Name, err)
		}
	}
	if !done {
		if err := c.match(ctx, m, f); err != nil {
			return err
		}
	}
	return c.lane.Add(act{kind: actEnd})
}

// apart waits for what is being copied, where m may replace files of it: files of
// other names come to stand beside each other.
func (c *copier) apart(m pick.Match) error {
	name := path.Base(m.Name)
	whole := m.Dir || c.alone
	if !whole && !c.whole && !c.beside[name] {
		if c.beside == nil {
			c.beside = map[string]bool{}
		}
		c.beside[name] = true
		return nil
	}
	c.beside, c.whole = map[string]bool{name: true}, whole
	return c.lane.Drain()
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

	// alone: what one source names may be anywhere below the destination.
	alone bool

	lane *ordered.Pipeline[act]
	dir  *tree.Dir // where the last file went

	// What is being copied: files of these names, or with whole a directory.
	beside map[string]bool
	whole  bool
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

// item copies one entry to where it belongs below at: a file in its turn, all
// else at once.
func (c *copier) item(it pick.Item, at string) error {
	p := at
	if it.Rel != "" {
		p = path.Join(at, it.Rel)
	}
	if it.Entry.Type() == unix.S_IFREG && !it.Linked {
		return c.file(it, p)
	}
	target, err := c.to.Quick(p)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if it.Entry.IsDir() {
		err = c.directory(it, p, target, exists)
	} else {
		if exists && target.IsDir() {
			return inPlaceOfDirectory(it, p)
		}
		err = c.special(it, p, at)
	}
	if err != nil {
		return err
	}
	return c.lane.Add(act{kind: actItem, item: it, path: p})
}

func inPlaceOfDirectory(it pick.Item, p string) error {
	return fmt.Errorf("cannot put %s in place of the directory %s", path.Base(it.Entry.Path), p)
}

// special copies what is neither directory nor a file of its own.
func (c *copier) special(it pick.Item, p, at string) error {
	src := it.Entry
	kind := src.Type()
	var err error
	switch {
	case it.Linked:
		if err := c.lane.Drain(); err != nil { // the file that it links to may not be there yet
			return err
		}
		return c.to.Link(path.Join(at, it.HardLink), p)
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
