package executor

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// inode is that of a file in the last layer of a result, and its text.
func (r *rig) inode(res Result, p string) (uint64, string) {
	r.t.Helper()
	l := res.Layers[len(res.Layers)-1]
	dir, ok := r.store.Shareable(l.ID)
	if !ok {
		r.t.Fatalf("layer %s cannot be shared", l.ID)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir+p, &st); err != nil {
		r.t.Fatal(err)
	}
	b, err := os.ReadFile(dir + p)
	if err != nil {
		r.t.Fatal(err)
	}
	return st.Ino, string(b)
}

// What has not changed since the step was last done is linked; what has, in
// whatever way, is copied.
func TestCopyLinksWhatIsAsItWas(t *testing.T) {
	at := time.Unix(1_600_000_000, 5)
	tests := []struct {
		name   string
		owner  string                         // of the copy, the second time; "no cache" for that
		change func(r *rig, old string) error // old is the file in the first layer
		linked bool
		text   string
	}{
		{"nothing", "", func(*rig, string) error { return nil }, true, "same"},
		{"bytes", "", func(r *rig, _ string) error {
			return os.WriteFile(filepath.Join(r.dir, "d/s/f"), []byte("other"), 0o644)
		}, false, "other"},
		{"bytes, with size and time kept", "", func(r *rig, _ string) error {
			f := filepath.Join(r.dir, "d/s/f")
			if err := os.WriteFile(f, []byte("emas"), 0o644); err != nil {
				return err
			}
			return os.Chtimes(f, at, at)
		}, false, "emas"},
		{"mode", "", func(r *rig, _ string) error { return os.Chmod(filepath.Join(r.dir, "d/s/f"), 0o600) }, false, "same"},
		{"time", "", func(r *rig, _ string) error {
			return os.Chtimes(filepath.Join(r.dir, "d/s/f"), at, at.Add(1))
		}, false, "same"},
		{"nothing, without the cache", "no cache", func(*rig, string) error { return nil }, false, "same"},
		{"owner", "7:8", func(*rig, string) error { return nil }, false, "same"},
		{"a tampered layer", "", func(_ *rig, old string) error { return os.WriteFile(old, []byte("evil"), 0o644) }, false, "same"},
		{"a truncated layer", "", func(_ *rig, old string) error {
			if err := os.Truncate(old, 1); err != nil {
				return err
			}
			return os.Chtimes(old, at, at)
		}, false, "same"},
		{"a file of the layer replaced", "", func(_ *rig, old string) error {
			// Both are there for a moment: a number of an inode may come again.
			other := old + ".new"
			if err := os.WriteFile(other, []byte("evil"), 0o644); err != nil {
				return err
			}
			if err := os.Chtimes(other, at, at); err != nil {
				return err
			}
			return os.Rename(other, old)
		}, false, "same"},
		{"a file of the layer gone", "", func(_ *rig, old string) error { return os.Remove(old) }, false, "same"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			for i := range 150 { // more than a batch
				r.write(fmt.Sprintf("d/s/g%03d", i), "g")
			}
			r.write("d/s/f", "same")
			r.write("d/changes", "1")
			if err := os.Chtimes(filepath.Join(r.dir, "d/s/f"), at, at); err != nil {
				t.Fatal(err)
			}
			time.Sleep(25 * time.Millisecond) // or the stamps prove nothing
			build := func(owner string) Result {
				noCache := owner == "no cache"
				if noCache {
					owner = ""
				}
				n := copyOf(scratch, llb.Copy{Sources: []string{"/d"}, Dest: "/x/", Owner: llb.Owner(owner)})
				r.meta = map[oci.Digest]llb.Meta{n.Digest: {Stage: "s", Ordinal: 1, NoCache: noCache}}
				res, w := r.mustBuild(n)
				if len(w.ran) != 1 {
					t.Fatalf("the build ran %q, want the copy", w.ran)
				}
				return res
			}
			first := build("")
			was, text := r.inode(first, "/x/s/f")
			if text != "same" {
				t.Fatalf("the first build copied %q", text)
			}
			other, _ := r.inode(first, "/x/s/g149")
			dir, _ := r.store.Shareable(first.Layers[0].ID)
			if err := tt.change(r, dir+"/x/s/f"); err != nil {
				t.Fatal(err)
			}
			r.write("d/changes", "2") // so that the step is done again
			time.Sleep(25 * time.Millisecond)
			second := build(tt.owner)
			now, text := r.inode(second, "/x/s/f")
			if (now == was) != tt.linked || text != tt.text {
				t.Errorf("the file is %q, linked: %v; want %q, %v", text, now == was, tt.text, tt.linked)
			}
			if now, _ := r.inode(second, "/x/s/g149"); (now == other) != (tt.owner == "") {
				t.Errorf("the file beside it is linked: %v", now == other)
			}
			if _, text := r.inode(second, "/x/changes"); text != "2" {
				t.Errorf("the file that changed is %q", text)
			}
			// Some of these have damaged it.
			if err := r.store.RemoveLayer(t.Context(), first.Layers[0].ID); err != nil {
				t.Error(err)
			}
		})
	}
}

// Files of the same content that were links of one another, and are not any more,
// and the other way round.
func TestCopyLinksOnlyWhatWasAlone(t *testing.T) {
	r := newRig(t)
	r.write("d/a", "1")
	r.put("d/b", "= d/a", 0)
	r.write("d/c", "1")
	r.write("d/n", "1")
	n := copyOf(scratch, llb.Copy{Sources: []string{"/d"}, Dest: "/"})
	r.meta[n.Digest] = llb.Meta{Stage: "s", Ordinal: 1}
	time.Sleep(25 * time.Millisecond)
	first, _ := r.mustBuild(n)
	r.check("first", first, "/a 0644 0:0 links 2 1", "/b 0644 0:0 links 2 1", "/c 0644 0:0 1", "/n 0644 0:0 1")
	for _, name := range []string{"b", "c", "n"} {
		if err := os.Remove(filepath.Join(r.dir, "d", name)); err != nil {
			t.Fatal(err)
		}
	}
	st, err := os.Stat(filepath.Join(r.dir, "d/a"))
	if err != nil {
		t.Fatal(err)
	}
	r.write("d/b", "1")
	if err := os.Chtimes(filepath.Join(r.dir, "d/b"), st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	r.put("d/c", "= d/a", 0)
	time.Sleep(25 * time.Millisecond)
	second, _ := r.mustBuild(n)
	a, _ := r.inode(second, "/a")
	b, _ := r.inode(second, "/b")
	c, _ := r.inode(second, "/c")
	if a == b || a != c {
		t.Errorf("inodes of /a, /b and /c are %d, %d and %d, want /a and /c to be one file", a, b, c)
	}
}

func TestComparePaths(t *testing.T) {
	sorted := []string{"/", "/a", "/a/b", "/a/b/c", "/a/c", "/a-", "/a-/x", "/a.b", "/aa", "/b"}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := comparePaths(a, b); (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("comparePaths(%q, %q) = %d", a, b, got)
			}
		}
	}
}
