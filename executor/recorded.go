package executor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/pick"
	"github.com/861fb494/build/internal/oci"
)

// Lister is a Fetcher that knows what some layers change without having their
// bytes.
type Lister interface {
	// Entries lists what l changes; false where that is not known.
	Entries(ctx context.Context, l oci.Layer) ([]tree.Change, bool)
}

// keyed is a chain that keys are made of: its tree, and the digests of its files.
type keyed interface {
	pick.Tree
	digest(ctx context.Context, e tree.Entry) (oci.Digest, error)
	Close() error
}

// keyed opens r, which is no context: as its layers' lists of entries describe
// it, or, where a list is not to be had, as it lies here, fetched.
func (w *Worker) keyed(ctx context.Context, r Result) (keyed, error) {
	t, err := w.recorded(ctx, r.Layers)
	if err == nil {
		return t, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return w.view(ctx, nil, r)
}

// errNotListed is that some layer's entries are not known, or do not tell all.
var errNotListed = errors.New("the layer's entries are not known")

// recorded is the tree of a chain as the lists of its layers' entries describe
// it. No layer is fetched for it.
func (w *Worker) recorded(ctx context.Context, layers []oci.Layer) (*recordedTree, error) {
	t := newRecordedTree()
	layers, _ = w.placed(layers)
	for _, l := range layers {
		changes, err := w.changes(ctx, l)
		if err != nil {
			return nil, err
		}
		if err := t.add(changes); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// changes lists what l changes: as recorded here, or where it came from.
func (w *Worker) changes(ctx context.Context, l oci.Layer) ([]tree.Change, error) {
	if l.ID != "" {
		if _, err := w.Store.Layer(l.ID); err == nil {
			return layer.Collect(w.Store.Entries(l.ID))
		}
	}
	if from, ok := w.Fetcher.(Lister); ok && l.Blob != nil {
		if changes, ok := from.Entries(ctx, l); ok {
			return changes, nil
		}
	}
	return nil, errNotListed
}

// recordedTree is a tree of entries. It is safe for concurrent use once all
// layers are in it.
type recordedTree struct {
	root   *recordedNode
	inodes uint64 // given out
}

type recordedNode struct {
	tree.Entry
	kids map[string]*recordedNode // of a directory
}

func newRecordedTree() *recordedTree {
	return &recordedTree{root: &recordedNode{
		Entry: tree.Entry{Path: "/", Mode: unix.S_IFDIR | 0o755, Nlink: 1},
		kids:  map[string]*recordedNode{},
	}}
}

// add puts a layer on top. What no layer can be is an error: lists come from
// elsewhere.
func (t *recordedTree) add(changes []tree.Change) error {
	links := map[string]*recordedNode{} // files of this layer that others link to
	for i := range changes {
		if to := changes[i].HardLink; to != "" {
			links[to] = nil
		}
	}
	for i := range changes {
		c := &changes[i]
		if c.Path == "/" && !c.Removed && c.IsDir() {
			t.root.Entry = c.Entry
			if c.Opaque {
				clear(t.root.kids)
			}
			continue
		}
		if !cleanPath(c.Path) {
			return fmt.Errorf("%q is not a path that a layer has", c.Path)
		}
		dir, name := path.Split(c.Path)
		up, err := t.parent(dir)
		if err != nil {
			return err
		}
		if c.Removed {
			delete(up.kids, name)
			continue
		}
		n, err := t.node(c, links)
		if err != nil {
			return err
		}
		if old := up.kids[name]; n.kids != nil && old != nil && old.kids != nil && !c.Opaque {
			n.kids = old.kids
		}
		up.kids[name] = n
	}
	return nil
}

func cleanPath(p string) bool {
	return len(p) > 1 && p[0] == '/' && path.Clean(p) == p && !strings.Contains(p, "\x00")
}

// node is that of an entry, with an inode number that the whole tree has once.
func (t *recordedTree) node(c *tree.Change, links map[string]*recordedNode) (*recordedNode, error) {
	n := &recordedNode{Entry: c.Entry}
	if c.IsDir() {
		n.kids = map[string]*recordedNode{}
	}
	t.inodes++
	n.Ino, n.Nlink = t.inodes, 1
	if c.HardLink != "" {
		first := links[c.HardLink]
		if first == nil {
			return nil, fmt.Errorf("%s is a hard link to %s, which is not in its layer", c.Path, c.HardLink)
		}
		n.Ino, n.Nlink = first.Ino, 2
		if n.Digest == "" {
			n.Digest = first.Digest
		}
	} else if _, ok := links[c.Path]; ok {
		n.Nlink = 2
		links[c.Path] = n
	}
	if n.Type() == unix.S_IFREG && n.Digest == "" {
		return nil, errNotListed
	}
	return n, nil
}

// parent is the directory dir, made where no layer lists it.
func (t *recordedTree) parent(dir string) (*recordedNode, error) {
	n, at := t.root, ""
	for name := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		if name == "" {
			break
		}
		at += "/" + name
		kid := n.kids[name]
		if kid == nil {
			kid = &recordedNode{
				Entry: tree.Entry{Path: at, Mode: unix.S_IFDIR | 0o755, Nlink: 1},
				kids:  map[string]*recordedNode{},
			}
			n.kids[name] = kid
		}
		if kid.kids == nil {
			return nil, fmt.Errorf("%s is not a directory, and has something in it", at)
		}
		n = kid
	}
	return n, nil
}

// find is the node at a clean path; the error is a unix.ENOENT or ENOTDIR.
func (t *recordedTree) find(p string) (*recordedNode, error) {
	n := t.root
	if p == "/" {
		return n, nil
	}
	for name := range strings.SplitSeq(p[1:], "/") {
		if n.kids == nil {
			return nil, unix.ENOTDIR
		}
		if n = n.kids[name]; n == nil {
			return nil, unix.ENOENT
		}
	}
	return n, nil
}

// Lstat implements pick.Tree.
func (t *recordedTree) Lstat(p string) (tree.Entry, error) {
	e, err := t.Quick(p)
	e.Xattrs = maps.Clone(e.Xattrs) // the caller's to change
	return e, err
}

// Quick implements pick.Tree.
func (t *recordedTree) Quick(p string) (tree.Entry, error) {
	n, err := t.find(p)
	if err != nil {
		return tree.Entry{}, &fs.PathError{Op: "lstat", Path: p, Err: err}
	}
	e := n.Entry
	e.Path = p
	return e, nil
}

// ReadDir implements pick.Tree.
func (t *recordedTree) ReadDir(p string) ([]string, error) {
	n, err := t.find(p)
	if err == nil && n.kids == nil {
		err = unix.ENOTDIR
	}
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: p, Err: err}
	}
	return slices.Sorted(maps.Keys(n.kids)), nil
}

// Resolve implements pick.Tree, as tree.Tree does.
func (t *recordedTree) Resolve(p string, last bool) (string, error) {
	at, err := tree.Follow("/", p, last, func(at string) (string, bool, error) {
		n, err := t.find(at)
		if err != nil || n.Type() != unix.S_IFLNK {
			return "", false, nil
		}
		return n.Link, true, nil
	})
	if err != nil {
		return "", &fs.PathError{Op: "resolve", Path: p, Err: err}
	}
	return at, nil
}

// digest implements keyed.
func (t *recordedTree) digest(_ context.Context, e tree.Entry) (oci.Digest, error) {
	if e.Digest == "" {
		return "", fmt.Errorf("no layer has recorded the digest of %s", e.Path)
	}
	return e.Digest, nil
}

// Close implements keyed.
func (t *recordedTree) Close() error { return nil }

// LostError is the failure to get the bytes of an imported layer, or that they
// are not what the cache said: the step that it came of has to run.
type LostError struct {
	Layer oci.Layer
	Err   error
}

func (e *LostError) Error() string { return e.Err.Error() }
func (e *LostError) Unwrap() error { return e.Err }

// Lost makes a *LostError of a failure to read l, if l was imported and the
// failure is not this machine's.
func Lost(ctx context.Context, l oci.Layer, err error) error {
	var already *LostError
	if err == nil || !l.Imported || ctx.Err() != nil || errors.As(err, &already) ||
		errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, layer.ErrLowerLink) {
		return err
	}
	return &LostError{Layer: l, Err: err}
}

// Shown is err as a display is to have it: a step that lost an imported layer, or
// found one damaged, is stopped, and the build begins again.
func Shown(err error) error {
	var lost *LostError
	var bad *cache.DamagedError
	if errors.As(err, &lost) || errors.As(err, &bad) && bad.Layer != "" {
		return context.Canceled
	}
	return err
}

// Losses are the imported layers that turned out not to be had. The zero value
// has none; it is safe for concurrent use.
type Losses struct {
	mu  sync.Mutex
	why map[string]error // by ID
	of  map[string]int   // by origin: how many
}

// maxLosses is after how many lost layers of an origin none of it is tried.
const maxLosses = 3

// Add notes a lost layer. It is false for one that was known.
func (s *Losses) Add(e *LostError) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why == nil {
		s.why, s.of = map[string]error{}, map[string]int{}
	}
	if s.why[e.Layer.ID] != nil {
		return false
	}
	s.why[e.Layer.ID] = e.Err
	s.of[e.Layer.Origin]++
	return true
}

// Why is the reason for which one of layers is not to be had; nil: none is.
func (s *Losses) Why(layers []oci.Layer) error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range layers {
		if !l.Imported {
			continue
		}
		if err := s.why[l.ID]; err != nil {
			return err
		}
		if s.of[l.Origin] >= maxLosses {
			return fmt.Errorf("too much of %s is missing", l.Origin)
		}
	}
	return nil
}
