package cache

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/oci"
)

// rewrite changes a byte of a file, and keeps its time if that is asked for.
func rewrite(t *testing.T, path string, keepTime bool) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err == nil {
		b[len(b)/2] ^= 1
		err = os.WriteFile(path, b, 0o600)
	}
	if err == nil && keepTime {
		err = os.Chtimes(path, time.Time{}, st.ModTime())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestIntact(t *testing.T) {
	tests := []struct {
		name  string
		harm  func(t *testing.T, s *Store, l oci.Layer)
		seen  bool // without reading the files
		found bool // by reading them
	}{
		{"as it was", func(*testing.T, *Store, oci.Layer) {}, false, false},
		{"a file written to", func(t *testing.T, s *Store, l oci.Layer) { rewrite(t, filepath.Join(s.driver.Dir(l.ID), "b"), false) }, true, true},
		{"a file flipped by the disk", func(t *testing.T, s *Store, l oci.Layer) { rewrite(t, filepath.Join(s.driver.Dir(l.ID), "b"), true) }, false, true},
		{"a file cut", func(_ *testing.T, s *Store, l oci.Layer) { os.Truncate(filepath.Join(s.driver.Dir(l.ID), "b"), 1) }, true, true},
		{"a file gone", func(_ *testing.T, s *Store, l oci.Layer) { os.Remove(filepath.Join(s.driver.Dir(l.ID), "dir/a")) }, true, true},
		{"a directory gone", func(_ *testing.T, s *Store, l oci.Layer) { os.RemoveAll(filepath.Join(s.driver.Dir(l.ID), "dir")) }, true, true},
		{"a file for a directory", func(_ *testing.T, s *Store, l oci.Layer) {
			os.RemoveAll(filepath.Join(s.driver.Dir(l.ID), "dir"))
			os.WriteFile(filepath.Join(s.driver.Dir(l.ID), "dir"), nil, 0o600)
		}, true, true},
		{"a way out of the layer", func(_ *testing.T, s *Store, l oci.Layer) {
			os.RemoveAll(filepath.Join(s.driver.Dir(l.ID), "dir"))
			os.Symlink("/etc", filepath.Join(s.driver.Dir(l.ID), "dir"))
		}, true, true},
		{"the list flipped", func(t *testing.T, s *Store, l oci.Layer) { rewrite(t, s.entriesPath(l.ID), true) }, true, true},
		{"the list gone", func(_ *testing.T, s *Store, l oci.Layer) { os.Remove(s.entriesPath(l.ID)) }, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			l := commit(t, s, nil, sample)
			put(t, s, Record{Key: key("a"), Layers: []oci.Layer{l}})
			tt.harm(t, s, l)

			other := open(t, dir) // has not made the layer
			if _, err := other.Step(key("a")); err != nil {
				t.Fatalf("Step = %v", err)
			}
			err := other.Intact(t.Context(), []oci.Layer{l, {ID: "nowhere-1"}})
			var bad *DamagedError
			if (err != nil) != tt.seen || tt.seen && (!errors.As(err, &bad) || bad.Layer != l.ID) {
				t.Errorf("Intact = %v, want a *DamagedError of the layer: %v", err, tt.seen)
			}
			if got := other.Audit(t.Context()); (len(got) > 0) != (tt.found && !tt.seen) {
				t.Errorf("Audit = %v, want something: %v", got, tt.found && !tt.seen)
			}
			_, err = other.Layer(l.ID)
			if (err != nil) != tt.found || tt.found && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Layer = %v, want fs.ErrNotExist: %v", err, tt.found)
			}
			if _, err := other.Step(key("a")); (err != nil) != tt.found {
				t.Errorf("Step = %v, want an error: %v", err, tt.found)
			}
			if got := other.Check(t.Context()); len(got) > 0 {
				t.Errorf("Check after the layer was dropped = %v", got)
			}
		})
	}
}

// What is dropped stays as long as one runs that may have it mounted.
func TestDroppedLayerStays(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	l := commit(t, s, nil, sample)
	older, _ := start(t, dir, "lock", "x")
	finder, err := newStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(finder.driver.Dir(l.ID), "b"), 0); err != nil {
		t.Fatal(err)
	}
	if err := finder.Intact(t.Context(), []oci.Layer{l}); err == nil {
		t.Fatal("Intact of a layer with a file that is cut succeeds")
	}
	there := func() bool {
		_, err := os.Lstat(finder.driver.Dir(l.ID))
		return err == nil
	}
	if err := finder.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !there() {
		t.Error("the layer is removed while older processes run")
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	later := open(t, dir)
	if err := later.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !there() {
		t.Error("the layer is removed while an older process runs")
	}
	if got := later.Check(t.Context()); len(got) > 0 {
		t.Errorf("Check of a layer that waits to be removed = %v", got)
	}
	older.end()
	if err := later.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if there() {
		t.Error("the layer stays when no older process runs")
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "layers")); len(left) > 0 {
		t.Errorf("layers holds %v", left)
	}
}

func TestMend(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	good, bad := commit(t, s, nil, sample), commit(t, s, nil, files{{"/x", "text"}})
	for name, l := range map[string]oci.Layer{"a": good, "b": bad} {
		put(t, s, Record{Key: key(name), Place: name, Layers: []oci.Layer{l}})
	}
	rewrite(t, filepath.Join(s.driver.Dir(bad.ID), "x"), true)
	harmed := []string{"layers/" + bad.ID}
	for path, text := range map[string]string{
		"steps/ff/" + strings.Repeat("f", 64): "?", "places/x": "?", "results/x": "?", "pins/x": "?", "chains/x": "?", "stats/x": "?",
		"listings/" + strings.Repeat("f", 64): "?", "layers/stray/entries": "?", "tmp/abcdefabcdef/x": "?",
		"steps/" + tempPrefix + "abcdefabcdef-1": "?",
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	harmed = append(harmed, "steps/ff", "places/x", "results/x", "pins/x", "chains/x", "stats/x", "listings/ff", "layers/stray", "tmp/abcdefabcdef")
	told := s.Mend(t.Context())
	for _, h := range harmed {
		found := false
		for _, err := range told {
			found = found || strings.HasPrefix(err.Error(), h) && strings.HasSuffix(err.Error(), ": dropped")
		}
		if !found {
			t.Errorf("Mend = %v, want it to have dropped %s", told, h)
		}
	}
	if got := s.Check(t.Context()); len(got) > 0 {
		t.Errorf("Check after Mend = %v", got)
	}
	if _, err := s.Step(key("a")); err != nil {
		t.Errorf("Step of what was good = %v", err)
	}
	if _, err := s.Step(key("b")); err == nil {
		t.Error("Step gives what was dropped")
	}
}

// A layer of files that were not read, as a COPY from another stage makes it, is
// compared with what was recorded of them by the first to read it.
func TestSealCompares(t *testing.T) {
	var known tree.Digests
	known.Set("/f", oci.Digest("blake3:"+strings.Repeat("0", 64)))
	for _, unread := range []bool{false, true} {
		s := open(t, t.TempDir())
		d, err := s.Prepare(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Discard()
		if err := (files{{"/f", "copied wrong"}}).write(d.Tree); err != nil {
			t.Fatal(err)
		}
		d.Unread = unread
		l, err := d.Commit(t.Context(), &known)
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Seal(t.Context(), l)
		var bad *DamagedError
		if unread && !errors.As(err, &bad) || !unread && err != nil {
			t.Errorf("unread %v: Seal = %v, want it refused: %v", unread, err, unread)
		}
		if !unread { // it is what nobody knows to be wrong
			if err := s.RemoveLayer(t.Context(), l.ID); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if _, err := s.Layer(l.ID); err == nil {
			t.Error("the layer is here still")
		}
	}
}

func TestFormatIsKept(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	before, err := os.ReadFile(filepath.Join(dir, "format"))
	if err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	after, err := os.ReadFile(filepath.Join(dir, "format"))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("format was %q and is %q, %v", before, after, err)
	}
}
