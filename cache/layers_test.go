package cache

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/oci"
)

var sample = files{
	{"/dir/", ""}, {"/dir/a", "hello"}, {"/dir/link", "-> a"}, {"/b", "hello"}, {"/hard", "= /dir/a"}, {"/empty", ""},
}

func tarOf(t testing.TB, s *Store, id string) []byte {
	t.Helper()
	r, err := s.Tar(t.Context(), oci.Layer{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func names(t testing.TB, text []byte) (out []string) {
	t.Helper()
	tr := tar.NewReader(bytes.NewReader(text))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h.Name)
	}
}

func TestCommit(t *testing.T) {
	for _, driver := range []func(testing.TB, string) *Store{open, openPlain} {
		s := driver(t, t.TempDir())
		a := commit(t, s, nil, sample)
		if again := commit(t, s, nil, sample); again.ID == a.ID || again.Content != a.Content {
			t.Errorf("committed again: %+v, want another ID and the same content as %+v", again, a)
		}
		b := commit(t, s, []oci.Layer{a}, files{{"/dir/a", "gone"}, {"/c", "new"}})
		text := tarOf(t, s, b.ID)
		if got, want := names(t, text), []string{"./", "c", "dir/", "dir/.wh.a"}; !slices.Equal(got, want) && !slices.Equal(got, want[1:]) {
			t.Errorf("the tar holds %q, want %q", got, want)
		}
		if again := tarOf(t, s, b.ID); !bytes.Equal(again, text) {
			t.Error("the tar is not the same again")
		}
		if b.DiffID != "" {
			t.Errorf("the layer has diff ID %s though nobody asked", b.DiffID)
		}
		sealed, err := s.Seal(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("sha256:%x", sha256.Sum256(text)); string(sealed.DiffID) != want || sealed.TarSize != int64(len(text)) {
			t.Errorf("Seal = %s of %d bytes, want %s of %d", sealed.DiffID, sealed.TarSize, want, len(text))
		}
		if l, err := s.Layer(b.ID); err != nil || l.DiffID != sealed.DiffID {
			t.Errorf("Layer = %+v, %v, want its diff ID kept", l, err)
		}
		view, err := s.View(t.Context(), []oci.Layer{a, b})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := view.Tree.ReadDir("/"); err != nil || !slices.Equal(got, []string{"b", "c", "dir", "empty", "hard"}) {
			t.Errorf("the root holds %q, %v", got, err)
		}
		view.Tree.Close()
	}
}

// Two builds of the same files are the same layer but for its times.
func TestCommitIsDeterministic(t *testing.T) {
	s, p := open(t, t.TempDir()), openPlain(t, t.TempDir())
	if a, b := commit(t, s, nil, sample), commit(t, p, nil, sample); a.Content != b.Content {
		t.Errorf("contents %s and %s of the same files, with overlay and plain", a.Content, b.Content)
	}
	tests := []struct {
		name string
		f    files
	}{
		{"content", files{{"/a", "2"}}},
		{"name", files{{"/b", "1"}}},
		{"type", files{{"/a", "-> 1"}}},
		{"one more", files{{"/a", "1"}, {"/b", "1"}}},
		{"link", files{{"/a", "1"}, {"/b", "= /a"}}},
		{"nothing", nil},
	}
	seen := map[oci.Digest]string{commit(t, s, nil, files{{"/a", "1"}}).Content: "itself"}
	for _, tt := range tests {
		d := commit(t, s, nil, tt.f).Content
		if was, ok := seen[d]; ok {
			t.Errorf("%s: the same content digest as %s", tt.name, was)
		}
		seen[d] = tt.name
	}
}

// What a copy has hashed on its way need not be read; it says so of regular
// files only.
func TestCommitTakesKnownDigests(t *testing.T) {
	s := open(t, t.TempDir())
	d, err := s.Prepare(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	if err := (files{{"/a", "1"}, {"/l", "-> a"}, {"/m", "= /a"}}).write(d.Tree); err != nil {
		t.Fatal(err)
	}
	want := commit(t, s, nil, files{{"/a", "1"}, {"/l", "-> a"}, {"/m", "= /a"}})
	var sum oci.Digest
	for c, err := range s.Entries(want.ID) {
		if err == nil && c.Path == "/a" {
			sum = c.Digest
		}
	}
	var known tree.Digests
	known.Set("/a", sum)
	for _, p := range []string{"/l", "/m", "/gone"} {
		known.Set(p, key("f"))
	}
	l, err := d.Commit(t.Context(), &known)
	if err != nil || l.Content != want.Content {
		t.Errorf("Commit = %+v, %v, want content %s", l, err, want.Content)
	}
}

func TestDiscard(t *testing.T) {
	tests := []struct {
		name string
		do   func(t *testing.T, d *Draft)
	}{
		{"at once", func(*testing.T, *Draft) {}},
		{"twice", func(_ *testing.T, d *Draft) { d.Discard() }},
		{"after a commit that was stopped", func(t *testing.T, d *Draft) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if l, err := d.Commit(ctx, nil); !errors.Is(err, context.Canceled) {
				t.Errorf("Commit of a build that was stopped = %+v, %v", l, err)
			}
		}},
		{"after metadata that could not be written", func(t *testing.T, d *Draft) {
			// A file where the directory is to be.
			if err := os.WriteFile(d.store.layerDir(d.ID), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Commit(t.Context(), nil); err == nil {
				t.Error("Commit succeeds")
			}
		}},
		{"after entries that could not be written", func(t *testing.T, d *Draft) {
			if err := os.MkdirAll(filepath.Join(d.store.layerDir(d.ID), "entries"), 0o700); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Commit(t.Context(), nil); err == nil {
				t.Error("Commit succeeds")
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, t.TempDir())
			d, err := s.Prepare(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := sample.write(d.Tree); err != nil {
				t.Fatal(err)
			}
			tt.do(t, d)
			d.Discard()
			list := "leases/" + s.Lease() + ".d"
			for _, sub := range []string{"layers", "snapshots/work", "snapshots/layers", list} {
				left, _ := os.ReadDir(filepath.Join(s.dir, sub))
				if sub == list {
					left = slices.DeleteFunc(left, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), freePrefix) })
				}
				if len(left) > 0 {
					t.Errorf("%s holds %v", sub, left)
				}
			}
			if l, err := s.Layer(d.ID); err == nil {
				t.Errorf("Layer = %+v", l)
			}
		})
	}
}

func TestLayerDamaged(t *testing.T) {
	flip := func(t *testing.T, path string) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name string
		harm func(t *testing.T, s *Store, l oci.Layer)
		// What is noticed without reading the files: at once, or when the
		// entries are read.
		layer, entries bool
	}{
		{"metadata flipped", func(t *testing.T, s *Store, l oci.Layer) { flip(t, s.layerPath(l.ID)) }, true, false},
		{"metadata gone", func(t *testing.T, s *Store, l oci.Layer) { os.Remove(s.layerPath(l.ID)) }, true, false},
		{"metadata of another layer", func(t *testing.T, s *Store, l oci.Layer) {
			other := commit(t, s, nil, nil)
			b, _ := os.ReadFile(s.layerPath(other.ID))
			os.WriteFile(s.layerPath(l.ID), b, 0o600)
		}, true, false},
		{"files gone", func(t *testing.T, s *Store, l oci.Layer) { os.RemoveAll(s.driver.Dir(l.ID)) }, true, false},
		{"entries flipped", func(t *testing.T, s *Store, l oci.Layer) { flip(t, filepath.Join(s.layerDir(l.ID), "entries")) }, false, true},
		{"entries cut", func(t *testing.T, s *Store, l oci.Layer) { os.Truncate(filepath.Join(s.layerDir(l.ID), "entries"), 40) }, false, true},
		{"entries gone", func(t *testing.T, s *Store, l oci.Layer) { os.Remove(filepath.Join(s.layerDir(l.ID), "entries")) }, false, true},
		{"a file flipped", func(t *testing.T, s *Store, l oci.Layer) { flip(t, filepath.Join(s.driver.Dir(l.ID), "b")) }, false, false},
		{"a file cut", func(t *testing.T, s *Store, l oci.Layer) { os.Truncate(filepath.Join(s.driver.Dir(l.ID), "b"), 1) }, false, false},
		{"a file gone", func(t *testing.T, s *Store, l oci.Layer) { os.Remove(filepath.Join(s.driver.Dir(l.ID), "b")) }, false, false},
		{"a link that is a file", func(t *testing.T, s *Store, l oci.Layer) {
			p := filepath.Join(s.driver.Dir(l.ID), "dir/link")
			os.Remove(p)
			os.WriteFile(p, nil, 0o600)
		}, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			l := commit(t, s, nil, sample)
			put(t, s, Record{Key: key("a"), Layers: []oci.Layer{l}})
			tt.harm(t, s, l)
			if got := s.Check(t.Context()); len(got) != 1 || !strings.Contains(got[0].Error(), l.ID) {
				t.Errorf("Check = %v, want one problem, of layer %s", got, l.ID)
			}
			fresh := open(t, dir) // has not seen the layer
			if _, err := fresh.Layer(l.ID); (err != nil) != tt.layer {
				t.Errorf("Layer = %v", err)
			}
			_, err := layer.Collect(fresh.Entries(l.ID))
			if tt.layer {
				_, err = fresh.Step(key("a"))
				var damaged *DamagedError
				if !errors.As(err, &damaged) && !errors.Is(err, errGone) {
					t.Errorf("Step = %v, want a *DamagedError, or errGone", err)
				}
			} else if (err != nil) != tt.entries {
				t.Errorf("Entries: %v", err)
			} else if tt.entries {
				if _, err := fresh.Step(key("a")); err == nil {
					t.Error("Step gives a layer that has proved to be damaged")
				}
			}
			if !tt.layer && !tt.entries && !strings.HasSuffix(tt.name, "flipped") && tt.name != "a link that is a file" {
				if _, err := fresh.Seal(t.Context(), l); err == nil {
					t.Error("Seal of a layer without its files succeeds")
				}
			}
			if err := fresh.RemoveLayer(t.Context(), l.ID); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A power cut takes what was not yet on the disk: it is looked for in the first
// use of a layer after it, once.
func TestLayersAfterARestart(t *testing.T) {
	tests := []struct {
		name string
		harm func(dir string) error
		ok   bool
	}{
		{"all there", func(string) error { return nil }, true},
		{"a file is empty", func(dir string) error { return os.Truncate(filepath.Join(dir, "b"), 0) }, false},
		{"a file is gone", func(dir string) error { return os.Remove(filepath.Join(dir, "dir/a")) }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			l := commit(t, s, nil, sample)
			put(t, s, Record{Key: key("a"), Layers: []oci.Layer{l}})
			if err := tt.harm(s.driver.Dir(l.ID)); err != nil {
				t.Fatal(err)
			}
			same := open(t, dir)
			if _, err := same.Step(key("a")); err != nil {
				t.Errorf("Step in the same run of the kernel: %v", err)
			}
			later := open(t, dir)
			later.boot = "another"
			_, err := later.Step(key("a"))
			var damaged *DamagedError
			if tt.ok && err != nil || !tt.ok && !errors.As(err, &damaged) {
				t.Errorf("Step after a restart = %v, want it to succeed: %v", err, tt.ok)
			}
			if tt.ok {
				if r, err := later.readLayer(l.ID); err != nil || r.Boot != "" || r.Content != l.Content {
					t.Errorf("the metadata is %+v, %v, want it to be marked as looked at", r, err)
				}
				return
			}
			if _, err := later.Layer(l.ID); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Layer = %v, want fs.ErrNotExist", err)
			}
			if err := later.RemoveLayer(t.Context(), l.ID); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// pull unpacks text as the layer id, as a fetch does, if it is not here.
func pull(ctx context.Context, s *Store, id string, text []byte) (made bool, err error) {
	unlock, err := s.Lock(ctx, "layer-"+id)
	if err != nil {
		return false, err
	}
	defer unlock()
	if _, err := s.Layer(id); err == nil {
		return false, nil
	}
	d, err := s.PreparePulled(ctx, id, nil)
	if err != nil {
		return false, err
	}
	defer d.Discard()
	changes, err := layer.Apply(ctx, bytes.NewReader(text), d.Tree, layer.ApplyOptions{})
	if err != nil {
		return false, err
	}
	diffID := oci.Digest(strings.Replace(id, "-", ":", 1))
	_, err = d.CommitPulled(ctx, oci.Layer{ID: id, Content: diffID, DiffID: diffID, Blob: &oci.Descriptor{}}, changes)
	return true, err
}

func TestPulledTogether(t *testing.T) {
	dir := t.TempDir()
	stores := []*Store{open(t, dir), open(t, dir)}
	text := tarOf(t, stores[0], commit(t, stores[0], nil, sample).ID)
	var wg sync.WaitGroup
	var mu sync.Mutex
	count := 0
	for i := range 8 {
		wg.Go(func() {
			made, err := pull(context.Background(), stores[i%2], pulledID, text)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if made {
				count++
			}
		})
	}
	wg.Wait()
	if count != 1 {
		t.Errorf("the layer was unpacked %d times, want once", count)
	}
	for _, s := range stores {
		if l, err := s.Layer(pulledID); err != nil || l.ID != pulledID {
			t.Errorf("Layer = %+v, %v", l, err)
		}
		if l, err := s.Seal(t.Context(), oci.Layer{ID: pulledID}); err != nil || !strings.HasPrefix(string(l.DiffID), "sha256:1111") {
			t.Errorf("Seal of a pulled layer = %+v, %v, want what it came with", l, err)
		}
	}
}

// A process that was killed while it unpacked leaves nothing in the way.
func TestPullAfterAKill(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	text := tarOf(t, s, commit(t, s, nil, sample).ID)
	p, _ := start(t, dir, "draft", pulledID)
	p.kill()
	if made, err := pull(t.Context(), s, pulledID, text); err != nil || !made {
		t.Errorf("pull = %v, %v", made, err)
	}
	if err := s.Sweep(t.Context()); err != nil { // the dead lease lists the layer still
		t.Fatal(err)
	}
	if _, err := s.Layer(pulledID); err != nil {
		t.Errorf("after a sweep: %v", err)
	}
}

func TestCommitOnAFullDisk(t *testing.T) {
	onSmallDisk(t, 2<<20, func(t *testing.T, dir string) {
		s := open(t, dir)
		d, err := s.Prepare(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		var many files
		for i := range 300 {
			many = append(many, [2]string{fmt.Sprintf("/file-%d-%s", i, strings.Repeat("n", 100)), ""})
		}
		if err := many.write(d.Tree); err != nil {
			t.Fatal(err)
		}
		fill := filepath.Join(dir, "fill")
		full(t, fill)
		if l, err := d.Commit(t.Context(), nil); err == nil {
			t.Errorf("Commit on a full disk = %+v", l)
		}
		d.Discard()
		if got := s.Check(t.Context()); len(got) > 0 {
			t.Errorf("Check = %v", got)
		}
		os.Remove(fill)
		commit(t, s, nil, many)
	})
}

// Who stops to read a tar does not keep its writer waiting for ever.
func TestTarClosedEarly(t *testing.T) {
	s := open(t, t.TempDir())
	l := commit(t, s, nil, files{{"/big", strings.Repeat("x", 1<<20)}})
	r, err := s.Tar(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, r, 600); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Tar(t.Context(), oci.Layer{ID: "no-1"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Tar of no layer = %v, want fs.ErrNotExist", err)
	}
}

func TestCheckFindsStrays(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	l := commit(t, s, nil, sample)
	if _, err := s.Seal(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	put(t, s, Record{Key: key("a"), Place: "p", Layers: []oci.Layer{l}})
	st := s.Stats("/x")
	save(t, st, "/x", Hashed{"f", Stamp{Mtime: 1, Ctime: 1}, sumOf("1")})
	if got := s.Check(t.Context()); len(got) > 0 {
		t.Fatalf("Check of a good directory = %v", got)
	}
	write := func(path string) func() {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("?"), 0o600); err != nil {
			t.Fatal(err)
		}
		return func() { os.Remove(path) }
	}
	tests := []string{
		"steps/aa/" + tempPrefix + "abcdefabcdef-1", "steps/ff/" + strings.Repeat("f", 64), "places/x", "results/x", "pins/x", "chains/x",
		"stats/x", "leases/hello", "leases/abcdefabcdef", "leases/abcdefabcdef.d/x", "tmp/abcdefabcdef", tempPrefix + s.Lease() + "-1",
		"layers/stray/entries",
	}
	for _, path := range tests {
		clean := write(path)
		got := s.Check(t.Context())
		if len(got) != 1 {
			t.Errorf("Check with %s = %v, want one problem", path, got)
		}
		clean()
		if d := filepath.Dir(path); strings.HasSuffix(d, ".d") || strings.HasSuffix(d, "stray") {
			os.Remove(filepath.Join(dir, d))
		}
	}
}
