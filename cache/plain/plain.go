// Package plain stores snapshots as whole directory trees, for where overlayfs
// cannot be mounted.
//
// It is a shelf (package shelf): layers/ID has what a layer changes, as an
// overlay upper directory would, and work/ID a layer that is being prepared.
// Upon an empty chain that is delta/, what will be layers/ID. Upon others it is
//
//	root/    the chain's tree, copied: reflinks where the filesystem has them
//	stamps   inode and change time of the files of the copy, in the form of
//	         layer.WriteEntries (the modification time is the change time)
//	chain    the IDs of the layers that it is upon, one a line, lowest first
//
// and Commit makes delta/ of hard links to the files that differ. Where the
// filesystem cannot have whiteouts, files with the names of layer tars stand for
// them: ".wh.x".
//
// A second shelf, trees/, has the trees of chains as they have been asked for:
// layers/KEY/root is made of hard links to the files of layers, so that it takes
// no more room than its directories; layers/KEY/chain says of which. Trees can
// be deleted whenever nobody reads them: they are made again. Files of layers
// and trees are shared, and nothing writes to them.
//
// Commit does not sync; what the package overlay says of that goes for this one.
//
// What differs from overlay: writing to one of several names of a lower file
// changes them all, as on any filesystem, where overlayfs takes them apart.
package plain

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/shelf"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/oci"
)

// Options are those of New. There are none so far.
type Options struct{}

// Driver stores layers. It is safe for concurrent use, by many processes too.
type Driver struct {
	shelf   *shelf.Shelf
	trees   *shelf.Shelf
	making  singleflight.Group // of trees, by key
	markers bool               // the filesystem has no whiteouts
	noClone atomic.Bool        // the filesystem has no reflinks, as far as is known
}

// New opens the store in dir, which it makes if need be.
func New(dir string, o Options) (*Driver, error) {
	// The trees first: by them a killed process's directory is told from that of
	// another driver.
	trees, err := shelf.New(filepath.Join(dir, "trees"))
	if err != nil {
		return nil, err
	}
	s, err := shelf.New(dir)
	if err != nil {
		return nil, err
	}
	// What cannot be deleted harms nobody.
	_ = trees.Sweep()
	d := &Driver{shelf: s, trees: trees}
	// Whiteouts can be made without privileges since Linux 5.8, but not in
	// overlayfs, which has them for itself.
	probe, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	switch err = unix.Mknod(filepath.Join(probe, "whiteout"), unix.S_IFCHR, 0); err {
	case unix.EPERM, unix.EACCES, unix.EINVAL, unix.EOPNOTSUPP, unix.ENOSYS:
		d.markers, err = true, nil
	}
	if err := errors.Join(err, os.RemoveAll(probe)); err != nil { // a full disk says nothing of whiteouts
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	return d, nil
}

// Dir is the directory of committed layer id.
func (d *Driver) Dir(id string) string { return d.shelf.Layer(id) }

func bind(dir, mode string) oci.Mount {
	return oci.Mount{Type: "bind", Source: dir, Options: []string{"bind", mode}}
}

// Prepare begins layer id upon chain; see cache.Driver.
func (d *Driver) Prepare(ctx context.Context, id string, chain []string) (tree.Snapshot, error) {
	dir, err := d.shelf.Begin(id)
	if err != nil {
		return tree.Snapshot{}, fmt.Errorf("prepare layer %s: %w", id, err)
	}
	root, err := d.fill(ctx, dir, chain)
	var t *tree.Tree
	if err == nil {
		t, err = tree.New(root, nil)
	}
	if err != nil {
		return tree.Snapshot{}, errors.Join(fmt.Errorf("prepare layer %s: %w", id, err), d.shelf.Drop(id))
	}
	return tree.Snapshot{Root: bind(root, "rw"), Tree: t}, nil
}

// fill makes in dir the root of a layer to be prepared upon chain.
func (d *Driver) fill(ctx context.Context, dir string, chain []string) (root string, err error) {
	if len(chain) == 0 {
		return filepath.Join(dir, "delta"), makeRoot(filepath.Join(dir, "delta"))
	}
	list := strings.Join(chain, "\n") + "\n"
	if err := os.WriteFile(filepath.Join(dir, "chain"), []byte(list), 0o600); err != nil {
		return "", err
	}
	from, err := d.tree(ctx, chain)
	if err != nil {
		return "", err
	}
	root = filepath.Join(dir, "root")
	stamps, err := d.copyTree(ctx, from, root)
	if err != nil {
		return "", err
	}
	return root, writeStamps(filepath.Join(dir, "stamps"), stamps)
}

// makeRoot makes an empty root directory, whatever the umask.
func makeRoot(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// View is chain to be read; see cache.Driver.
func (d *Driver) View(ctx context.Context, chain []string) (tree.Snapshot, error) {
	root, err := d.tree(ctx, chain)
	if err != nil {
		return tree.Snapshot{}, fmt.Errorf("view: %w", err)
	}
	t, err := tree.New("", []string{root})
	if err != nil {
		return tree.Snapshot{}, fmt.Errorf("view: %w", err)
	}
	return tree.Snapshot{Root: bind(root, "ro"), Tree: t}, nil
}

// Changes lists what prepared layer id changes; see cache.Driver and
// layer.Diff.
func (d *Driver) Changes(ctx context.Context, id string) iter.Seq2[tree.Change, error] {
	return func(yield func(tree.Change, error) bool) {
		dir, err := d.shelf.Work(id)
		if err == nil {
			err = d.changes(ctx, dir, yield)
		}
		if err != nil {
			yield(tree.Change{}, fmt.Errorf("changes of layer %s: %w", id, err))
		}
	}
}

// Made is where the files of prepared layer id are; see cache.Driver.
func (d *Driver) Made(id string) (string, error) {
	dir, err := d.shelf.Work(id)
	if err != nil {
		return "", fmt.Errorf("layer %s: %w", id, err)
	}
	root := filepath.Join(dir, "root")
	if _, err := os.Lstat(root); errors.Is(err, fs.ErrNotExist) {
		root = filepath.Join(dir, "delta") // upon nothing
	}
	return root, nil
}

// changes yields the changes of the layer prepared in dir.
func (d *Driver) changes(ctx context.Context, dir string, yield func(tree.Change, error) bool) error {
	chain, err := os.ReadFile(filepath.Join(dir, "chain"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	root, o, lowers := filepath.Join(dir, "delta"), layer.DiffOptions{Markers: d.markers}, []string(nil)
	if len(chain) > 0 {
		below, err := d.tree(ctx, strings.Fields(string(chain)))
		if err != nil {
			return err
		}
		lowers = []string{below}
		root, o = filepath.Join(dir, "root"), layer.DiffOptions{Whole: true, Unchanged: readStamps(filepath.Join(dir, "stamps"))}
	}
	low, err := tree.New("", lowers)
	if err != nil {
		return err
	}
	defer low.Close()
	for c, err := range layer.Diff(ctx, root, low, o) {
		if !yield(c, err) {
			return nil
		}
	}
	return nil
}

// Commit makes prepared layer id usable in chains. It must not be mounted, and
// its Tree be closed. Where another process has committed the same layer, this
// one is dropped.
func (d *Driver) Commit(ctx context.Context, id string) error {
	dir, err := d.shelf.Work(id)
	if err == nil {
		err = d.makeDelta(ctx, dir)
	}
	if err == nil {
		err = d.shelf.Put(id, filepath.Join(dir, "delta"))
	}
	if err != nil {
		return fmt.Errorf("commit layer %s: %w", id, err)
	}
	return nil
}

// Remove deletes layer id, and the trees that it is in; see cache.Driver and
// shelf.Shelf.
func (d *Driver) Remove(ctx context.Context, id string) error {
	if err := d.shelf.Remove(id); err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	if _, err := os.Lstat(d.Dir(id)); !errors.Is(err, fs.ErrNotExist) {
		return nil // it was another process's that was committed
	}
	keys, err := d.trees.List()
	for _, key := range keys {
		list, rerr := os.ReadFile(filepath.Join(d.trees.Layer(key), "chain"))
		if rerr == nil && slices.Contains(strings.Fields(string(list)), id) {
			err = errors.Join(err, d.trees.Remove(key))
		}
	}
	if err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	return nil
}

// key names the tree of a chain.
func key(chain []string) string {
	sum := blake.Sum256([]byte(strings.Join(chain, "\n")))
	return hex.EncodeToString(sum[:16])
}
