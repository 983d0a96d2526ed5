package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/blake"
)

// ApplyOptions are those of Apply.
type ApplyOptions struct {
	// Complete says that the tree has all the layers that this one belongs
	// upon, be it none. Otherwise whiteouts are kept for those to come, and
	// what depends on them is an ErrLowerLink.
	Complete bool
	// Limit is how many bytes of content the layer may have; 0: any number.
	Limit int64
	// Notice is told of what is left out: devices 0:0, xattrs that the
	// filesystem does not take. May be nil.
	Notice func(message string)
}

// Apply reads an uncompressed layer tar from r, to its end, into the tree t and
// returns the layer's changes, with the digests of files. It is what the OCI
// image specification, layer.md, calls applying a changeset.
//
// No tar can reach outside the tree: names are taken as absolute within it, and
// symbolic links in them are followed within it. Entries may come in any order
// and more than once; the last counts, and a whiteout hides only what lower
// layers have. Parents that are not listed are made, owned by root, mode 0755.
// A hard link gives the file the metadata of its own header. Times of directories
// are set at the end.
func Apply(ctx context.Context, r io.Reader, t *tree.Tree, o ApplyOptions) ([]tree.Change, error) {
	if tell := o.Notice; tell != nil {
		var mu sync.Mutex // the filler calls it too
		o.Notice = func(message string) {
			mu.Lock()
			defer mu.Unlock()
			tell(message)
		}
	}
	a := applier{
		ctx: ctx, t: t, o: o, tar: tar.NewReader(r), left: o.Limit,
		hash: blake.Get(), buf: copyBuffers.Get().(*[]byte),
		root: &node{inode: &inode{Entry: tree.Entry{Path: "/", Mode: unix.S_IFDIR | 0o755}}, lower: true},
	}
	defer blake.Put(a.hash)
	defer copyBuffers.Put(a.buf)
	a.fill = newFiller(ctx, o.Notice)
	err := a.entries()
	if err == nil {
		// What follows the end of the archive belongs to the layer's digest.
		_, err = io.Copy(io.Discard, r)
	}
	if err != nil {
		a.fill.fail(err) // of the two the one that came first
	}
	if err = a.fill.wait(); err != nil {
		return nil, fmt.Errorf("apply layer: %w", err)
	}
	changes, err := a.finish()
	if err != nil {
		return nil, fmt.Errorf("apply layer: %w", err)
	}
	return changes, nil
}

// entries applies all entries of the tar.
func (a *applier) entries() error {
	for {
		h, err := a.next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = a.entry(h)
		}
		if err != nil {
			return err
		}
	}
}

type applier struct {
	ctx  context.Context
	t    *tree.Tree
	o    ApplyOptions
	tar  *tar.Reader
	fill *filler
	left int64 // of o.Limit
	hash *blake3.Hasher
	buf  *[]byte
	root *node // what the layer has
}

func (a *applier) next() (*tar.Header, error) {
	if err := a.fill.failed(); err != nil {
		return nil, err
	}
	h, err := a.tar.Next()
	if errors.Is(err, tar.ErrInsecurePath) { // which it is not, here
		err = nil
	}
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read tar: %w", err)
	}
	return h, err
}

// entry applies one entry of the tar.
func (a *applier) entry(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	p := path.Clean("/" + h.Name)
	dir, base := path.Split(p)
	dir = path.Clean(dir)
	if base == opaque {
		return a.clear(dir)
	}
	if strings.Contains(p, "/"+whiteoutOwn) {
		return nil // AUFS's own bookkeeping
	}
	if strings.Contains(dir, "/"+whiteout) {
		return fmt.Errorf("%s: a whiteout cannot be a directory", p)
	}
	if name, ok := strings.CutPrefix(base, whiteout); ok {
		if name == "" || name == "." || name == ".." {
			return fmt.Errorf("%s: a whiteout of %q", p, name)
		}
		return a.whiteout(dir, name)
	}
	e, err := a.header(h)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if p == "/" {
		if !e.IsDir() {
			return fmt.Errorf("%s: the root cannot be replaced by a file", h.Name)
		}
		e.Path = "/"
		a.root.inode, a.root.lower = &inode{Entry: e}, false
		return nil
	}
	dir, parent, err := a.parent(dir, true)
	if err != nil {
		return err
	}
	e.Path = join(dir, base)
	switch {
	case h.Typeflag == tar.TypeLink:
		return a.link(parent, base, e.Path, h)
	case e.IsDir():
		return a.mkdir(parent, base, e)
	}
	return a.file(parent, base, e)
}

// clear makes dir opaque. What this layer has in it stays.
func (a *applier) clear(dir string) error {
	dir, n, err := a.parent(dir, !a.o.Complete)
	if err != nil || n == nil {
		return err
	}
	n.own = true
	return a.hide(dir, n)
}

// hide hides what lower layers have in the directory p, whose node is n.
func (a *applier) hide(p string, n *node) error {
	n.opaque = true
	if !a.o.Complete {
		if err := a.unmark(p, n); err != nil {
			return err
		}
		return a.t.Clear(p)
	}
	// The lower layers are in the tree, and may be one with it: then there is
	// nothing to hide behind.
	names, err := a.t.ReadDir(p)
	if err != nil {
		return err
	}
	for _, name := range names {
		at, kid := join(p, name), n.kids[name]
		switch {
		case kid == nil:
			err = a.t.RemoveAll(at)
		case kid.inode.IsDir():
			err = a.hide(at, kid)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// unmark deletes the whiteouts in directory p, which is to be opaque: overlayfs
// lists whiteouts that hide nothing as files that cannot be read.
func (a *applier) unmark(p string, n *node) error {
	for name, kid := range n.kids {
		if !kid.removed {
			continue
		}
		f, err := a.t.Create(join(p, name)) // in place of the whiteout
		if err == nil {
			f.Close()
			err = a.t.RemoveAll(join(p, name))
		}
		if err != nil {
			return err
		}
		delete(n.kids, name)
	}
	return nil
}

// whiteout removes what lower layers have as name in dir.
func (a *applier) whiteout(dir, name string) error {
	dir, parent, err := a.parent(dir, !a.o.Complete)
	if err != nil || parent == nil {
		return err
	}
	p := join(dir, name)
	if n := parent.kids[name]; n != nil && !n.lower && !n.removed {
		// The layer has it itself: it hides what is below, no more.
		if n.inode.IsDir() {
			return a.hide(p, n)
		}
		return nil
	}
	if parent.opaque {
		return nil // nothing of lower layers is to be seen there
	}
	if a.o.Complete {
		if _, err := a.t.Quick(p); err != nil {
			return ignore(err, fs.ErrNotExist)
		}
		err = a.t.RemoveAll(p)
	} else {
		err = a.t.Whiteout(p)
	}
	parent.put(name, &node{inode: &inode{Entry: tree.Entry{Path: p}}, removed: true})
	return err
}

func ignore(err, target error) error {
	if errors.Is(err, target) {
		return nil
	}
	return err
}

// mkdir makes the directory e, or takes over one that is there. Metadata is set
// at the end.
func (a *applier) mkdir(parent *node, name string, e tree.Entry) error {
	old := parent.kids[name]
	if old != nil && !old.removed && old.inode.IsDir() {
		old.inode, old.lower = &inode{Entry: e}, false
		return nil
	}
	n := &node{inode: &inode{Entry: e}}
	err := a.t.Mkdir(e.Path, 0o755)
	if errors.Is(err, fs.ErrExist) {
		there, err := a.t.Quick(e.Path)
		if err != nil {
			return err
		}
		if there.IsDir() {
			parent.put(name, n)
			return nil
		}
		if err := a.t.RemoveAll(e.Path); err != nil {
			return err
		}
		if err := a.t.Mkdir(e.Path, 0o755); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	parent.put(name, n)
	if old != nil {
		// A whiteout, or a file of this layer: it hides what lower layers have.
		return a.hide(e.Path, n)
	}
	return nil
}

// file makes what is neither directory nor hard link.
func (a *applier) file(parent *node, name string, e tree.Entry) error {
	if e.Type() == unix.S_IFCHR && e.Major|e.Minor == 0 {
		notice(a.o.Notice, "%s: a character device 0:0 is left out: overlayfs would take it for a whiteout", e.Path)
		return nil
	}
	fd := -1
	err := a.replace(parent, name, e.Path, func() (err error) {
		switch e.Type() {
		case unix.S_IFREG:
			fd, err = a.create(parent, name, &e)
			return err
		case unix.S_IFLNK:
			return a.t.Symlink(e.Link, e.Path)
		}
		err = a.t.Mknod(e.Path, e.Mode, e.Major, e.Minor)
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("make device %d:%d: %w: making devices takes root's privileges (CAP_MKNOD) outside of user namespaces", e.Major, e.Minor, err)
		}
		return err
	})
	if err != nil {
		return err
	}
	n := &node{inode: &inode{Entry: e, names: 1}}
	parent.put(name, n)
	if e.Type() == unix.S_IFREG {
		return a.fill.add(a.tar, fd, n.inode)
	}
	return a.setMeta(&e)
}

// replace calls f to make p; a directory in its way is removed.
func (a *applier) replace(parent *node, name, p string, f func() error) error {
	err := f()
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	if err := a.t.RemoveAll(p); err != nil {
		return err
	}
	if old := parent.kids[name]; old != nil {
		old.forget()
		delete(parent.kids, name)
	}
	return f()
}
