package limits

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Child()
	os.Exit(m.Run())
}

func TestStatAll(t *testing.T) {
	dir := t.TempDir()
	if err := fill(dir, 2, 3, 10); err != nil {
		t.Fatal(err)
	}
	if err := statAll(filepath.Join(dir, "1")); err != nil {
		t.Errorf("statAll of three files: %v", err)
	}
	if err := statAll(filepath.Join(dir, "2")); err == nil {
		t.Error("statAll of a directory that is not there succeeded")
	}
}

func TestCopyFile(t *testing.T) {
	dir := t.TempDir()
	if err := fill(dir, 1, 1, 4096); err != nil {
		t.Fatal(err)
	}
	from, to := filepath.Join(dir, "0", "0"), filepath.Join(dir, "copy")
	if err := copyFile(from, to); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(to); err != nil || !slices.Equal(got, want) {
		t.Errorf("the copy has %d bytes, %v, want those of the original", len(got), err)
	}
}

func TestInParallel(t *testing.T) {
	called := make([]int, 17)
	if err := inParallel(len(called), func(i int) error { called[i]++; return nil }); err != nil {
		t.Fatal(err)
	}
	for i, n := range called {
		if n != 1 {
			t.Errorf("inParallel(17) called f(%d) %d times, want once", i, n)
		}
	}
	if err := inParallel(3, func(i int) error {
		if i == 2 {
			return os.ErrInvalid
		}
		return nil
	}); err == nil {
		t.Error("inParallel with a failing function succeeded")
	}
}

func TestLimitString(t *testing.T) {
	l := Limit{"SHA-256, one thread", rate(187e6, time.Second), "MB/s"}
	if got, want := l.String(), "SHA-256, one thread: 187 MB/s"; got != want {
		t.Errorf("%#v.String() = %q, want %q", l, got, want)
	}
}

// TestStartChild needs root, as a benchmark does.
func TestStartChild(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := prepareRoot(dir); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	if err := startChild(t.Context(), dir, 0); err != nil {
		t.Errorf("startChild: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "root", "bin")); err == nil {
		t.Error("the child's mount is still there")
	}
}
