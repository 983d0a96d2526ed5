package cache

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A layer that cannot be looked at now is not given up for that.
func TestBroken(t *testing.T) {
	for _, tt := range []struct {
		err  error
		left bool
	}{
		{unix.EMFILE, true}, {unix.ENOMEM, true}, {unix.EACCES, true},
		{fs.ErrNotExist, false}, {unix.EIO, false},
	} {
		s := openPlain(t, t.TempDir())
		l := commit(t, s, nil, files{{"/f", "x"}})
		if err := s.broken(l.ID, fmt.Errorf("open: %w", tt.err)); err == nil {
			t.Errorf("%v: no error", tt.err)
		}
		if _, err := s.Layer(l.ID); (err == nil) != tt.left {
			t.Errorf("after %v the layer is %v, want it to be there: %v", tt.err, err, tt.left)
		}
	}
}

// Of a process it must be known that it has ended.
func TestLeaseAlive(t *testing.T) {
	dir := t.TempDir()
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink("loop", loop); err != nil {
		t.Fatal(err)
	}
	if !leaseAlive(loop) {
		t.Error("a process whose lease cannot be opened is taken for dead")
	}
	if leaseAlive(filepath.Join(dir, "none")) {
		t.Error("a process without a lease is taken for alive")
	}
}

// A layer that another process makes now is not collected.
func TestCollectWhileMade(t *testing.T) {
	s := openPlain(t, t.TempDir())
	l := commit(t, s, nil, files{{"/f", "x"}})
	age(t, s, l.ID, time.Hour)
	unlock, err := s.Lock(t.Context(), "layer-"+l.ID)
	if err != nil {
		t.Fatal(err)
	}
	collect := func() bool {
		if err := s.collectLayer(t.Context(), l.ID, time.Now()); err != nil {
			t.Error(err)
		}
		_, err := s.Layer(l.ID)
		return err != nil
	}
	if collect() {
		t.Error("it was collected while it was locked")
	}
	unlock()
	if !collect() {
		t.Error("it was not collected")
	}
}
