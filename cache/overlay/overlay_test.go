package overlay

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What the contract does not say; the rest is in drivertest.
func TestRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("owners and xattrs of layers need root")
	}
	for _, c := range []struct {
		name     string
		o        Options
		volatile bool
	}{{"default", Options{}, true}, {"durable", Options{Durable: true}, false}} {
		d, err := New(t.TempDir(), c.o)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"a", "b"} {
			made(t, d, id, nil, "f")
		}
		s, err := d.Prepare(t.Context(), "c", []string{"a", "b", "a"})
		if err != nil {
			t.Fatal(err)
		}
		s.Tree.Close()
		lowers := stacked(s)
		if want := []string{"a", "b"}; !slices.Equal(lowers, want) {
			t.Errorf("%s: lower directories %q, want %q", c.name, lowers, want)
		}
		if got := slices.Contains(s.Root.Options, "volatile"); got != c.volatile {
			t.Errorf("%s: volatile = %v, want %v", c.name, got, c.volatile)
		}
	}
}

func TestSupported(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 200), strings.Repeat("e", 200))
	if err := os.MkdirAll(long, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Supported(long); err != nil {
		t.Errorf("Supported(%q) = %v, want nil", long, err)
	}
	if err := os.Mkdir(filepath.Join(long, probePrefix+"left"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Supported(long); err != nil {
		t.Errorf("Supported beside what was left = %v, want nil", err)
	}
	if err := Supported("/proc"); err == nil {
		t.Error("Supported(/proc) = nil, want an error")
	}
	if left, err := os.ReadDir(long); err != nil || len(left) > 0 {
		t.Errorf("Supported left %v, %v", left, err)
	}
}
