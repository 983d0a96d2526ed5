package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/internal/flock"
	"github.com/861fb494/build/internal/oci"
)

// Kinds of Item.
const (
	KindLayer    = "layer"    // files of a layer, and what is known of them
	KindMount    = "mount"    // a cache mount
	KindDownload = "download" // of ADD: a file, a repository
	KindRecord   = "records"  // all step records, listings and the like together
	KindImage    = "images"   // the image store
	KindOther    = "other"    // all the rest
)

// Item is something that takes room in the state directory.
type Item struct {
	Kind string `json:"kind"`
	ID   string `json:"id"`
	// Size is the bytes that it takes on the disk. A file that several items have
	// counts once, for the one that would be removed last.
	Size int64 `json:"size"`
	// Shared is how many bytes of Size serve several: files that other items have
	// too, and all of a layer that several images or containers need.
	Shared   int64     `json:"shared,omitempty"`
	LastUsed time.Time `json:"lastUsed,omitzero"`
	// Needed says what needs it: an image, a container, a build that runs. It
	// can be removed where that is empty.
	Needed string `json:"needed,omitempty"`

	remove func(context.Context) error
	paths  []string
	users  int // how many images and containers need it
}

// PruneOptions say what Prune removes. The zero value removes layers and
// downloads that nothing needs.
type PruneOptions struct {
	All       bool          // cache mounts too
	OlderThan time.Duration // only what has not been used for that long
	Keep      int64         // stop when no more bytes than these are used; 0: remove all that may go
	Kinds     []string      // only these; empty: as All says
	DryRun    bool          // tell, and remove nothing
	// Wanted lists what needs the layer id beside builds that run. nil: nothing
	// needs any.
	Wanted func(id string) []string
}

// Pruned is what a Prune came to.
type Pruned struct {
	Items []Item // that were removed, or would have been
	Left  int64  // bytes that the state directory takes now
}

// gcLock is held shared while something is marked as used, and alone while
// something is found unused and taken away: so the one is never overtaken by
// the other. It is held for microseconds.
func (s *Store) gcLock(lock func(*os.File) error) (release func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "gc.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lock(f); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// use marks layers as used by this process: what has been used since the oldest
// process that runs began is not collected. fresh: some were not yet.
func (s *Store) use(layers []oci.Layer) (fresh bool) {
	s.mu.Lock()
	var ids []string
	for _, l := range layers {
		for _, id := range []string{l.ID, l.Source} {
			if id != "" && !s.used[id] {
				s.used[id] = true
				ids = append(ids, id)
			}
		}
	}
	s.mu.Unlock()
	if len(ids) == 0 {
		return false
	}
	release, err := s.gcLock(flock.Shared)
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, id := range ids {
			delete(s.used, id) // for the next time
		}
		return true
	}
	defer release()
	now := s.now()
	for _, id := range ids {
		_ = os.Chtimes(s.layerPath(id), time.Time{}, now) // one that is not here is found to be missing next
	}
	return true
}

// running is when the oldest process that has the directory open began; but for
// this one, if others says so.
func (s *Store) running(others bool) (time.Time, error) {
	oldest := s.now()
	names, err := os.ReadDir(filepath.Join(s.dir, "leases"))
	if err != nil {
		return oldest, err
	}
	for _, n := range names {
		if !leaseName(n.Name()) || others && n.Name() == s.lease.name || !s.Alive(n.Name()) {
			continue
		}
		st, err := n.Info()
		switch {
		case errors.Is(err, fs.ErrNotExist): // it has ended meanwhile
		case err != nil:
			return oldest, err
		case st.ModTime().Before(oldest):
			oldest = st.ModTime()
		}
	}
	return oldest, nil
}

// Usage lists all that takes room. The sizes add up to what du(1) says of the
// directory. wanted is as in PruneOptions.
func (s *Store) Usage(ctx context.Context, wanted func(id string) []string) ([]Item, error) {
	since, err := s.running(false)
	if err != nil {
		return nil, fmt.Errorf("see what runs: %w", err)
	}
	u := usage{store: s, ctx: ctx, wanted: wanted, since: since, seen: map[inode]int{}}
	for _, list := range []func() error{u.layers, u.mounts, u.downloads, u.measureItems} {
		if err := list(); err != nil {
			return nil, fmt.Errorf("measure state directory: %w", err)
		}
	}
	records, err := u.measure("steps", "places", "listings", "stats", "pins", "chains", "results", "layers")
	if err != nil {
		return nil, fmt.Errorf("measure state directory: %w", err)
	}
	images, err := u.measure("images")
	if err != nil {
		return nil, fmt.Errorf("measure state directory: %w", err)
	}
	other, err := u.measure("")
	if err != nil {
		return nil, fmt.Errorf("measure state directory: %w", err)
	}
	return append(u.items,
		Item{Kind: KindRecord, ID: "records", Size: records, Needed: "small, and pruned with what they are of"},
		Item{Kind: KindImage, ID: "images", Size: images, Needed: "the image store: see 'build rmi'"},
		Item{Kind: KindOther, ID: "other", Size: other, Needed: "containers, builds that run, directories"}), nil
}

type inode struct{ dev, ino uint64 }

// usage is a Usage under way.
type usage struct {
	store  *Store
	ctx    context.Context
	wanted func(string) []string
	since  time.Time
	seen   map[inode]int // what has been counted, and for which of items; or one of the constants below
	items  []Item
}

const (
	nobodys  = -1 // it is no item's
	isShared = -2 // it is an item's, and counts as shared there
)

// size is the room that paths take, of what has not been counted yet. It counts
// for the item with the number of.
func (u *usage) size(of int, paths ...string) (int64, error) {
	var total int64
	for _, p := range paths {
		err := filepath.WalkDir(p, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it went in between
			}
			if err != nil {
				return err
			}
			if u.ctx.Err() != nil {
				return context.Cause(u.ctx)
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return nil
			}
			key := inode{st.Dev, st.Ino}
			if owner, ok := u.seen[key]; ok {
				if owner >= 0 && of >= 0 && owner != of {
					u.items[owner].Shared += st.Blocks * 512
					u.seen[key] = isShared
				}
				return nil
			}
			u.seen[key] = of
			total += st.Blocks * 512
			return nil
		})
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func (u *usage) measure(names ...string) (int64, error) {
	var paths []string
	for _, n := range names {
		paths = append(paths, filepath.Join(u.store.dir, n))
	}
	return u.size(nobodys, paths...)
}

// add lists what lies at paths, to be measured by measureItems.
func (u *usage) add(i Item, remove func(context.Context) error, paths ...string) {
	if i.Needed == "" && !i.LastUsed.Before(u.since) {
		i.Needed = "a build that runs"
	}
	i.remove, i.paths = remove, paths
	u.items = append(u.items, i)
}

// measureItems measures what is listed, what would be removed first last: so a
// file that lies in several layers counts for the one with which it would go.
func (u *usage) measureItems() error {
	order := make([]int, len(u.items))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return byUse(u.items[a], u.items[b]) })
	slices.Reverse(order)
	for _, needed := range []bool{true, false} {
		for _, n := range order {
			if (u.items[n].Needed != "") != needed {
				continue
			}
			size, err := u.size(n, u.items[n].paths...)
			if err != nil {
				return err
			}
			u.items[n].Size = size
		}
	}
	for n := range u.items {
		if i := &u.items[n]; i.users > 1 {
			i.Shared = i.Size
		}
	}
	return nil
}

// byUse orders items as Prune removes them: used longest ago first.
func byUse(a, b Item) int { return a.LastUsed.Compare(b.LastUsed) }

func (u *usage) layers() error {
	s := u.store
	list, err := os.ReadDir(filepath.Join(s.dir, "layers"))
	if err != nil {
		return err
	}
	for _, e := range list {
		id := e.Name()
		st, err := os.Lstat(s.layerPath(id))
		if err != nil {
			continue // being made, or being removed
		}
		i := Item{Kind: KindLayer, ID: id, LastUsed: st.ModTime()}
		if u.wanted != nil {
			by := u.wanted(id)
			i.users, i.Needed = len(by), neededBy(by)
		}
		collect := func(ctx context.Context) error { return s.collectLayer(ctx, id, u.since) }
		u.add(i, collect, s.driver.Dir(id), s.layerDir(id))
	}
	return nil
}

func neededBy(who []string) string {
	switch len(who) {
	case 0:
		return ""
	case 1:
		return who[0]
	}
	return fmt.Sprintf("%s and %d more", who[0], len(who)-1)
}

// collectLayer removes a layer unless it has been used since it was found
// unused.
func (s *Store) collectLayer(ctx context.Context, id string, since time.Time) error {
	// Who misses the layer once its metadata is gone must not have made it anew
	// before its files are gone, too.
	unlock, err := s.tryLock("layer-" + id)
	if errors.Is(err, errLocked) {
		return nil // somebody makes it now
	}
	if err != nil {
		return err
	}
	defer unlock()
	release, err := s.gcLock(flock.Alone)
	if err != nil {
		return err
	}
	st, err := os.Lstat(s.layerPath(id))
	if err == nil && st.ModTime().Before(since) {
		_ = s.lease.hold(id) // as in RemoveLayer
		s.forget(id)
		os.Remove(s.layerPath(id))
	}
	release()
	if err != nil || !st.ModTime().Before(since) {
		return nil
	}
	return s.RemoveLayer(ctx, id)
}

// Prune removes what nothing needs, what was used longest ago first, and returns
// what it removed. What a process that runs has used is left alone; so is what
// fails to be removed, whose errors are joined.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (p Pruned, err error) {
	unlock, err := s.Lock(ctx, "prune")
	if err != nil {
		return p, err
	}
	defer unlock()
	items, err := s.Usage(ctx, o.Wanted)
	if err != nil {
		return p, err
	}
	for _, i := range items {
		p.Left += i.Size
	}
	slices.SortStableFunc(items, byUse)
	var errs []error
	for _, i := range items {
		if o.Keep > 0 && p.Left <= o.Keep {
			break
		}
		if i.remove == nil || i.Needed != "" || !o.selects(i, s.now()) {
			continue
		}
		if err := ctx.Err(); err != nil {
			errs = append(errs, context.Cause(ctx))
			break
		}
		if !o.DryRun {
			if err := i.remove(ctx); err != nil {
				errs = append(errs, fmt.Errorf("prune %s %s: %w", i.Kind, i.ID, err))
				continue
			}
		}
		p.Left -= i.Size
		p.Items = append(p.Items, i)
	}
	if !o.DryRun && (len(p.Items) > 0 || o.All) {
		s.dropRecords(o.All)
	}
	if !o.DryRun {
		s.dropStale()
	}
	return p, errors.Join(errs...)
}

func (o PruneOptions) selects(i Item, now time.Time) bool {
	if o.OlderThan > 0 && now.Sub(i.LastUsed) < o.OlderThan {
		return false
	}
	if len(o.Kinds) > 0 {
		return slices.Contains(o.Kinds, i.Kind)
	}
	return o.All || i.Kind != KindMount
}
