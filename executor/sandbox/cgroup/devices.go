package cgroup

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// deviceRules are the devices that may be used, as Docker and runc have them:
// device nodes of all kinds may be made, as package managers and debootstrap
// do, and those of these numbers opened.
var deviceRules = []struct{ major, minor int32 }{ // minor -1: any
	{1, 3}, // null
	{1, 5}, // zero
	{1, 7}, // full
	{1, 8}, // random
	{1, 9}, // urandom
	{5, 0}, // tty
	{5, 1}, // console
	{5, 2}, // ptmx
	{136, -1},
}

// Device is a device that a group's processes may use beside those.
type Device struct {
	Block        bool // a block device, not a character device
	Major, Minor uint32
	Access       string // some of "rwm": read, write, mknod
}

// limitDevices attaches to the version 2 group dir the program that decides
// about devices (bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE). It goes with the group.
func limitDevices(dir string, more []Device) error {
	prog, err := deviceProgram()
	if len(more) > 0 {
		// A program of this group's alone, which the attachment keeps.
		if prog, err = loadProgram(deviceCode(more)); err == nil {
			defer unix.Close(prog)
		}
	}
	if err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer unix.Close(fd)
	attr := struct{ target, prog, kind, flags, replace, _, _, _ uint32 }{
		target: uint32(fd), prog: uint32(prog), kind: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_ALLOW_MULTI,
	}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_ATTACH, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return fmt.Errorf("attach device program: %w", errno)
	}
	return nil
}

// instruction is one of eBPF's (linux/bpf.h, struct bpf_insn).
type instruction struct {
	op   uint8
	regs uint8 // destination in the low, source in the high half
	off  int16
	imm  int32
}

// Operations, as in linux/bpf_common.h and linux/bpf.h.
const (
	opLoadWord = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	opMoveImm  = 0x07 /* BPF_ALU64 */ | unix.BPF_MOV | unix.BPF_K
	opMoveReg  = 0x07 | unix.BPF_MOV | unix.BPF_X
	opAndImm   = 0x07 | unix.BPF_AND | unix.BPF_K
	opRshImm   = 0x07 | unix.BPF_RSH | unix.BPF_K
	opJneImm   = unix.BPF_JMP | 0x50 /* BPF_JNE */ | unix.BPF_K
	opExit     = unix.BPF_JMP | 0x90 /* BPF_EXIT */
)

// deviceCode is the program: of the context (struct bpf_cgroup_dev_ctx) it
// reads access_type, whose low half is the kind of device and whose high half
// the access, major and minor.
func deviceCode(more []Device) []instruction {
	const (
		kind, access, major, minor = 2, 3, 4, 5 // registers
		char                       = 2          // BPF_DEVCG_DEV_CHAR
		mknod                      = 1          // BPF_DEVCG_ACC_MKNOD
	)
	code := []instruction{
		{op: opLoadWord, regs: kind | 1<<4, off: 0},
		{op: opMoveReg, regs: access | kind<<4},
		{op: opAndImm, regs: kind, imm: 0xffff},
		{op: opRshImm, regs: access, imm: 16},
		{op: opLoadWord, regs: major | 1<<4, off: 4},
		{op: opLoadWord, regs: minor | 1<<4, off: 8},
		// To make a node is all that is asked for: allowed.
		{op: opJneImm, regs: access, off: 2, imm: mknod},
		{op: opMoveImm, regs: 0, imm: 1},
		{op: opExit},
	}
	for _, d := range more {
		code = append(code, d.rule(kind, access, major, minor)...)
	}
	code = append(code,
		// No other block device may be opened.
		instruction{op: opJneImm, regs: kind, off: int16(4*len(deviceRules) - 1), imm: char},
	)
	for _, r := range deviceRules {
		code = append(code, instruction{op: opJneImm, regs: major, off: 3, imm: r.major})
		if r.minor < 0 {
			code[len(code)-1].off = 2
		} else {
			code = append(code, instruction{op: opJneImm, regs: minor, off: 2, imm: r.minor})
		}
		code = append(code, instruction{op: opMoveImm, regs: 0, imm: 1}, instruction{op: opExit})
	}
	return append(code, instruction{op: opMoveImm, regs: 0, imm: 0}, instruction{op: opExit})
}

// rule allows what d says, given the registers of deviceCode.
func (d Device) rule(kind, access, major, minor uint8) []instruction {
	want := int32(2) // BPF_DEVCG_DEV_CHAR
	if d.Block {
		want = 1 // BPF_DEVCG_DEV_BLOCK
	}
	var denied int32
	for i, letter := range "mrw" { // in the order of BPF_DEVCG_ACC_*'s bits
		if !strings.ContainsRune(d.Access, letter) {
			denied |= 1 << i
		}
	}
	return []instruction{
		{op: opJneImm, regs: kind, off: 7, imm: want},
		{op: opJneImm, regs: major, off: 6, imm: int32(d.Major)},
		{op: opJneImm, regs: minor, off: 5, imm: int32(d.Minor)},
		{op: opMoveReg, regs: 0 | access<<4},
		{op: opAndImm, regs: 0, imm: denied},
		{op: opJneImm, regs: 0, off: 2},
		{op: opMoveImm, regs: 0, imm: 1},
		{op: opExit},
	}
}

// deviceProgram loads the program for the standard devices, once.
var deviceProgram = sync.OnceValues(func() (int, error) { return loadProgram(deviceCode(nil)) })

func loadProgram(code []instruction) (int, error) {
	license := []byte("Apache-2.0\x00")
	var pinner runtime.Pinner // the kernel is given addresses as numbers
	defer pinner.Unpin()
	pinner.Pin(&code[0])
	pinner.Pin(&license[0])
	attr := struct {
		kind, count    uint32
		code, license  uint64
		level, size    uint32
		log            uint64
		version, flags uint32
		name           [16]byte
		ifindex, with  uint32
	}{
		kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(code)),
		code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
		name: [16]byte{'b', 'u', 'i', 'l', 'd', '_', 'd', 'e', 'v'},
	}
	fd, errno := undisturbed(func() (uintptr, unix.Errno) {
		fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
		return fd, errno
	})
	if errno != 0 {
		return -1, fmt.Errorf("load device program: %w", errno)
	}
	return int(fd), nil
}

// undisturbed calls load without signals: the kernel's verifier gives up with
// EAGAIN when one is pending, such as those by which Go's runtime preempts.
func undisturbed(load func() (uintptr, unix.Errno)) (fd uintptr, errno unix.Errno) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	all, before := unix.Sigset_t{}, unix.Sigset_t{}
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, &before); err == nil {
		defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) }() // these arguments are always right
	}
	for range 5 { // what else interrupts, such as a freezer, does so seldom
		if fd, errno = load(); errno != unix.EAGAIN {
			break
		}
	}
	return fd, errno
}
