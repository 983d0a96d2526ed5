package child

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// AllCaps returns the capabilities that this process may pass on.
func AllCaps() uint64 {
	var data [2]unix.CapUserData
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&head, &data[0]); err != nil {
		return 0
	}
	return uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)
}

// restrict takes from this thread what the command must not have: capabilities
// of the bounding set, new privileges, system calls. What it executes or forks
// inherits that. User and permitted capabilities are left to become.
func (c *Config) restrict() error {
	c.Caps &= AllCaps()
	for n := range uintptr(64) {
		if c.Caps&(1<<n) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, n, 0, 0, 0); err == unix.EINVAL {
			break // the kernel has no more
		} else if err != nil {
			return fmt.Errorf("drop capability %d: %w", n, err)
		}
	}
	for _, r := range c.Rlimits {
		if err := setRlimit(r); err != nil {
			return err
		}
	}
	if c.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("prctl PR_SET_NO_NEW_PRIVS: %w", err)
		}
	}
	// Here, and not later, as without no_new_privs it takes CAP_SYS_ADMIN. What
	// is still to be called the standard profile allows.
	return c.filterSyscalls()
}

func (c *Config) filterSyscalls() error {
	if len(c.Seccomp) == 0 {
		return nil
	}
	prog := unix.SockFprog{Len: uint16(len(c.Seccomp) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&c.Seccomp[0]))}
	// SPEC_ALLOW as runc has it: the mitigation it turns off costs far more
	// than the filter.
	for _, flags := range []uintptr{unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, 0} {
		_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
		if errno == 0 {
			return nil
		}
		if errno != unix.EINVAL || flags == 0 {
			return fmt.Errorf("load seccomp filter: %w", errno)
		}
	}
	return nil
}

// become takes on the user and its capabilities, on this thread alone. (What
// package syscall has for this goes to all threads, and they have no need.)
func (c *Config) become() error {
	groups := c.User.Groups
	var p unsafe.Pointer
	if len(groups) > 0 {
		p = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(p), 0); errno != 0 {
		return fmt.Errorf("set supplementary groups: %w", errno)
	}
	gid, uid := uintptr(c.User.GID), uintptr(c.User.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return fmt.Errorf("set group %d: %w", gid, errno)
	}
	if c.Ambient {
		// Else leaving user 0 clears what is to become ambient.
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("prctl PR_SET_KEEPCAPS: %w", err)
		}
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return fmt.Errorf("set user %d: %w", uid, errno)
	}
	if err := c.setCaps(c.User.UID); err != nil {
		return err
	}
	// Taking on another user cleared it (prctl(2)).
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_PDEATHSIG: %w", err)
	}
	return nil
}

// setCaps sets the capabilities of this thread to those of a user. One other
// than 0 has none, unless they are ambient, and gets none by execve(2).
func (c *Config) setCaps(uid uint32) error {
	caps := c.Caps
	if uid != 0 && !c.Ambient {
		caps = 0
	}
	low, high := uint32(caps), uint32(caps>>32)
	data := [2]unix.CapUserData{{Effective: low, Permitted: low}, {Effective: high, Permitted: high}}
	if c.Ambient {
		data[0].Inheritable, data[1].Inheritable = low, high
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capset(&head, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	if !c.Ambient {
		return nil
	}
	for n := range uintptr(64) {
		if caps&(1<<n) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, n, 0, 0); err != nil {
			return fmt.Errorf("raise ambient capability %d: %w", n, err)
		}
	}
	return nil
}

func setRlimit(r Rlimit) error {
	// By package syscall: it then knows that it must not put back, at execve,
	// the limit on open files that it raised for this program.
	err := syscall.Setrlimit(r.Resource, &syscall.Rlimit{Cur: r.Soft, Max: r.Hard})
	if err == nil {
		return nil
	}
	var now unix.Rlimit
	if errors.Is(err, unix.EPERM) && unix.Getrlimit(r.Resource, &now) == nil && r.Hard > now.Max {
		return fmt.Errorf("set resource limit %s to %s: the hard limit here is %s, and raising it takes CAP_SYS_RESOURCE",
			r.Name, limitText(r.Hard), limitText(now.Max))
	}
	return fmt.Errorf("set resource limit %s to %s:%s: %w", r.Name, limitText(r.Soft), limitText(r.Hard), err)
}

func limitText(v uint64) string {
	if v == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return fmt.Sprint(v)
}

// chdir goes to the working directory, and makes it if it does not exist. It is
// called as root: that the user may not enter it is seen by what it does there.
func (c *Config) chdir() error {
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open root: %w", err)
	}
	defer unix.Close(root)
	r := &rootfs{fd: root}
	fd, err := r.directory(c.Dir)
	if err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Fchdir(fd); err != nil {
		return fmt.Errorf("working directory %s: %w", c.Dir, err)
	}
	return nil
}

// exec replaces this process by the command. It returns only with an error.
func (c *Config) exec() error {
	if err := c.restrict(); err != nil {
		return err
	}
	if err := c.become(); err != nil {
		return err
	}
	defaultSignals()
	path, err := LookPath(c.Args[0], c.Env)
	if err != nil {
		return err
	}
	return ExecFailed(path, syscall.Exec(path, c.Args, c.Env))
}

// defaultSignals undoes that a signal is ignored, which execve(2) passes on: a
// build that was started with nohup(1) is no reason that its steps ignore
// SIGHUP. SIGKILL and SIGSTOP cannot be changed, nor have they been.
func defaultSignals() {
	for sig := uintptr(1); sig <= 64; sig++ {
		// struct kernel_sigaction: handler, flags, restorer, mask.
		var act [4]uint64
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&act)), 8, 0, 0)
		if errno == 0 && act[0] == 1 { // SIG_IGN
			act = [4]uint64{}
			_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
		}
	}
}

// ExecFailed says why execve(2) did not work, with the exit code of a shell.
func ExecFailed(path string, err error) error {
	code := 126
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		code = 127
		if _, e := os.Stat(path); e == nil {
			return &Failure{Code: code, Text: fmt.Sprintf("exec %s: no such file or directory: its interpreter or dynamic loader is missing", path)}
		}
	}
	return &Failure{Code: code, Text: fmt.Sprintf("exec %s: %v", path, err)}
}

// LookPath finds the file of a command as execvp(3) does, with the PATH of env.
func LookPath(name string, env []string) (string, error) {
	if strings.ContainsRune(name, '/') {
		if err := executable(name); err != nil {
			return "", execError(name, err)
		}
		return name, nil
	}
	denied := false
	for dir := range strings.SplitSeq(pathOf(env), ":") {
		path := path.Join(dir, name)
		err := executable(path)
		if err == nil {
			return path, nil
		}
		denied = denied || errors.Is(err, unix.EACCES)
	}
	if denied {
		return "", execError(name, unix.EACCES)
	}
	return "", &Failure{Code: 127, Text: fmt.Sprintf("exec: %q: executable file not found in $PATH", name)}
}

// pathOf returns the value of PATH; where variables are repeated, the last one
// counts.
func pathOf(env []string) string {
	path := ""
	for _, v := range env {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			path = p
		}
	}
	return path
}

func execError(name string, err error) error {
	e := &Failure{Code: 126, Text: fmt.Sprintf("exec: %q: %v", name, err)}
	switch {
	case errors.Is(err, unix.ENOENT):
		e.Code, e.Text = 127, fmt.Sprintf("exec: %q: stat %s: no such file or directory", name, name)
	case errors.Is(err, unix.EISDIR):
		e.Text = fmt.Sprintf("exec: %q: is a directory", name)
	}
	return e
}

// executable says whether this thread's user may execute path.
func executable(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	// Not by access(2): user 0 may execute a file only if some bit says so,
	// which the kernel's access checks know; faccessat2(2) is Linux 5.8.
	err := unix.Faccessat2(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS)
	if err == unix.ENOSYS {
		err = nil
		if st.Mode&0o111 == 0 {
			err = unix.EACCES
		}
	}
	return err
}

// Fork starts the command as a child of this thread, with what restrict leaves.
func (c *Config) Fork(attr *syscall.SysProcAttr) (pid int, err error) {
	if err := c.restrict(); err != nil {
		return 0, err
	}
	path, err := LookPath(c.Args[0], c.Env)
	if err != nil {
		return 0, err
	}
	// The child takes on the user by itself; of user 0 it has what this thread
	// has now.
	if err := c.setCaps(0); err != nil {
		return 0, err
	}
	if c.Ambient && c.User.UID != 0 {
		for n := range uintptr(64) {
			if c.Caps&(1<<n) != 0 {
				attr.AmbientCaps = append(attr.AmbientCaps, n)
			}
		}
	}
	attr.Credential = &syscall.Credential{Uid: c.User.UID, Gid: c.User.GID, Groups: c.User.Groups}
	defaultSignals()
	pid, err = syscall.ForkExec(path, c.Args, &syscall.ProcAttr{Env: c.Env, Files: []uintptr{0, 1, 2}, Sys: attr})
	if err != nil {
		return 0, ExecFailed(path, err)
	}
	return pid, nil
}
