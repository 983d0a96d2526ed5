package cache

import (
	"path/filepath"

	"github.com/861fb494/build/internal/oci"
)

// pin is what a tag was when a registry was last asked.
type pin struct {
	Ref        string         `json:"ref"`
	Descriptor oci.Descriptor `json:"descriptor"`
}

func (s *Store) pinPath(ref string) string {
	return filepath.Join(s.dir, "pins", shortHash(ref))
}

// Pin is the manifest or index that ref, a tag, was when PutPin was last called.
func (s *Store) Pin(ref oci.Reference) (oci.Descriptor, bool) {
	var p pin
	if err := readRecord(s.pinPath(ref.String()), &p); err != nil || p.Ref != ref.String() {
		return oci.Descriptor{}, false
	}
	return p.Descriptor, true
}

// PutPin remembers what ref is.
func (s *Store) PutPin(ref oci.Reference, d oci.Descriptor) error {
	return s.writeRecord(s.pinPath(ref.String()), pin{Ref: ref.String(), Descriptor: d})
}

func (s *Store) diffPath(diffID oci.Digest) string {
	return filepath.Join(s.dir, "diffs", diffID.Encoded())
}

// Built is the layer with the given diff ID that was built here.
func (s *Store) Built(diffID oci.Digest) (oci.Layer, bool) {
	var id string
	if err := diffID.Validate(); err != nil {
		return oci.Layer{}, false
	}
	if err := readRecord(s.diffPath(diffID), &id); err != nil {
		return oci.Layer{}, false
	}
	l, err := s.Layer(id)
	if err != nil || l.DiffID != diffID {
		return oci.Layer{}, false
	}
	return l, true
}

// noteBuilt lets Built find l.
func (s *Store) noteBuilt(l oci.Layer) error {
	if old, ok := s.Built(l.DiffID); ok && old.ID != l.ID {
		return nil // the same bytes: one is enough
	}
	return s.writeRecord(s.diffPath(l.DiffID), l.ID)
}
