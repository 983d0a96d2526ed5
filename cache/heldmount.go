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
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy is the error for a cache mount that a step uses alone.
var ErrBusy = errors.New("a step of another build uses it")

// HeldMount is a cache mount that is held to be read.
type HeldMount struct {
	Dir string
	// Alone: no step uses it. Otherwise those that share it go on writing.
	Alone bool

	store   *Store
	release func()
}

// HoldMount holds one of the directories of the cache mount id; prefer, if it is
// one of them, before others. One that no step uses is taken alone, else one that
// steps share; if all are used by steps alone it waits, and after wait it is an
// ErrBusy. A mount that is not here is an fs.ErrNotExist. It is to be released.
func (s *Store) HoldMount(ctx context.Context, id, prefer string, wait time.Duration) (*HeldMount, error) {
	deadline := time.Now().Add(wait)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		dirs := s.mountDirs(id, prefer)
		if len(dirs) == 0 {
			return nil, fmt.Errorf("cache mount %s: %w", id, fs.ErrNotExist)
		}
		for _, how := range []int{unix.LOCK_EX, unix.LOCK_SH} {
			for _, dir := range dirs {
				release, err := holdFile(ctx, dir+".lock", how, false)
				if errors.Is(err, errLocked) {
					continue
				}
				if err != nil {
					return nil, fmt.Errorf("cache mount %s: %w", id, err)
				}
				if _, err := os.Lstat(dir); err != nil {
					release() // collected in between
					continue
				}
				return &HeldMount{Dir: dir, Alone: how == unix.LOCK_EX, store: s, release: release}, nil
			}
		}
		if !time.Now().Before(deadline) {
			return nil, fmt.Errorf("cache mount %s: %w", id, ErrBusy)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// mountDirs are the directories of a mount that are here, first first.
func (s *Store) mountDirs(id, first string) []string {
	home := s.mountHome(id)
	entries, _ := os.ReadDir(home) // one that cannot be read has none
	var numbers []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && e.IsDir() {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	var out []string
	for _, n := range numbers {
		if dir := filepath.Join(home, strconv.Itoa(n)); dir == first {
			out = slices.Insert(out, 0, dir)
		} else {
			out = append(out, dir)
		}
	}
	return out
}

// Release lets go of the mount.
func (m *HeldMount) Release() { m.release() }

// Notes that are kept beside a mount, for what takes it elsewhere.
const (
	NoteChunks = "chunks" // which chunks its files are: see chunked.Memory
	NoteList   = "list"   // the list that was sent or restored last
)

func notes() []string { return []string{NoteChunks, NoteList} }

// Note is what was noted of the mount under name; nil: nothing, or it is damaged.
func (m *HeldMount) Note(name string) []byte {
	b, err := os.ReadFile(m.Dir + "." + name)
	if err != nil {
		return nil
	}
	if b, err = openRecord(b); err != nil {
		return nil
	}
	return b
}

// PutNote notes something of the mount, for as long as it is here.
func (m *HeldMount) PutNote(name string, data []byte) error {
	return m.store.writeFile(m.Dir+"."+name, sealRecord(data))
}
