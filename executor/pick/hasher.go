package pick

import (
	"encoding/binary"
	"path"

	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/oci"
)

// Hasher is a Digest in the making, for who walks over a selection anyway and
// learns contents on the way: for each source Source, and for each of its
// matches Begin, its Items, and End.
type Hasher struct {
	hasher
	owners bool
}

// NewHasher begins the digest of a Selection with those Owners.
func NewHasher(owners bool) *Hasher {
	return &Hasher{hasher: hasher{h: blake.Get()}, owners: owners}
}

// Source begins a source with so many matches.
func (h *Hasher) Source(matches int) {
	h.buf = binary.LittleEndian.AppendUint64(h.buf, uint64(matches))
}

// Begin begins a match.
func (h *Hasher) Begin(m Match) {
	if !m.Dir {
		h.buf = appendText(h.buf, path.Base(m.Name))
	}
}

// Item adds what is taken; content is the digest of a regular file's bytes, ""
// where it is a link to an item before it.
func (h *Hasher) Item(it Item, content oci.Digest) { h.item(&it, content) }

// flushAt is how many bytes are hashed at once: as many as the assembly of
// blake3 takes in parallel.
const flushAt = 8 << 10

// item is Item, and what was added.
func (h *Hasher) item(it *Item, content oci.Digest) []byte {
	if len(h.buf) > flushAt {
		h.flush()
	}
	at := len(h.buf)
	h.buf = appendItem(h.buf, it, content, h.owners)
	return h.buf[at:]
}

// End ends a match.
func (h *Hasher) End() { h.buf = appendText(h.buf, "end") }

// Sum is the digest of what was added, and the end of h.
func (h *Hasher) Sum() oci.Digest {
	h.flush()
	defer blake.Put(h.h)
	return blake.Digest(h.h)
}
