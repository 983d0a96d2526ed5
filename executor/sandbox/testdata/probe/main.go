// probe tells what the kernel answers to system calls, one a line: the filter
// that it runs under decides about some.
package main

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
)

func main() {
	runtime.LockOSThread()
	switch os.Args[1] {
	case "numbers":
		numbers()
	case "users":
		fmt.Println(os.Getuid(), os.Geteuid())
	case "arguments":
		arguments()
	}
}

// numbers makes every call with arguments that cannot do anything.
func numbers() {
	skip := map[uintptr]bool{
		syscall.SYS_EXIT: true, syscall.SYS_EXIT_GROUP: true, syscall.SYS_CLONE: true, syscall.SYS_RT_SIGRETURN: true,
		syscall.SYS_RT_SIGSUSPEND: true, syscall.SYS_BRK: true, syscall.SYS_SET_TID_ADDRESS: true, syscall.SYS_SIGALTSTACK: true,
		syscall.SYS_PRCTL: true,
	}
	for _, n := range blocking {
		skip[n] = true
	}
	const none = ^uintptr(0)
	for n := uintptr(0); n <= 480; n++ {
		if skip[n] {
			continue
		}
		_, _, errno := syscall.RawSyscall6(n, none, none, none, none, none, none)
		what := "passed"
		if errno == syscall.EPERM || errno == syscall.ENOSYS {
			what = errno.Error()
		}
		fmt.Println(n, what)
	}
}

// arguments makes calls on whose arguments the profile decides.
func arguments() {
	for _, c := range []struct {
		name string
		n    uintptr
		a, b uintptr
	}{
		{"personality 0", syscall.SYS_PERSONALITY, 0, 0},
		{"personality ADDR_NO_RANDOMIZE", syscall.SYS_PERSONALITY, 0x40000, 0},
		{"personality PER_LINUX32", syscall.SYS_PERSONALITY, 8, 0},
		{"personality UNAME26", syscall.SYS_PERSONALITY, 0x20000, 0},
		{"personality UNAME26 PER_LINUX32", syscall.SYS_PERSONALITY, 0x20008, 0},
		{"personality query", syscall.SYS_PERSONALITY, 0xffffffff, 0},
		{"personality with a high bit", syscall.SYS_PERSONALITY, 1<<32 | 8, 0},
		{"socket AF_UNIX", syscall.SYS_SOCKET, 1, 2},
		{"socket AF_INET", syscall.SYS_SOCKET, 2, 2},
		{"socket AF_NETLINK", syscall.SYS_SOCKET, 16, 3},
		{"socket AF_ALG", syscall.SYS_SOCKET, 38, 5},
		{"socket AF_NFC", syscall.SYS_SOCKET, 39, 5},
		{"socket AF_VSOCK", syscall.SYS_SOCKET, 40, 1},
		{"socket AF_XDP", syscall.SYS_SOCKET, 44, 3},
		{"clone CLONE_NEWUSER", syscall.SYS_CLONE, 0x10000000 | 17, 0},
		{"clone CLONE_NEWNS", syscall.SYS_CLONE, 0x20000 | 17, 0},
		{"clone CLONE_NEWPID", syscall.SYS_CLONE, 0x20000000 | 17, 0},
		{"clone CLONE_NEWNET", syscall.SYS_CLONE, 0x40000000 | 17, 0},
		{"clone3", 435, 0, 0},
		{"unshare CLONE_NEWUSER", syscall.SYS_UNSHARE, 0x10000000, 0},
		{"unshare 0", syscall.SYS_UNSHARE, 0, 0},
		{"setns", 308, ^uintptr(0), 0},
		{"keyctl", syscall.SYS_KEYCTL, 0, 0},
		{"bpf", 321, 5, 0},
		{"io_uring_setup", 425, 1, 0},
		{"x32 getpid", 0x40000000 | syscall.SYS_GETPID, 0, 0},
		{"x32 mount", 0x40000000 | syscall.SYS_MOUNT, 0, 0},
		{"no call", 100000, 0, 0},
	} {
		if runtime.GOARCH != "amd64" && (c.name == "setns" || c.name == "bpf" || c.n >= 0x40000000) {
			continue
		}
		_, _, errno := syscall.RawSyscall(c.n, c.a, c.b, 0)
		fmt.Printf("%s: %v\n", c.name, errno)
	}
}
