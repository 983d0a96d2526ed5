// Package hugepage asks the kernel to have a huge page for the first megabytes of
// the program's heap, where it gives those to who asks.
//
// A short run touches some 400 heap pages, each for the first time. That is
// nothing to speak of where the hardware walks a guest's page tables, and a sixth of
// a cached build where the hypervisor has to be told of each page: 12 µs on such a
// machine, and 80 for a page of 2 MiB.
//
// It is imported for this alone, by the program's main package.
package hugepage

import (
	"syscall"
	"unsafe"
)

// What Go's runtime takes memory in, by its source (1.26). Where that changes, less
// of the heap is in huge pages, and nothing breaks.
const (
	arenaChunk = 4 << 20   // the heap grows by
	pageCache  = 512 << 10 // a processor takes for its small objects at once
)

const hugePage = 2 << 20 // on amd64, and on arm64 with small pages of 4 KiB

// taken keeps what is allocated from being taken for an object on the stack.
var taken []byte

// take allocates n bytes, at least 32 KiB, and touches none of them. It returns the
// address behind them.
func take(n uintptr) uintptr {
	taken = make([]byte, n)
	return uintptr(unsafe.Pointer(unsafe.SliceData(taken))) + n
}

// The kernel puts a huge page only where no page has been touched. So what is left
// of the one that the runtime has begun is passed over: 2 MiB of addresses, no
// memory. It runs before the packages that allocate much, since it imports little.
func init() {
	const step = 64 << 10
	end := take(step)
	for range pageCache / step {
		if -end&(pageCache-1) < step {
			break
		}
		end = take(step)
	}
	next := (end + hugePage - 1) &^ (hugePage - 1)
	take(next - end + step) // beyond next, where the heap has to grow for it
	taken = nil

	// What fails here was only advice: a kernel without huge pages, say.
	_, _, _ = syscall.RawSyscall(syscall.SYS_MADVISE, next, arenaChunk-next&(arenaChunk-1), syscall.MADV_HUGEPAGE)
}
