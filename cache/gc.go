package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

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
	Kind     string    `json:"kind"`
	ID       string    `json:"id"`
	Size     int64     `json:"size"` // bytes on the disk; a file with several names counts once, for the first item that has it
	LastUsed time.Time `json:"lastUsed,omitzero"`
	// Needed says what needs it: an image, a container, a build that runs. It
	// can be removed where that is empty.
	Needed string `json:"needed,omitempty"`

	remove func(context.Context) error
}

// PruneOptions say what Prune removes. The zero value removes layers and
// downloads that nothing needs.
type PruneOptions struct {
	All       bool          // cache mounts too
	OlderThan time.Duration // only what has not been used for that long
	Keep      int64         // stop when no more bytes than these are used; 0: remove all that may go
	Kinds     []string      // only these; empty: as All says
	DryRun    bool          // tell, and remove nothing
	// Wanted says what needs the layer id beside builds that run: "" if nothing
	// does. nil: nothing needs any.
	Wanted func(id string) string
}

// gcLock is held shared while something is marked as used, and alone while
// something is found unused and taken away: so the one is never overtaken by
// the other. It is held for microseconds.
func (s *Store) gcLock(how int) (release func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "gc.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, err
		}
	}
}

// use marks layers as used by this process: what has been used since the oldest
// process that runs began is not collected.
func (s *Store) use(layers []oci.Layer) {
	s.mu.Lock()
	var fresh []string
	for _, l := range layers {
		for _, id := range []string{l.ID, l.Source} {
			if id != "" && !s.used[id] {
				s.used[id] = true
				fresh = append(fresh, id)
			}
		}
	}
	s.mu.Unlock()
	if len(fresh) == 0 {
		return
	}
	release, err := s.gcLock(unix.LOCK_SH)
	if err != nil {
		return // a disk that takes no new file: nothing is collected there either
	}
	defer release()
	now := s.now()
	for _, id := range fresh {
		_ = os.Chtimes(s.layerPath(id), time.Time{}, now) // one that is not here is found to be missing next
	}
}

// running is when the oldest process that has the directory open began; but for
// this one, if others says so.
func (s *Store) running(others bool) time.Time {
	oldest := s.now()
	names, _ := os.ReadDir(filepath.Join(s.dir, "leases")) // none to be seen: this process's own
	for _, n := range names {
		if !leaseName(n.Name()) || others && n.Name() == s.lease.name || !s.Alive(n.Name()) {
			continue
		}
		if st, err := n.Info(); err == nil && st.ModTime().Before(oldest) {
			oldest = st.ModTime()
		}
	}
	return oldest
}

// Usage lists all that takes room. The sizes add up to what du(1) says of the
// directory. wanted is as in PruneOptions.
func (s *Store) Usage(ctx context.Context, wanted func(id string) string) ([]Item, error) {
	u := usage{store: s, ctx: ctx, wanted: wanted, since: s.running(false), seen: map[inode]bool{}}
	for _, list := range []func() error{u.layers, u.mounts, u.downloads} {
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
	wanted func(string) string
	since  time.Time
	seen   map[inode]bool // what has been counted
	items  []Item
}

// size is the room that paths take, of what has not been counted yet.
func (u *usage) size(paths ...string) (int64, error) {
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
			if u.seen[key] {
				return nil
			}
			u.seen[key] = true
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
	return u.size(paths...)
}

func (u *usage) add(kind, id string, used time.Time, needed string, remove func(context.Context) error, paths ...string) error {
	size, err := u.size(paths...)
	if needed == "" && !used.Before(u.since) {
		needed = "a build that runs"
	}
	u.items = append(u.items, Item{Kind: kind, ID: id, Size: size, LastUsed: used, Needed: needed, remove: remove})
	return err
}

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
		needed := ""
		if u.wanted != nil {
			needed = u.wanted(id)
		}
		collect := func(ctx context.Context) error { return s.collectLayer(ctx, id, u.since) }
		if err := u.add(KindLayer, id, st.ModTime(), needed, collect, s.driver.Dir(id), s.layerDir(id)); err != nil {
			return err
		}
	}
	return nil
}

// collectLayer removes a layer unless it has been used since it was found
// unused.
func (s *Store) collectLayer(ctx context.Context, id string, since time.Time) error {
	release, err := s.gcLock(unix.LOCK_EX)
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

func (u *usage) downloads() error {
	for _, kind := range []string{"http", "git"} {
		dir := filepath.Join(u.store.dir, kind)
		list, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range list {
			path := filepath.Join(dir, e.Name())
			st, err := os.Lstat(path)
			if err != nil || strings.HasSuffix(path, ".lock") {
				continue
			}
			remove := func(context.Context) error { return os.RemoveAll(path) }
			if err := u.add(KindDownload, kind+"/"+e.Name(), st.ModTime(), "", remove, path); err != nil {
				return err
			}
		}
	}
	return nil
}

// Prune removes what nothing needs, what was used longest ago first, and returns
// what it removed. What a process that runs has used is left alone; so is what
// fails to be removed, whose errors are joined.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (removed []Item, err error) {
	unlock, err := s.Lock(ctx, "prune")
	if err != nil {
		return nil, err
	}
	defer unlock()
	items, err := s.Usage(ctx, o.Wanted)
	if err != nil {
		return nil, err
	}
	var total int64
	for _, i := range items {
		total += i.Size
	}
	slices.SortStableFunc(items, func(a, b Item) int { return a.LastUsed.Compare(b.LastUsed) })
	var errs []error
	for _, i := range items {
		if o.Keep > 0 && total <= o.Keep {
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
		total -= i.Size
		removed = append(removed, i)
	}
	if !o.DryRun && (len(removed) > 0 || o.All) {
		s.dropRecords(o.All)
	}
	return removed, errors.Join(errs...)
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

// dropRecords removes the records of steps and chains whose layers are gone, and
// the listings and results that nothing refers to; with all, also those of imported steps
// whose layers have not been fetched. Places stay: they say when a result was
// there.
func (s *Store) dropRecords(all bool) {
	listed := map[string]bool{}
	places, _ := filepath.Glob(filepath.Join(s.dir, "places", "*"))
	for _, path := range places {
		var p place
		if readRecord(path, &p) != nil {
			continue
		}
		for _, part := range p.Parts {
			if _, hex, ok := strings.Cut(part.Value, ":"); ok {
				listed[hex] = true
			}
		}
	}
	steps, _ := filepath.Glob(filepath.Join(s.dir, "steps", "*", "*"))
	for _, path := range steps {
		var r Record
		if readRecord(path, &r) != nil {
			continue // Step says so when it is asked for it
		}
		for _, l := range r.Layers {
			if _, err := os.Lstat(s.layerPath(s.presentAs(l))); err != nil && (l.Blob == nil || all) {
				os.Remove(path)
				break
			}
		}
	}
	chains, _ := filepath.Glob(filepath.Join(s.dir, "chains", "*"))
	for _, path := range chains {
		var b built
		if readRecord(path, &b) != nil {
			continue
		}
		if _, err := os.Lstat(s.layerPath(b.Layer)); err != nil {
			os.Remove(path)
		}
	}
	listings, _ := filepath.Glob(filepath.Join(s.dir, "listings", "*"))
	for _, path := range listings {
		if !listed[filepath.Base(path)] && tempOwner(path) == "" {
			os.Remove(path)
		}
	}
}
