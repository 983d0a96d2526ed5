package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Ways in which steps share a cache mount, as RUN --mount=type=cache,sharing=
// has them.
const (
	Shared  = "shared"  // all at once; "" too
	Private = "private" // each its own: a second one where the first is in use
	Locked  = "locked"  // one after another
)

// CacheMount is the directory of the cache mount id, made with fill if it is
// new: fill is given an empty directory. It is held, in the way that sharing
// says, until release is called or the process ends.
func (s *Store) CacheMount(ctx context.Context, id, sharing string, fill func(dir string) error) (dir string, release func(), err error) {
	home := filepath.Join(s.dir, "mounts", shortHash(id))
	if err := os.MkdirAll(home, 0o711); err != nil {
		return "", nil, fmt.Errorf("cache mount %s: %w", id, err)
	}
	if err := s.nameMount(home, id); err != nil {
		return "", nil, fmt.Errorf("cache mount %s: %w", id, err)
	}
	how := unix.LOCK_SH
	if sharing == Locked || sharing == Private {
		how = unix.LOCK_EX
	}
	for n := 0; ; n++ {
		dir := filepath.Join(home, strconv.Itoa(n))
		release, err := holdFile(ctx, dir+".lock", how, sharing != Private)
		if errors.Is(err, errLocked) {
			continue // a private one that is in use
		}
		if err == nil {
			if err = s.fillMount(ctx, dir, fill); err != nil {
				release()
			}
		}
		if err != nil {
			return "", nil, fmt.Errorf("cache mount %s: %w", id, err)
		}
		return dir, release, nil
	}
}

// nameMount leaves the id beside the directories, for people and for prune.
func (s *Store) nameMount(home, id string) error {
	path := filepath.Join(home, "id")
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	return s.writeFile(path, []byte(id))
}

// fillMount makes the directory of a cache mount, whole or not at all.
func (s *Store) fillMount(ctx context.Context, dir string, fill func(string) error) error {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Those that share it hold it together: one of them fills it.
	release, err := holdFile(ctx, dir+".fill", unix.LOCK_EX, true)
	if err != nil {
		return err
	}
	defer release()
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// A .new that is there is what a killed process had begun.
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return err
	}
	if err := fill(fresh); err != nil {
		os.RemoveAll(fresh)
		return err
	}
	return os.Rename(fresh, dir)
}

// holdFile locks a file that stays where it is. Without wait, one that is
// locked is errLocked.
func holdFile(ctx context.Context, path string, how int, wait bool) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || !wait {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = errLocked
			}
			return nil, err
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			f.Close()
			return nil, context.Cause(ctx)
		case <-t.C:
		}
	}
}
