package interpose

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// notification and response are struct seccomp_notif and seccomp_notif_resp of
// linux/seccomp.h.
type notification struct {
	id    uint64
	pid   uint32 // a thread's
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

type response struct {
	id    uint64
	val   int64
	error int32
	flags uint32
}

// watch answers the kernel's questions about one program.
type watch struct {
	listener int
	dir      string
	decide   func(Call) Action
	pid      int
	group    map[int]int // process by thread
	ended    atomic.Bool
	err      error // the first of ours
}

// serve answers until no process with the filter is left.
func (w *watch) serve() {
	defer unix.Close(w.listener)
	for {
		fds := []unix.PollFd{{Fd: int32(w.listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			w.fail(err)
			return
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			return // POLLHUP: the last process is gone
		}
		var n notification
		if err := w.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) {
				continue // it was killed meanwhile
			}
			w.fail(err)
			return
		}
		r := w.answer(&n)
		if r == nil {
			continue
		}
		if err := w.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(r)); err != nil && !errors.Is(err, unix.ENOENT) {
			w.fail(err)
			return
		}
	}
}

func (w *watch) fail(err error) {
	if w.err == nil {
		w.err = fmt.Errorf("interpose: %w", err)
	}
}

func (w *watch) ioctl(request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(w.listener), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// answer is what to tell the kernel; nil where there is nobody left to be told.
func (w *watch) answer(n *notification) *response {
	through := &response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	if w.ended.Load() || w.process(int(n.pid)) != w.pid {
		return through
	}
	c := calls[int(n.nr)]
	name, path, ok := w.subject(n, c)
	if !ok {
		return through
	}
	rel, err := filepath.Rel(w.dir, path)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return through
	}
	switch a := w.decide(Call{Name: name, Path: rel}); {
	case a.Kill:
		_ = unix.Kill(w.pid, unix.SIGKILL) // it may be gone
		return nil
	case a.Errno != 0:
		return &response{id: n.id, error: -int32(a.Errno)}
	case a.Short && c.write && n.args[2] > 1:
		done, err := w.half(n)
		if err != nil {
			w.fail(err)
			return through
		}
		return &response{id: n.id, val: int64(done)}
	}
	return through
}

// process is the process that a thread belongs to.
func (w *watch) process(tid int) int {
	if p, ok := w.group[tid]; ok {
		return p
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(status, []byte("\nTgid:\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	p, err := strconv.Atoi(string(line))
	if err != nil {
		return 0
	}
	w.group[tid] = p
	return p
}

// subject is the file that a call is about.
func (w *watch) subject(n *notification, c call) (name, path string, ok bool) {
	name = c.name
	if c.path < 0 {
		path, err := os.Readlink(w.proc("fd/" + strconv.Itoa(int(int32(n.args[c.fd])))))
		return name, strings.TrimSuffix(path, " (deleted)"), err == nil && strings.HasPrefix(path, "/")
	}
	path, err := w.text(n.pid, n.args[c.path])
	if err != nil {
		return "", "", false
	}
	if name == "open" {
		flags := n.args[2]
		if n.nr == unix.SYS_OPENAT2 { // struct open_how
			var how [8]byte
			if w.peek(n.pid, n.args[2], how[:]) != nil {
				return "", "", false
			}
			flags = binary.NativeEndian.Uint64(how[:])
		}
		if flags&creates == 0 {
			name = "look"
		}
	}
	dirfd := int32(unix.AT_FDCWD)
	if c.dir >= 0 {
		dirfd = int32(n.args[c.dir])
	}
	// openat2(2) with RESOLVE_IN_ROOT may have an absolute path, of its directory.
	if !strings.HasPrefix(path, "/") || n.nr == unix.SYS_OPENAT2 && dirfd >= 0 {
		at := "cwd"
		if dirfd >= 0 {
			at = "fd/" + strconv.Itoa(int(dirfd))
		}
		base, err := os.Readlink(w.proc(at))
		if err != nil {
			return "", "", false
		}
		path = filepath.Join(base, path)
	}
	return name, filepath.Clean(path), true
}

func (w *watch) proc(name string) string { return fmt.Sprintf("/proc/%d/%s", w.pid, name) }

// peek reads the program's memory.
func (w *watch) peek(tid uint32, at uint64, into []byte) error {
	local := []unix.Iovec{{Base: &into[0], Len: uint64(len(into))}}
	remote := []unix.RemoteIovec{{Base: uintptr(at), Len: len(into)}}
	n, err := unix.ProcessVMReadv(int(tid), local, remote, 0)
	if err == nil && n != len(into) {
		err = unix.EFAULT
	}
	return err
}

// text reads a string. It goes by pages, behind which there may be nothing.
func (w *watch) text(tid uint32, at uint64) (string, error) {
	const page = 4096
	var out []byte
	for len(out) < 2*page {
		part := make([]byte, page-at%page)
		if err := w.peek(tid, at, part); err != nil {
			return "", err
		}
		if i := bytes.IndexByte(part, 0); i >= 0 {
			return string(append(out, part[:i]...)), nil
		}
		out, at = append(out, part...), at+uint64(len(part))
	}
	return "", unix.ENAMETOOLONG
}

// half does the first half of a write in the program's stead, on its own open
// file, and returns how many bytes that was.
func (w *watch) half(n *notification) (int, error) {
	data := make([]byte, n.args[2]/2)
	if err := w.peek(n.pid, n.args[1], data); err != nil {
		return 0, err
	}
	pidfd, err := unix.PidfdOpen(w.pid, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, int(n.args[0]), 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if n.nr == unix.SYS_PWRITE64 {
		return unix.Pwrite(fd, data, int64(n.args[3]))
	}
	return unix.Write(fd, data)
}
