package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// touch has n bytes of memory written to, or half of what is free, and gives them back. A virtual machine may
// get free memory from its host only as it is touched: what runs next finds it there,
// for some seconds, as on a machine whose memory is its own. It is not for the process
// that starts builds: see stopwatchVariable.
func touch(n int64) error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return os.NewSyscallError("sysinfo", err)
	}
	// What is not free is there already, and is not to be driven out.
	if n = min(n, int64(info.Freeram)*int64(info.Unit)/2); n == 0 {
		return nil
	}
	b, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("touch %d bytes of memory: %w", n, err)
	}
	var wait sync.WaitGroup
	for part := range slices.Chunk(b, len(b)/runtime.NumCPU()+1) {
		wait.Go(func() {
			for i := 0; i < len(part); i += os.Getpagesize() {
				part[i] = 1
			}
		})
	}
	wait.Wait()
	return unix.Munmap(b)
}
