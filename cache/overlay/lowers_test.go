package overlay

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
)

// made commits layer id upon chain, with empty files of these names.
func made(t *testing.T, d *Driver, id string, chain []string, names ...string) {
	t.Helper()
	s, err := d.Prepare(t.Context(), id, chain)
	if err != nil {
		t.Fatal(err)
	}
	s.Tree.Close()
	dir, err := d.Made(id)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if name == tree.OpaqueXattr {
			err = unix.Setxattr(dir, name, []byte("y"), 0)
		} else {
			err = os.WriteFile(filepath.Join(dir, name), nil, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Commit(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// stacked is the names of the directories that s would be mounted of.
func stacked(s tree.Snapshot) []string {
	var dirs []string
	for _, o := range s.Root.Options {
		if dir, ok := strings.CutPrefix(o, "lowerdir+="); ok {
			dirs = append(dirs, filepath.Base(dir))
		}
	}
	return dirs
}

func TestLowers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("owners and xattrs of layers need root")
	}
	d, err := New(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	made(t, d, "a", nil, "in-a")
	made(t, d, "b", nil, "in-b")
	made(t, d, "nothing", nil)
	made(t, d, "none", nil)
	made(t, d, "hides", nil, tree.OpaqueXattr)
	var many []string
	for i := range maxNames + 1 {
		many = append(many, strings.Repeat("m", i/16+1)+string(rune('a'+i%16)))
	}
	made(t, d, "many", nil, many...)
	if err := unix.Chmod(d.Dir("none"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		chain string
		want  string // of what is prepared
		names string // in the root
		mode  uint32
	}{
		{"a b", "b a", "in-a in-b", 0o755},
		{"a b a", "a b", "in-a in-b", 0o755},
		{"nothing a none b", "b a", "in-a in-b", 0o755},
		{"a nothing none", "none a", "in-a", 0o700}, // the root is the topmost's
		{"none a nothing", "nothing a", "in-a", 0o755},
		{"none", "none", "", 0o700},
		{"none nothing none", "none", "", 0o700},
		{"a hides b", "b hides", "in-b", 0o755},
		{"a hides nothing", "nothing hides", "", 0o755},
		{"a nothing hides", "hides", "", 0o755},
		{"a many b", "b many a", strings.Join(slices.Sorted(slices.Values(append(many, "in-a", "in-b"))), " "), 0o755},
	} {
		chain := strings.Fields(c.chain)
		for _, again := range []bool{false, true} {
			if again {
				if d, err = New(filepath.Dir(filepath.Dir(d.Dir("a"))), Options{}); err != nil {
					t.Fatal(err)
				}
			}
			s, err := d.Prepare(t.Context(), "new", chain)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(stacked(s), " "); got != c.want {
				t.Errorf("%s: stacked %q, want %q", c.chain, got, c.want)
			}
			v, err := d.View(t.Context(), chain)
			if err != nil {
				t.Fatal(err)
			}
			for what, tr := range map[string]*tree.Tree{"prepared": s.Tree, "view": v.Tree} {
				got, err := tr.ReadDir("/")
				if names := strings.Join(got, " "); names != c.names || err != nil {
					t.Errorf("%s: %s: names %q, %v, want %q", c.chain, what, names, err, c.names)
				}
				e, err := tr.Lstat("/")
				if mode := e.Mode & 0o7777; mode != c.mode || err != nil {
					t.Errorf("%s: %s: mode of the root %o, %v, want %o", c.chain, what, mode, err, c.mode)
				}
				tr.Close()
			}
			if err := d.shelf.Drop("new"); err != nil {
				t.Fatal(err)
			}
		}
	}
	// What was removed and made again is looked at again.
	if err := d.Remove(t.Context(), "nothing"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.View(t.Context(), []string{"nothing", "a"}); err == nil {
		t.Error("a chain with a layer that was removed can be viewed")
	}
	made(t, d, "nothing", nil, "more")
	v, err := d.View(t.Context(), []string{"nothing", "a"})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Tree.Close()
	if _, err := v.Tree.Quick("/more"); err != nil {
		t.Error(err)
	}
}
