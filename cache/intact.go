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

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/oci"
)

// Intact looks at the files of those of layers that are here, without reading
// them: a *DamagedError names one whose files are not those that were committed,
// by type, size and time, and which is dropped. A layer is looked at once by a
// process, and not at all where the process has made it.
func (s *Store) Intact(ctx context.Context, layers []oci.Layer) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(lookers)
	for _, l := range layers {
		for _, id := range []string{l.ID, l.Source} {
			s.mu.Lock()
			done := id == "" || s.intact[id]
			s.mu.Unlock()
			if !done {
				g.Go(func() error { return s.look(ctx, id) })
			}
		}
	}
	return g.Wait()
}

// lookers is how many layers are looked at at once: it is the kernel's work.
const lookers = 4

func (s *Store) look(ctx context.Context, id string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, err := os.Lstat(s.layerPath(id)); errors.Is(err, fs.ErrNotExist) {
		return nil // not here: it is pulled when it is needed, or it is missed
	}
	f, err := os.Open(s.entriesPath(id))
	if err == nil {
		err = layer.Intact(f, s.driver.Dir(id))
		f.Close()
	}
	if err != nil {
		return s.broken(id, err)
	}
	s.vouch(id)
	return nil
}

// Unseen is the size in bytes of the lists of l's files that Intact would go
// through: some 70 for each file. It is 0 once it has.
func (s *Store) Unseen(l oci.Layer) (size int64) {
	for _, id := range []string{l.ID, l.Source} {
		s.mu.Lock()
		done := id == "" || s.intact[id]
		s.mu.Unlock()
		if st, err := os.Lstat(s.entriesPath(id)); !done && err == nil {
			size += st.Size()
		}
	}
	return size
}

// vouch notes that this process has seen the layer's files to be what they were.
func (s *Store) vouch(id string) {
	s.mu.Lock()
	s.intact[id] = true
	s.mu.Unlock()
}

// Audit reads all files of the layers that this process has used, drops those
// that are not what was committed, and says why of each. It is for when there is
// reason for doubt: it takes as long as reading them does.
func (s *Store) Audit(ctx context.Context) []error {
	s.mu.Lock()
	var ids []string
	for id := range s.used {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	slices.Sort(ids)
	var bad []error
	for _, id := range ids {
		if _, err := os.Lstat(s.layerPath(id)); err != nil {
			continue
		}
		err := s.checkLayer(ctx, id)
		if ctx.Err() != nil {
			return append(bad, context.Cause(ctx))
		}
		if err != nil {
			bad = append(bad, s.broken(id, err))
		}
	}
	return bad
}

// checkLayer compares all that is recorded of a layer with its files.
func (s *Store) checkLayer(ctx context.Context, id string) error {
	l, err := s.readLayer(id)
	if err != nil {
		return err
	}
	f, err := os.Open(s.entriesPath(id))
	if err != nil {
		return err
	}
	defer f.Close()
	changes, err := layer.Collect(layer.ReadEntries(f))
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, 0); err != nil {
		return err
	}
	dir := s.driver.Dir(id)
	if err := layer.Intact(f, dir); err != nil {
		return err
	}
	if got := layer.Digest(changes); l.Content != l.DiffID && got != l.Content {
		return fmt.Errorf("its entries have the content digest %s, recorded is %s", got, l.Content)
	}
	files := make([]tree.Change, len(changes))
	copy(files, changes)
	for i := range files {
		files[i].Digest = ""
	}
	if err := layer.Hash(ctx, files, dir, hashers); err != nil {
		return err
	}
	for i, f := range files {
		if f.Digest != changes[i].Digest {
			return fmt.Errorf("%s has the digest %s, recorded is %s", f.Path, f.Digest, changes[i].Digest)
		}
	}
	return nil
}

func damaged(id string, err error) error {
	var d *DamagedError
	if errors.As(err, &d) {
		return err
	}
	return &DamagedError{What: "layer " + id, Layer: id, Err: err}
}

// broken drops a layer for err, and returns that as a *DamagedError. What passes is
// no reason to.
func (s *Store) broken(id string, err error) error {
	if Passes(err) {
		return fmt.Errorf("layer %s: %w", id, err)
	}
	s.drop(id)
	return damaged(id, err)
}

// Passes reports whether err is of the machine at this moment, or of who asks, such as
// too few descriptors, and says nothing about what was to be read.
func Passes(err error) bool {
	return slices.ContainsFunc([]error{
		unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.EAGAIN, unix.EINTR, unix.EACCES, unix.EPERM, unix.ENOSPC, unix.EDQUOT,
		context.Canceled, context.DeadlineExceeded,
	}, func(passing error) bool { return errors.Is(err, passing) })
}

// dropped is the name that a layer's metadata has once the layer was found to be
// damaged. From then on it is not here.
const dropped = "dropped"

// drop makes a layer that is not what it should be one that is not here. Its
// files stay for as long as a process runs that may have them mounted: they are
// listed under the lease, and removed with what else is. What fails here leaves
// a layer that is found to be damaged again.
func (s *Store) drop(id string) {
	s.forget(id)
	if _, err := os.Lstat(s.layerDir(id)); err != nil {
		return // somebody removes it
	}
	if err := s.lease.hold(id); err != nil {
		_ = os.Remove(s.layerPath(id)) // a disk that takes no file: fsck finds the rest
		return
	}
	mark := filepath.Join(s.layerDir(id), dropped)
	err := os.Rename(s.layerPath(id), mark)
	if errors.Is(err, fs.ErrNotExist) { // it was the metadata that got lost
		err = os.WriteFile(mark, nil, 0o600)
	}
	if err == nil {
		err = os.Chtimes(mark, time.Time{}, s.now())
	}
	if err != nil {
		_ = os.Remove(s.layerPath(id))
	}
}

func (s *Store) forget(id string) {
	s.mu.Lock()
	delete(s.known, id)
	delete(s.intact, id)
	delete(s.fresh, id)
	s.mu.Unlock()
}

// wasDropped is when the layer id was found to be damaged.
func (s *Store) wasDropped(id string) (at time.Time, ok bool) {
	st, err := os.Lstat(filepath.Join(s.layerDir(id), dropped))
	if err != nil {
		return at, false
	}
	return st.ModTime(), true
}

// errMounted is the error for a layer that a process may still use.
var errMounted = errors.New("a process that runs may have it mounted")

// stray drops what there is of a layer that was committed and has no metadata.
func (s *Store) stray(id string) {
	if _, already := s.wasDropped(id); already {
		return
	}
	if _, err := os.Lstat(s.layerPath(id)); errors.Is(err, fs.ErrNotExist) {
		s.drop(id)
	}
}
