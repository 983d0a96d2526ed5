package interpose

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// install has the kernel ask, of this thread and of what it becomes. It returns
// the descriptor on which it asks.
func install(reads bool) (int, error) {
	runtime.LockOSThread()
	var numbers []uint32
	for nr, c := range calls {
		if reads || !c.reads {
			numbers = append(numbers, uint32(nr))
		}
	}
	program := assemble(numbers)
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	// Waiting killably: else each signal, of which a Go program sends itself
	// many, would have a call asked about again.
	flags := uintptr(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
	for {
		fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
		switch {
		case errno == 0:
			return int(fd), nil
		case errno == unix.EINVAL && flags&unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV != 0: // before Linux 5.19
			flags &^= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
		case errno == unix.EBUSY:
			return 0, errors.New("another filter of this process has a listener already")
		default:
			return 0, errno
		}
	}
}

// assemble is a filter that asks about the system calls of these numbers and
// allows all others: seccomp(2), linux/seccomp.h.
func assemble(numbers []uint32) []unix.SockFilter {
	load := unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0} // seccomp_data.nr
	out := []unix.SockFilter{load}
	for i, nr := range numbers {
		// To the last instruction, behind the jumps that follow and the "allow".
		out = append(out, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(numbers) - i), K: nr})
	}
	ret := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	return append(out, ret(unix.SECCOMP_RET_ALLOW), ret(unix.SECCOMP_RET_USER_NOTIF))
}
