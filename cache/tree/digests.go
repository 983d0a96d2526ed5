package tree

import (
	"encoding/hex"
	"math"
	"sort"
	"strings"

	"github.com/861fb494/build/internal/oci"
)

// Digests is the content digests of files by path. It takes little room where
// the files of a directory come one after the other, sorted. The zero value is
// empty; it is for one goroutine at a time.
type Digests struct {
	dirs map[string]*dirDigests // with a slash at the end
}

// dirDigests has files, sorted, until one comes out of order or goes; then byName.
type dirDigests struct {
	names  []byte   // one after the other
	ends   []uint32 // of each name, in names
	sums   [][32]byte
	byName map[string][32]byte
}

// name is the name of file i.
func (d *dirDigests) name(i int) []byte {
	begin := uint32(0)
	if i > 0 {
		begin = d.ends[i-1]
	}
	return d.names[begin:d.ends[i]]
}

// grown is s with room for n more: a quarter more than it has, since append's
// twice as much is never used in most directories.
func grown[T any](s []T, n int) []T {
	if cap(s)-len(s) >= n {
		return s
	}
	return append(make([]T, 0, len(s)+max(n, len(s)/4, 8)), s...)
}

const blake3Prefix = "blake3:"

// Set makes d the digest of the file at path. Of a digest that is not blake3's
// nothing is kept.
func (s *Digests) Set(path string, d oci.Digest) {
	text, ok := strings.CutPrefix(string(d), blake3Prefix)
	var sum [32]byte
	if n, err := hex.Decode(sum[:], []byte(text[:min(len(text), 64)])); !ok || err != nil || n != len(sum) || len(text) != 64 {
		s.Delete(path)
		return
	}
	at := strings.LastIndexByte(path, '/') + 1
	dir := s.dirs[path[:at]]
	if dir == nil {
		if s.dirs == nil {
			s.dirs = map[string]*dirDigests{}
		}
		dir = &dirDigests{}
		s.dirs[strings.Clone(path[:at])] = dir
	}
	dir.set(path[at:], sum)
}

func (d *dirDigests) set(name string, sum [32]byte) {
	if d.byName == nil {
		n := len(d.sums)
		if (n == 0 || string(d.name(n-1)) < name) && len(d.names)+len(name) <= math.MaxUint32 {
			d.names = append(grown(d.names, len(name)), name...)
			d.ends = append(grown(d.ends, 1), uint32(len(d.names)))
			d.sums = append(grown(d.sums, 1), sum)
			return
		}
		if i, ok := d.find(name); ok {
			d.sums[i] = sum
			return
		}
		d.unsort()
	}
	d.byName[strings.Clone(name)] = sum // not a part of the path, which would stay
}

func (d *dirDigests) find(name string) (int, bool) {
	return sort.Find(len(d.sums), func(i int) int { return strings.Compare(name, string(d.name(i))) })
}

func (d *dirDigests) unsort() {
	if d.byName != nil {
		return
	}
	d.byName = make(map[string][32]byte, len(d.sums)+1)
	for i, sum := range d.sums {
		d.byName[string(d.name(i))] = sum
	}
	d.names, d.ends, d.sums = nil, nil, nil
}

// Delete forgets the digest of the file at path.
func (s *Digests) Delete(path string) {
	at := strings.LastIndexByte(path, '/') + 1
	dir := s.dirs[path[:at]]
	if dir == nil {
		return
	}
	if dir.byName == nil {
		if _, ok := dir.find(path[at:]); !ok {
			return
		}
		dir.unsort()
	}
	delete(dir.byName, path[at:])
}

// Get is the digest of the file at path, "" where there is none.
func (s *Digests) Get(path string) oci.Digest {
	at := strings.LastIndexByte(path, '/') + 1
	dir := s.dirs[path[:at]]
	if dir == nil {
		return ""
	}
	sum, ok := dir.byName[path[at:]]
	if dir.byName == nil {
		var i int
		if i, ok = dir.find(path[at:]); ok {
			sum = dir.sums[i]
		}
	}
	if !ok {
		return ""
	}
	return oci.Digest(hex.AppendEncode([]byte(blake3Prefix), sum[:]))
}

// All calls f for each path and digest, in no order.
func (s *Digests) All(f func(path string, d oci.Digest)) {
	for dir, d := range s.dirs {
		for i := range d.sums {
			p := dir + string(d.name(i))
			f(p, s.Get(p))
		}
		for name := range d.byName {
			f(dir+name, s.Get(dir+name))
		}
	}
}
