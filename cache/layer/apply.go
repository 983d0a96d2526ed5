package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"strings"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
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
// A hard link has the metadata of what it links to. Times of directories are
// set at the end.
func Apply(ctx context.Context, r io.Reader, t *tree.Tree, o ApplyOptions) ([]tree.Change, error) {
	a := applier{
		ctx: ctx, t: t, o: o, tar: tar.NewReader(r), left: o.Limit,
		hash: hashers.Get().(*blake3.Hasher), buf: copyBuffers.Get().(*[]byte),
		root: &node{inode: &inode{Entry: tree.Entry{Path: "/", Mode: unix.S_IFDIR | 0o755}}, lower: true},
	}
	defer hashers.Put(a.hash)
	defer copyBuffers.Put(a.buf)
	for {
		h, err := a.next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = a.entry(h)
		}
		if err != nil {
			return nil, fmt.Errorf("apply layer: %w", err)
		}
	}
	// What follows the end of the archive belongs to the layer's digest.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, fmt.Errorf("apply layer: %w", err)
	}
	changes, err := a.finish()
	if err != nil {
		return nil, fmt.Errorf("apply layer: %w", err)
	}
	return changes, nil
}

type applier struct {
	ctx  context.Context
	t    *tree.Tree
	o    ApplyOptions
	tar  *tar.Reader
	left int64 // of o.Limit
	hash *blake3.Hasher
	buf  *[]byte
	root *node // what the layer has
}

func (a *applier) next() (*tar.Header, error) {
	if err := a.ctx.Err(); err != nil {
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
		return a.link(parent, base, e.Path, h.Linkname)
	case e.IsDir():
		return a.mkdir(parent, base, e)
	}
	return a.file(parent, base, e)
}

// header is the entry that h describes, without its path.
func (a *applier) header(h *tar.Header) (tree.Entry, error) {
	e := tree.Entry{UID: h.Uid, GID: h.Gid, ModTime: h.ModTime, Nlink: 1}
	// -1 would leave the owner as it is.
	if h.Uid < 0 || h.Gid < 0 || h.Uid >= math.MaxUint32 || h.Gid >= math.MaxUint32 {
		return e, fmt.Errorf("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	// What the nanoseconds of an int64 cannot count, filesystems cannot either.
	if s := h.ModTime.Unix(); s < 0 || s > math.MaxInt64/int64(time.Second) {
		e.ModTime = time.Unix(0, 0)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.Mode, e.Size = unix.S_IFREG, h.Size
	case tar.TypeLink:
		e.Mode = unix.S_IFREG
	case tar.TypeDir:
		e.Mode = unix.S_IFDIR
	case tar.TypeSymlink:
		e.Mode, e.Link = unix.S_IFLNK, h.Linkname
	case tar.TypeChar:
		e.Mode = unix.S_IFCHR
	case tar.TypeBlock:
		e.Mode = unix.S_IFBLK
	case tar.TypeFifo:
		e.Mode = unix.S_IFIFO
	default:
		return e, fmt.Errorf("entries of type %q are not known", h.Typeflag)
	}
	if t := e.Type(); t == unix.S_IFCHR || t == unix.S_IFBLK {
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor >= 1<<12 || h.Devminor >= 1<<20 {
			return e, fmt.Errorf("device %d:%d is out of range", h.Devmajor, h.Devminor)
		}
		e.Major, e.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	}
	if e.Mode |= uint32(h.Mode & 0o7777); e.Type() == unix.S_IFLNK {
		e.Mode = unix.S_IFLNK | 0o777
	}
	a.xattrs(h, &e)
	return e, nil
}

// xattrs gives e those extended attributes of h that it can have.
func (a *applier) xattrs(h *tar.Header, e *tree.Entry) {
	for k, v := range h.PAXRecords {
		k, ok := strings.CutPrefix(k, schilyXattr)
		if !ok || h.Typeflag == tar.TypeLink {
			continue
		}
		// xattr(7): only files and directories have those of users, and file
		// capabilities mean nothing elsewhere.
		plain := e.Type() == unix.S_IFREG || e.IsDir()
		if !Portable(k) || !plain && !strings.HasPrefix(k, "trusted.") {
			notice(a.o.Notice, "%s: the extended attribute %s is left out", h.Name, k)
			continue
		}
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		e.Xattrs[k] = v
	}
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
	err := a.replace(parent, name, e.Path, func() error {
		switch e.Type() {
		case unix.S_IFREG:
			return a.content(&e)
		case unix.S_IFLNK:
			return a.t.Symlink(e.Link, e.Path)
		}
		err := a.t.Mknod(e.Path, e.Mode, e.Major, e.Minor)
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("make device %d:%d: %w: making devices takes root's privileges (CAP_MKNOD) outside of user namespaces", e.Major, e.Minor, err)
		}
		return err
	})
	if err != nil {
		return err
	}
	parent.put(name, &node{inode: &inode{Entry: e, names: 1}})
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

// link makes p a hard link to target.
func (a *applier) link(parent *node, name, p, target string) error {
	dir, base := path.Split(path.Clean("/" + target))
	if base == "" {
		return fmt.Errorf("%s: a hard link to the root", p)
	}
	dir, tp, err := a.parent(path.Clean(dir), false)
	if err != nil {
		return err
	}
	to := join(dir, base)
	if to == p {
		return nil
	}
	var n *node
	if tp != nil {
		n = tp.kids[base]
	}
	if n == nil && tp != nil {
		e, err := a.t.Lstat(to)
		if err == nil {
			n, err = a.adopt(e)
		}
		if err := ignore(err, fs.ErrNotExist); err != nil {
			return err
		}
	}
	if n == nil || n.removed {
		return fmt.Errorf("%s is a hard link to %s, which is not in this layer: %w", p, to, ErrLowerLink)
	}
	if n.inode.IsDir() {
		return fmt.Errorf("%s is a hard link to %s, a directory", p, to)
	}
	if err := a.replace(parent, name, p, func() error { return a.t.Link(to, p) }); err != nil {
		return err
	}
	if tp.kids[base] == nil {
		tp.put(base, n)
	}
	n.inode.names++
	parent.put(name, &node{inode: n.inode})
	return nil
}

// adopt is the node of an entry of lower layers that is linked to: the copy of
// it belongs to this layer.
func (a *applier) adopt(e tree.Entry) (*node, error) {
	n := &node{inode: &inode{Entry: e, names: 1}}
	if e.Type() != unix.S_IFREG {
		return n, nil
	}
	f, err := a.t.Open(e.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	a.hash.Reset()
	if _, err := io.CopyBuffer(a.hash, struct{ io.Reader }{f}, *a.buf); err != nil {
		return nil, err
	}
	n.inode.Digest = digest(a.hash)
	return n, nil
}

// parent follows dir to a directory, and returns where it is and its node. With
// create false, a directory that is not there is a nil node; with it true it is
// made, or an ErrLowerLink if it could be of lower layers.
func (a *applier) parent(dir string, create bool) (string, *node, error) {
	if n := a.root.find(dir); n != nil {
		return dir, n, nil
	}
	dir, err := a.t.Resolve(dir, true)
	if err != nil {
		return "", nil, err
	}
	n, at := a.root, ""
	for name := range strings.SplitSeq(strings.TrimPrefix(dir, "/"), "/") {
		if name == "" {
			break
		}
		at += "/" + name
		kid := n.kids[name]
		if kid == nil || kid.removed {
			if kid, err = a.enter(at, kid != nil, create); kid == nil || err != nil {
				return dir, nil, err
			}
			n.put(name, kid)
		}
		if !kid.inode.IsDir() {
			return "", nil, &os.PathError{Op: "open", Path: at, Err: unix.ENOTDIR}
		}
		n = kid
	}
	return dir, n, nil
}

// enter is a node for p, which the layer does not have so far. removed says
// that it has a whiteout there.
func (a *applier) enter(p string, removed, create bool) (*node, error) {
	e, err := a.t.Lstat(p)
	if err == nil {
		return &node{inode: &inode{Entry: e}, lower: true}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if !create {
		return nil, nil
	}
	if !a.o.Complete && !removed {
		return nil, fmt.Errorf("%s, a parent directory, is not in this layer: %w", p, ErrLowerLink)
	}
	n := &node{inode: &inode{Entry: tree.Entry{
		Path: p, Mode: unix.S_IFDIR | 0o755, ModTime: time.Unix(0, 0), Nlink: 1,
	}}}
	if err := a.t.Mkdir(p, 0o755); err != nil {
		return nil, err
	}
	if removed {
		return n, a.hide(p, n)
	}
	return n, nil
}
