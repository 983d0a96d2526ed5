// Package stub makes programs that do nothing but given system calls.
//
// Such a program is a page of machine code and a table, needs no runtime, and is
// executed in a tenth of the time that this program takes to start. A sandbox's
// first process is one: what can be done from outside of its namespaces has been
// done when it starts, and what is left is a list of system calls, with execve(2)
// at its end.
package stub

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"syscall"
	"unsafe"
)

// ReportFD is the descriptor on which a program reports the call that failed. It
// writes nothing there of its own accord when all goes well.
const ReportFD = 3

// ErrUnsupported says that there are no such programs on this architecture.
var ErrUnsupported = errors.New("no stub for this architecture")

// Arg is an argument of a system call: a number, or the address of something that
// is part of the program.
type Arg struct {
	value   uint64 // an address counts from the beginning of Program.data
	address bool
}

// Int is a number.
func Int(n int) Arg { return Arg{value: uint64(n)} }

// Uint is a number.
func Uint(n uint64) Arg { return Arg{value: n} }

// Call is a system call. A program ends with the first one that fails, unless the
// error is one of Tolerate (three at most; Any stands for all): then it leaves
// Skip calls out and goes on.
type Call struct {
	What     string // for an error: "pivot_root"
	Number   uintptr
	Args     []Arg // six at most
	Tolerate []syscall.Errno
	Skip     int
}

// Any in Call.Tolerate is every error.
const Any = syscall.Errno(0xffff)

// Program is a list of calls, and what they refer to.
type Program struct {
	calls []Call
	data  []byte
	// addresses are the places in data that hold an offset in data, for which the
	// address is to stand.
	addresses []int
}

// Add appends a call and returns its index.
func (p *Program) Add(c Call) int {
	if len(c.Args) > 6 || len(c.Tolerate) > 3 {
		panic("stub: a call of too many arguments, or errors: " + c.What)
	}
	p.calls = append(p.calls, c)
	return len(p.calls) - 1
}

// Len is how many calls there are.
func (p *Program) Len() int { return len(p.calls) }

// Do is Add for a call none of whose errors are tolerated.
func (p *Program) Do(what string, number uintptr, args ...Arg) int {
	return p.Add(Call{What: what, Number: number, Args: args})
}

// Bytes makes b part of the program, aligned to 8 bytes, and returns its address.
func (p *Program) Bytes(b []byte) Arg {
	at := p.align()
	p.data = append(p.data, b...)
	return Arg{value: uint64(at), address: true}
}

// String makes s part of the program, with a NUL byte at its end.
func (p *Program) String(s string) Arg {
	at := len(p.data)
	p.data = append(p.data, s...)
	p.data = append(p.data, 0)
	return Arg{value: uint64(at), address: true}
}

// Words makes words part of the program: numbers, or addresses in it.
func (p *Program) Words(words ...Arg) Arg {
	at := p.align()
	for _, w := range words {
		if w.address {
			p.addresses = append(p.addresses, len(p.data))
		}
		p.data = binary.NativeEndian.AppendUint64(p.data, w.value)
	}
	return Arg{value: uint64(at), address: true}
}

// Strings makes a list of strings part of the program, as execve(2) wants it.
func (p *Program) Strings(list []string) Arg {
	words := make([]Arg, len(list)+1)
	for i, s := range list {
		words[i] = p.String(s)
	}
	return p.Words(words...)
}

func (p *Program) align() int {
	for len(p.data)%8 != 0 {
		p.data = append(p.data, 0)
	}
	return len(p.data)
}

// The program's memory: a table of the calls, which begins with head, and after
// it the data. A call is its number, six arguments, and what is tolerated: three
// errors and how many calls are left out, 16 bits each. Its result takes the place
// of its number.
const (
	headSize = 16 // bytes: how long the table is; the address of the call that failed
	callSize = 64
)

// size is that of the table, and of the table with the data.
func (p *Program) size() (table, all int) {
	table = headSize + callSize*(len(p.calls)+1)
	return table, table + len(p.data)
}

// fill writes the program's memory to out, for the address at.
func (p *Program) fill(out []byte, at uint64) {
	table, _ := p.size()
	data := at + uint64(table)
	word := func(at int, v uint64) { binary.NativeEndian.PutUint64(out[at:], v) }
	word(0, uint64(table))
	to := headSize
	for _, c := range p.calls {
		word(to, uint64(c.Number))
		for i, a := range c.Args {
			if a.address {
				a.value += data
			}
			word(to+8*(i+1), a.value)
		}
		tolerate := uint64(c.Skip) << 48
		for i, e := range c.Tolerate {
			tolerate |= uint64(e) << (16 * i)
		}
		word(to+56, tolerate)
		to += callSize
	}
	word(to, syscall.SYS_EXIT_GROUP) // a program that does not execute another
	copy(out[table:], p.data)
	for _, a := range p.addresses {
		word(table+a, binary.NativeEndian.Uint64(out[table+a:])+data)
	}
}

// Run makes the calls here, on this thread. The error is a *Failure.
func (p *Program) Run() error {
	_, all := p.size()
	memory := make([]byte, all)
	var pinner runtime.Pinner // the kernel is given addresses as numbers
	defer pinner.Unpin()
	pinner.Pin(&memory[0])
	p.fill(memory, uint64(uintptr(unsafe.Pointer(&memory[0]))))
	errs := make([]syscall.Errno, 0, len(p.calls))
	for i := 0; i < len(p.calls); i++ {
		var a [7]uintptr
		for j := range a {
			a[j] = uintptr(binary.NativeEndian.Uint64(memory[headSize+callSize*i+8*j:]))
		}
		_, _, err := syscall.RawSyscall6(a[0], a[1], a[2], a[3], a[4], a[5], a[6])
		errs = append(errs, err)
		c := &p.calls[i]
		if err == 0 {
			continue
		}
		if !slices.Contains(c.Tolerate, err) && !slices.Contains(c.Tolerate, Any) {
			return &Failure{What: c.What, Index: i, Err: err, Errs: errs}
		}
		errs = append(errs, make([]syscall.Errno, c.Skip)...)
		i += c.Skip
	}
	return nil
}

// Failure is the end of a program.
type Failure struct {
	What  string
	Index int // of the call
	Err   syscall.Errno
	// Errs are what all calls up to that one have returned: 0 where they worked
	// or were left out.
	Errs []syscall.Errno
}

func (f *Failure) Error() string { return f.What + ": " + f.Err.Error() }

// Unwrap gives the error number.
func (f *Failure) Unwrap() error { return f.Err }

// Failure reads what the program has written to ReportFD.
func (p *Program) Failure(report []byte) error {
	if table, _ := p.size(); len(report) != table {
		return fmt.Errorf("report of %d bytes about %d calls", len(report), len(p.calls))
	}
	failed := (binary.NativeEndian.Uint64(report[8:]) - base - headSize) / callSize
	if failed >= uint64(len(p.calls)) {
		return fmt.Errorf("report about call %d of %d", failed, len(p.calls))
	}
	f := &Failure{What: p.calls[failed].What, Index: int(failed)}
	for i := range f.Index + 1 {
		// A call that was left out has its number there still.
		result := int64(binary.NativeEndian.Uint64(report[headSize+callSize*i:]))
		f.Errs = append(f.Errs, 0)
		if result < 0 && result >= -4095 {
			f.Errs[i] = syscall.Errno(-result)
		}
	}
	f.Err = f.Errs[f.Index]
	return f
}
