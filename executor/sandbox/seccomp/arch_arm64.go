package seccomp

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func architectures() []arch {
	return []arch{
		{name: specs.ArchAARCH64, token: unix.AUDIT_ARCH_AARCH64, calls: table{nativeNumbers, otherARM64}},
		{name: specs.ArchARM, token: unix.AUDIT_ARCH_ARM, calls: table{compatNumbers, otherARM}},
	}
}

// otherARM64 has, beside the kernel's names, the one that profiles use.
var otherARM64 = map[string]uint32{"newfstatat": 79}

// otherARM has the calls that only this architecture has (the kernel's
// arch/arm/include/uapi/asm/unistd.h), from 0xf0000 on.
var otherARM = map[string]uint32{
	"breakpoint": 0xf0001, "cacheflush": 0xf0002, "usr26": 0xf0003, "usr32": 0xf0004, "set_tls": 0xf0005,
	"sync_file_range2": 341,
}
