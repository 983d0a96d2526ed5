package hugepage

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"
)

// TestHeapIsAdvised: what the program allocates next is where the kernel was asked for
// huge pages, in the same piece of the heap as what was allocated at first.
func TestHeapIsAdvised(t *testing.T) {
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	object := uint64(uintptr(unsafe.Pointer(new([64]byte))))
	var from, to uint64
	var advised []string
	for line := range strings.Lines(string(smaps)) {
		var a, b uint64
		if _, err := fmt.Sscanf(line, "%x-%x ", &a, &b); err == nil {
			from, to = a, b
			continue
		}
		// "hg" is for MADV_HUGEPAGE: see proc_pid_smaps(5).
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); !ok || !strings.Contains(flags+" ", " hg ") {
			continue
		}
		advised = append(advised, fmt.Sprintf("%x-%x", from, to))
		if to-from >= hugePage && from%hugePage == 0 && max(from, object)-min(from, object) < 2*arenaChunk {
			return
		}
	}
	t.Errorf("an object is at %x, advised is %v", object, advised)
}
