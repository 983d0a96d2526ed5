package blake_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/861fb494/build/internal/blake"
)

// TestLent: a hasher that is lent again knows nothing of what it was given before.
func TestLent(t *testing.T) {
	for _, n := range []int{0, 1, 1024, 8192, 8193, 100_000, 3} {
		data := bytes.Repeat([]byte{'x'}, n)
		want := blake3.Sum256(data)
		if got := blake.Sum256(data); got != want {
			t.Errorf("Sum256 of %d bytes = %x, want %x", n, got, want)
		}
		h := blake.Get()
		h.Write(data)
		if got, want := string(blake.Digest(h)), fmt.Sprintf("blake3:%x", want); got != want {
			t.Errorf("Digest of %d bytes = %s, want %s", n, got, want)
		}
		blake.Put(h)
	}
}
