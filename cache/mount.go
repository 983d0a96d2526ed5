package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// MountInit says what a cache mount begins with.
type MountInit struct {
	// Fill gives a new one its first content. It is given an empty directory.
	Fill func(dir string) error
	// Restore gives one that is new, or here and empty, what it had elsewhere; it
	// is given an empty directory. nil notes, see HeldMount.Note, say that there
	// is nothing: what it left in dir is removed. It may be nil.
	Restore func(dir string) (notes map[string][]byte, err error)
}

// CacheMount is the directory of the cache mount id, made with init if it is
// new. It is held, in the way that sharing says, until release is called or the
// process ends.
func (s *Store) CacheMount(ctx context.Context, id, sharing string, init MountInit) (dir string, release func(), err error) {
	home := s.mountHome(id)
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
		if err := s.refillMount(ctx, dir, init.Restore); err != nil {
			return "", nil, fmt.Errorf("cache mount %s: %w", id, err)
		}
		release, err := holdFile(ctx, dir+".lock", how, sharing != Private)
		if errors.Is(err, errLocked) {
			continue // a private one that is in use
		}
		if err == nil {
			if err = s.fillMount(ctx, dir, init); err != nil {
				release()
			}
		}
		if err != nil {
			return "", nil, fmt.Errorf("cache mount %s: %w", id, err)
		}
		// The lock's time is when the mount was last used: see lastHeld.
		_ = os.Chtimes(dir+".lock", time.Time{}, s.now())
		return dir, release, nil
	}
}

func (s *Store) mountHome(id string) string { return filepath.Join(s.dir, "mounts", shortHash(id)) }

// nameMount leaves the id beside the directories, for people and for prune.
func (s *Store) nameMount(home, id string) error {
	path := filepath.Join(home, "id")
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	return s.writeFile(path, []byte(id))
}

// fillMount makes the directory of a cache mount, whole or not at all.
func (s *Store) fillMount(ctx context.Context, dir string, init MountInit) error {
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
	if done, err := s.restoreMount(dir, init.Restore); done || err != nil {
		return err
	}
	fresh, err := freshMount(dir)
	if err != nil {
		return err
	}
	if err := init.Fill(fresh); err != nil {
		os.RemoveAll(fresh)
		return err
	}
	return os.Rename(fresh, dir)
}

// freshMount is an empty directory, to become dir.
func freshMount(dir string) (string, error) {
	// A .new that is there is what a killed process had begun.
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return "", err
	}
	return fresh, os.Mkdir(fresh, 0o755)
}

// refillMount restores a mount that is here and has nothing in it, if nobody
// uses it now.
func (s *Store) refillMount(ctx context.Context, dir string, restore func(string) (map[string][]byte, error)) error {
	if restore == nil || !isEmpty(dir) {
		return nil
	}
	release, err := holdFile(ctx, dir+".lock", unix.LOCK_EX, false)
	if errors.Is(err, errLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	if !isEmpty(dir) {
		return nil
	}
	_, err = s.restoreMount(dir, restore)
	return err
}

// restoreMount puts what restore makes in the place of dir, which is not there or
// empty, and held alone or by the lock for filling it.
func (s *Store) restoreMount(dir string, restore func(string) (map[string][]byte, error)) (done bool, err error) {
	if restore == nil {
		return false, nil
	}
	fresh, err := freshMount(dir)
	if err != nil {
		return false, err
	}
	notes, err := restore(fresh)
	if err == nil && notes != nil {
		// rename(2) replaces an empty directory, and no other; os.Rename none.
		err = unix.Rename(fresh, dir)
		done = err == nil
	}
	if !done {
		if rerr := os.RemoveAll(fresh); err == nil {
			err = rerr
		}
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
			err = nil // somebody without the lock has put something there
		}
		return false, err
	}
	m := HeldMount{Dir: dir, store: s}
	for name, data := range notes {
		_ = m.PutNote(name, data) // it costs time later, and no more
	}
	return true, nil
}

// isEmpty reports a directory with nothing in it.
func isEmpty(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = f.Readdirnames(1)
	return errors.Is(err, io.EOF)
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
