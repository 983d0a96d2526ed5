package stub_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/861fb494/build/executor/sandbox/stub"
	"golang.org/x/sys/unix"
)

// run executes p, and returns its standard output, exit code and report.
func run(t *testing.T, p *stub.Program) (out string, code int, report []byte) {
	t.Helper()
	fd, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var text strings.Builder
	cmd := &exec.Cmd{Path: fmt.Sprintf("/proc/self/fd/%d", fd), Stdout: &text, ExtraFiles: []*os.File{w}}
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if report, err = io.ReadAll(r); err != nil {
		t.Error(err)
	}
	err = cmd.Wait()
	if e := new(exec.ExitError); err != nil && !errors.As(err, &e) {
		t.Error(err)
	}
	return text.String(), cmd.ProcessState.ExitCode(), report
}

// say adds a call that writes text to standard output.
func say(p *stub.Program, text string) {
	p.Do("write", unix.SYS_WRITE, stub.Int(1), p.Bytes([]byte(text)), stub.Int(len(text)))
}

// fails adds a call that fails with EBADF.
func fails(p *stub.Program, skip int, tolerate ...syscall.Errno) {
	p.Add(stub.Call{What: "close nothing", Number: unix.SYS_CLOSE, Args: []stub.Arg{stub.Int(-1)}, Tolerate: tolerate, Skip: skip})
}

func TestProgram(t *testing.T) {
	tests := []struct {
		name string
		make func(p *stub.Program)
		out  string
		code int
		fail *stub.Failure
	}{
		{"nothing", func(*stub.Program) {}, "", 0, nil},
		{"in order", func(p *stub.Program) { say(p, "a"); say(p, "b"); say(p, "c") }, "abc", 0, nil},
		{"exit", func(p *stub.Program) {
			say(p, "a")
			p.Do("exit_group", unix.SYS_EXIT_GROUP, stub.Int(7))
			say(p, "b")
		}, "a", 7, nil},
		{"tolerated", func(p *stub.Program) {
			fails(p, 0, unix.EBADF)
			fails(p, 0, unix.ENOENT, unix.EBADF)
			fails(p, 0, unix.ENOENT, unix.EPERM, unix.EBADF)
			fails(p, 0, stub.Any)
			say(p, "a")
		}, "a", 0, nil},
		{"left out", func(p *stub.Program) {
			fails(p, 2, stub.Any)
			say(p, "a")
			say(p, "b")
			say(p, "c")
		}, "c", 0, nil},
		{"fails", func(p *stub.Program) {
			say(p, "a")
			fails(p, 1, stub.Any)
			say(p, "b")
			fails(p, 1, unix.ENOENT, unix.EPERM, unix.EINVAL)
			say(p, "c")
		}, "a", 1, &stub.Failure{What: "close nothing", Index: 3, Err: unix.EBADF, Errs: []syscall.Errno{0, unix.EBADF, 0, unix.EBADF}}},
		{"executes", func(p *stub.Program) {
			args := p.Strings([]string{"sh", "-c", "echo $0 $1 $V", "zero", "one"})
			p.Do("execve", unix.SYS_EXECVE, p.String("/bin/sh"), args, p.Strings([]string{"V=variable"}))
		}, "zero one variable\n", 0, nil},
		{"six arguments", func(p *stub.Program) {
			// Address and file offset are the first and the sixth.
			p.Do("mmap", unix.SYS_MMAP, stub.Uint(0x20000000), stub.Int(os.Getpagesize()), stub.Int(unix.PROT_READ|unix.PROT_WRITE),
				stub.Int(unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED), stub.Int(-1), stub.Int(0))
			p.Do("write", unix.SYS_WRITE, stub.Int(1), stub.Uint(0x20000000), stub.Int(2))
			p.Add(stub.Call{What: "mmap", Number: unix.SYS_MMAP, Args: []stub.Arg{stub.Int(0), stub.Int(1), stub.Int(0), stub.Int(unix.MAP_PRIVATE), stub.Int(0), stub.Int(1)}, Tolerate: []syscall.Errno{unix.EINVAL}})
		}, "\x00\x00", 0, nil},
		{"large", func(p *stub.Program) { say(p, strings.Repeat("x", 1<<20)) }, strings.Repeat("x", 1<<20), 0, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := new(stub.Program)
			tt.make(p)
			out, code, report := run(t, p)
			if out != tt.out || code != tt.code {
				t.Errorf("output %.20q, exit code %d, want %.20q, %d", out, code, tt.out, tt.code)
			}
			if tt.fail == nil {
				if len(report) > 0 {
					t.Errorf("reports %v", p.Failure(report))
				}
				return
			}
			if err := p.Failure(report); !reflect.DeepEqual(err, tt.fail) {
				t.Errorf("reports %#v, want %#v", err, tt.fail)
			}
		})
	}
}

// TestRun makes calls in this process.
func TestRun(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := new(stub.Program)
	text := p.String("text")
	p.Do("writev", unix.SYS_WRITEV, stub.Int(int(w.Fd())), p.Words(text, stub.Int(2), text, stub.Int(4)), stub.Int(2))
	fails(p, 1, unix.EBADF)
	p.Do("exit_group", unix.SYS_EXIT_GROUP, stub.Int(9))
	fails(p, 0, stub.Any)
	fails(p, 0, unix.ENOENT)
	want := &stub.Failure{What: "close nothing", Index: 4, Err: unix.EBADF, Errs: []syscall.Errno{0, unix.EBADF, 0, unix.EBADF, unix.EBADF}}
	if err := p.Run(); !reflect.DeepEqual(err, want) {
		t.Errorf("Run() = %#v, want %#v", err, want)
	}
	w.Close()
	if got, err := io.ReadAll(r); string(got) != "tetext" || err != nil {
		t.Errorf("written: %q, %v, want tetext", got, err)
	}
}

// TestBadReport is about reports that a program did not write.
func TestBadReport(t *testing.T) {
	p := new(stub.Program)
	fails(p, 0)
	_, _, good := run(t, p)
	for name, report := range map[string][]byte{
		"short": good[:len(good)-1], "none": nil, "long": append(good, 0), "of another call": append(make([]byte, 16), good[16:]...),
	} {
		var f *stub.Failure
		if err := p.Failure(report); err == nil || errors.As(err, &f) {
			t.Errorf("%s: Failure = %v, want an error of another kind", name, err)
		}
	}
}
