// Package overlay stores snapshots as directories for overlayfs: one per layer,
// shared by all chains that it is in.
//
// It is a shelf (package shelf): layers/ID is what was the upper directory of a
// layer, work/ID has upper/, work/ for overlayfs, and chain, the IDs of the
// layers that it is upon, one a line, lowest first. Beside it is empty/, an
// empty directory, the lowest of every view. To commit is to rename upper; it
// either has happened or has not. Any process may read a committed layer;
// nothing changes it.
//
// Commit does not sync. After a power cut, files of a layer committed within the
// last half minute or so may be missing or short; what refers to the layer has
// to notice (layer.Intact compares it with its entries) and make the layer anew.
// The other choice, syncfs in each commit, would write out all that any step of
// any build has written since, caches and temporary files included, and make a
// step of milliseconds one of seconds.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/shelf"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/oci"
)

// Options are those of New.
type Options struct {
	// Durable leaves out the mount option "volatile", with which fsync in a
	// prepared layer does nothing, and unmounting it writes nothing out.
	Durable bool
}

// Driver stores layers. It is safe for concurrent use, by many processes too.
type Driver struct {
	shelf *shelf.Shelf
	empty string
	o     Options

	mu   sync.Mutex
	seen map[string]seen // of committed layers, by ID
}

// New opens the store in dir, which it makes if need be.
func New(dir string, o Options) (*Driver, error) {
	s, err := shelf.New(dir)
	if err != nil {
		return nil, err
	}
	empty, err := filepath.Abs(filepath.Join(dir, "empty"))
	if err == nil {
		err = os.MkdirAll(empty, 0o755)
	}
	if err == nil {
		err = os.Chmod(empty, 0o755)
	}
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	return &Driver{shelf: s, empty: empty, o: o, seen: map[string]seen{}}, nil
}

// Dir is the directory of committed layer id.
func (d *Driver) Dir(id string) string { return d.shelf.Layer(id) }

// HardLinks says that a new layer may have hard links to files of committed
// ones: overlayfs copies what is below before it writes to it.
func (d *Driver) HardLinks() bool { return true }

// Prepare begins layer id upon chain; see cache.Driver. Root may be mounted
// more than once only without the option "volatile", which a caller may drop.
func (d *Driver) Prepare(ctx context.Context, id string, chain []string) (tree.Snapshot, error) {
	s, err := d.prepare(id, chain)
	if err != nil {
		return tree.Snapshot{}, fmt.Errorf("prepare layer %s: %w", id, err)
	}
	return s, nil
}

func (d *Driver) prepare(id string, chain []string) (tree.Snapshot, error) {
	lowers, err := d.lowers(chain)
	if err != nil {
		return tree.Snapshot{}, err
	}
	w, err := d.shelf.Begin(id)
	if err != nil {
		return tree.Snapshot{}, err
	}
	s, err := d.fill(w, chain, lowers)
	if err != nil {
		return tree.Snapshot{}, errors.Join(err, d.shelf.Drop(id))
	}
	return s, nil
}

// fill makes the directories of a prepared layer in dir.
func (d *Driver) fill(dir string, chain []string, lowers []tree.Lower) (tree.Snapshot, error) {
	upper, scratch := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, p := range []string{upper, scratch} {
		if err := os.Mkdir(p, 0o755); err != nil {
			return tree.Snapshot{}, err
		}
	}
	if err := os.Chmod(upper, 0o755); err != nil { // whatever the umask
		return tree.Snapshot{}, err
	}
	list := strings.Join(append(chain[:len(chain):len(chain)], ""), "\n")
	if err := os.WriteFile(filepath.Join(dir, "chain"), []byte(list), 0o600); err != nil {
		return tree.Snapshot{}, err
	}
	t, err := tree.Stack(upper, lowers)
	if err != nil {
		return tree.Snapshot{}, err
	}
	if len(lowers) == 0 {
		// No overlay, so no whiteouts either: a deletion is one.
		return tree.Snapshot{Root: oci.Mount{Type: "bind", Source: upper, Options: []string{"bind", "rw"}}, Tree: t}, nil
	}
	if err := copyRoot(t, lowers[0].Dir); err != nil {
		t.Close()
		return tree.Snapshot{}, err
	}
	o := append(options(lowers), "upperdir="+upper, "workdir="+scratch)
	if !d.o.Durable {
		o = append(o, "volatile")
	}
	return tree.Snapshot{Root: oci.Mount{Type: "overlay", Source: "overlay", Options: o}, Tree: t}, nil
}

// copyRoot gives the root of t the metadata of the layer below: in a mount the
// root is the upper directory's.
func copyRoot(t *tree.Tree, lower string) error {
	low, err := tree.New("", []string{lower})
	if err != nil {
		return err
	}
	defer low.Close()
	e, err := low.Lstat("/")
	if err != nil {
		return err
	}
	return t.SetMeta("/", e)
}

// options are the mount options for lowers, topmost first. A layer must hold
// what it changes and nothing that leads to other layers: all that would make
// overlayfs write such references is off.
func options(lowers []tree.Lower) []string {
	o := []string{"index=off", "metacopy=off", "redirect_dir=off", "xino=off"}
	for _, l := range lowers {
		o = append(o, "lowerdir+="+l.Dir)
	}
	return o
}

// View is chain to be read; see cache.Driver.
func (d *Driver) View(ctx context.Context, chain []string) (tree.Snapshot, error) {
	lowers, err := d.lowers(chain)
	if err != nil {
		return tree.Snapshot{}, fmt.Errorf("view: %w", err)
	}
	none := len(lowers) == 0
	if len(lowers) < 2 {
		// Without an upper directory overlayfs wants two lower ones; and a single
		// layer is an overlay too, since it may have whiteouts.
		lowers = append(lowers, tree.Lower{Dir: d.empty})
	}
	t, err := tree.Stack("", lowers)
	if err != nil {
		return tree.Snapshot{}, fmt.Errorf("view: %w", err)
	}
	if none {
		return tree.Snapshot{Root: oci.Mount{Type: "bind", Source: d.empty, Options: []string{"bind", "ro"}}, Tree: t}, nil
	}
	o := append(options(lowers), "ro")
	return tree.Snapshot{Root: oci.Mount{Type: "overlay", Source: "overlay", Options: o}, Tree: t}, nil
}

// Changes lists what prepared layer id changes; see cache.Driver and
// layer.Diff.
func (d *Driver) Changes(ctx context.Context, id string) iter.Seq2[tree.Change, error] {
	return func(yield func(tree.Change, error) bool) {
		w, err := d.shelf.Work(id)
		var low *tree.Tree
		if err == nil {
			low, err = d.below(w)
		}
		if err != nil {
			yield(tree.Change{}, fmt.Errorf("changes of layer %s: %w", id, err))
			return
		}
		defer low.Close()
		for c, err := range layer.Diff(ctx, filepath.Join(w, "upper"), low, layer.DiffOptions{}) {
			if !yield(c, err) {
				return
			}
		}
	}
}

// Made is where the files of prepared layer id are; see cache.Driver.
func (d *Driver) Made(id string) (string, error) {
	w, err := d.shelf.Work(id)
	if err != nil {
		return "", fmt.Errorf("layer %s: %w", id, err)
	}
	return filepath.Join(w, "upper"), nil
}

// below is the tree that the layer prepared in dir is upon.
func (d *Driver) below(dir string) (*tree.Tree, error) {
	list, err := os.ReadFile(filepath.Join(dir, "chain"))
	if err != nil {
		return nil, err
	}
	lowers, err := d.lowers(strings.Fields(string(list)))
	if err != nil {
		return nil, err
	}
	return tree.Stack("", lowers)
}

// Commit makes prepared layer id usable in chains. It must not be mounted, and
// its Tree be closed. Where another process has committed the same layer, this
// one is dropped.
func (d *Driver) Commit(ctx context.Context, id string) error {
	w, err := d.shelf.Work(id)
	if err == nil {
		err = d.shelf.PutSoon(id, filepath.Join(w, "upper"))
	}
	if err != nil {
		return fmt.Errorf("commit layer %s: %w", id, err)
	}
	return nil
}

// Warm prepares, in the background, for a Prepare that is to come soon.
func (d *Driver) Warm() { d.shelf.Warm() }

// Wait waits until what commits left has been deleted.
func (d *Driver) Wait() { d.shelf.Wait() }

// Remove deletes layer id; see cache.Driver and shelf.Shelf.
func (d *Driver) Remove(ctx context.Context, id string) error {
	d.mu.Lock()
	delete(d.seen, id)
	d.mu.Unlock()
	if err := d.shelf.Remove(id); err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	return nil
}
