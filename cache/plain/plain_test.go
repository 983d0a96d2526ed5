package plain

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/layer"
)

// What the contract does not say; the rest is in drivertest.

func newDriver(t *testing.T) *Driver {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("owners and devices of layers need root")
	}
	d, err := New(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// prepare begins layer id upon chain and returns where its files are.
func prepare(t *testing.T, d *Driver, id string, chain ...string) string {
	t.Helper()
	s, err := d.Prepare(t.Context(), id, chain)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Tree.Close(); err != nil {
		t.Fatal(err)
	}
	return s.Root.Source
}

func commit(t *testing.T, d *Driver, id string) {
	t.Helper()
	if err := d.Commit(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

func changed(t *testing.T, d *Driver, id string) (paths []string) {
	t.Helper()
	cs, err := layer.Collect(d.Changes(t.Context(), id))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cs {
		paths = append(paths, c.Path)
	}
	return paths
}

func TestCopies(t *testing.T) {
	d := newDriver(t)
	root := prepare(t, d, "a")
	write(t, root+"/one", "1")
	if err := os.Link(root+"/one", root+"/two"); err != nil {
		t.Fatal(err)
	}
	// Data, a hole, data, a hole.
	f, err := os.Create(root + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	const mega = 1 << 20
	data := bytes.Repeat([]byte("data"), 16<<10)
	for _, at := range []int64{0, 4 * mega} {
		if _, err := f.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(8 * mega); err != nil {
		t.Fatal(err)
	}
	f.Close()
	want, err := os.ReadFile(root + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	commit(t, d, "a")

	root = prepare(t, d, "b", "a")
	one, two, sparse := stat(t, root+"/one"), stat(t, root+"/two"), stat(t, root+"/sparse")
	if one.Ino != two.Ino || one.Nlink != 2 {
		t.Errorf("hard links are copied as inodes %d and %d with %d names, want one with 2", one.Ino, two.Ino, one.Nlink)
	}
	if one.Ino == stat(t, d.Dir("a")+"/one").Ino {
		t.Error("a prepared layer shares a file with a committed one")
	}
	if sparse.Blocks*512 > mega {
		t.Errorf("a copy of a sparse file takes %d bytes, want at most 1 MiB", sparse.Blocks*512)
	}
	if got, err := os.ReadFile(root + "/sparse"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a copy of a sparse file differs, %v", err)
	}
	if got := changed(t, d, "b"); got != nil {
		t.Errorf("changes of a copy = %q, want none", got)
	}
}

func TestTreesShareFiles(t *testing.T) {
	d := newDriver(t)
	write(t, prepare(t, d, "a")+"/f", "1")
	commit(t, d, "a")
	root := prepare(t, d, "b", "a")
	write(t, root+"/g", "2")
	commit(t, d, "b")
	s, err := d.View(t.Context(), []string{"a", "b"})
	if err != nil {
		t.Fatal(err)
	}
	s.Tree.Close()
	for name, id := range map[string]string{"/f": "a", "/g": "b"} {
		if stat(t, s.Root.Source+name).Ino != stat(t, d.Dir(id)+name).Ino {
			t.Errorf("the tree's %s is a copy, want a hard link", name)
		}
	}
	if err := d.Remove(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(s.Root.Source); err == nil {
		t.Error("the tree of a removed layer is there")
	}
	if left, err := d.trees.List(); err != nil || !reflect.DeepEqual(left, []string{key([]string{"a"})}) {
		t.Errorf("trees left: %q, %v, want that of a", left, err)
	}
}

// TestStamps changes files so that neither size nor modification time tells.
func TestStamps(t *testing.T) {
	d := newDriver(t)
	at := time.Unix(1_600_000_000, 0)
	root := prepare(t, d, "a")
	for _, name := range []string{"/same", "/other", "/quick"} {
		write(t, root+name, "text")
		if err := os.Chtimes(root+name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	commit(t, d, "a")
	for _, c := range []struct {
		name   string
		wait   bool // until the copy is older than a tick of the clock
		damage bool // the stamps
	}{{"at once", false, false}, {"later", true, false}, {"without stamps", true, true}} {
		root := prepare(t, d, "b", "a")
		if c.wait {
			time.Sleep(2 * tick)
		}
		write(t, root+"/other", "TEXT")
		if err := os.Chtimes(root+"/other", at, at); err != nil {
			t.Fatal(err)
		}
		if c.damage {
			write(t, filepath.Dir(root)+"/stamps", "damage")
		}
		if got := changed(t, d, "b"); !reflect.DeepEqual(got, []string{"/other"}) {
			t.Errorf("%s: changes = %q, want /other", c.name, got)
		}
		if err := d.Remove(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCommitAgain commits after a Commit that was cut off.
func TestCommitAgain(t *testing.T) {
	d := newDriver(t)
	write(t, prepare(t, d, "a")+"/f", "1")
	commit(t, d, "a")
	root := prepare(t, d, "b", "a")
	write(t, root+"/g", "2")
	if err := os.MkdirAll(filepath.Dir(root)+"/delta/half", 0o755); err != nil {
		t.Fatal(err)
	}
	commit(t, d, "b")
	raw, err := layer.Collect(layer.Diff(t.Context(), d.Dir("b"), nil, layer.DiffOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) != 2 || raw[1].Path != "/g" {
		t.Errorf("the layer has %+v, want the root and /g", raw)
	}
}
