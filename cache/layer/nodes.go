package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
)

// node is a name that the layer being applied has, as the tree has it now.
type node struct {
	*inode
	kids    map[string]*node
	lower   bool // a directory of lower layers, on the way to what is changed
	own     bool // it is changed although it is of lower layers
	removed bool
	opaque  bool
}

// inode is what a node's names share.
type inode struct {
	tree.Entry
	names uint64
	first string // of the names, the first in order; set at the end
	// filling is closed when the filler is done with the file; nil: it is.
	// Until then Digest is the filler's to write, and nothing of Entry anybody's
	// else.
	filling <-chan struct{}
}

// put gives n the kid name, in place of any other.
func (n *node) put(name string, kid *node) {
	if n.kids == nil {
		n.kids = map[string]*node{}
	}
	if old := n.kids[name]; old != nil {
		old.forget()
	}
	n.kids[name] = kid
}

// forget takes n's names away from their inodes.
func (n *node) forget() {
	if n.inode.names > 0 {
		n.inode.names--
	}
	for _, k := range n.kids {
		k.forget()
	}
}

// find is the node of directory p, if the layer has it and all on the way to
// it are directories.
func (n *node) find(p string) *node {
	for p != "/" && p != "" {
		name, rest, _ := strings.Cut(p[1:], "/")
		if n = n.kids[name]; n == nil || n.removed || !n.inode.IsDir() {
			return nil
		}
		p = ""
		if rest != "" {
			p = "/" + rest
		}
	}
	return n
}

// finish sets the metadata of directories and lists the changes.
func (a *applier) finish() ([]tree.Change, error) {
	var out []tree.Change
	err := a.list(a.root, "/", &out)
	return out, err
}

// list appends the changes of n, at path p, and of what is in it. A directory of
// lower layers is listed only if something in it is.
func (a *applier) list(n *node, p string, out *[]tree.Change) error {
	if err := a.ctx.Err(); err != nil {
		return err
	}
	at := len(*out)
	c := tree.Change{Entry: n.inode.Entry, Removed: n.removed, Opaque: n.opaque}
	if c.Path = p; n.names > 1 {
		c.Nlink = n.names
		if c.HardLink = n.first; c.HardLink == "" {
			n.first = p
		}
	}
	*out = append(*out, c)
	for _, name := range slices.Sorted(maps.Keys(n.kids)) {
		if err := a.list(n.kids[name], join(p, name), out); err != nil {
			return err
		}
	}
	if n.removed || !n.inode.IsDir() {
		return nil
	}
	if n.lower {
		if !n.own && (p == "/" || len(*out) == at+1) {
			*out = slices.Delete(*out, at, at+1)
		}
		return nil
	}
	return a.setMeta(&c.Entry)
}

// setMeta sets the metadata of e. Xattrs that the filesystem does not take are
// left out, but for file capabilities, without which a program would not work.
func (a *applier) setMeta(e *tree.Entry) error {
	err := a.t.SetMeta(e.Path, *e)
	if err == nil || len(e.Xattrs) == 0 || !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
		return err
	}
	notice(a.o.Notice, "%s: %v: its extended attributes are left out", e.Path, err)
	without := *e
	without.Xattrs = nil
	if v, ok := e.Xattrs[capability]; ok {
		without.Xattrs = map[string]string{capability: v}
	}
	return a.t.SetMeta(e.Path, without)
}

// create makes the regular file e, to be filled.
func (a *applier) create(parent *node, name string, e *tree.Entry) (fd int, err error) {
	if a.o.Limit > 0 {
		if a.left -= e.Size; a.left < 0 {
			return -1, fmt.Errorf("%s: the layer has more than %d bytes of content", e.Path, a.o.Limit)
		}
	}
	if parent.kids[name] == nil {
		fd, err := a.t.CreateNew(e.Path, e.Perm()&0o777)
		if !errors.Is(err, fs.ErrExist) {
			return fd, err
		}
	}
	f, err := a.t.Create(e.Path)
	if err != nil {
		return -1, err
	}
	defer f.Close()
	return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}
