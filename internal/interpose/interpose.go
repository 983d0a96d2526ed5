// Package interpose runs a program and decides on its system calls that touch
// files of one directory: each is let through, fails, is done in part, or ends
// the program. It is how the tests reach every file operation of the real
// binary, whichever package it is in, at no cost to the binary.
//
// The kernel asks by seccomp_unotify(2). A program's children are asked about
// too, but only the program's own calls are passed to the decision.
package interpose

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Call is a system call that is about to be made.
type Call struct {
	Name string // "write", "rename", "read", …: see calls.go
	Path string // the file, relative to the directory; where there are two, the second
}

// Action is what becomes of a call.
type Action struct {
	Errno unix.Errno // it fails, and nothing is done
	Short bool       // a write: half of it is done, and that is reported
	Kill  bool       // SIGKILL, before anything is done
}

// Options are those of Run.
type Options struct {
	Reads bool // calls that only read are asked about, too
}

// Run runs cmd, whose Path, Args, Env and standard files it uses, and asks
// decide about each call of the process on files below dir, one after the other.
// The error is that of cmd.Wait, or of what kept it from being run so.
//
// The test's TestMain has to call Reexec.
func Run(cmd *exec.Cmd, dir string, o Options, decide func(Call) Action) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	ours, theirs, err := socketpair()
	if err != nil {
		return err
	}
	defer ours.Close()
	program, err := exec.LookPath(cmd.Path)
	if err != nil {
		theirs.Close()
		return err
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	mode := "writes"
	if o.Reads {
		mode = "reads"
	}
	cmd.Env = append(cmd.Env, reexec+"="+mode+":"+program)
	cmd.Path = "/proc/self/exe"
	cmd.ExtraFiles = []*os.File{theirs}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return err
	}
	listener, err := receive(ours)
	if err != nil {
		return errors.Join(fmt.Errorf("interpose: %w", err), cmd.Process.Kill(), cmd.Wait())
	}
	w := &watch{listener: listener, dir: dir, decide: decide, pid: cmd.Process.Pid, group: map[int]int{}}
	var wg sync.WaitGroup
	wg.Go(w.serve)
	err = cmd.Wait()
	w.ended.Store(true)
	// The listener hangs up when the last process with the filter is gone.
	wg.Wait()
	return errors.Join(err, w.err)
}

// reexec is the variable that has the program which a test is become the one
// that the test runs.
const reexec = "BUILD_TEST_INTERPOSE"

// Reexec does not return in a process that Run has started.
func Reexec() {
	v, ok := os.LookupEnv(reexec)
	if !ok {
		return
	}
	mode, program, _ := strings.Cut(v, ":")
	os.Unsetenv(reexec)
	fmt.Fprintln(os.Stderr, "interpose:", become(program, mode == "reads"))
	os.Exit(127)
}

func become(program string, reads bool) error {
	const socket = 3 // the first of exec.Cmd's ExtraFiles
	listener, err := install(reads)
	if err != nil {
		return fmt.Errorf("install the filter: %w", err)
	}
	if err := unix.Sendmsg(socket, []byte{0}, unix.UnixRights(listener), nil, 0); err != nil {
		return fmt.Errorf("pass the listener on: %w", err)
	}
	unix.Close(listener)
	unix.Close(socket)
	return syscall.Exec(program, os.Args, os.Environ())
}

func socketpair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket"), nil
}

// receive takes a descriptor from the other end of a socket pair.
func receive(f *os.File) (fd int, err error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(f.Fd()), make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		return 0, errors.Join(errors.New("no listener came"), err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return 0, errors.Join(errors.New("no listener came"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0, errors.Join(errors.New("no listener came"), err)
	}
	return fds[0], nil
}
