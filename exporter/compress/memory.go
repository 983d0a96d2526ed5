package compress

import (
	"sync"

	"golang.org/x/sys/unix"
)

// memory keeps the buffers of the writers that are open. They are few, large and
// filled to their end, so they are not of Go's heap: there the collector would let
// as much garbage stand beside them, and each page would be a fault of its own.
// Where the kernel has huge pages it gives those, and where a virtual machine gets
// its memory only as it is touched, the less is touched the better.
type memory struct {
	mu      sync.Mutex
	writers int              // that are open
	free    map[int][][]byte // by capacity
	made    int              // buffers so far
}

// hugePage is the size of one on most machines, in bytes.
const hugePage = 2 << 20

// enter is called before the first get of a writer, leave behind its last put.
func (m *memory) enter() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writers++
}

func (m *memory) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.writers--; m.writers > 0 {
		return
	}
	for _, buffers := range m.free {
		for _, b := range buffers {
			_ = unix.Munmap(b[:cap(b)]) // EINVAL: it is of Go's heap
		}
	}
	m.free = nil
}

// get is an empty buffer for n bytes at least: its capacity is the same for the
// same n.
func (m *memory) get(n int) []byte {
	if n >= hugePage {
		n = (n + hugePage - 1) / hugePage * hugePage
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if free := m.free[n]; len(free) > 0 {
		m.free[n] = free[:len(free)-1]
		return free[len(free)-1][:0]
	}
	m.made++
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return make([]byte, 0, n)
	}
	if n >= hugePage {
		_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // a kernel may be without
	}
	return b[:0]
}

// put takes back what get gave, whatever its length is now.
func (m *memory) put(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.free == nil {
		m.free = map[int][][]byte{}
	}
	m.free[cap(b)] = append(m.free[cap(b)], b)
}
