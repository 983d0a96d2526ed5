package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Sweep removes what processes that were killed have left: layers they had
// prepared, their temporary files, their leases. It is quick where there is
// nothing to do.
func (s *Store) Sweep(ctx context.Context) error {
	names, err := os.ReadDir(filepath.Join(s.dir, "leases"))
	if err != nil {
		return fmt.Errorf("sweep state directory: %w", err)
	}
	gone := map[string]*os.File{}
	for _, n := range names {
		name := strings.TrimSuffix(n.Name(), ".d")
		if name == s.lease.name || !leaseName(name) || gone[name] != nil {
			continue
		}
		path := filepath.Join(s.dir, "leases", name)
		held, err := claimLease(path)
		if err != nil || held == nil {
			continue // alive, or another process sweeps it
		}
		s.abandon(ctx, path)
		os.RemoveAll(filepath.Join(s.dir, "tmp", name))
		gone[name] = held
	}
	if len(gone) > 0 {
		s.sweepFiles(gone)
	}
	// The leases last: a sweep that is killed is done again.
	for name, held := range gone {
		os.Remove(filepath.Join(s.dir, "leases", name))
		held.Close()
	}
	return nil
}

// sweepFiles removes what processes with the leases gone were writing, and locks
// that nobody holds.
func (s *Store) sweepFiles(gone map[string]*os.File) {
	for _, path := range s.tempFiles() {
		if gone[tempOwner(path)] != nil {
			os.Remove(path)
		}
	}
	locks, _ := os.ReadDir(filepath.Join(s.dir, "locks")) // what cannot be listed stays
	for _, l := range locks {
		if unlock, err := s.tryLock(l.Name()); err == nil {
			unlock()
		}
	}
}

// abandon removes the layers that the lease at path lists and that were never
// committed, or that were dropped since. Of the latter, those stay listed that
// another process may still use, or this one, unless the lease is its own: then
// it is done with them.
func (s *Store) abandon(ctx context.Context, path string) {
	own := path == s.lease.path
	drafts, err := os.ReadDir(path + ".d")
	if err != nil {
		return
	}
	for _, d := range drafts {
		if strings.HasPrefix(d.Name(), freePrefix) {
			os.Remove(filepath.Join(path+".d", d.Name()))
		} else if s.abandonDraft(ctx, d.Name(), own) == nil {
			os.Remove(filepath.Join(path+".d", d.Name()))
		}
	}
	os.Remove(path + ".d")
}

func (s *Store) abandonDraft(ctx context.Context, id string, own bool) error {
	unlock, err := s.tryLock("layer-" + id)
	if err != nil {
		return err // somebody else is unpacking that layer now
	}
	defer unlock()
	// Under the lock: one who had it may have committed the layer.
	if _, err := s.readLayer(id); err == nil {
		return nil
	} else if Passes(err) {
		return err
	}
	if at, ok := s.wasDropped(id); ok {
		if since, err := s.running(own); err != nil || since.Before(at) {
			return errors.Join(errMounted, err)
		}
	}
	if err := os.RemoveAll(s.layerDir(id)); err != nil {
		return err
	}
	return s.driver.Remove(ctx, id)
}

const tempPrefix = ".tmp-"

// writeFile writes data under a temporary name in path's directory and renames
// it. It is not synced: every record is checked when it is read.
func (s *Store) writeFile(path string, data []byte) error {
	return s.writeFileBy(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// writeFileBy is writeFile of what write writes.
func (s *Store) writeFileBy(path string, write func(w io.Writer) error) error {
	// The name tells the next sweep whose it was.
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix+s.lease.name+"-")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	err = write(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// WriteFile writes the file called name in the state directory, all of it or
// nothing.
func (s *Store) WriteFile(name string, data []byte) error {
	return s.writeFile(filepath.Join(s.dir, name), data)
}

// putFile is writeFile that makes path's directory if it has to.
func (s *Store) putFile(path string, data []byte) error {
	return inDir(path, func() error { return s.writeFile(path, data) })
}

// inDir calls write, and again with path's directory made if it is missing.
func inDir(path string, write func() error) error {
	err := write()
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = write()
		}
	}
	return err
}

// tempOwner is the lease of the process that was writing the temporary file at
// path; "" if it is none.
func tempOwner(path string) string {
	rest, ok := strings.CutPrefix(filepath.Base(path), tempPrefix)
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "-")
	return name
}

// tempFiles is the files that are being written now, or were when their process
// ended.
func (s *Store) tempFiles() []string {
	var out []string
	for _, pattern := range []string{"", "steps/*", "places", "results", "stats", "pins", "chains", "listings", "layers/*", "mounts/*"} {
		found, err := filepath.Glob(filepath.Join(s.dir, pattern, tempPrefix+"*"))
		if err == nil { // the only error is one of the pattern
			out = append(out, found...)
		}
	}
	return out
}
