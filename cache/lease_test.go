package cache

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const pulledID = "sha256-1111111111111111111111111111111111111111111111111111111111111111"

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestSweep(t *testing.T) {
	tests := []struct {
		name string
		end  func(*process)
		left bool // what the process was making is still there after a sweep
	}{
		{"killed", (*process).kill, false},
		{"alive", func(*process) {}, true},
		{"ended in order", (*process).end, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			kept := commit(t, s, nil, files{{"/kept", "1"}})
			p, id := start(t, dir, "draft", pulledID)
			lease, _, _ := strings.Cut(id, "-")
			if !s.Alive(lease) {
				t.Errorf("Alive(%s) = false for a process that runs", lease)
			}
			tt.end(p)
			if got := s.Alive(lease); got != tt.left {
				t.Errorf("Alive(%s) = %v after it %s", lease, got, tt.name)
			}
			if err := s.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{
				"leases/" + lease, "leases/" + lease + ".d", "snapshots/work/" + id, "snapshots/work/" + pulledID,
				"tmp/" + lease + "/x", "results/" + tempPrefix + lease + "-1", "locks/left",
			} {
				if got := exists(filepath.Join(dir, path)); got != tt.left {
					t.Errorf("%s is there: %v, want %v", path, got, tt.left)
				}
			}
			if _, err := s.Layer(kept.ID); err != nil {
				t.Errorf("the committed layer: %v", err)
			}
			p.kill()
			if err := s.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The lease lists a layer that was committed just before the process was killed.
func TestSweepKeepsCommitted(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	l := commit(t, s, nil, files{{"/f", "1"}})
	other, err := newLease(filepath.Join(dir, "leases"))
	if err != nil {
		t.Fatal(err)
	}
	if err := other.hold(l.ID); err != nil {
		t.Fatal(err)
	}
	other.f.Close() // its process ends
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.readLayer(l.ID); err != nil {
		t.Errorf("the layer after the sweep: %v", err)
	}
	if exists(other.path) || exists(other.path+".d") {
		t.Error("the lease is still there")
	}
}

// A layer that another process is unpacking just now is not the sweeper's.
// A removal that was cut short goes on with the next sweep.
func TestSweepRemovesOn(t *testing.T) {
	for _, tt := range []struct {
		name string
		cut  func(s *Store, id string) error
		gone bool
	}{
		{"before it began", func(*Store, string) error { return nil }, false},
		{"after the metadata", func(s *Store, id string) error { return os.Remove(s.layerPath(id)) }, true},
		{"before the files", func(s *Store, id string) error { return os.RemoveAll(s.layerDir(id)) }, true},
	} {
		dir := t.TempDir()
		s := open(t, dir)
		l := commit(t, s, nil, sample)
		killed, err := newStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := killed.lease.hold(l.ID); err != nil {
			t.Fatal(err)
		}
		if err := tt.cut(killed, l.ID); err != nil {
			t.Fatal(err)
		}
		killed.lease.f.Close() // as the kernel does
		if err := s.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(s.driver.Dir(l.ID)); (err != nil) != tt.gone {
			t.Errorf("killed %s: the files are %v, want them gone: %v", tt.name, err, tt.gone)
		}
	}
}

func TestSweepLeavesLocked(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	p, _ := start(t, dir, "draft", pulledID)
	p.kill()
	unlock, err := s.Lock(t.Context(), "layer-"+pulledID)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !exists(filepath.Join(dir, "snapshots/work", pulledID)) {
		t.Error("the layer that is locked was removed")
	}
	unlock()
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exists(filepath.Join(dir, "snapshots/work", pulledID)) {
		t.Error("the next sweep left it")
	}
}

func TestClose(t *testing.T) {
	dir := t.TempDir()
	needRoot(t)
	s, err := newStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Prepare(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.TempDir(); err != nil {
		t.Fatal(err)
	}
	if got := s.Check(t.Context()); len(got) != 1 || !strings.Contains(got[0].Error(), "neither committed nor discarded") {
		t.Errorf("Check with a draft = %v", got)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	d.Tree.Close()
	for _, sub := range []string{"leases", "tmp", "snapshots/work", "snapshots/trash"} {
		if left, _ := os.ReadDir(filepath.Join(dir, sub)); len(left) > 0 {
			t.Errorf("%s holds %v", sub, left)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	tests := []struct {
		name, format, want string
	}{
		{"another version", string(sealRecord([]byte("build state 2"))), `is "build state 2", this program writes "build state 1"`},
		{"something else", "hello", `use another --root`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			needRoot(t)
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "format"), []byte(tt.format), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := newStore(dir)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, want %q in it", err, tt.want)
			}
			if left, _ := os.ReadDir(filepath.Join(dir, "leases")); len(left) > 0 {
				t.Errorf("leases holds %v", left)
			}
			if got := CheckVersion(dir); (got != nil) != (tt.name == "another version") || got != nil && got.Error() != err.Error() {
				t.Errorf("CheckVersion = %v, Open = %v", got, err)
			}
		})
	}
}

func TestFormatDamaged(t *testing.T) {
	whole := string(sealRecord([]byte(format)))
	for _, text := range []string{"", whole[:5], whole[:20], "x" + whole[1:], whole[:len(whole)-1] + "x", format + "\n", "build state 3\n"} {
		dir := t.TempDir()
		open(t, dir)
		if err := os.WriteFile(filepath.Join(dir, "format"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		open(t, dir)
		if b, err := os.ReadFile(filepath.Join(dir, "format")); string(b) != whole {
			t.Errorf("format was %q and is %q, %v, want %q", text, b, err, whole)
		}
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	p, _ := start(t, dir, "lock", "a")
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	time.AfterFunc(30*time.Millisecond, func() { cancel(stop) })
	if _, err := s.Lock(ctx, "a"); !errors.Is(err, stop) {
		t.Errorf("Lock of what another process holds = %v, want the context's cause", err)
	}
	if unlock, err := s.Lock(t.Context(), "b"); err != nil {
		t.Error(err)
	} else {
		unlock()
	}
	got := make(chan error)
	go func() {
		unlock, err := s.Lock(t.Context(), "a")
		if err == nil {
			unlock()
		}
		got <- err
	}()
	p.kill() // the kernel lets go of its lock
	if err := <-got; err != nil {
		t.Error(err)
	}
	left, _ := os.ReadDir(filepath.Join(dir, "locks"))
	for _, e := range left {
		if !strings.HasPrefix(e.Name(), freePrefix+s.Lease()) {
			t.Errorf("locks holds %v, which is nobody's", e)
		}
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "locks")); len(left) > 0 {
		t.Errorf("locks holds %v after Close", left)
	}
}

func TestLockExcludes(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	file := filepath.Join(dir, "count")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range 50 {
				if err := count(context.Background(), s, file); err != nil {
					t.Error(err)
				}
			}
		})
	}
	first, _ := start(t, dir, "count", file)
	first.end()
	wg.Wait()
	b, err := os.ReadFile(file)
	if err != nil || len(b) != 150 {
		t.Errorf("counted to %d, %v, want 150", len(b), err)
	}
}

func TestAliveOfNobody(t *testing.T) {
	s := open(t, t.TempDir())
	for _, name := range []string{"", "abcdefabcdef", "../format", s.Lease() + "x"} {
		if s.Alive(name) {
			t.Errorf("Alive(%q) = true", name)
		}
	}
	if !s.Alive(s.Lease()) {
		t.Error("the own lease is not alive")
	}
	if _, err := os.Lstat(filepath.Join(s.Dir(), "leases", "abcdefabcdef")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("asking made a lease")
	}
}
