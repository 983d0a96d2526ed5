package seccomp

import (
	"encoding/binary"
	"runtime"
	"strings"
	"testing"

	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// machine runs a program as the kernel would: on a struct seccomp_data in the
// order of this machine's bytes, of which the interpreter, made for packets,
// wants each word the other way around.
type machine struct{ vm *bpf.VM }

func newMachine(t *testing.T, p *specs.LinuxSeccomp) machine {
	t.Helper()
	raw, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	prog, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("program cannot be disassembled")
	}
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	return machine{vm}
}

func (m machine) run(t *testing.T, token, number uint32, args ...uint64) uint32 {
	t.Helper()
	words := []uint32{number, token, 0, 0}
	for i := range 6 {
		var v uint64
		if i < len(args) {
			v = args[i]
		}
		words = append(words, uint32(v), uint32(v>>32))
	}
	var data []byte
	for _, w := range words {
		data = binary.BigEndian.AppendUint32(data, w)
	}
	ret, err := m.vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(ret)
}

const (
	eperm  = retErrno | uint32(unix.EPERM)
	enosys = retErrno | uint32(unix.ENOSYS)
)

var dockerCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_MKNOD", "CAP_AUDIT_WRITE", "CAP_SETFCAP",
}

func defaultProfile(t *testing.T, caps ...string) *specs.LinuxSeccomp {
	t.Helper()
	p, err := Default(caps)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestDefaultProfile asks the compiled profile about every call of every
// architecture and compares with what the profile says when it is read rule by
// rule.
func TestDefaultProfile(t *testing.T) {
	for _, caps := range [][]string{nil, dockerCaps, append([]string{"CAP_SYS_ADMIN", "CAP_BPF"}, dockerCaps...)} {
		p := defaultProfile(t, caps...)
		m := newMachine(t, p)
		for _, a := range architectures() {
			names, last := map[uint32]string{}, uint32(0)
			for name, n := range a.calls.all() {
				if r := read(p, name, nil); names[n] == "" || r == retAllow {
					names[n] = name
				}
				if named(p, name) {
					last = max(last, n)
				}
			}
			for n := range last + 40 {
				for _, args := range [][]uint64{{0}, {8}, {38}, {40}, {41}, {0x20008}, {0xffffffff}, {1 << 32}, {unix.CLONE_NEWUSER | 17}, {unix.CLONE_VM}} {
					want := eperm
					if n > last {
						want = enosys
					} else if names[n] != "" {
						want = read(p, names[n], args)
					}
					if got := m.run(t, a.token, a.offset+n, args...); got != want {
						t.Fatalf("%s: filter(%s %d, %#x) = %#x, want %#x", a.name, names[n], n, args, got, want)
					}
				}
			}
		}
		if got := m.run(t, unix.AUDIT_ARCH_PPC64LE, 0); got != retKillThread {
			t.Errorf("filter(another architecture) = %#x, want the thread killed", got)
		}
	}
}

func named(p *specs.LinuxSeccomp, name string) bool {
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			if n == name {
				return true
			}
		}
	}
	return false
}

// read says what the profile wants, without any table or tree.
func read(p *specs.LinuxSeccomp, name string, args []uint64) uint32 {
	ret := eperm
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			if n != name {
				continue
			}
			r, _ := retOf(s.Action, s.ErrnoRet)
			if len(s.Args) == 0 {
				return r
			}
			if len(args) > 0 && matches(s.Args, args) {
				ret = r
			}
		}
	}
	return ret
}

func matches(conditions []specs.LinuxSeccompArg, args []uint64) bool {
	for _, c := range conditions {
		var v uint64
		if int(c.Index) < len(args) {
			v = args[c.Index]
		}
		if !holds(c, v) {
			return false
		}
	}
	return true
}

func holds(c specs.LinuxSeccompArg, v uint64) bool {
	switch c.Op {
	case specs.OpNotEqual:
		return v != c.Value
	case specs.OpLessThan:
		return v < c.Value
	case specs.OpLessEqual:
		return v <= c.Value
	case specs.OpEqualTo:
		return v == c.Value
	case specs.OpGreaterEqual:
		return v >= c.Value
	case specs.OpGreaterThan:
		return v > c.Value
	default:
		return v&c.Value == c.ValueTwo
	}
}

// TestConditions compares 64-bit values around all borders.
func TestConditions(t *testing.T) {
	values := []uint64{0, 1, 5, 6, 7, 1<<32 - 1, 1 << 32, 1<<32 + 5, 1<<32 + 6, 1<<32 + 7, 2<<32 + 6, 1<<63 + 6, ^uint64(0)}
	arch := architectures()[0]
	for _, op := range []specs.LinuxSeccompOperator{
		specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
	} {
		for _, value := range []uint64{0, 6, 1<<32 + 6, 7 << 32, ^uint64(0)} {
			c := specs.LinuxSeccompArg{Index: 2, Value: value, ValueTwo: value & 0x2_0000_0005, Op: op}
			m := newMachine(t, &specs.LinuxSeccomp{
				DefaultAction: specs.ActErrno, Architectures: []specs.Arch{arch.name},
				Syscalls: []specs.LinuxSyscall{{Names: []string{"getpid"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{c}}},
			})
			for _, v := range values {
				want := eperm
				if holds(c, v) {
					want = retAllow
				}
				if got := m.run(t, arch.token, unix.SYS_GETPID, 0, 0, v); got != want {
					t.Errorf("filter(%#x %s %#x) = %#x, want %#x", v, op, value, got, want)
				}
			}
		}
	}
}

func TestCompileRules(t *testing.T) {
	arch := architectures()[0]
	arg := func(index uint, value uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: index, Value: value, Op: specs.OpEqualTo}
	}
	errno := uint(95)
	tests := []struct {
		name  string
		rules []specs.LinuxSyscall
		args  []uint64
		want  uint32
	}{
		{"two arguments hold", []specs.LinuxSyscall{{Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, 1), arg(1, 2)}}}, []uint64{1, 2}, retAllow},
		{"one of two holds", []specs.LinuxSyscall{{Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, 1), arg(1, 2)}}}, []uint64{1, 3}, eperm},
		{"the same argument twice", []specs.LinuxSyscall{{Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, 1), arg(0, 2)}}}, []uint64{2}, retAllow},
		{"first rule that matches", []specs.LinuxSyscall{{Action: specs.ActKillProcess, Args: []specs.LinuxSeccompArg{arg(0, 1)}}, {Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, 1)}}}, []uint64{1}, retKill},
		{"rule without arguments", []specs.LinuxSyscall{{Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, 1)}}, {Action: specs.ActErrno, ErrnoRet: &errno}}, []uint64{1}, retErrno | 95},
		{"trap", []specs.LinuxSyscall{{Action: specs.ActTrap}}, nil, retTrap},
		{"log", []specs.LinuxSyscall{{Action: specs.ActLog}}, nil, retLog},
	}
	for _, tt := range tests {
		for i := range tt.rules {
			tt.rules[i].Names = []string{"getpid", "no_such_call"}
		}
		m := newMachine(t, &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{arch.name}, Syscalls: tt.rules})
		if got := m.run(t, arch.token, unix.SYS_GETPID, tt.args...); got != tt.want {
			t.Errorf("%s: filter(%v) = %#x, want %#x", tt.name, tt.args, got, tt.want)
		}
	}
}

func TestCompileErrors(t *testing.T) {
	native := []specs.Arch{architectures()[0].name}
	tests := []struct {
		name string
		p    specs.LinuxSeccomp
		want string
	}{
		{"another architecture", specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchS390X}}, "none of the architectures"},
		{"default action", specs.LinuxSeccomp{DefaultAction: specs.ActNotify, Architectures: native}, "SCMP_ACT_NOTIFY"},
		{"argument", specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: native, Syscalls: []specs.LinuxSyscall{{
			Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}},
		}}}, "argument 6 of read"},
	}
	for _, tt := range tests {
		if _, err := Compile(&tt.p); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Compile = %v, want %q in it", tt.name, err, tt.want)
		}
	}
}

// TestNames finds names of the profile that no table has: a call that is spelled
// otherwise there would be refused.
func TestNames(t *testing.T) {
	known := map[string]bool{}
	for _, a := range architectures() {
		for name := range a.calls.all() {
			known[name] = true
		}
	}
	elsewhere := map[string]bool{
		"recv": true, "send": true, "epoll_ctl_old": runtime.GOARCH == "arm64", "epoll_wait_old": runtime.GOARCH == "arm64", "arch_prctl": true, "modify_ldt": true,
		"riscv_hwprobe": true, "riscv_flush_icache": true, "s390_pci_mmio_read": true, "s390_pci_mmio_write": true,
		"s390_runtime_instr": true, "swapcontext": true, "sync_file_range2": true, "arm_fadvise64_64": true,
		"arm_sync_file_range": true, "breakpoint": true, "cacheflush": true, "set_tls": true,
	}
	for _, rule := range moby.DefaultProfile().Syscalls {
		for _, name := range rule.Names {
			if !known[name] && !elsewhere[name] {
				t.Errorf("no table has %s", name)
			}
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		p, err := Default(dockerCaps)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}
