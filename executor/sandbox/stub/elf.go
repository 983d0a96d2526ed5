package stub

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Where the program's two segments are in memory, and the second one in the file.
// 64 KiB is the largest page of the architectures.
const (
	codeBase = 0x400000
	base     = 0x10000000 // of the table: the code has it too
	dataAt   = 0x10000
)

// The parts of an ELF file (elf(5)) that this needs.
type (
	elfHeader struct {
		Ident                                       [16]byte
		Type, Machine                               uint16
		Version                                     uint32
		Entry, ProgOff, SectOff                     uint64
		Flags                                       uint32
		Size, ProgSize, Progs, SectSize, Sects, Str uint16
	}
	elfSegment struct {
		Type, Flags                                uint32
		Off, Addr, Phys, FileSize, MemSize, Aligns uint64
	}
)

// code returns the machine code, which goes through the table at base.
func code() ([]byte, error) {
	from, to := bounds()
	// The linker keeps functions of a file in order; if it ever does not, that is
	// no reason to execute something else.
	if machine == 0 || to <= from || to-from > 4096 {
		return nil, ErrUnsupported
	}
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&from)), to-from), nil
}

// text is the file up to the second segment's content: headers and code.
func text(code []byte, data int) []byte {
	const segments = 3
	headers := int(unsafe.Sizeof(elfHeader{}) + segments*unsafe.Sizeof(elfSegment{}))
	h := elfHeader{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', 2 /* 64 bits */, 1 /* little-endian */, 1},
		Type:  2 /* ET_EXEC */, Machine: machine, Version: 1,
		Entry: codeBase + uint64(headers), ProgOff: uint64(unsafe.Sizeof(elfHeader{})),
		Size: uint16(unsafe.Sizeof(elfHeader{})), ProgSize: uint16(unsafe.Sizeof(elfSegment{})), Progs: segments,
	}
	const load, stack = 1 /* PT_LOAD */, 0x6474e551 /* PT_GNU_STACK */
	const x, w, r = 1, 2, 4
	n := uint64(headers + len(code))
	var out bytes.Buffer
	_ = binary.Write(&out, binary.LittleEndian, h) // to memory
	for _, s := range [segments]elfSegment{
		{Type: load, Flags: r | x, Off: 0, Addr: codeBase, FileSize: n, MemSize: n, Aligns: dataAt},
		{Type: load, Flags: r | w, Off: dataAt, Addr: base, FileSize: uint64(data), MemSize: uint64(data), Aligns: dataAt},
		{Type: stack, Flags: r | w},
	} {
		_ = binary.Write(&out, binary.LittleEndian, s)
	}
	out.Write(code)
	return out.Bytes()
}

// Open returns a descriptor by which the program can be executed. It is in memory
// alone. The kernel may not allow that (vm.memfd_noexec).
func (p *Program) Open() (fd int, err error) {
	c, err := code()
	if err != nil {
		return -1, err
	}
	_, all := p.size()
	memory := make([]byte, all)
	p.fill(memory, base)
	head := text(c, len(memory))
	if len(head) > dataAt {
		return -1, ErrUnsupported
	}
	// What is open for writing cannot be executed, and a process that package
	// syscall starts at this moment would have it open as well until it executes
	// something itself.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	w, err := unix.MemfdCreate("sandbox", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3
		w, err = unix.MemfdCreate("sandbox", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	defer unix.Close(w)
	if err := writeAll(w, head, 0); err != nil {
		return -1, fmt.Errorf("write program: %w", err)
	}
	if err := writeAll(w, memory, dataAt); err != nil {
		return -1, fmt.Errorf("write program: %w", err)
	}
	fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", w), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open program: %w", err)
	}
	return fd, nil
}

func writeAll(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, at)
		if err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}
