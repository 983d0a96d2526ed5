package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/861fb494/build/internal/oci"
)

// Check reads all that the state directory holds, but for the images and what
// sources and containers keep there, and returns what is wrong with it: records
// that are damaged or not of what their name says, layers whose files are not
// what their entries say, and what processes that are gone have left. What other
// processes are at work on is not looked at; what this one has prepared, and
// neither committed nor discarded, is a problem. Nothing is changed.
//
// A record whose layers are gone is none: it is a miss when it is asked for. Nor
// is a layer that was dropped already.
func (s *Store) Check(ctx context.Context) []error { return s.check(ctx, false) }

// Mend is Check that also drops what it finds: records are removed, layers are
// from then on not here. The errors say what was dropped.
func (s *Store) Mend(ctx context.Context) []error { return s.check(ctx, true) }

func (s *Store) check(ctx context.Context, mend bool) []error {
	c := checker{Store: s, mend: mend}
	if mend {
		s.sweepFiles(nil) // locks that could not be removed
	}
	c.leases()
	for _, f := range s.tempFiles() {
		if owner := tempOwner(f); owner == s.lease.name || !s.Alive(owner) {
			c.problem(f, errors.New("it was never finished"), remove)
		}
	}
	c.layers(ctx)
	c.files("steps/*/*", c.step)
	c.files("places/*", c.place)
	c.files("results/*", func(path string) error { _, err := readResult(path); return err })
	c.files("pins/*", c.pin)
	c.files("chains/*", c.chain)
	c.files("layers/*/"+tarRecordPrefix+"*", c.tar)
	c.files("listings/*", func(path string) error {
		_, err := c.readListing(oci.Digest("blake3:" + filepath.Base(path)))
		return err
	})
	c.files("mounts/*/*", func(path string) error {
		if !slices.Contains(notes(), strings.TrimPrefix(filepath.Ext(path), ".")) {
			return nil
		}
		b, err := os.ReadFile(path)
		if err == nil {
			_, err = openRecord(b)
		}
		return err
	})
	c.files("stats/*", func(path string) error {
		f, _, err := readStats(path)
		if err == nil {
			f.Close()
		}
		return err
	})
	if err := ctx.Err(); err != nil {
		c.problems = append(c.problems, context.Cause(ctx))
	}
	return c.problems
}

// checker is a Check under way.
type checker struct {
	*Store
	mend     bool
	problems []error
	making   map[string]bool // layers that processes make, or have dropped
}

// remove is how what lies at a path is dropped, other than a layer.
func remove(path string) error { return os.RemoveAll(path) }

// problem notes err of what lies at path; drop, which may be nil, is what mends
// it.
func (c *checker) problem(path string, err error, drop func(path string) error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	var d *DamagedError
	if errors.As(err, &d) && d.What == path {
		err = d.Err
	}
	name := path
	if rel, rerr := filepath.Rel(c.dir, path); rerr == nil {
		name = rel
	}
	note := ""
	if c.mend && drop != nil && !Passes(err) {
		note = ": dropped"
		if derr := drop(path); derr != nil {
			note = fmt.Sprintf(": it cannot be dropped: %v", derr)
		}
	}
	c.problems = append(c.problems, fmt.Errorf("%s: %w%s", name, err, note))
}

// list is the names in a directory, which need not be there.
func (c *checker) list(dir string) []string {
	entries, err := os.ReadDir(filepath.Join(c.dir, dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.problem(filepath.Join(c.dir, dir), err, nil)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

func (c *checker) leases() {
	c.making = c.drafts()
	for _, name := range c.list("leases") {
		path := filepath.Join(c.dir, "leases", name)
		owner, drafts := strings.CutSuffix(name, ".d")
		switch {
		case !leaseName(owner):
			c.problem(path, errors.New("it is no lease"), nil)
		case drafts:
			c.listed(owner, path)
		case !c.Alive(owner):
			c.problem(path, errors.New("its process is gone: the next sweep removes what it left"), nil)
		}
	}
	for _, name := range c.list("tmp") {
		if !c.Alive(name) {
			c.problem(filepath.Join(c.dir, "tmp", name), errors.New("its process is gone"), remove)
		}
	}
}

// listed looks at the layers that the lease of owner lists, in the directory path.
func (c *checker) listed(owner, path string) {
	for _, id := range c.list(filepath.Join("leases", filepath.Base(path))) {
		if _, ok := c.wasDropped(id); ok || strings.HasPrefix(id, freePrefix) {
			continue // removed once nobody can have it mounted; and what lists nothing
		}
		switch {
		case owner == c.lease.name:
			c.problem(filepath.Join(path, id), errors.New("the layer was neither committed nor discarded"), nil)
		case !c.Alive(owner):
			c.problem(filepath.Join(path, id), errors.New("its process is gone: the next sweep removes what it left"), nil)
		}
	}
}

// drafts are the layers that leases list.
func (c *checker) drafts() map[string]bool {
	found, _ := filepath.Glob(filepath.Join(c.dir, "leases", "*.d", "*")) // the only error is one of the pattern
	ids := map[string]bool{}
	for _, path := range found {
		ids[filepath.Base(path)] = true
	}
	return ids
}

func (c *checker) layers(ctx context.Context) {
	for _, id := range c.list("layers") {
		if ctx.Err() != nil {
			return
		}
		if _, ok := c.wasDropped(id); ok || c.making[id] {
			continue
		}
		err := c.checkLayer(ctx, id)
		if errors.Is(err, fs.ErrNotExist) && (c.drafts()[id] || c.gone(id)) {
			continue // begun, or removed, since the leases were listed
		}
		c.problem(c.layerDir(id), err, func(string) error {
			c.Store.drop(id)
			return nil
		})
	}
}

func (c *checker) gone(id string) bool {
	_, err := os.Lstat(c.layerDir(id))
	return errors.Is(err, fs.ErrNotExist)
}

// files checks each file that pattern matches.
func (c *checker) files(pattern string, check func(path string) error) {
	found, err := filepath.Glob(filepath.Join(c.dir, pattern))
	if err != nil {
		c.problem(c.dir, err, nil)
	}
	for _, path := range found {
		if strings.HasPrefix(filepath.Base(path), tempPrefix) {
			continue
		}
		err := check(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since it was listed
		}
		c.problem(path, err, remove)
	}
}

func (c *checker) step(path string) error {
	var r Record
	if err := readRecord(path, &r); err != nil {
		return err
	}
	if _, hex, _ := strings.Cut(string(r.Key), ":"); len(hex) < 2 {
		return fmt.Errorf("its key %q is no digest", r.Key)
	}
	return named(path, c.stepPath(r.Key), string(r.Key))
}

func (c *checker) place(path string) error {
	var p place
	if err := readRecord(path, &p); err != nil {
		return err
	}
	return named(path, c.placePath(p.Place), p.Place)
}

func (c *checker) pin(path string) error {
	var p pin
	if err := readRecord(path, &p); err != nil {
		return err
	}
	return named(path, c.pinPath(p.Ref), p.Ref)
}

func (c *checker) chain(path string) error {
	var b built
	if err := readRecord(path, &b); err != nil {
		return err
	}
	l, err := c.readLayer(b.Layer)
	diffID := l.DiffID
	if b.Epoch != nil {
		var t tarRecord
		t, err = c.readTarRecord(b.Layer, b.epoch())
		diffID = t.DiffID
	}
	if err == nil && diffID != b.DiffID {
		return fmt.Errorf("it says that layer %s has the diff ID %s, which has %s", b.Layer, b.DiffID, diffID)
	}
	// A layer that cannot be read is gone, or told of already.
	return named(path, c.chainPath(b.chain()), "layer "+b.Layer)
}

// tar checks what is recorded of a layer's tar with an epoch.
func (c *checker) tar(path string) error {
	n, err := strconv.ParseInt(strings.TrimPrefix(filepath.Base(path), tarRecordPrefix), 10, 64)
	if err != nil {
		return errors.New("its name has no epoch")
	}
	_, err = c.readTarRecord(filepath.Base(filepath.Dir(path)), time.Unix(n, 0))
	return err
}

// named compares where a record is with where it belongs.
func named(path, want, what string) error {
	if path != want {
		return fmt.Errorf("it is of %q, which belongs at %s", what, filepath.Base(want))
	}
	return nil
}
