package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/oci"
)

func (s *Store) layerDir(id string) string { return filepath.Join(s.dir, "layers", id) }

// layerRecord is the form in which a layer's metadata is kept.
type layerRecord struct {
	oci.Layer
	// Boot is the run of the kernel in which the files were written. They are
	// not synced: only a later run can tell whether all of them got to the
	// disk. Empty once that has been looked at.
	Boot string `json:"boot,omitempty"`
}

func (s *Store) entriesPath(id string) string { return filepath.Join(s.layerDir(id), "entries") }

func (s *Store) layerPath(id string) string { return filepath.Join(s.layerDir(id), "layer.json") }

// readLayer reads a committed layer's metadata.
func (s *Store) readLayer(id string) (layerRecord, error) {
	var l layerRecord
	err := readRecord(s.layerPath(id), &l)
	if err == nil && l.ID != id {
		err = &DamagedError{What: "layer " + id, Err: fmt.Errorf("it calls itself %s", l.ID)}
	}
	return l, err
}

// survived compares the files of a layer of another run of the kernel with its
// entries, once: a power cut may have cut them short.
func (s *Store) survived(l layerRecord) error {
	if l.Boot == "" || l.Boot == s.boot {
		return nil
	}
	if err := s.look(context.Background(), l.ID); err != nil {
		return err
	}
	l.Boot = ""
	_ = s.writeRecord(s.layerPath(l.ID), l) // or it is looked at again
	return nil
}

// Layer is the committed layer id, with what is known of it. One that is not
// here is an fs.ErrNotExist. One that is damaged is dropped, and a *DamagedError.
func (s *Store) Layer(id string) (oci.Layer, error) {
	s.mu.Lock()
	l, ok := s.known[id]
	s.mu.Unlock()
	if ok {
		// Another process may have removed it.
		if _, err := os.Lstat(s.layerPath(id)); err == nil {
			return l, nil
		}
	}
	r, err := s.readLayer(id)
	var bad *DamagedError
	if errors.As(err, &bad) {
		return oci.Layer{}, s.broken(id, err)
	}
	if err == nil {
		if _, err = os.Lstat(s.driver.Dir(id)); errors.Is(err, fs.ErrNotExist) {
			err = s.broken(id, fmt.Errorf("its files are gone: %w", err))
		}
	}
	if err == nil {
		err = s.survived(r)
	}
	if err != nil {
		return oci.Layer{}, err
	}
	s.remember(r.Layer)
	return r.Layer, nil
}

// Hold is Layer for one whose files are to be read: while this process runs, it is
// not collected any more.
func (s *Store) Hold(id string) (oci.Layer, error) {
	l, err := s.Layer(id)
	if err != nil {
		return l, err
	}
	if !s.use([]oci.Layer{{ID: id}}) {
		return l, nil
	}
	return s.Layer(id) // it may have gone before
}

func (s *Store) remember(l oci.Layer) {
	s.mu.Lock()
	s.known[l.ID] = l
	s.mu.Unlock()
}

// Shareable is the directory of committed layer id, if a new layer may have hard
// links to the files in it.
func (s *Store) Shareable(id string) (dir string, ok bool) {
	d, ok := s.driver.(interface{ HardLinks() bool })
	if !ok || !d.HardLinks() {
		return "", false
	}
	if _, err := s.Layer(id); err != nil {
		return "", false
	}
	return s.driver.Dir(id), true
}

// Draft is a layer that is being made.
type Draft struct {
	Snapshot
	ID string
	// Unread: digests that Commit is given are those that layers have recorded
	// of files which are shared or were copied without being read. Whoever reads
	// the new layer first compares.
	Unread bool

	store *Store
	done  bool
}

func ids(chain []oci.Layer) []string {
	out := make([]string, len(chain))
	for i, l := range chain {
		out[i] = l.ID
	}
	return out
}

// Prepare begins a layer upon chain, whose layers are all here. The draft is
// to be committed or discarded.
func (s *Store) Prepare(ctx context.Context, chain []oci.Layer) (*Draft, error) {
	return s.prepare(ctx, s.newID(), chain)
}

// PreparePulled begins the layer id of an image upon nothing, or upon chain for
// a layer that links to files of lower ones. The caller holds the lock
// "layer-<id>".
func (s *Store) PreparePulled(ctx context.Context, id string, chain []oci.Layer) (*Draft, error) {
	// What a killed process left of it, or what is damaged.
	if err := s.RemoveLayer(ctx, id); err != nil {
		return nil, err
	}
	return s.prepare(ctx, id, chain)
}

func (s *Store) prepare(ctx context.Context, id string, chain []oci.Layer) (*Draft, error) {
	if err := s.lease.hold(id); err != nil {
		return nil, fmt.Errorf("prepare a layer: %w", err)
	}
	snap, err := s.driver.Prepare(ctx, id, ids(chain))
	if err != nil {
		if s.driver.Remove(ctx, id) == nil { // else the next sweep tries again
			s.lease.drop(id)
		}
		return nil, fmt.Errorf("prepare a layer: %w", err)
	}
	return &Draft{Snapshot: snap, ID: id, store: s}, nil
}

// Discard removes the draft, unless it has been committed. Safe to defer.
func (d *Draft) Discard() {
	if d.done {
		return
	}
	d.done = true
	d.Tree.Close()
	// Not the build's context: that may be why it is discarded.
	err := errors.Join(os.RemoveAll(d.store.layerDir(d.ID)), d.store.driver.Remove(context.Background(), d.ID))
	if err == nil { // else the next sweep tries again
		d.store.lease.drop(d.ID)
	}
}

// Commit lists what the draft changes, hashes it and makes it a layer. known
// gives content digests, by path, of files that need not be read again.
func (d *Draft) Commit(ctx context.Context, known *tree.Digests) (oci.Layer, error) {
	s := d.store
	if err := d.Tree.Close(); err != nil {
		return oci.Layer{}, fmt.Errorf("commit layer: %w", err)
	}
	dir, err := s.driver.Made(d.ID)
	if err != nil {
		return oci.Layer{}, fmt.Errorf("commit layer: %w", err)
	}
	l := oci.Layer{ID: d.ID}
	err = d.writeEntries(func(w io.Writer) error {
		rec := layer.NewRecorder(ctx, w, dir, hashers, known)
		for c, err := range s.driver.Changes(ctx, d.ID) {
			if err != nil {
				return fmt.Errorf("list what a step changed: %w", err)
			}
			if err := rec.Add(c); err != nil {
				return fmt.Errorf("hash layer: %w", err)
			}
		}
		l.Content, err = rec.End()
		return err
	})
	if err != nil {
		return oci.Layer{}, err
	}
	if err := s.driver.Commit(ctx, d.ID); err != nil {
		return oci.Layer{}, fmt.Errorf("commit layer: %w", err)
	}
	l.Created = s.now().UTC().Truncate(time.Microsecond)
	return d.finish(l)
}

// hashers is how many files are hashed at once: more threads than disks answer.
const hashers = 4

// CommitPulled makes the draft the pulled layer l, whose changes were listed as
// it was unpacked.
func (d *Draft) CommitPulled(ctx context.Context, l oci.Layer, changes []tree.Change) (oci.Layer, error) {
	if err := d.Tree.Close(); err != nil {
		return oci.Layer{}, fmt.Errorf("commit layer: %w", err)
	}
	if err := d.store.driver.Commit(ctx, d.ID); err != nil {
		return oci.Layer{}, fmt.Errorf("commit layer: %w", err)
	}
	if err := d.writeEntries(func(w io.Writer) error { return layer.WriteEntries(w, changes) }); err != nil {
		return oci.Layer{}, err
	}
	return d.finish(l)
}

// writeEntries has write write the list of what the layer changes.
func (d *Draft) writeEntries(write func(w io.Writer) error) error {
	dir := d.store.layerDir(d.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("commit layer: %w", err)
	}
	f, err := os.Create(filepath.Join(dir, "entries"))
	if err != nil {
		return fmt.Errorf("commit layer: %w", err)
	}
	err = write(f)
	if cerr := f.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("commit layer: %w", cerr)
	}
	return err
}

// finish writes what is known of the layer; the metadata is what makes it
// committed, so it comes last.
func (d *Draft) finish(l oci.Layer) (oci.Layer, error) {
	s := d.store
	if err := s.writeRecord(s.layerPath(d.ID), layerRecord{Layer: l, Boot: s.boot}); err != nil {
		return l, fmt.Errorf("commit layer: %w", err)
	}
	d.done = true
	s.lease.drop(d.ID)
	s.remember(l)
	s.vouch(d.ID)
	if !d.Unread {
		s.mu.Lock()
		s.fresh[d.ID] = true
		s.mu.Unlock()
	}
	return l, nil
}

// View is a chain to be read; its layers are all here. The caller closes its Tree.
func (s *Store) View(ctx context.Context, chain []oci.Layer) (Snapshot, error) {
	return s.driver.View(ctx, ids(chain))
}

// Entries lists what a committed layer changes, as recorded with it. A list that
// is damaged is a *DamagedError, and the layer no longer here.
func (s *Store) Entries(id string) iter.Seq2[tree.Change, error] {
	return func(yield func(tree.Change, error) bool) {
		f, err := os.Open(s.entriesPath(id))
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = s.broken(id, err)
			}
			yield(tree.Change{}, err)
			return
		}
		defer f.Close()
		for c, err := range layer.ReadEntries(f) {
			if layer.Unreadable(err) {
				err = s.broken(id, fmt.Errorf("%w; build again to have it made anew", err))
			}
			if !yield(c, err) {
				return
			}
		}
	}
}

// RemoveLayer deletes a layer: metadata first, so that it is gone for every
// other process before its files are.
func (s *Store) RemoveLayer(ctx context.Context, id string) error {
	s.forget(id)
	if _, err := os.Lstat(s.layerDir(id)); err == nil {
		// Who sweeps after us goes on where we were killed. A full disk takes no
		// note of it: that is no reason to leave it full.
		_ = s.lease.hold(id)
	}
	err := os.RemoveAll(s.layerDir(id))
	if errors.Is(err, unix.ENOTEMPTY) { // another process has just dropped it
		err = os.RemoveAll(s.layerDir(id))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	if err := s.driver.Remove(ctx, id); err != nil {
		return err
	}
	s.lease.drop(id)
	return nil
}
