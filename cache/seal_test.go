package cache

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/oci"
)

// dated is a chain of two layers with one of each kind of entry, at times around
// the year 2000.
func dated(t testing.TB, s *Store) []oci.Layer {
	t.Helper()
	low := commit(t, s, nil, files{{"/d/", ""}, {"/d/gone", "1"}, {"/e/", ""}, {"/e/under", "2"}, {"/f", "3"}})
	d, err := s.Prepare(t.Context(), []oci.Layer{low})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	if err := (files{{"/d/gone", "gone"}, {"/e", "gone"}}).write(d.Tree); err != nil {
		t.Fatal(err)
	}
	more := files{{"/e/", ""}, {"/e/new", "4"}, {"/h", "5"}, {"/g", "= /h"}, {"/d/link", "-> gone"}, {"/odd", "6"}, {"/old", "7"}}
	if err := more.write(d.Tree); err != nil {
		t.Fatal(err)
	}
	for p, e := range map[string]tree.Entry{
		"/odd": {Mode: 0o4711, UID: 70000, GID: 5, Xattrs: map[string]string{"user.a": "1", "user.b": "\x00"}, ModTime: time.Unix(2e9, 999)},
		"/h":   {Mode: 0o640, ModTime: time.Unix(1e9, 5)},
		"/old": {Mode: 0o644, ModTime: time.Unix(5, 999_999_999)},
		"/e":   {Mode: 0o1777, ModTime: time.Unix(1e9+1, 0)},
	} {
		if err := d.Tree.SetMeta(p, e); err != nil {
			t.Fatal(err)
		}
	}
	l, err := d.Commit(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return []oci.Layer{low, l}
}

func at(l oci.Layer, epoch int64) oci.Layer {
	l.Epoch = time.Unix(epoch, 0)
	return l
}

func read(t testing.TB, s *Store, l oci.Layer) []byte {
	t.Helper()
	r, err := s.Tar(t.Context(), l)
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

func unpackedID(diffID oci.Digest) string { return strings.Replace(diffID.String(), ":", "-", 1) }

// A layer is known under several diff IDs, and each finds its own tar.
func TestSealWithEpochs(t *testing.T) {
	for _, driver := range []func(testing.TB, string) *Store{open, openPlain} {
		s := driver(t, t.TempDir())
		l := dated(t, s)[1]
		seen := map[oci.Digest]int64{}
		for _, epoch := range []int64{0, 1e9, -7, 1 << 33} {
			sealed, err := s.Seal(t.Context(), at(l, epoch))
			if err != nil {
				t.Fatal(err)
			}
			text := read(t, s, sealed)
			if want := fmt.Sprintf("sha256:%x", sha256.Sum256(text)); string(sealed.DiffID) != want || sealed.TarSize != int64(len(text)) {
				t.Errorf("Seal at %d = %s of %d bytes, want %s of %d", epoch, sealed.DiffID, sealed.TarSize, want, len(text))
			}
			if was, ok := seen[sealed.DiffID]; ok {
				t.Errorf("the same tar at %d and %d", was, epoch)
			}
			seen[sealed.DiffID] = epoch
			latest(t, text, epoch)
			if err := s.NoteBuilt([]oci.Layer{sealed}); err != nil {
				t.Fatal(err)
			}
		}
		plain, err := s.Seal(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := seen[plain.DiffID]; !ok || got != 1<<33 {
			t.Errorf("without an epoch the tar is not that of one later than all files")
		}
		for id, epoch := range seen {
			got, ok := s.Built(id)
			if !ok || got.Source != l.ID || got.ID != unpackedID(id) || got.DiffID != id || got.Epoch.Unix() != epoch {
				t.Errorf("Built(the chain ID at %d) = %+v, %v, want one made of layer %s", epoch, got, ok, l.ID)
			}
			if text := read(t, s, got); digest.FromBytes(text) != id {
				t.Errorf("Tar of what Built found at %d has the diff ID %s, want %s", epoch, digest.FromBytes(text), id)
			}
			again, err := s.Seal(t.Context(), got)
			if err != nil || again.DiffID != id {
				t.Errorf("Seal of what Built found at %d = %s, %v, want %s", epoch, again.DiffID, err, id)
			}
		}
		if known, err := s.Layer(l.ID); err != nil || known.DiffID != plain.DiffID || !known.Epoch.IsZero() {
			t.Errorf("Layer = %+v, %v, want what it is without an epoch", known, err)
		}
		if got := s.Check(t.Context()); len(got) > 0 {
			t.Errorf("Check = %v", got)
		}
	}
}

// latest fails if an entry of the tar is later than epoch, and unless one that is
// older has kept its time. Whiteouts have none.
func latest(t *testing.T, text []byte, epoch int64) {
	t.Helper()
	for tr := tar.NewReader(bytes.NewReader(text)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		mtime := h.ModTime.Unix()
		if mtime > epoch && h.Mode != 0 {
			t.Errorf("%s has the time %d, want at most %d", h.Name, mtime, epoch)
		}
		if want := min(5, epoch); h.Name == "old" && mtime != want {
			t.Errorf("%s has the time %d, want %d", h.Name, mtime, want)
		}
	}
}

// The tar of a layer that was unpacked from a tar of ours is the one that its
// first machine would have written.
func TestSealOfPulled(t *testing.T) {
	s := open(t, t.TempDir())
	l := dated(t, s)[1]
	text := read(t, s, l)
	for _, driver := range []func(testing.TB, string) *Store{open, openPlain} {
		other := driver(t, t.TempDir())
		if _, err := pull(t.Context(), other, pulledID, text); err != nil {
			t.Fatal(err)
		}
		for _, epoch := range []int64{0, 1e9} {
			want, err := s.Seal(t.Context(), at(l, epoch))
			if err != nil {
				t.Fatal(err)
			}
			got, err := other.Seal(t.Context(), at(oci.Layer{ID: pulledID}, epoch))
			if err != nil || got.DiffID != want.DiffID || got.TarSize != want.TarSize {
				t.Errorf("Seal at %d = %s of %d bytes, %v, want %s of %d", epoch, got.DiffID, got.TarSize, err, want.DiffID, want.TarSize)
			}
			if err := other.NoteBuilt([]oci.Layer{got}); err != nil {
				t.Fatal(err)
			}
			found, ok := other.Built(want.DiffID)
			if !ok || found.Source != pulledID || found.Blob != nil || found.Origin != "" {
				t.Errorf("Built = %+v, %v, want %s without the blob that it came with", found, ok, pulledID)
			}
		}
	}
}

func TestSealRecordsDamaged(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	l := at(dated(t, s)[1], 0)
	want, err := s.Seal(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.NoteBuilt([]oci.Layer{want}); err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(dir, "layers", l.ID, "tar-0")
	for name, harm := range map[string]func() error{
		"damaged": func() error { return os.WriteFile(record, []byte("?"), 0o600) },
		"of another layer": func() error {
			return s.writeRecord(record, tarRecord{ID: "other", DiffID: want.DiffID, TarSize: 1})
		},
		"gone": func() error { return os.Remove(record) },
	} {
		if err := harm(); err != nil {
			t.Fatal(err)
		}
		if got := s.Check(t.Context()); (len(got) == 0) != (name == "gone") {
			t.Errorf("%s: Check = %v", name, got)
		}
		if got, ok := s.Built(want.DiffID); !ok || got.Source != l.ID || !got.Epoch.Equal(l.Epoch) {
			t.Errorf("%s: Built = %+v, %v, want one made of layer %s", name, got, ok, l.ID)
		}
		if got, err := s.Seal(t.Context(), l); err != nil || got.DiffID != want.DiffID || got.TarSize != want.TarSize {
			t.Errorf("%s: Seal = %s of %d bytes, %v, want %s of %d", name, got.DiffID, got.TarSize, err, want.DiffID, want.TarSize)
		}
	}
	if got := s.Check(t.Context()); len(got) > 0 {
		t.Errorf("Check = %v, after the record was made anew", got)
	}
}

// A layer that was made of another one's files outlives it once it is unpacked.
func TestSealWithoutSource(t *testing.T) {
	s := open(t, t.TempDir())
	l, err := s.Seal(t.Context(), at(dated(t, s)[1], 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.NoteBuilt([]oci.Layer{l}); err != nil {
		t.Fatal(err)
	}
	found, ok := s.Built(l.DiffID)
	if !ok {
		t.Fatal("Built finds nothing")
	}
	text := read(t, s, found)
	if _, err := pull(t.Context(), s, found.ID, text); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveLayer(t.Context(), l.ID); err != nil {
		t.Fatal(err)
	}
	if again := read(t, s, found); !bytes.Equal(again, text) {
		t.Error("the tar of the unpacked layer is not that which it was unpacked from")
	}
	if sealed, err := s.Seal(t.Context(), found); err != nil || sealed.DiffID != l.DiffID {
		t.Errorf("Seal = %s, %v, want %s", sealed.DiffID, err, l.DiffID)
	}
	if _, ok := s.Built(l.DiffID); ok {
		t.Error("Built finds a layer that is gone")
	}
	if _, err := s.Seal(t.Context(), l); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Seal of a layer that is gone = %v, want fs.ErrNotExist", err)
	}
}

// What Seal is given as sealed is not taken at its word.
func TestSealOfChangedSource(t *testing.T) {
	s := open(t, t.TempDir())
	chain := dated(t, s)
	l, err := s.Seal(t.Context(), at(chain[0], 0))
	if err != nil {
		t.Fatal(err)
	}
	l.Source = chain[1].ID
	if _, err := s.Seal(t.Context(), l); err == nil || !strings.Contains(err.Error(), "its files were changed") {
		t.Errorf("Seal with another Source = %v, want an error", err)
	}
}
