package seccomp

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// section is the part of a program for one value of seccomp_data.arch.
type section struct {
	token uint32
	spans []span // by rising from, the first from 0
}

// span is a run of system call numbers, up to the next span, that are treated
// alike.
type span struct {
	from  uint32
	rules []rule
	ret   uint32
}

// spansOf gives the spans of calls, whose numbers begin at offset. Behind the
// last call that the profile knows the C library is told that there are no
// more.
func spansOf(calls []call, offset, def uint32) []span {
	beyond := def
	if def == retErrno|uint32(unix.EPERM) {
		beyond = retErrno | uint32(unix.ENOSYS)
	}
	spans := []span{{from: offset, ret: def}}
	next := offset
	for _, c := range calls {
		n := offset + c.number
		if n > next {
			spans = add(spans, span{from: next, ret: def})
		}
		spans = add(spans, span{from: n, rules: c.rules, ret: c.ret})
		next = n + 1
	}
	return add(spans, span{from: next, ret: beyond})
}

// add appends s, or lets the last span go on where that is the same.
func add(spans []span, s span) []span {
	last := spans[len(spans)-1]
	switch {
	case last.from == s.from:
		return append(spans[:len(spans)-1], s)
	case len(last.rules) == 0 && len(s.rules) == 0 && last.ret == s.ret:
		return spans
	}
	return append(spans, s)
}

// Offsets in struct seccomp_data (seccomp(2)).
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// assemble lays out the program: for each architecture a binary search over
// the numbers, since the kernel runs this at every system call.
func assemble(sections []section) []bpf.Instruction {
	prog := []bpf.Instruction{bpf.LoadAbsolute{Off: offArch, Size: 4}}
	for _, s := range sections {
		sizes := make([]int, len(s.spans))
		for i, span := range s.spans {
			sizes[i] = span.size()
		}
		n := searchSize(sizes)
		prog = slices.Grow(prog, n+3) // and what ends the program
		prog = appendJump(prog, bpf.JumpNotEqual, s.token, n+1)
		prog = append(prog, bpf.LoadAbsolute{Off: offNumber, Size: 4})
		prog = appendSearch(prog, s.spans, sizes)
	}
	return append(prog, bpf.RetConstant{Val: retKillThread})
}

// appendSearch finds the span of the number in the accumulator, and ends the program
// there. sizes are those of what decides about each span.
func appendSearch(prog []bpf.Instruction, spans []span, sizes []int) []bpf.Instruction {
	if len(spans) == 1 {
		return spans[0].appendCode(prog)
	}
	half := len(spans) / 2
	prog = appendJump(prog, bpf.JumpGreaterOrEqual, spans[half].from, searchSize(sizes[:half]))
	prog = appendSearch(prog, spans[:half], sizes[:half])
	return appendSearch(prog, spans[half:], sizes[half:])
}

// searchSize is how many instructions appendSearch appends.
func searchSize(sizes []int) int {
	if len(sizes) == 1 {
		return sizes[0]
	}
	half := len(sizes) / 2
	low := searchSize(sizes[:half])
	return jumpSize(low) + low + searchSize(sizes[half:])
}

// appendJump skips n instructions if the condition holds. A conditional jump reaches
// 255 far; beyond, an unconditional one is jumped over.
func appendJump(prog []bpf.Instruction, cond bpf.JumpTest, value uint32, n int) []bpf.Instruction {
	if n <= 255 {
		return append(prog, bpf.JumpIf{Cond: cond, Val: value, SkipTrue: uint8(n)})
	}
	return append(prog, bpf.JumpIf{Cond: cond, Val: value, SkipFalse: 1}, bpf.Jump{Skip: uint32(n)})
}

func jumpSize(n int) int {
	if n <= 255 {
		return 1
	}
	return 2
}

// appendCode tests the arguments, rule by rule, and returns.
func (s span) appendCode(prog []bpf.Instruction) []bpf.Instruction {
	for _, r := range s.rules {
		prog = append(prog, r.code()...)
	}
	return append(prog, bpf.RetConstant{Val: s.ret})
}

// size is how many instructions appendCode appends.
func (s span) size() int {
	n := 1
	for _, r := range s.rules {
		n += len(r.code())
	}
	return n
}

// code returns if all conditions hold, and falls through if not. It is made
// from its end, so that it is known how far a failed condition has to jump.
func (r rule) code() []bpf.Instruction {
	code := []bpf.Instruction{bpf.RetConstant{Val: r.ret}}
	for _, arg := range slices.Backward(r.args) {
		code = append(condition(arg, len(code)), code...)
	}
	return code
}

func validOp(op specs.LinuxSeccompOperator) bool {
	switch op {
	case specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
		specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual:
		return true
	}
	return false
}

// condition skips n further instructions unless the argument, of 64 bits, is as
// arg says. The machine has 32-bit words: the upper half is looked at first.
func condition(arg specs.LinuxSeccompArg, n int) []bpf.Instruction {
	low := bpf.LoadAbsolute{Off: offArgs + 8*uint32(arg.Index), Size: 4}
	high := bpf.LoadAbsolute{Off: low.Off + 4, Size: 4}
	vh, vl := uint32(arg.Value>>32), uint32(arg.Value)
	skip := uint8(n)
	switch arg.Op {
	case specs.OpMaskedEqual:
		wh, wl := uint32(arg.ValueTwo>>32), uint32(arg.ValueTwo)
		return []bpf.Instruction{
			high, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: vh},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: wh, SkipTrue: skip + 3},
			low, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: vl},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: wl, SkipTrue: skip},
		}
	case specs.OpNotEqual:
		return []bpf.Instruction{
			high, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: vh, SkipTrue: 2},
			low, bpf.JumpIf{Cond: bpf.JumpEqual, Val: vl, SkipTrue: skip},
		}
	case specs.OpEqualTo:
		return []bpf.Instruction{
			high, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: vh, SkipTrue: skip + 2},
			low, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: vl, SkipTrue: skip},
		}
	}
	// An ordering: decided by the upper halves unless they are equal.
	greater := arg.Op == specs.OpGreaterThan || arg.Op == specs.OpGreaterEqual
	fails := map[specs.LinuxSeccompOperator]bpf.JumpTest{
		specs.OpGreaterThan: bpf.JumpLessOrEqual, specs.OpGreaterEqual: bpf.JumpLessThan,
		specs.OpLessThan: bpf.JumpGreaterOrEqual, specs.OpLessEqual: bpf.JumpGreaterThan,
	}[arg.Op]
	holds, fallsShort := bpf.JumpGreaterThan, bpf.JumpLessThan
	if !greater {
		holds, fallsShort = fallsShort, holds
	}
	return []bpf.Instruction{
		high,
		bpf.JumpIf{Cond: holds, Val: vh, SkipTrue: 3},
		bpf.JumpIf{Cond: fallsShort, Val: vh, SkipTrue: skip + 2},
		low,
		bpf.JumpIf{Cond: fails, Val: vl, SkipTrue: skip},
	}
}
