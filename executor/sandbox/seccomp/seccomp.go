// Package seccomp compiles system call profiles of the OCI runtime specification
// to the filter programs that seccomp(2) takes.
//
// What a profile means here is what it means to libseccomp and runc: rules
// without arguments first, then those with arguments in their order, then the
// default action; the arguments of one rule are all to match, unless two of them
// test the same argument, which makes them alternatives; names that an
// architecture does not have are left out; a call newer than all that the
// profile knows fails with ENOSYS rather than EPERM, so that C libraries fall
// back to what is older.
package seccomp

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strings"

	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

//go:generate go run gen.go

// Default returns the standard profile of Docker and BuildKit for a process with
// the capabilities ("CAP_CHOWN") in its bounding set, on this kernel.
func Default(capabilities []string) (*specs.LinuxSeccomp, error) {
	return moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{
		Capabilities: &specs.LinuxCapabilities{Bounding: capabilities},
	}})
}

// arch is a way of calling the kernel: a value of seccomp_data.arch and numbers.
type arch struct {
	name  specs.Arch
	token uint32 // AUDIT_ARCH_*
	calls table
	// offset is what numbers of a way that shares its token with another one
	// begin at: x32's have a bit set.
	offset uint32
}

// Return values of a filter (seccomp(2)).
const (
	retKillThread = 0x00000000
	retKill       = 0x80000000
	retTrap       = 0x00030000
	retErrno      = 0x00050000
	retLog        = 0x7ffc0000
	retAllow      = 0x7fff0000
)

func retOf(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	code := uint32(unix.EPERM)
	if errno != nil {
		code = uint32(*errno)
	}
	switch a {
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActErrno:
		return retErrno | code&0xffff, nil
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKill, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActLog:
		return retLog, nil
	}
	return 0, fmt.Errorf("seccomp: action %q is not supported", a)
}

// Compile returns the program for the machine's architecture, and those that it
// runs programs of, if the profile names them. An architecture that it does not
// name is killed.
func Compile(p *specs.LinuxSeccomp) ([]bpf.RawInstruction, error) {
	def, err := retOf(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	rules, err := readRules(p)
	if err != nil {
		return nil, err
	}
	var byToken []section
	for _, a := range architectures() {
		if !slices.Contains(p.Architectures, a.name) {
			continue
		}
		calls := rules.resolve(a, def)
		i := slices.IndexFunc(byToken, func(s section) bool { return s.token == a.token })
		if i < 0 {
			i, byToken = len(byToken), append(byToken, section{token: a.token})
		}
		byToken[i].spans = append(byToken[i].spans, spansOf(calls, a.offset, def)...)
	}
	if len(byToken) == 0 {
		return nil, fmt.Errorf("seccomp: the profile is for none of the architectures of %s", runtime.GOARCH)
	}
	prog, err := bpf.Assemble(assemble(byToken))
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	if len(prog) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("seccomp: the filter has %d instructions, more than the kernel takes", len(prog))
	}
	return prog, nil
}

// call is what is to be done about one system call.
type call struct {
	number  uint32
	rules   []rule // the first that matches decides
	ret     uint32 // else
	settled bool   // by a rule without arguments: others no longer count
}

// rule is a conjunction of conditions on arguments.
type rule struct {
	args []specs.LinuxSeccompArg
	ret  uint32
}

// ruleList is the rules of a profile, in their order, one for each name.
type ruleList struct {
	rules []namedRule
	names map[string]int // to a number of ours
}

// namedRule is a rule for one name.
type namedRule struct {
	name int
	rule
}

func readRules(p *specs.LinuxSeccomp) (*ruleList, error) {
	n := 0
	for _, s := range p.Syscalls {
		n += len(s.Names)
	}
	l := &ruleList{rules: make([]namedRule, 0, n), names: make(map[string]int, n)}
	for _, s := range p.Syscalls {
		ret, err := retOf(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, arg := range s.Args {
			if arg.Index > 5 || !validOp(arg.Op) {
				return nil, fmt.Errorf("seccomp: condition %q on argument %d of %s", arg.Op, arg.Index, strings.Join(s.Names, ", "))
			}
		}
		for _, name := range s.Names {
			i, ok := l.names[name]
			if !ok {
				i = len(l.names)
				l.names[name] = i
			}
			l.rules = append(l.rules, namedRule{i, rule{s.Args, ret}})
		}
	}
	return l, nil
}

// resolve gives the calls that the profile treats otherwise than by default,
// and those it names, by number.
func (l *ruleList) resolve(a arch, def uint32) []call {
	numbers := make([]int64, len(l.names)) // -1: this architecture has no such call
	for i := range numbers {
		numbers[i] = -1
	}
	for name, n := range a.calls.all() {
		if i, ok := l.names[name]; ok {
			numbers[i] = int64(n)
		}
	}
	type numbered struct{ number, rule uint32 }
	order := make([]numbered, 0, len(l.rules))
	for i, r := range l.rules {
		if n := numbers[r.name]; n >= 0 {
			order = append(order, numbered{uint32(n), uint32(i)})
		}
	}
	slices.SortFunc(order, func(a, b numbered) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.rule, b.rule))
	})
	calls := make([]call, 0, len(order))
	for _, o := range order {
		if len(calls) == 0 || calls[len(calls)-1].number != o.number {
			calls = append(calls, call{number: o.number, ret: def})
		}
		r := &l.rules[o.rule]
		calls[len(calls)-1].add(r.args, r.ret)
	}
	return calls
}

func (c *call) add(args []specs.LinuxSeccompArg, ret uint32) {
	if c.settled {
		return
	}
	if len(args) == 0 {
		c.ret, c.rules, c.settled = ret, nil, true
		return
	}
	seen := map[uint]bool{}
	for _, arg := range args {
		if seen[arg.Index] {
			// Alternatives.
			for _, one := range args {
				c.rules = append(c.rules, rule{args: []specs.LinuxSeccompArg{one}, ret: ret})
			}
			return
		}
		seen[arg.Index] = true
	}
	c.rules = append(c.rules, rule{args: args, ret: ret})
}
