package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/blake"
)

// link makes p a hard link to target.
func (a *applier) link(parent *node, name, p string, h *tar.Header) error {
	dir, base := path.Split(path.Clean("/" + h.Linkname))
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
	return a.relabel(n.inode, p, h)
}

// relabel gives the file i the metadata of the header of the hard link p to it,
// as other readers do. A chown takes a file capability away: without one in the
// header there is none.
func (a *applier) relabel(i *inode, p string, h *tar.Header) error {
	e, err := a.header(h)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	to := &i.Entry
	labelled := tree.Entry{
		Path: p, Mode: to.Mode, UID: e.UID, GID: e.GID, ModTime: e.ModTime,
		Size: to.Size, Major: to.Major, Minor: to.Minor, Link: to.Link, Xattrs: maps.Clone(to.Xattrs),
	}
	if to.Type() != unix.S_IFLNK {
		labelled.Mode = to.Type() | e.Perm()
	}
	delete(labelled.Xattrs, "security.capability")
	a.xattrs(h, &labelled)
	if labelled.Mode == to.Mode && labelled.UID == to.UID && labelled.GID == to.GID &&
		labelled.ModTime.Equal(to.ModTime) && maps.Equal(labelled.Xattrs, to.Xattrs) {
		return nil // as nearly always: the file need not be waited for
	}
	a.fill.settle(i)
	to.Mode, to.UID, to.GID, to.ModTime, to.Xattrs = labelled.Mode, labelled.UID, labelled.GID, labelled.ModTime, labelled.Xattrs
	return a.setMeta(&labelled)
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
	n.inode.Digest = blake.Digest(a.hash)
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
