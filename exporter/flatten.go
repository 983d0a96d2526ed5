package exporter

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/861fb494/build/internal/oci"
)

// Whiteouts of a layer's tar:
// https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md#whiteouts
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// maxSymlinks is how many symbolic links a path may lead through, as in Linux.
const maxSymlinks = 40

// tree is a root filesystem put together from layers, without the content of
// its files.
type tree struct{ root *node }

// node is a directory, or a name of an inode.
type node struct {
	inode    *inode
	children map[string]*node // of a directory
}

// inode is what an entry of a layer's tar describes. Hard links share it.
type inode struct {
	header *tar.Header
	paths  []string // names in the finished tree, sorted; set by place
}

func (n *node) isDir() bool { return n.children != nil }

func newDir(h *tar.Header) *node {
	return &node{inode: &inode{header: h}, children: map[string]*node{}}
}

// layerEntries is the inodes of one layer by the position of their entries.
type layerEntries map[int]*inode

// flatten reads the layers' tars, lowest first, but not their files' content.
func flatten(ctx context.Context, layers []oci.Layer) (*tree, []layerEntries, error) {
	t := &tree{root: newDir(&tar.Header{Typeflag: tar.TypeDir, Mode: 0o755})}
	all := make([]layerEntries, len(layers))
	for i, l := range layers {
		var headers []*tar.Header
		err := walkTar(ctx, l, func(_ int, h *tar.Header, _ io.Reader) error {
			headers = append(headers, h)
			return nil
		})
		if err == nil {
			all[i], err = t.apply(headers)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read layer %s: %w", l.DiffID, err)
		}
	}
	t.place(t.root, "")
	return t, all, nil
}

// walkTar reads the tar of l to its end and verifies it. f sees each entry and
// its position.
func walkTar(ctx context.Context, l oci.Layer, f func(int, *tar.Header, io.Reader) error) error {
	if l.Tar == nil {
		return errors.New("its files are not here")
	}
	r, err := l.Tar(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	s := &sum{w: io.Discard, hash: sha256.New()}
	in := io.TeeReader(r, s)
	tr := tar.NewReader(in)
	for i := 0; ; i++ {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := f(i, h, tr); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	if l.DiffID != "" && s.digest() != l.DiffID {
		return fmt.Errorf("its tar has the diff ID %s now: %w", s.digest(), ErrChanged)
	}
	return nil
}

// apply puts a layer upon the tree. Whiteouts hide lower layers only, wherever
// they stand in the tar.
func (t *tree) apply(headers []*tar.Header) (layerEntries, error) {
	for _, h := range headers {
		dir, base := path.Split(path.Clean("/" + h.Name))
		hidden, ok := strings.CutPrefix(base, whiteout)
		if !ok {
			continue
		}
		parent, err := t.lookup(dir, maxSymlinks)
		if err != nil || parent == nil || !parent.isDir() {
			continue // there was nothing to hide
		}
		if base == opaque {
			clear(parent.children)
		} else {
			delete(parent.children, hidden)
		}
	}
	entries := layerEntries{}
	for i, h := range headers {
		dir, base := path.Split(path.Clean("/" + h.Name))
		if strings.HasPrefix(base, whiteout) {
			continue
		}
		if base == "" { // the root itself
			if h.Typeflag == tar.TypeDir {
				t.root.inode = &inode{header: h}
			}
			continue
		}
		parent, err := t.mkdirs(dir)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", h.Name, err)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			if old := parent.children[base]; old != nil && old.isDir() {
				old.inode = &inode{header: h}
			} else {
				parent.children[base] = newDir(h)
			}
		case tar.TypeLink:
			to, err := t.lookup(path.Clean("/"+h.Linkname), 0)
			if err != nil || to == nil || to.isDir() {
				return nil, fmt.Errorf("%s: hard link to %s, which is no file", h.Name, h.Linkname)
			}
			parent.children[base] = &node{inode: to.inode}
		case tar.TypeReg, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
			n := &inode{header: h}
			entries[i] = n
			parent.children[base] = &node{inode: n}
		case tar.TypeXGlobalHeader:
		default:
			return nil, fmt.Errorf("%s: type %q is not known", h.Name, h.Typeflag)
		}
	}
	return entries, nil
}

// lookup is the node at an absolute clean path, nil if there is none. Symbolic
// links before the last component are followed inside the tree, links many at
// most in all.
func (t *tree) lookup(p string, links int) (*node, error) {
	at, rest := t.root, strings.Split(strings.Trim(p, "/"), "/")
	dirs := []*node{t.root} // the way back for ".."
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(dirs) > 1 {
				dirs = dirs[:len(dirs)-1]
			}
			at = dirs[len(dirs)-1]
			continue
		}
		if !at.isDir() {
			return nil, nil
		}
		next := at.children[name]
		if next == nil {
			return nil, nil
		}
		if h := next.inode.header; h.Typeflag == tar.TypeSymlink && (len(rest) > 0 || strings.HasSuffix(p, "/")) {
			if links--; links < 0 {
				return nil, errors.New("too many symbolic links")
			}
			if path.IsAbs(h.Linkname) {
				dirs = dirs[:1]
			}
			at = dirs[len(dirs)-1]
			rest = append(strings.Split(h.Linkname, "/"), rest...)
			continue
		}
		at = next
		if at.isDir() {
			dirs = append(dirs, at)
		}
	}
	return at, nil
}

// mkdirs is the directory at p, through symbolic links, made where it is
// missing; what is no directory gives way.
func (t *tree) mkdirs(p string) (*node, error) {
	if n, err := t.lookup(p, maxSymlinks); err != nil || n != nil && n.isDir() {
		return n, err
	}
	p = strings.TrimSuffix(p, "/")
	dir, base := path.Split(p)
	parent, err := t.mkdirs(dir)
	if err != nil {
		return nil, err
	}
	n := newDir(&tar.Header{Typeflag: tar.TypeDir, Mode: 0o755})
	parent.children[base] = n
	return n, nil
}

// place tells each inode its names.
func (t *tree) place(n *node, at string) {
	for _, name := range slices.Sorted(maps.Keys(n.children)) {
		child := n.children[name]
		p := path.Join(at, name)
		child.inode.paths = append(child.inode.paths, p)
		if child.isDir() {
			t.place(child, p)
		}
	}
}

// date gives all that is below n the modification time at.
func (t *tree) date(n *node, at time.Time) {
	for _, child := range n.children {
		child.inode.header.ModTime = at
		t.date(child, at)
	}
}

// dirs lists the directories but the root, parents first.
func (t *tree) dirs() []*inode {
	var list []*inode
	var walk func(*node)
	walk = func(n *node) {
		for _, name := range slices.Sorted(maps.Keys(n.children)) {
			if child := n.children[name]; child.isDir() {
				list = append(list, child.inode)
				walk(child)
			}
		}
	}
	walk(t.root)
	return list
}
