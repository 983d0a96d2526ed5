package sandbox

import (
	"encoding/binary"
	"sync"

	"github.com/861fb494/build/executor/sandbox/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultCaps are the capabilities that Docker gives to containers: CHOWN,
// DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP,
// NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
const defaultCaps = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
	1<<unix.CAP_KILL | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETPCAP |
	1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_MKNOD |
	1<<unix.CAP_AUDIT_WRITE | 1<<unix.CAP_SETFCAP

// capNames are the capabilities by number (capabilities(7)).
var capNames = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// capList names the capabilities of a set.
func capList(set uint64) []string {
	var names []string
	for n, name := range capNames {
		if set&(1<<n) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// profile returns the standard seccomp profile for a capability set.
func profile(caps uint64) (*specs.LinuxSeccomp, error) { return seccomp.Default(capList(caps)) }

var filters struct {
	mu     sync.Mutex
	byCaps map[uint64][]byte
}

// seccompFilter returns the compiled profile, which is made once for a set.
func seccompFilter(caps uint64) ([]byte, error) {
	filters.mu.Lock()
	defer filters.mu.Unlock()
	if f, ok := filters.byCaps[caps]; ok {
		return f, nil
	}
	p, err := profile(caps)
	if err != nil {
		return nil, err
	}
	prog, err := seccomp.Compile(p)
	if err != nil {
		return nil, err
	}
	// struct sock_filter: u16 code, u8 jt, u8 jf, u32 k.
	out := make([]byte, 0, 8*len(prog))
	for _, i := range prog {
		out = binary.NativeEndian.AppendUint16(out, i.Op)
		out = append(out, i.Jt, i.Jf)
		out = binary.NativeEndian.AppendUint32(out, i.K)
	}
	if filters.byCaps == nil {
		filters.byCaps = map[uint64][]byte{}
	}
	filters.byCaps[caps] = out
	return out, nil
}
