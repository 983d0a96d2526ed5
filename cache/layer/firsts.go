package layer

import (
	"encoding/binary"
	"path"
)

// firsts are the paths of inodes with several names: the first that was listed.
// That may be nearly all files of a layer, whose other names are in the layer that
// the step made before. So a path is kept as its directory, which it has in common
// with many, and its name.
type firsts struct {
	at   map[uint64]int // by inode number: where in text
	text []byte         // of each the number of its directory and its name's length, as varints, and the name
	dirs []string       // with a slash at the end, as they came
}

// set makes p, which is not empty, the path of inode ino.
func (f *firsts) set(ino uint64, p string) {
	if f.at == nil {
		f.at = map[uint64]int{}
	}
	dir, name := path.Split(p)
	if n := len(f.dirs); n == 0 || f.dirs[n-1] != dir {
		f.dirs = append(f.dirs, dir)
	}
	f.at[ino] = len(f.text)
	f.text = binary.AppendUvarint(f.text, uint64(len(f.dirs)-1))
	f.text = appendText(f.text, name)
}

// get is the path of inode ino, "" if it has none.
func (f *firsts) get(ino uint64) string {
	at, ok := f.at[ino]
	if !ok {
		return ""
	}
	d := decoder{rest: f.text[at:]}
	dir := f.dirs[d.number()]
	return dir + d.text()
}
