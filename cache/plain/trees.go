package plain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
)

// tree is the root directory of chain's tree, which it makes if need be.
func (d *Driver) tree(ctx context.Context, chain []string) (string, error) {
	k := key(chain)
	for {
		root := filepath.Join(d.trees.Layer(k), "root")
		if _, err := os.Lstat(root); err == nil {
			return root, nil
		}
		// Who waits for another's work must not fail with its context.
		made := d.making.DoChan(k, func() (any, error) { return nil, d.makeTree(ctx, k, chain) })
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case r := <-made:
			stopped := errors.Is(r.Err, context.Canceled) || errors.Is(r.Err, context.DeadlineExceeded)
			if r.Err != nil && (!stopped || ctx.Err() != nil) {
				return "", r.Err
			}
		}
	}
}

// makeTree makes the tree of chain: that of the longest part of it which is
// there, and the layers upon it.
func (d *Driver) makeTree(ctx context.Context, k string, chain []string) error {
	dir, err := d.trees.Begin(k)
	if err != nil {
		return err
	}
	err = d.stack(ctx, filepath.Join(dir, "made"), chain)
	if err == nil {
		err = d.trees.Put(k, filepath.Join(dir, "made"))
	}
	if err != nil {
		return errors.Join(err, d.trees.Remove(k))
	}
	return nil
}

func (d *Driver) stack(ctx context.Context, dir string, chain []string) error {
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := makeRoot(root); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "chain"), []byte(strings.Join(chain, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	n := len(chain)
	for ; n > 0; n-- {
		from := filepath.Join(d.trees.Layer(key(chain[:n])), "root")
		if _, err := os.Lstat(from); err == nil {
			if err := d.lay(ctx, from, root, false); err != nil {
				return err
			}
			break
		}
	}
	for _, id := range chain[n:] {
		if _, err := os.Lstat(d.Dir(id)); err != nil {
			return fmt.Errorf("layer %s: %w", id, fs.ErrNotExist)
		}
		if err := d.lay(ctx, d.Dir(id), root, d.markers); err != nil {
			return fmt.Errorf("layer %s: %w", id, err)
		}
	}
	return nil
}

// lay puts the layer in directory from upon the tree in root, its files as hard
// links.
func (d *Driver) lay(ctx context.Context, from, root string, markers bool) error {
	var dirs []tree.Entry
	for c, err := range layer.Diff(ctx, from, nil, layer.DiffOptions{Markers: markers}) {
		if err != nil {
			return err
		}
		p := filepath.Join(root, c.Path)
		switch {
		case c.Removed:
			err = os.RemoveAll(p)
		case c.IsDir():
			dirs = append(dirs, c.Entry)
			err = layDir(p, c.Opaque)
		default:
			err = d.layFile(ctx, filepath.Join(from, c.Path), p, &c.Entry)
		}
		if err != nil {
			return err
		}
	}
	for i := range dirs {
		if err := setMeta(filepath.Join(root, dirs[i].Path), &dirs[i]); err != nil {
			return err
		}
	}
	return nil
}

// layDir makes the directory p, unless it is one; with opaque it is emptied.
func layDir(p string, opaque bool) error {
	fi, err := os.Lstat(p)
	if err == nil && fi.IsDir() {
		if !opaque {
			return nil
		}
		names, err := os.ReadDir(p)
		for _, n := range names {
			err = errors.Join(err, os.RemoveAll(filepath.Join(p, n.Name())))
		}
		return err
	}
	if err == nil {
		if err := os.Remove(p); err != nil {
			return err
		}
	}
	return os.Mkdir(p, 0o700)
}

// layFile makes p a hard link to the file from, whose entry is e, or a copy
// where that cannot be: too many links, or a filesystem without.
func (d *Driver) layFile(ctx context.Context, from, p string, e *tree.Entry) error {
	err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, p, 0)
	if errors.Is(err, fs.ErrExist) {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
		err = unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, p, 0)
	}
	if errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
		return d.copyEntry(ctx, from, p, e)
	}
	if err != nil {
		return &os.LinkError{Op: "link", Old: from, New: p, Err: err}
	}
	return nil
}

// makeDelta makes dir/delta of what the layer prepared in dir changes.
func (d *Driver) makeDelta(ctx context.Context, dir string) error {
	delta, root := filepath.Join(dir, "delta"), filepath.Join(dir, "root")
	if _, err := os.Lstat(root); errors.Is(err, fs.ErrNotExist) {
		return nil // upon an empty chain it is one
	}
	// Left by a Commit that failed.
	if err := os.RemoveAll(delta); err != nil {
		return err
	}
	if err := makeRoot(delta); err != nil {
		return err
	}
	t, err := tree.New(delta, nil)
	if err != nil {
		return err
	}
	defer t.Close()
	var failed error
	err = d.changes(ctx, dir, func(c tree.Change, err error) bool {
		if err == nil {
			err = d.addChange(ctx, t, root, delta, &c)
		}
		failed = err
		return err == nil
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	// The root has the metadata of the topmost layer's.
	whole, err := tree.New("", []string{root})
	if err != nil {
		return err
	}
	defer whole.Close()
	e, err := whole.Lstat("/")
	if err == nil {
		err = t.SetMeta("/", e)
	}
	return errors.Join(err, t.Close())
}

func (d *Driver) addChange(ctx context.Context, t *tree.Tree, root, delta string, c *tree.Change) error {
	switch {
	case c.Path == "/":
		return nil
	case c.Removed:
		return t.Whiteout(c.Path)
	case c.IsDir():
		if err := t.Mkdir(c.Path, 0o755); err != nil {
			return err
		}
		return t.SetMeta(c.Path, c.Entry)
	}
	return d.layFile(ctx, filepath.Join(root, c.Path), filepath.Join(delta, c.Path), &c.Entry)
}
