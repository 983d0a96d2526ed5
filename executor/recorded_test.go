package executor

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/overlay"
	"github.com/861fb494/build/cache/plain"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/pick"
	"github.com/861fb494/build/internal/oci"
)

// scribble does n random things to a tree.
func scribble(t *testing.T, r *rand.Rand, d *tree.Tree, n int) {
	t.Helper()
	names := []string{"a", "b", "c", "a.b"}
	for range n {
		p := "/"
		for range 1 + r.IntN(3) {
			p = path.Join(p, names[r.IntN(len(names))])
		}
		var err error
		switch r.IntN(8) {
		case 0, 1:
			err = d.Mkdir(p, uint32([]int{0o755, 0o700, 0o1777}[r.IntN(3)]))
		case 2, 3:
			f, cerr := d.Create(p)
			if err = cerr; err == nil {
				fmt.Fprint(f, r.IntN(4))
				err = f.Close()
			}
		case 4:
			err = d.Symlink([]string{"a", "/b", "../c", "/a/b", "x"}[r.IntN(5)], p)
		case 5:
			err = d.RemoveAll(p)
		case 6:
			// Of one layer: a link to a file of a lower one, copied up for it,
			// is no link in the layer's tar, and so not in its entries.
			f, cerr := d.Create(p)
			if err = cerr; err == nil {
				fmt.Fprint(f, "linked")
				err = errors.Join(f.Close(), d.Link(p, path.Join(path.Dir(p), names[r.IntN(len(names))])))
			}
		case 7:
			e, lerr := d.Lstat(p)
			if err = lerr; err == nil && e.Type() != unix.S_IFLNK {
				e.UID = r.IntN(3)
				err = d.SetMeta(p, e)
			}
		}
		_ = err // many are not possible
	}
}

func TestRecordedTree(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: layers hold whiteouts and owners")
	}
	dir := t.TempDir()
	over, err := overlay.New(filepath.Join(dir, "overlay"), overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	copies, err := plain.New(filepath.Join(dir, "plain"), plain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, driver := range map[string]cache.Driver{"overlay": over, "plain": copies} {
		s, err := cache.Open(t.Context(), filepath.Join(dir, name+"-state"), driver)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close(t.Context())
		w := New(Host{Store: s}, Session{})
		for seed := range uint64(15) {
			r := rand.New(rand.NewPCG(seed, 0))
			var chain []oci.Layer
			for range 4 {
				d, err := s.Prepare(t.Context(), chain)
				if err != nil {
					t.Fatal(err)
				}
				scribble(t, r, d.Tree, 12)
				l, err := d.Commit(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				chain = append(chain, l)
				compareTrees(t, w, fmt.Sprintf("%s, seed %d, %d layers", name, seed, len(chain)), chain)
			}
		}
	}
}

// compareTrees compares what the recorded tree of a chain and the chain itself
// yield for keys.
func compareTrees(t *testing.T, w *Worker, name string, chain []oci.Layer) {
	t.Helper()
	recorded, err := w.recorded(t.Context(), chain)
	if err != nil {
		t.Fatalf("%s: recorded: %v", name, err)
	}
	view, err := w.view(t.Context(), nil, Result{Layers: chain})
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	for _, s := range []pick.Selection{
		{Sources: []string{"/"}, Excludes: []string{"x"}, Owners: true},
		{Sources: []string{"/a"}, Owners: true, Xattrs: true},
		{Sources: []string{"/a/*", "/*/b"}, Wildcards: true},
		{Sources: []string{"/b/a", "/c"}},
		{Sources: []string{"/a.b"}, Parents: true},
		{Sources: []string{"/./a/*"}, Parents: true, Wildcards: true},
	} {
		want, werr := pick.Digest(t.Context(), view, s, view.digest)
		got, gerr := pick.Digest(t.Context(), recorded, s, recorded.digest)
		if got != want || (gerr == nil) != (werr == nil) || gerr != nil && gerr.Error() != werr.Error() {
			t.Errorf("%s: %+v: as recorded %s, %v; as it is %s, %v", name, s, got, gerr, want, werr)
		}
	}
}

func TestRecordedTreeRefuses(t *testing.T) {
	file := func(p string) tree.Change {
		return tree.Change{Entry: tree.Entry{Path: p, Mode: unix.S_IFREG | 0o644, Digest: "blake3:00", Nlink: 1}}
	}
	for _, tt := range []struct {
		name    string
		changes []tree.Change
		want    string
	}{
		{"a relative path", []tree.Change{file("a")}, "not a path"},
		{"a path that leaves", []tree.Change{file("/../a")}, "not a path"},
		{"a path that is not clean", []tree.Change{file("/a//b")}, "not a path"},
		{"a NUL", []tree.Change{file("/a\x00b")}, "not a path"},
		{"a file for a root", []tree.Change{file("/")}, "not a path"},
		{"something in a file", []tree.Change{file("/a"), file("/a/b")}, "not a directory"},
		{"a link to what is not there", []tree.Change{{Entry: file("/a").Entry, HardLink: "/b"}}, "not in its layer"},
		{"a file without a digest", []tree.Change{{Entry: tree.Entry{Path: "/a", Mode: unix.S_IFREG}}}, "not known"},
	} {
		if err := newRecordedTree().add(tt.changes); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: add = %v, want %q", tt.name, err, tt.want)
		}
	}
	// A parent that no layer lists is there all the same.
	tr := newRecordedTree()
	if err := tr.add([]tree.Change{file("/a/b/c")}); err != nil {
		t.Fatal(err)
	}
	if names, err := tr.ReadDir("/a/b"); err != nil || !slices.Equal(names, []string{"c"}) {
		t.Errorf("ReadDir = %q, %v, want c", names, err)
	}
}
