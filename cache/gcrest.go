package cache

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// downloads lists what ADD has downloaded. A file's own time is what its server
// said; when it was used last is that of its inode.
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
			used, err := changed(path)
			if err != nil || strings.HasSuffix(path, ".lock") {
				continue
			}
			i := Item{Kind: KindDownload, ID: kind + "/" + e.Name(), LastUsed: used}
			lock := ""
			if repository, ok := strings.CutSuffix(path, ".git"); ok {
				lock = repository + ".lock"
				if _, held := lastHeld(lock); held != "" {
					i.Needed = held
				}
			}
			u.add(i, func(context.Context) error { return collectDownload(path, lock, u.since) }, path)
		}
	}
	return nil
}

// changed is when the inode of path was changed last.
func changed(path string) (time.Time, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return time.Time{}, err
	}
	return time.Unix(st.Ctim.Unix()), nil
}

// collectDownload removes path, whose lock file, if it has one, is lock, unless it
// is held or has been used since it was found unused.
func collectDownload(path, lock string, since time.Time) error {
	if lock != "" {
		release, err := holdFile(context.Background(), lock, unix.LOCK_EX, false)
		if errors.Is(err, errLocked) {
			return nil
		}
		if err != nil {
			return err
		}
		defer release()
	}
	if used, err := changed(path); err != nil || !used.Before(since) {
		return nil
	}
	return os.RemoveAll(path)
}

// dropRecords removes the records of steps and chains whose layers are gone, and
// the listings that nothing refers to; with all, also those of imported steps
// whose layers have not been fetched. Places stay for now, see dropStale: they
// say when a result was there.
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

// staleAfter is how long what only saves work, or explains, is kept unused.
const staleAfter = 30 * 24 * time.Hour

// dropStale removes small records that nothing else would: contexts that were
// walked, steps that were compared with, results that nobody named. A machine
// that builds each time in another directory makes new ones for ever.
func (s *Store) dropStale() {
	for _, kind := range []string{"stats", "places", "results"} {
		paths, _ := filepath.Glob(filepath.Join(s.dir, kind, "*"))
		for _, path := range paths {
			st, err := os.Lstat(path)
			if err != nil || s.now().Sub(st.ModTime()) < staleAfter || tempOwner(path) != "" {
				continue
			}
			if kind == "places" && s.stillRecorded(path) {
				continue
			}
			os.Remove(path)
		}
	}
}

// stillRecorded reports whether the step that was recorded last for the place at
// path still is.
func (s *Store) stillRecorded(path string) bool {
	var p place
	if readRecord(path, &p) != nil {
		return false
	}
	if _, hex, _ := strings.Cut(p.Key.String(), ":"); len(hex) < 2 {
		return false
	}
	_, err := os.Lstat(s.stepPath(p.Key))
	return err == nil
}
