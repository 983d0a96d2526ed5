package remote

import (
	"cmp"
	"slices"

	"github.com/861fb494/build/cache/chunked"
)

// packUse is how much of a pack is needed still.
type packUse struct{ live, size int64 } // bytes of chunks

// repack chooses packs whose chunks are sent again, in new packs.
func (x *mountExport) repack(s *chunked.Snapshot) []bool {
	uses := make([]packUse, len(x.old))
	for i, p := range x.old {
		for _, c := range p.chunks {
			uses[i].size += int64(c.Size)
		}
	}
	var total int64
	seen := map[chunked.Sum]bool{}
	s.Sums(func(c chunked.Chunk) {
		if seen[c.Sum] {
			return
		}
		seen[c.Sum] = true
		total += int64(c.Size)
		if i := x.in[c.Sum]; i != fresh {
			uses[i].live += int64(c.Size)
		}
	})
	return repack(uses, x.size, total)
}

// repack chooses among packs. Each export of a mount that has changed leaves
// chunks behind that nobody needs, which a restore fetches with the others, and
// one more pack. So packs are made anew that are half empty, and small ones when
// there are many; of that no more at a time than half of what is new is sent, or a
// fiftieth of the mount. fresh are the bytes of new chunks, total those of all.
func repack(packs []packUse, fresh, total int64) []bool {
	const small, many = chunked.PackSize / 4, 8
	out := make([]bool, len(packs))
	order := make([]int, 0, len(packs)) // of those that are needed, the cheapest first
	smalls := 0
	for i, p := range packs {
		if p.live == 0 {
			continue // it goes
		}
		order = append(order, i)
		if p.size < small {
			smalls++
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(packs[a].live, packs[b].live) })
	budget := max(fresh/2, total/50)
	// Above this it is a matter of requests, and not of bytes.
	surplus := len(order) - (64 + int(2*total/chunked.PackSize))
	for _, i := range order {
		p := packs[i]
		wanted := p.live < p.size/2 || p.size < small && smalls > many
		if surplus <= 0 && (!wanted || p.live > budget) {
			continue
		}
		out[i] = true
		budget -= p.live
		surplus--
	}
	return out
}
