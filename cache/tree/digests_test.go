package tree

import (
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/861fb494/build/internal/oci"
)

func someDigest(n int) oci.Digest {
	sum := [32]byte{byte(n), byte(n >> 8), 31: 1}
	return oci.Digest("blake3:" + hex.EncodeToString(sum[:]))
}

// Digests is a map, in whatever order it is filled.
func TestDigests(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		var got Digests
		want := map[string]oci.Digest{}
		for i := range 300 {
			p := fmt.Sprintf("/d%d/f%03d", rnd.IntN(2), i)
			if seed%3 > 0 && rnd.IntN(5) == 0 {
				p = fmt.Sprintf("/d%d/f%03d", rnd.IntN(2), rnd.IntN(300))
			}
			switch d := someDigest(rnd.IntN(1000)); rnd.IntN(8) {
			case 0:
				got.Delete(p)
				delete(want, p)
			case 1:
				// One that is not kept replaces what was.
				got.Set(p, "sha256:"+d[len("blake3:"):])
				delete(want, p)
			default:
				got.Set(p, d)
				want[p] = d
			}
			if d := got.Get(p); d != want[p] {
				t.Fatalf("seed %d: Get(%q) = %q, want %q", seed, p, d, want[p])
			}
		}
		all := map[string]oci.Digest{}
		got.All(func(p string, d oci.Digest) { all[p] = d })
		if !maps.Equal(all, want) {
			t.Errorf("seed %d: All has %d digests, want %d: %v", seed, len(all), len(want), all)
		}
		for p, d := range want {
			if g := got.Get(p); g != d {
				t.Errorf("seed %d: Get(%q) = %q, want %q", seed, p, g, d)
			}
		}
	}
	var none Digests
	none.Delete("/a")
	if d := none.Get("/a"); d != "" {
		t.Errorf("Get of nothing = %q", d)
	}
	for _, bad := range []oci.Digest{"", "blake3:", "blake3:xx", someDigest(1) + "0", someDigest(1)[:70], "blake3:" + someDigest(1)} {
		none.Set("/a", bad)
		if d := none.Get("/a"); d != "" {
			t.Errorf("after Set of %q Get = %q", bad, d)
		}
	}
}
