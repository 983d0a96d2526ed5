package seccomp

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func architectures() []arch {
	return []arch{
		{name: specs.ArchX86_64, token: unix.AUDIT_ARCH_X86_64, calls: table{lines: nativeNumbers}},
		{name: specs.ArchX32, token: unix.AUDIT_ARCH_X86_64, calls: table{nativeNumbers, otherX32}, offset: 0x40000000},
		{name: specs.ArchX86, token: unix.AUDIT_ARCH_I386, calls: table{lines: compatNumbers}},
	}
}

// otherX32 are the calls whose structures differ from those of x86-64 (the
// kernel's arch/x86/entry/syscalls/syscall_64.tbl, ABI x32).
var otherX32 = map[string]uint32{
	"rt_sigaction": 512, "rt_sigreturn": 513, "ioctl": 514, "readv": 515, "writev": 516, "recvfrom": 517,
	"sendmsg": 518, "recvmsg": 519, "execve": 520, "ptrace": 521, "rt_sigpending": 522, "rt_sigtimedwait": 523,
	"rt_sigqueueinfo": 524, "sigaltstack": 525, "timer_create": 526, "mq_notify": 527, "kexec_load": 528,
	"waitid": 529, "set_robust_list": 530, "get_robust_list": 531, "vmsplice": 532, "move_pages": 533,
	"preadv": 534, "pwritev": 535, "rt_tgsigqueueinfo": 536, "recvmmsg": 537, "sendmmsg": 538,
	"process_vm_readv": 539, "process_vm_writev": 540, "setsockopt": 541, "getsockopt": 542, "io_setup": 543,
	"io_submit": 544, "execveat": 545, "preadv2": 546, "pwritev2": 547,
}
