package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Stamp is what the file system says of a file: see Stats.
type Stamp struct {
	Size         int64
	Mtime, Ctime int64 // nanoseconds since 1970, modulo 1<<64
	Ino, Dev     uint64
}

// Sum is a blake3 digest of 32 bytes.
type Sum = [32]byte

// Stats remembers the content digests of files of one directory by their
// stamps, so that an unchanged directory need not be read again. It proves no
// more than its fields do: any difference, however small, is a file to be read.
// It is safe for concurrent use.
type Stats struct {
	store *Store
	path  string

	mu     sync.Mutex
	file   *os.File              // as it was found; nil: there is none
	old    map[string]*statBlock // by directory
	loaded [maxLoaded]*statBlock // those with their data, or nil
	oldest int                   // of loaded
}

// maxLoaded is of how many directories the data are held: as many as may be asked
// for side by side. All are, of a file of at most smallStats bytes.
const (
	maxLoaded  = 16
	smallStats = 1 << 20
)

// Hashed is a file whose content was read.
type Hashed struct {
	Name  string // in its directory
	Stamp Stamp
	Sum   Sum
}

type stat struct {
	stamp Stamp
	sum   Sum
}

// statBlock is what is remembered of one directory, as it lies in the file: its
// files sorted by name. Whoever asks for them in that order reads it once.
type statBlock struct {
	at    int64 // where its data are in the file, and how long
	size  int
	data  []byte // nil: to be loaded
	count int

	cursor statCursor
	found  []uint64 // a bit for each file that was asked for
}

// statCursor is where the reading of a block is: before the file number index.
type statCursor struct {
	rest  []byte
	index int
}

const statsFormat = "build stats 2\n"

// Stats opens what is remembered of the files below the host path root. A file
// that is damaged or of another format is as good as none. The caller closes it.
func (s *Store) Stats(root string) *Stats {
	t := &Stats{store: s, path: filepath.Join(s.dir, "stats", shortHash(root))}
	t.file, t.old, _ = readStats(t.path)
	return t
}

// Close releases the file.
func (t *Stats) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file != nil {
		t.file.Close()
	}
	t.file, t.old = nil, nil
}

// readStats checks all of a file, and leaves it open.
func readStats(path string) (*os.File, map[string]*statBlock, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	blocks, err := readBlocks(f)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, blocks, nil
}

func readBlocks(f *os.File) (map[string]*statBlock, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, st.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, err
	}
	text, err := openRecord(b)
	if err != nil {
		return nil, err
	}
	out := parseStats(text)
	if out == nil {
		return nil, errors.New("it is of another version")
	}
	if len(text) > smallStats {
		for _, b := range out {
			b.data, b.cursor = nil, statCursor{}
		}
	}
	return out, nil
}

// load has the data of b read, if they are not held. The file is never written to,
// but replaced.
func (t *Stats) load(b *statBlock) bool {
	if b.data != nil {
		return true
	}
	if t.file == nil {
		return false
	}
	var data []byte
	if last := t.loaded[t.oldest]; last != nil {
		data, last.data, last.cursor = last.data[:0], nil, statCursor{}
	}
	data = slices.Grow(data, b.size)[:b.size]
	t.loaded[t.oldest] = nil
	if _, err := t.file.ReadAt(data, b.at); err != nil {
		return false
	}
	b.data, b.cursor.rest = data, data
	t.loaded[t.oldest] = b
	t.oldest = (t.oldest + 1) % maxLoaded
	return true
}

// parseStats finds the directories in the text of a stats file; nil where it is
// none.
func parseStats(text []byte) map[string]*statBlock {
	rest, ok := bytes.CutPrefix(text, []byte(statsFormat))
	if !ok {
		return nil
	}
	out := map[string]*statBlock{}
	for len(rest) > 0 {
		var dir, data []byte
		var count uint64
		if dir, rest, ok = cutText(rest); !ok {
			return nil
		}
		if count, rest, ok = cutNumber(rest); !ok {
			return nil
		}
		if data, rest, ok = cutText(rest); !ok || count > uint64(len(data)) {
			return nil
		}
		out[string(dir)] = &statBlock{
			at: int64(len(text) - len(rest) - len(data)), size: len(data), data: data, cursor: statCursor{rest: data},
			count: int(count), found: make([]uint64, (count+63)/64),
		}
	}
	return out
}

func cutNumber(b []byte) (uint64, []byte, bool) {
	n, size := binary.Uvarint(b)
	if size <= 0 {
		return 0, nil, false
	}
	return n, b[size:], true
}

// cutText cuts a text with its length before it.
func cutText(b []byte) (text, rest []byte, ok bool) {
	n, b, ok := cutNumber(b)
	if !ok || n > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

// next is the file at c, and c behind it; false at the end, and where the block
// is damaged, which its checksum makes improbable.
func (c statCursor) next() (name []byte, s stat, after statCursor, ok bool) {
	name, rest, ok := cutText(c.rest)
	if !ok {
		return nil, s, c, false
	}
	var n [3]uint64
	for i := range n {
		if n[i], rest, ok = cutNumber(rest); !ok {
			return nil, s, c, false
		}
	}
	if len(rest) < 16+len(s.sum) || n[0] > math.MaxInt64 {
		return nil, s, c, false
	}
	s.stamp = Stamp{
		Size: int64(n[0]), Ino: n[1], Dev: n[2],
		Mtime: int64(binary.LittleEndian.Uint64(rest)), Ctime: int64(binary.LittleEndian.Uint64(rest[8:])),
	}
	copy(s.sum[:], rest[16:])
	return name, s, statCursor{rest: rest[16+len(s.sum):], index: c.index + 1}, true
}

func appendStat(b []byte, name string, s stat) []byte {
	b = append(binary.AppendUvarint(b, uint64(len(name))), name...)
	for _, n := range []uint64{uint64(s.stamp.Size), s.stamp.Ino, s.stamp.Dev} {
		b = binary.AppendUvarint(b, n)
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(s.stamp.Mtime))
	b = binary.LittleEndian.AppendUint64(b, uint64(s.stamp.Ctime))
	return append(b, s.sum[:]...)
}

// find is the file name of the block.
func (b *statBlock) find(name string) (stat, bool) {
	at := b.cursor
	for again := at.index > 0; ; {
		n, s, after, ok := at.next()
		switch {
		case ok && string(n) < name:
			at = after
			continue
		case ok && string(n) == name:
			b.cursor = after
			if at.index < b.count {
				b.found[at.index/64] |= 1 << (at.index % 64)
			}
			return s, true
		}
		if !again {
			b.cursor = at
			return stat{}, false
		}
		again, at = false, statCursor{rest: b.data} // asked out of order
	}
}

// Get is the digest of the file name in dir, which has a slash at its end, if it was
// saved with the same stamp.
func (t *Stats) Get(dir, name string, s Stamp) (Sum, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.old[dir]
	if b == nil || !t.load(b) {
		return Sum{}, false
	}
	e, ok := b.find(name)
	if !ok || e.stamp != s {
		return Sum{}, false
	}
	return e.sum, true
}

// Save writes what was found, and files that were read, by the directory, with a
// slash at its end; their stamps are old enough to tell them from later ones. What
// was not asked for this time is kept too, unless its file is gone.
func (t *Stats) Save(fresh map[string]iter.Seq[Hashed]) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(fresh) == 0 {
		return nil
	}
	return inDir(t.path, func() error {
		return t.store.writeFileBy(t.path, func(w io.Writer) error { return t.write(w, fresh) })
	})
}

func (t *Stats) write(to io.Writer, fresh map[string]iter.Seq[Hashed]) error {
	w := newSealed(to)
	if _, err := io.WriteString(w, statsFormat); err != nil {
		return err
	}
	var head, block []byte
	save := func(dir string) error {
		count := 0
		if block, count = t.block(dir, fresh[dir], block[:0]); count == 0 {
			return nil
		}
		head = append(binary.AppendUvarint(head[:0], uint64(len(dir))), dir...)
		head = binary.AppendUvarint(head, uint64(count))
		head = binary.AppendUvarint(head, uint64(len(block)))
		if _, err := w.Write(head); err != nil {
			return err
		}
		_, err := w.Write(block)
		return err
	}
	for dir := range fresh {
		if err := save(dir); err != nil {
			return err
		}
	}
	for dir := range t.old {
		if fresh[dir] == nil {
			if err := save(dir); err != nil {
				return err
			}
		}
	}
	return w.seal()
}

// block appends the block of dir, with what was read of it, to b, and says how many
// files it has.
func (t *Stats) block(dir string, read iter.Seq[Hashed], b []byte) ([]byte, int) {
	old, fresh := t.old[dir], map[string]stat{}
	if read != nil {
		for h := range read {
			fresh[h.Name] = stat{stamp: h.Stamp, sum: h.Sum}
		}
	}
	if len(fresh) == 0 && (old == nil || !slices.ContainsFunc(old.found, func(n uint64) bool { return n != 0 })) {
		if _, err := os.Lstat(strings.TrimSuffix(dir, "/")); err != nil {
			return b, 0 // nobody asked for any, and the directory is gone
		}
	}
	names := make([]string, 0, len(fresh))
	for n := range fresh {
		names = append(names, n)
	}
	slices.Sort(names)
	count := 0
	put := func(name string, s stat) { b, count = appendStat(b, name, s), count+1 }
	var at statCursor
	if old != nil && t.load(old) {
		at.rest = old.data
	}
	for {
		name, s, after, ok := at.next()
		for len(names) > 0 && (!ok || names[0] <= string(name)) {
			put(names[0], fresh[names[0]])
			names = names[1:]
		}
		if !ok {
			return b, count
		}
		if _, again := fresh[string(name)]; !again {
			asked := at.index < old.count && old.found[at.index/64]&(1<<(at.index%64)) != 0
			if !asked {
				_, err := os.Lstat(dir + string(name))
				asked = err == nil
			}
			if asked {
				put(string(name), s)
			}
		}
		at = after
	}
}
