package chunked

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
)

const listMagic = "build-mount-1\n"

// Bounds of a list. What is above them is neither written nor read.
const (
	MaxList    = 256 << 20 // bytes, compressed
	MaxPacks   = 4096
	maxOpen    = 256 << 20 // bytes, decompressed
	maxEntries = 1 << 20
	maxChunks  = 4 << 20 // of all packs
	maxRefs    = 4 << 20 // chunks of all files
	maxPack    = PackSize + maxChunk
	maxFile    = 1 << 43 // bytes, holes included
	maxPath    = 32 << 10
	maxName    = 255
	maxXattrs  = 1 << 20 // bytes of all xattrs of a file
	maxSeconds = 1 << 40 // before and after 1970
)

// Sum is the BLAKE3 digest of a chunk.
type Sum [32]byte

// Chunk is a stretch of content.
type Chunk struct {
	Sum  Sum
	Size uint32 // bytes
}

// Part is a stretch of a file: chunks that follow each other in packs, or a hole.
type Part struct {
	First, Count int   // chunks, numbered over all packs
	Hole         int64 // bytes; Count is 0
}

// List is a directory whose content lies in packs.
type List struct {
	Packs   [][]Chunk
	Entries []tree.Change
	Content [][]Part // of each entry; nil for what is no regular file, or a hard link

	size int64
}

// hasContent reports a regular file that is not a further name of another.
func hasContent(c *tree.Change) bool { return c.Type() == unix.S_IFREG && c.HardLink == "" }

// Encode is the bytes of a list that Decode would take; an error for any other.
// salt is as NewPacker's.
func (l *List) Encode(salt []byte) ([]byte, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	b := binary.AppendUvarint([]byte(listMagic), uint64(len(l.Packs)))
	for _, p := range l.Packs {
		b = binary.AppendUvarint(b, uint64(len(p)))
		for _, c := range p {
			b = append(binary.AppendUvarint(b, uint64(c.Size)), c.Sum[:]...)
		}
	}
	var entries bytes.Buffer
	if err := layer.WriteEntries(&entries, l.Entries); err != nil {
		return nil, err
	}
	b = binary.AppendUvarint(b, uint64(entries.Len()))
	b = append(b, entries.Bytes()...)
	end := 0
	for i := range l.Entries {
		if !hasContent(&l.Entries[i]) {
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(l.Content[i])))
		for _, p := range l.Content[i] {
			b = binary.AppendUvarint(b, uint64(p.Count))
			if p.Count == 0 {
				b = binary.AppendUvarint(b, uint64(p.Hole))
				continue
			}
			b = binary.AppendVarint(b, int64(p.First-end))
			end = p.First + p.Count
		}
	}
	if len(b) > maxOpen {
		return nil, fmt.Errorf("a list of %d bytes; at most %d are taken", len(b), maxOpen)
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	b = z.EncodeAll(b, salted(salt))
	if len(b) > MaxList {
		return nil, fmt.Errorf("a list of %d bytes, compressed; at most %d are taken", len(b), MaxList)
	}
	return b, nil
}

// Decode reads what Encode wrote, and refuses what it would not write: what is
// out of bounds, paths that are not below those of directories, files whose
// content is not there or not of their size. data is at most MaxList bytes.
func Decode(data []byte) (*List, error) {
	z, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxOpen))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	var open bytes.Buffer
	open.Grow(min(4*len(data), maxOpen))
	n, err := open.ReadFrom(io.LimitReader(z, maxOpen+1))
	if err == nil && n > maxOpen {
		err = fmt.Errorf("more than %d bytes", maxOpen)
	}
	if err != nil {
		return nil, fmt.Errorf("read list: %w", err)
	}
	l, err := parse(open.Bytes())
	if err == nil {
		err = l.check()
	}
	if err != nil {
		return nil, fmt.Errorf("read list: %w", err)
	}
	return l, nil
}

var errDamaged = errors.New("it is damaged")

func parse(data []byte) (*List, error) {
	rest, ok := bytes.CutPrefix(data, []byte(listMagic))
	if !ok {
		return nil, fmt.Errorf("it is not of version %q", listMagic[:len(listMagic)-1])
	}
	d := decoder{rest: rest}
	l := &List{}
	chunks := uint64(0)
	for range d.limited(MaxPacks) {
		n := d.limited(maxChunks - chunks)
		if n > uint64(len(d.rest))/33 { // what a chunk takes at least
			return nil, errDamaged
		}
		chunks += n
		pack := make([]Chunk, n)
		for i := range pack {
			pack[i].Size = uint32(d.limited(maxChunk))
			copy(pack[i].Sum[:], d.take(32))
		}
		l.Packs = append(l.Packs, pack)
	}
	entries := d.take(d.number())
	if d.bad {
		return nil, errDamaged
	}
	for c, err := range layer.ReadEntries(bytes.NewReader(entries)) {
		if err != nil {
			return nil, err
		}
		if len(l.Entries) == maxEntries {
			return nil, fmt.Errorf("more than %d files", maxEntries)
		}
		l.Entries = append(l.Entries, c)
	}
	d.content(l)
	if d.bad || len(d.rest) > 0 {
		return nil, errDamaged
	}
	return l, nil
}

// content reads the parts of files.
func (d *decoder) content(l *List) {
	l.Content = make([][]Part, len(l.Entries))
	end := int64(0)
	left := uint64(maxRefs) // of parts: none of them is empty
	for i := range l.Entries {
		if !hasContent(&l.Entries[i]) {
			continue
		}
		n := d.limited(min(left, uint64(len(d.rest))/2))
		left -= n
		parts := make([]Part, n)
		for k := range parts {
			p := &parts[k]
			if p.Count = int(d.limited(maxRefs)); p.Count == 0 {
				p.Hole = int64(d.limited(maxFile))
				continue
			}
			first := end + d.signed()
			if first < 0 || first > maxChunks {
				d.bad = true
				return
			}
			p.First = int(first)
			end = first + int64(p.Count)
		}
		l.Content[i] = parts
	}
}

// decoder reads numbers. Once something does not fit, bad is set and all that it
// yields is zero.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) take(n uint64) []byte {
	if d.bad || n > uint64(len(d.rest)) {
		d.bad = true
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) number() uint64 {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 || d.bad {
		d.bad = true
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

func (d *decoder) signed() int64 {
	n, size := binary.Varint(d.rest)
	if size <= 0 || d.bad || n > 1<<40 || n < -1<<40 {
		d.bad = true
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

// limited is a number that is at most most.
func (d *decoder) limited(most uint64) uint64 {
	n := d.number()
	if n > most {
		d.bad = true
		return 0
	}
	return n
}
