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

func (u *usage) mounts() error {
	homes, err := os.ReadDir(filepath.Join(u.store.dir, "mounts"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, h := range homes {
		home := filepath.Join(u.store.dir, "mounts", h.Name())
		name, _ := os.ReadFile(filepath.Join(home, "id")) // of one that is just being made
		list, _ := os.ReadDir(home)
		for _, e := range list {
			if !e.IsDir() {
				continue
			}
			dir := filepath.Join(home, e.Name())
			if number, _, ok := strings.Cut(e.Name(), "."); ok {
				mount := filepath.Join(home, number)
				// What a killed process was making of the mount, or removing.
				used, needed := lastHeld(mount + ".lock")
				u.add(Item{Kind: KindOther, ID: "unfinished cache mount " + string(name), LastUsed: used, Needed: needed},
					func(context.Context) error { return collectUnfinished(mount, dir) }, dir)
				continue
			}
			used, needed := lastHeld(dir + ".lock")
			paths := []string{dir}
			for _, n := range notes() {
				paths = append(paths, dir+"."+n)
			}
			u.add(Item{Kind: KindMount, ID: string(name), LastUsed: used, Needed: needed},
				func(context.Context) error { return collectMount(dir) }, paths...)
		}
	}
	return err
}

// lastHeld is when the lock file path was last taken, and whether it is held.
func lastHeld(path string) (at time.Time, needed string) {
	f, err := os.Open(path)
	if err != nil {
		return at, ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil {
		at = st.ModTime()
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		needed = "a step that runs"
	}
	return at, needed
}

// collectUnfinished removes dir, which nobody makes while the mount's lock is free.
func collectUnfinished(mount, dir string) error {
	release, err := holdFile(context.Background(), mount+".lock", unix.LOCK_EX, false)
	if errors.Is(err, errLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	return os.RemoveAll(dir)
}

func collectMount(dir string) error {
	release, err := holdFile(context.Background(), dir+".lock", unix.LOCK_EX, false)
	if errors.Is(err, errLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	// Out of the way in one step: the next to mount it makes it anew.
	gone := dir + ".gone"
	if err := os.RemoveAll(gone); err != nil {
		return err
	}
	if err := os.Rename(dir, gone); err != nil {
		return err
	}
	for _, n := range notes() {
		os.Remove(dir + "." + n)
	}
	return os.RemoveAll(gone)
}
