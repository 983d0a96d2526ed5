package chunked

import (
	"bytes"
	"encoding/binary"
	"sync"
)

// Memory knows the chunks of files by their stamps, so that what has not been
// touched is not read again. It proves no more than a stamp does: device, inode,
// size, modification and change time. A nil Memory knows nothing.
type Memory struct {
	mu    sync.Mutex
	old   map[stamp][]piece
	fresh map[stamp][]piece // put, or asked for and found
}

const memoryMagic = "build-chunks-1\n"

// NewMemory reads what Bytes wrote; anything else is as good as nothing.
func NewMemory(data []byte) *Memory {
	m := &Memory{fresh: map[stamp][]piece{}}
	rest, ok := bytes.CutPrefix(data, []byte(memoryMagic))
	if !ok {
		return m
	}
	d := decoder{rest: rest}
	old := map[stamp][]piece{}
	for len(d.rest) > 0 && !d.bad {
		s := stamp{ino: d.number(), dev: d.number(), size: int64(d.number()), mtime: d.time(), ctime: d.time()}
		pieces := make([]piece, d.limited(uint64(len(d.rest))/2))
		for i := range pieces {
			if pieces[i].size = int64(d.number()); pieces[i].size&1 == 1 {
				copy(pieces[i].sum[:], d.take(32))
			}
			pieces[i].size >>= 1
		}
		old[s] = pieces
	}
	if !d.bad {
		m.old = old
	}
	return m
}

func (d *decoder) time() int64 {
	n, size := binary.Varint(d.rest)
	if size <= 0 || d.bad {
		d.bad = true
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

// Bytes is what has been put, or found.
func (m *Memory) Bytes() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := []byte(memoryMagic)
	for s, pieces := range m.fresh {
		b = binary.AppendUvarint(b, s.ino)
		b = binary.AppendUvarint(b, s.dev)
		b = binary.AppendUvarint(b, uint64(s.size))
		b = binary.AppendVarint(b, s.mtime)
		b = binary.AppendVarint(b, s.ctime)
		b = binary.AppendUvarint(b, uint64(len(pieces)))
		for _, p := range pieces {
			if p.sum == (Sum{}) {
				b = binary.AppendUvarint(b, uint64(p.size)<<1)
				continue
			}
			b = append(binary.AppendUvarint(b, uint64(p.size)<<1|1), p.sum[:]...)
		}
	}
	return b
}

func (m *Memory) get(s stamp) ([]piece, bool) {
	if m == nil {
		return nil, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.old[s]
	if ok {
		m.fresh[s] = p
	}
	return p, ok
}

func (m *Memory) put(s stamp, p []piece) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fresh[s] = p
}
