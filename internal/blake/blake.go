// Package blake lends BLAKE3 hashers.
//
// One has a buffer of 8 KiB and more, and a build of small steps hashes some dozens
// of short texts for each: new ones, or those on a stack that has to grow for them,
// would be most of the memory that it touches.
package blake

import (
	"encoding/hex"
	"sync"

	"github.com/zeebo/blake3"

	"github.com/861fb494/build/internal/oci"
)

var hashers = sync.Pool{New: func() any { return blake3.New() }}

// Get returns a hasher that has been given nothing yet. Put takes it back.
func Get() *blake3.Hasher {
	h := hashers.Get().(*blake3.Hasher)
	h.Reset()
	return h
}

// Put takes back a hasher, which the caller must not use any more.
func Put(h *blake3.Hasher) { hashers.Put(h) }

// Sum256 is the hash of data.
func Sum256(data []byte) (sum [32]byte) {
	h := Get()
	defer Put(h)
	_, _ = h.Write(data) // never fails
	h.Sum(sum[:0])
	return sum
}

// Digest is the digest of what h has been given.
func Digest(h *blake3.Hasher) oci.Digest {
	var sum [32]byte
	return DigestOf([32]byte(h.Sum(sum[:0])))
}

// DigestOf is sum as a digest.
func DigestOf(sum [32]byte) oci.Digest {
	b := make([]byte, 0, len("blake3:")+2*len(sum))
	return oci.Digest(hex.AppendEncode(append(b, "blake3:"...), sum[:]))
}
