package layer

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/blake3"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/oci"
)

const entriesMagic = "build-entries-1\n"

// Bits of a record's kind; see the package's documentation.
const (
	bitRemoved = 1 << iota
	bitOpaque
	bitDigest
	bitHardLink
	bitXattrs
	bitLink
	bitDevice
	bitEnd
)

const sumSize = 16

// ErrDamaged is the error of a ReadEntries that finds what WriteEntries did not
// write.
var ErrDamaged = errors.New("list of entries is damaged")

// WriteEntries writes changes to w, in the form of the package's documentation.
func WriteEntries(w io.Writer, changes []tree.Change) error {
	e := newEntryWriter(w)
	for i := range changes {
		e.add(&changes[i])
	}
	return e.end()
}

type entryWriter struct {
	w    io.Writer
	sum  *blake3.Hasher
	buf  *bufio.Writer // to both
	one  []byte
	last string
	n    uint64
}

// entryBuffers are those of entryWriters: most of what is written is short.
var entryBuffers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 64<<10) }}

func newEntryWriter(w io.Writer) *entryWriter {
	e := &entryWriter{w: w, sum: blake.Get()}
	e.buf = entryBuffers.Get().(*bufio.Writer)
	e.buf.Reset(io.MultiWriter(w, e.sum))
	e.buf.WriteString(entriesMagic)
	return e
}

func (e *entryWriter) add(c *tree.Change) {
	e.one = appendChange(e.one[:0], c, e.last)
	e.last = c.Path
	e.n++
	e.buf.Write(e.one)
}

// end writes what is left, or is the first error.
func (e *entryWriter) end() error {
	e.buf.Write(binary.AppendUvarint([]byte{bitEnd}, e.n))
	err := e.buf.Flush()
	if err == nil {
		_, err = e.w.Write(e.sum.Sum(nil)[:sumSize])
	}
	blake.Put(e.sum)
	e.buf.Reset(nil)
	entryBuffers.Put(e.buf)
	if err != nil {
		return fmt.Errorf("write entries: %w", err)
	}
	return nil
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendChange(b []byte, c *tree.Change, last string) []byte {
	var kind byte
	for _, f := range []struct {
		set bool
		bit byte
	}{
		{c.Opaque, bitOpaque}, {c.Digest != "", bitDigest}, {c.HardLink != "", bitHardLink},
		{len(c.Xattrs) > 0, bitXattrs}, {c.Link != "", bitLink}, {c.Major|c.Minor != 0, bitDevice},
	} {
		if f.set {
			kind |= f.bit
		}
	}
	if c.Removed {
		kind = bitRemoved
	}
	shared := 0
	for shared < min(len(last), len(c.Path)) && last[shared] == c.Path[shared] {
		shared++
	}
	b = append(b, kind)
	b = binary.AppendUvarint(b, uint64(shared))
	b = appendText(b, c.Path[shared:])
	if c.Removed {
		return b
	}
	for _, n := range []uint64{uint64(c.Mode), uint64(c.UID), uint64(c.GID), uint64(c.Size)} {
		b = binary.AppendUvarint(b, n)
	}
	b = binary.AppendVarint(b, c.ModTime.Unix())
	for _, n := range []uint64{uint64(c.ModTime.Nanosecond()), c.Ino, c.Nlink} {
		b = binary.AppendUvarint(b, n)
	}
	if kind&bitDigest != 0 {
		b = appendDigest(b, c.Digest)
	}
	if kind&bitHardLink != 0 {
		b = appendText(b, c.HardLink)
	}
	if kind&bitXattrs != 0 {
		b = binary.AppendUvarint(b, uint64(len(c.Xattrs)))
		for _, k := range slices.Sorted(maps.Keys(c.Xattrs)) {
			b = appendText(appendText(b, k), c.Xattrs[k])
		}
	}
	if kind&bitLink != 0 {
		b = appendText(b, c.Link)
	}
	if kind&bitDevice != 0 {
		b = binary.AppendUvarint(b, uint64(c.Major))
		b = binary.AppendUvarint(b, uint64(c.Minor))
	}
	return b
}

func appendDigest(b []byte, d oci.Digest) []byte {
	if text, ok := strings.CutPrefix(string(d), "blake3:"); ok && len(text) == 64 {
		if sum, err := hex.DecodeString(text); err == nil && hex.EncodeToString(sum) == text {
			return append(append(b, 0), sum...)
		}
	}
	return appendText(b, string(d))
}

// ReadEntries yields the changes that WriteEntries wrote. It reads r twice, from
// where r stands: before it yields the first, it compares the checksum. What does
// not fit is an ErrDamaged. It holds little of r.
func ReadEntries(r io.ReadSeeker) iter.Seq2[tree.Change, error] {
	return func(yield func(tree.Change, error) bool) {
		body, err := verified(r)
		if err != nil {
			yield(tree.Change{}, err)
			return
		}
		var d decoder
		var last string
		for n := uint64(0); ; {
			record := d.rest
			kind := d.byte()
			var c tree.Change
			var count uint64
			if kind == bitEnd {
				count = d.number()
			} else {
				c = d.change(kind, last)
			}
			if (d.bad || kind == bitEnd) && !body.ended {
				if d, err = body.more(record); err != nil {
					yield(tree.Change{}, err)
					return
				}
				continue // with as much again of the record
			}
			if kind == bitEnd && !d.bad && count == n && len(d.rest) == 0 {
				return
			}
			if kind == bitEnd || d.bad {
				yield(tree.Change{}, ErrDamaged)
				return
			}
			last = c.Path
			n++
			if !yield(c, nil) {
				return
			}
		}
	}
}

// records is the records of a list, of which a part is held.
type records struct {
	r     io.Reader
	buf   []byte
	ended bool // buf has the last of them
}

// recordsPart is how much of a list is read at a time, in bytes.
const recordsPart = 64 << 10

// more is a decoder of rest, the end of the last one's, and what follows.
func (b *records) more(rest []byte) (decoder, error) {
	if need := len(rest) + recordsPart; cap(b.buf) < need {
		b.buf = append(make([]byte, 0, max(need, 2*cap(b.buf))), rest...)
	} else {
		b.buf = b.buf[:copy(b.buf[:cap(b.buf)], rest)]
	}
	n, err := io.ReadFull(b.r, b.buf[len(b.buf):cap(b.buf)])
	b.buf = b.buf[:len(b.buf)+n]
	b.ended = err == io.EOF || err == io.ErrUnexpectedEOF
	if err != nil && !b.ended {
		return decoder{}, fmt.Errorf("read entries: %w", err)
	}
	return decoder{rest: b.buf}, nil
}

// verified is the records of the list r, whose version and checksum fit.
func verified(r io.ReadSeeker) (*records, error) {
	begin, err := r.Seek(0, io.SeekCurrent)
	var end int64
	if err == nil {
		end, err = r.Seek(0, io.SeekEnd)
	}
	if err == nil {
		_, err = r.Seek(begin, io.SeekStart)
	}
	if err != nil {
		return nil, fmt.Errorf("read entries: %w", err)
	}
	magic := int64(len(entriesMagic))
	size := end - begin - magic - sumSize
	h := blake.Get()
	defer blake.Put(h)
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	head := (*buf)[:magic+sumSize]
	if n, err := io.ReadFull(r, head[:magic]); size < 0 || err == nil && string(head[:n]) != entriesMagic {
		return nil, fmt.Errorf("%w: not of version %q", ErrDamaged, entriesMagic[:magic-1])
	} else if err != nil {
		return nil, fmt.Errorf("read entries: %w", err)
	}
	h.Write(head[:magic])
	if _, err = io.CopyBuffer(h, io.LimitReader(r, size), *buf); err == nil {
		if _, err = io.ReadFull(r, head[:sumSize]); err == nil {
			_, err = r.Seek(begin+magic, io.SeekStart)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read entries: %w", err)
	}
	if !bytes.Equal(h.Sum(nil)[:sumSize], head[:sumSize]) {
		return nil, fmt.Errorf("%w: checksum differs", ErrDamaged)
	}
	return &records{r: io.LimitReader(r, size)}, nil
}

// checked is data without version word and checksum, both of which fit.
func checked(data []byte) ([]byte, error) {
	if !bytes.HasPrefix(data, []byte(entriesMagic)) || len(data) < len(entriesMagic)+sumSize {
		return nil, fmt.Errorf("%w: not of version %q", ErrDamaged, entriesMagic[:len(entriesMagic)-1])
	}
	n := len(data) - sumSize
	if !bytes.Equal(sum(data[:n]), data[n:]) {
		return nil, fmt.Errorf("%w: checksum differs", ErrDamaged)
	}
	return data[len(entriesMagic):n], nil
}

func sum(data []byte) []byte {
	s := blake.Sum256(data)
	return s[:sumSize]
}

// decoder reads records. Once something does not fit, bad is set and all that
// it yields is zero.
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

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) number() uint64 {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 {
		d.bad = true
		return 0
	}
	d.take(uint64(size))
	return n
}

func (d *decoder) signed() int64 {
	n, size := binary.Varint(d.rest)
	if size <= 0 {
		d.bad = true
		return 0
	}
	d.take(uint64(size))
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

func (d *decoder) text() string { return string(d.take(d.number())) }

func (d *decoder) change(kind byte, last string) tree.Change {
	var c tree.Change
	shared := d.limited(uint64(len(last)))
	c.Path = last[:shared] + d.text()
	if kind&bitRemoved != 0 {
		c.Removed = true
		d.bad = d.bad || kind != bitRemoved
		return c
	}
	c.Opaque = kind&bitOpaque != 0
	c.Mode = uint32(d.limited(math.MaxUint32))
	c.UID = int(d.limited(math.MaxUint32))
	c.GID = int(d.limited(math.MaxUint32))
	c.Size = int64(d.limited(math.MaxInt64))
	sec := d.signed()
	c.ModTime = time.Unix(sec, int64(d.limited(999_999_999)))
	c.Ino, c.Nlink = d.number(), d.number()
	if kind&bitDigest != 0 {
		c.Digest = d.digest()
	}
	if kind&bitHardLink != 0 {
		c.HardLink = d.text()
	}
	if kind&bitXattrs != 0 {
		n := d.limited(uint64(len(d.rest)))
		d.bad = d.bad || n == 0
		c.Xattrs = make(map[string]string, min(n, 16))
		for range n {
			k := d.text()
			c.Xattrs[k] = d.text()
		}
	}
	if kind&bitLink != 0 {
		c.Link = d.text()
	}
	if kind&bitDevice != 0 {
		c.Major, c.Minor = uint32(d.limited(math.MaxUint32)), uint32(d.limited(math.MaxUint32))
	}
	return c
}

func (d *decoder) digest() oci.Digest {
	n := d.number()
	if n == 0 {
		b := d.take(32)
		if len(b) < 32 {
			return "" // take has marked it as bad
		}
		return blake.DigestOf([32]byte(b))
	}
	return oci.Digest(d.take(n))
}
