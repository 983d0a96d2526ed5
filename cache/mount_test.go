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
	dir, release, err := s.CacheMount(t.Context(), id, sharing, func(string) error { return nil })
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
			dir, release, err := s.CacheMount(ctx, "id", tt.second, func(string) error { return nil })
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
			dir, release, err := s.CacheMount(context.Background(), "id", Shared, func(dir string) error {
				fills.Add(1)
				time.Sleep(5 * time.Millisecond)
				return os.WriteFile(filepath.Join(dir, "f"), nil, 0o600)
			})
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
	_, _, err := s.CacheMount(t.Context(), "id", Private, func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o600); err != nil {
			return err
		}
		return bad
	})
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
