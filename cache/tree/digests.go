package tree

import (
	"encoding/hex"
	"slices"
	"strings"

	"github.com/861fb494/build/internal/oci"
)

// Digests is the content digests of files by path. It takes little room where
// the files of a directory come one after the other, sorted. The zero value is
// empty; it is for one goroutine at a time.
type Digests struct {
	dirs map[string]*dirDigests // with a slash at the end
}

// dirDigests has files, sorted, until one comes out of order; then byName.
type dirDigests struct {
	files  []fileDigest
	byName map[string][32]byte
}

type fileDigest struct {
	name string
	sum  [32]byte
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
		if n := len(d.files); n == 0 || d.files[n-1].name < name {
			// Not a part of the path, which would stay.
			d.files = append(d.files, fileDigest{strings.Clone(name), sum})
			return
		}
		if i, ok := d.find(name); ok {
			d.files[i].sum = sum
			return
		}
		d.unsort()
	}
	d.byName[strings.Clone(name)] = sum
}

func (d *dirDigests) find(name string) (int, bool) {
	return slices.BinarySearchFunc(d.files, name, func(f fileDigest, n string) int { return strings.Compare(f.name, n) })
}

func (d *dirDigests) unsort() {
	d.byName = make(map[string][32]byte, len(d.files)+1)
	for _, f := range d.files {
		d.byName[f.name] = f.sum
	}
	d.files = nil
}

// Delete forgets the digest of the file at path.
func (s *Digests) Delete(path string) {
	at := strings.LastIndexByte(path, '/') + 1
	dir := s.dirs[path[:at]]
	if dir == nil {
		return
	}
	if dir.byName != nil {
		delete(dir.byName, path[at:])
	} else if i, ok := dir.find(path[at:]); ok {
		dir.files = slices.Delete(dir.files, i, i+1)
	}
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
			sum = dir.files[i].sum
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
		for _, e := range d.files {
			f(dir+e.name, s.Get(dir+e.name))
		}
		for name := range d.byName {
			f(dir+name, s.Get(dir+name))
		}
	}
}
