package cache

import (
	"cmp"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/861fb494/build/internal/oci"
)

// built is a layer that was built here, upon the chain with the chain ID Parent;
// "" for none.
type built struct {
	Parent oci.Digest `json:"parent,omitempty"`
	DiffID oci.Digest `json:"diffID"`
	Layer  string     `json:"layer"`
	Epoch  *int64     `json:"epoch,omitempty"` // of the tar; nil: none
}

// epoch is the tar's, or the zero time.
func (b built) epoch() time.Time {
	if b.Epoch == nil {
		return time.Time{}
	}
	return time.Unix(*b.Epoch, 0).UTC()
}

func (b built) chain() oci.Digest { return oci.ChainID(b.Parent, b.DiffID) }

func (s *Store) chainPath(chain oci.Digest) string {
	return filepath.Join(s.dir, "chains", chain.Encoded())
}

// Built is the layer that was built here and is the top of the chain with the
// given ID; see oci.ChainID and NoteBuilt.
//
// The diff ID alone would not do: a layer's files are good upon the chain that
// it was built on, and on no other. Overlayfs copies up what a step touched and
// left as it was, and hides whole directories where the tar says what is gone.
//
// Where the tar has an epoch, files of the layer may have other times than those
// of the tar. Then the layer that is found stands for the tar unpacked, whether or
// not that is here, and its Source is the one that was built.
func (s *Store) Built(chain oci.Digest) (oci.Layer, bool) {
	if chain.Validate() != nil {
		return oci.Layer{}, false
	}
	var b built
	if err := readRecord(s.chainPath(chain), &b); err != nil || b.chain() != chain {
		return oci.Layer{}, false
	}
	l, err := s.Layer(b.Layer)
	if err != nil {
		return oci.Layer{}, false
	}
	if b.Epoch != nil {
		return s.unpackedOf(l, b), true
	}
	return l, l.DiffID == b.DiffID
}

// unpackedOf is the tar that b tells of, made of l's files, as a layer.
func (s *Store) unpackedOf(l oci.Layer, b built) oci.Layer {
	out := oci.Layer{
		ID: strings.Replace(b.DiffID.String(), ":", "-", 1), Source: l.ID, Created: l.Created,
		Content: b.DiffID, DiffID: b.DiffID, Epoch: b.epoch(),
	}
	if t, err := s.readTarRecord(l.ID, out.Epoch); err == nil && t.DiffID == b.DiffID {
		out.TarSize = t.TarSize // else whoever needs it finds it anew
	}
	return out
}

// NoteBuilt lets Built find the layers of chain that were built here. All of
// them have their diff IDs.
func (s *Store) NoteBuilt(chain []oci.Layer) error {
	var above oci.Digest
	for _, l := range chain {
		b := built{Parent: above, DiffID: l.DiffID, Layer: cmp.Or(l.Source, l.ID)}
		if !l.Epoch.IsZero() {
			at := l.Epoch.Unix()
			b.Epoch = &at
		}
		above = b.chain()
		if l.Blob != nil {
			continue
		}
		if l.DiffID == "" {
			return fmt.Errorf("note layer %s: it has no diff ID", l.ID)
		}
		if _, ok := s.Built(b.chain()); ok {
			continue // the same files: one is enough
		}
		if err := s.writeRecord(s.chainPath(b.chain()), b); err != nil {
			return err
		}
	}
	return nil
}
