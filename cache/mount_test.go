package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func mount(t testing.TB, s *Store, id, sharing string) (dir string, release func()) {
	t.Helper()
	dir, release, err := s.CacheMount(t.Context(), id, sharing, MountInit{Fill: func(string) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	return dir, release
}

// What a second process gets while a first one holds the mount; "" is that it
// waits.
func TestCacheMountSharing(t *testing.T) {
	tests := []struct{ first, second, want string }{
		{Shared, Shared, "0"},
		{"", Shared, "0"},
		{Shared, Private, "1"},
		{Shared, Locked, ""},
		{Private, Private, "1"},
		{Private, Shared, ""},
		{Private, Locked, ""},
		{Locked, Locked, ""},
		{Locked, Private, "1"},
		{Locked, Shared, ""},
	}
	for _, tt := range tests {
		t.Run(tt.first+"-"+tt.second, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir())
			p, got := start(t, s.Dir(), "mount", "id", tt.first)
			if got != "0" {
				t.Fatalf("the first has the directory %s, want 0", got)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 40*time.Millisecond)
			defer cancel()
			dir, release, err := s.CacheMount(ctx, "id", tt.second, MountInit{Fill: func(string) error { return nil }})
			switch {
			case tt.want == "":
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("CacheMount = %q, %v, want it to wait", dir, err)
				}
			case err != nil:
				t.Error(err)
			case filepath.Base(dir) != tt.want:
				t.Errorf("CacheMount = %q, want directory %s", dir, tt.want)
			}
			if err == nil {
				release()
			}
			p.kill() // however it ends, it holds the mount no longer
			dir, release = mount(t, s, "id", tt.second)
			if filepath.Base(dir) != "0" {
				t.Errorf("then CacheMount = %q, want directory 0", dir)
			}
			release()
			if err := s.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestCacheMountKeeps(t *testing.T) {
	s := open(t, t.TempDir())
	dir, release := mount(t, s, "id", Shared)
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	release()
	again, release := mount(t, open(t, s.Dir()), "id", Locked)
	defer release()
	if again != dir || !exists(filepath.Join(again, "f")) {
		t.Errorf("CacheMount = %q, want %q and the file in it", again, dir)
	}
	other, release2 := mount(t, s, "id2", Shared)
	defer release2()
	if other == dir {
		t.Error("another id has the same directory")
	}
	if b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "id")); err != nil || string(b) != "id" {
		t.Errorf("the directory is called %q, %v, want id", b, err)
	}
}

func TestCacheMountIsFilledOnce(t *testing.T) {
	s := open(t, t.TempDir())
	var fills atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dir, release, err := s.CacheMount(context.Background(), "id", Shared, MountInit{Fill: func(dir string) error {
				fills.Add(1)
				time.Sleep(5 * time.Millisecond)
				return os.WriteFile(filepath.Join(dir, "f"), nil, 0o600)
			}})
			if err != nil {
				t.Error(err)
				return
			}
			defer release()
			if !exists(filepath.Join(dir, "f")) {
				t.Error("somebody has a mount that is not filled")
			}
		})
	}
	wg.Wait()
	if n := fills.Load(); n != 1 {
		t.Errorf("filled %d times, want once", n)
	}
}

func TestCacheMountFillFails(t *testing.T) {
	s := open(t, t.TempDir())
	bad := errors.New("no space")
	_, _, err := s.CacheMount(t.Context(), "id", Private, MountInit{Fill: func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o600); err != nil {
			return err
		}
		return bad
	}})
	if !errors.Is(err, bad) {
		t.Fatalf("CacheMount = %v, want the error of fill", err)
	}
	dir, release := mount(t, s, "id", Private)
	defer release()
	if exists(filepath.Join(dir, "half")) || filepath.Base(dir) != "0" {
		t.Errorf("then CacheMount = %q with what the failed fill left, or in another directory", dir)
	}
}

func TestCacheMountFillIsKilled(t *testing.T) {
	s := open(t, t.TempDir())
	p, _ := start(t, s.Dir(), "fill", "id")
	p.kill()
	dir, release := mount(t, s, "id", Shared)
	defer release()
	if exists(filepath.Join(dir, "half")) {
		t.Error("the mount holds what a killed process had begun")
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// restoring gives a mount the file "old" from elsewhere.
func restoring(calls *atomic.Int32) func(string) (map[string][]byte, error) {
	return func(dir string) (map[string][]byte, error) {
		calls.Add(1)
		return map[string][]byte{NoteList: []byte("l")}, os.WriteFile(filepath.Join(dir, "old"), nil, 0o600)
	}
}

func TestCacheMountIsRestored(t *testing.T) {
	s := open(t, t.TempDir())
	var calls atomic.Int32
	init := MountInit{Fill: func(string) error { t.Error("a mount that is restored is filled too"); return nil }, Restore: restoring(&calls)}
	take := func(want int32, file string) func() {
		t.Helper()
		dir, release, err := s.CacheMount(t.Context(), "id", Shared, init)
		if err != nil {
			t.Fatal(err)
		}
		if calls.Load() != want || !exists(filepath.Join(dir, file)) {
			t.Errorf("restored %d times, want %d; or there is no %s", calls.Load(), want, file)
		}
		return release
	}
	take(1, "old")()
	take(1, "old")() // it has content: nothing is overwritten
	held, err := s.HoldMount(t.Context(), "id", "", 0)
	if err != nil || !held.Alone || string(held.Note(NoteList)) != "l" || held.Note(NoteChunks) != nil {
		t.Fatalf("HoldMount = %+v, %v, want the mount and its note", held, err)
	}
	held.Release()
	old := filepath.Join(held.Dir, "old")
	if err := os.Remove(old); err != nil {
		t.Fatal(err)
	}
	take(2, "old")() // it is here and empty
	if err := os.Remove(old); err != nil {
		t.Fatal(err)
	}
	// Empty, and a step of another process is at it: it is left alone.
	p, _ := start(t, s.Dir(), "mount", "id", Shared)
	take(2, "")()
	p.kill()
	// Somebody writes there without holding it, in the last moment.
	init.Restore = func(dir string) (map[string][]byte, error) {
		if err := os.WriteFile(filepath.Join(held.Dir, "theirs"), nil, 0o600); err != nil {
			t.Error(err)
		}
		return restoring(&calls)(dir)
	}
	take(3, "theirs")()
	if exists(old) || exists(held.Dir+".new") {
		t.Error("what was restored is in the mount of somebody else, or beside it")
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(held.Dir+"."+NoteList, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if problems := s.Check(t.Context()); held.Note(NoteList) != nil || len(problems) != 1 {
		t.Errorf("a note that is damaged is taken, or not found: %v", problems)
	}
	if err := held.PutNote(NoteList, nil); err != nil {
		t.Error(err)
	}
}

func TestCacheMountRestoreFindsNothing(t *testing.T) {
	s := open(t, t.TempDir())
	bad := errors.New("cancelled")
	half := func(err error) func(string) (map[string][]byte, error) {
		return func(dir string) (map[string][]byte, error) {
			if werr := os.WriteFile(filepath.Join(dir, "half"), nil, 0o600); werr != nil {
				t.Error(werr)
			}
			return nil, err
		}
	}
	fill := func(dir string) error { return os.WriteFile(filepath.Join(dir, "first"), nil, 0o600) }
	if _, _, err := s.CacheMount(t.Context(), "id", Locked, MountInit{Fill: fill, Restore: half(bad)}); !errors.Is(err, bad) {
		t.Errorf("CacheMount = %v, want the error of Restore", err)
	}
	dir, release, err := s.CacheMount(t.Context(), "id", Locked, MountInit{Fill: fill, Restore: half(nil)})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if exists(filepath.Join(dir, "half")) || !exists(filepath.Join(dir, "first")) || exists(dir+".new") {
		t.Error("the mount does not begin with what Fill gave it")
	}
}

// What another process's use of a mount means for one who wants to read it.
func TestHoldMount(t *testing.T) {
	s := open(t, t.TempDir())
	if _, err := s.HoldMount(t.Context(), "id", "", time.Second); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("HoldMount of what is not here = %v", err)
	}
	dir, release := mount(t, s, "id", Shared)
	release()
	for _, tt := range []struct {
		sharing string
		alone   bool
		err     error
	}{{Shared, false, nil}, {Locked, false, ErrBusy}, {Private, false, ErrBusy}} {
		p, _ := start(t, s.Dir(), "mount", "id", tt.sharing)
		held, err := s.HoldMount(t.Context(), "id", "", 20*time.Millisecond)
		if !errors.Is(err, tt.err) || err == nil && held.Alone != tt.alone {
			t.Errorf("%s: HoldMount = %+v, %v, want alone %v and %v", tt.sharing, held, err, tt.alone, tt.err)
		}
		if err == nil {
			held.Release()
		}
		p.kill()
	}
	// A second directory, for a step that wants one of its own.
	_, release = mount(t, s, "id", Private)
	second, release2 := mount(t, s, "id", Private)
	release2()
	held, err := s.HoldMount(t.Context(), "id", "", 0)
	if err != nil || held.Dir != second {
		t.Fatalf("HoldMount = %+v, %v, want the one that is not in use, %s", held, err, second)
	}
	held.Release()
	release()
	for prefer, want := range map[string]string{"": dir, second: second, "/elsewhere": dir} {
		held, err := s.HoldMount(t.Context(), "id", prefer, 0)
		if err != nil || held.Dir != want || !held.Alone {
			t.Fatalf("HoldMount(%q) = %+v, %v, want %s", prefer, held, err, want)
		}
		held.Release()
	}
	ctx, cancel := context.WithCancel(t.Context())
	p, _ := start(t, s.Dir(), "mount", "id", Locked)
	q, _ := start(t, s.Dir(), "mount", "id", Private)
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := s.HoldMount(ctx, "id", "", time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("HoldMount = %v, want that it was cancelled", err)
	}
	p.kill()
	q.kill()
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestCacheMountUseIsKnown(t *testing.T) {
	s := open(t, t.TempDir())
	at := time.Now().Add(-time.Hour)
	s.now = func() time.Time { return at }
	for range 2 {
		dir, release := mount(t, s, "id", Shared)
		release()
		if used, _ := lastHeld(dir + ".lock"); !used.Equal(at) {
			t.Errorf("the mount was last used at %v, want %v", used, at)
		}
		at = at.Add(time.Minute)
	}
}
