package flock

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestLock(t *testing.T) {
	for _, tt := range []struct {
		name   string
		lock   func(*os.File) error
		shared error // of another who wants to share it
	}{{"shared", Shared, nil}, {"alone", Alone, unix.EWOULDBLOCK}} {
		path := filepath.Join(t.TempDir(), "lock")
		first, second := open(t, path), open(t, path)
		if err := tt.lock(first); err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(second.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, tt.shared) {
			t.Errorf("%s: another one sharing it gets %v, want %v", tt.name, err, tt.shared)
		}
		got := make(chan error)
		go func() { got <- Alone(second) }()
		select {
		case err := <-got:
			t.Errorf("%s: a second one has it alone (%v)", tt.name, err)
			continue
		default:
		}
		first.Close()
		if err := <-got; err != nil {
			t.Errorf("%s: when it is free: %v", tt.name, err)
		}
	}
}

func TestClosed(t *testing.T) {
	f := open(t, filepath.Join(t.TempDir(), "lock"))
	f.Close()
	if err := Alone(f); err == nil {
		t.Error("a closed file could be locked")
	}
}
