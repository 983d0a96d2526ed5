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
