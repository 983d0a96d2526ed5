package cache

import (
	"testing"

	"github.com/861fb494/build/internal/oci"
)

// TestBuilt has the same tar upon two chains: each is found upon its own.
func TestBuilt(t *testing.T) {
	s := open(t, t.TempDir())
	seal := func(l oci.Layer) oci.Layer {
		t.Helper()
		l, err := s.Seal(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	one, two := seal(commit(t, s, nil, files{{"/f", "one"}})), seal(commit(t, s, nil, files{{"/f", "two"}}))
	onOne, onTwo := seal(commit(t, s, []oci.Layer{one}, nil)), seal(commit(t, s, []oci.Layer{two}, nil))
	if onOne.DiffID != onTwo.DiffID {
		t.Fatalf("diff IDs %s and %s of layers without changes, want the same", onOne.DiffID, onTwo.DiffID)
	}
	again := onOne
	again.ID = one.ID // the files are as good
	pulled := oci.Layer{ID: "sha256-1", DiffID: two.DiffID, Blob: &oci.Descriptor{}}
	for _, chain := range [][]oci.Layer{{one, onOne}, {two, onTwo}, {one, again}, {pulled, onTwo, onOne}} {
		if err := s.NoteBuilt(chain); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.NoteBuilt([]oci.Layer{{ID: onOne.ID}}); err == nil {
		t.Error("NoteBuilt of a layer that is not sealed = nil, want an error")
	}
	gone := commit(t, s, []oci.Layer{two}, files{{"/g", ""}})
	gone = seal(gone)
	if err := s.NoteBuilt([]oci.Layer{two, gone}); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveLayer(t.Context(), gone.ID); err != nil {
		t.Fatal(err)
	}
	upon := func(diffIDs ...oci.Digest) (chain oci.Digest) {
		for _, d := range diffIDs {
			chain = oci.ChainID(chain, d)
		}
		return chain
	}
	for _, tt := range []struct {
		name  string
		chain oci.Digest
		want  string
	}{
		{"one", upon(one.DiffID), one.ID},
		{"nothing upon one", upon(one.DiffID, onOne.DiffID), onOne.ID},
		{"nothing upon two", upon(two.DiffID, onTwo.DiffID), onTwo.ID},
		{"nothing twice", upon(two.DiffID, onTwo.DiffID, onOne.DiffID), onOne.ID},
		{"nothing by itself", upon(onOne.DiffID), ""},
		{"removed", upon(two.DiffID, gone.DiffID), ""},
		{"no digest", "x", ""},
	} {
		if l, ok := s.Built(tt.chain); l.ID != tt.want || ok != (tt.want != "") {
			t.Errorf("%s: Built(%s) = %q, %v, want %q", tt.name, tt.chain, l.ID, ok, tt.want)
		}
	}
}
