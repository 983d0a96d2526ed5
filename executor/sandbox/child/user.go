package child

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"github.com/861fb494/build/executor/sandbox/stub"
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
	for _, r := range c.Rlimits {
		// By package syscall: it then knows that it must not put back, at execve,
		// the limit on open files that it raised for this program.
		if err := syscall.Setrlimit(r.Resource, &syscall.Rlimit{Cur: r.Soft, Max: r.Hard}); err != nil {
			return rlimitError(r, err)
		}
	}
	p := new(stub.Program)
	c.addRestrict(p)
	return p.Run()
}

// addRestrict adds what restrict does, but for resource limits.
func (c *Config) addRestrict(p *stub.Program) {
	c.Caps &= AllCaps()
	for n := range lastCap() + 1 {
		if c.Caps&(1<<n) == 0 {
			p.Do("drop capability "+strconv.Itoa(n), unix.SYS_PRCTL, stub.Int(unix.PR_CAPBSET_DROP), stub.Int(n), stub.Int(0), stub.Int(0), stub.Int(0))
		}
	}
	if c.NoNewPrivs {
		p.Do("prctl PR_SET_NO_NEW_PRIVS", unix.SYS_PRCTL, stub.Int(unix.PR_SET_NO_NEW_PRIVS), stub.Int(1), stub.Int(0), stub.Int(0), stub.Int(0))
	}
	// Here, and not later, as without no_new_privs it takes CAP_SYS_ADMIN. What
	// is still to be called the standard profile allows.
	if len(c.Seccomp) > 0 {
		// struct sock_fprog. SPEC_ALLOW as runc has it: the mitigation it turns off
		// costs far more than the filter.
		filter := p.Words(stub.Uint(uint64(len(c.Seccomp)/8)), p.Bytes(c.Seccomp))
		p.Do("load seccomp filter", unix.SYS_SECCOMP, stub.Int(unix.SECCOMP_SET_MODE_FILTER), stub.Int(unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW), filter)
	}
}

// lastCap is the highest capability that the kernel has.
var lastCap = sync.OnceValue(func() int {
	for n := range 64 {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0); err != nil {
			return n - 1
		}
	}
	return 63
})

// addBecome takes on the user and its capabilities, on one thread alone. (What
// package syscall has for this goes to all threads, and they have no need.)
func (c *Config) addBecome(p *stub.Program) {
	groups := make([]byte, 0, 4*len(c.User.Groups))
	for _, g := range c.User.Groups {
		groups = binary.NativeEndian.AppendUint32(groups, g)
	}
	gid, uid := stub.Uint(uint64(c.User.GID)), stub.Uint(uint64(c.User.UID))
	p.Do("set supplementary groups", unix.SYS_SETGROUPS, stub.Int(len(c.User.Groups)), p.Bytes(groups))
	p.Do(fmt.Sprint("set group ", c.User.GID), unix.SYS_SETRESGID, gid, gid, gid)
	if c.Ambient {
		// Else leaving user 0 clears what is to become ambient.
		p.Do("prctl PR_SET_KEEPCAPS", unix.SYS_PRCTL, stub.Int(unix.PR_SET_KEEPCAPS), stub.Int(1), stub.Int(0), stub.Int(0), stub.Int(0))
	}
	p.Do(fmt.Sprint("set user ", c.User.UID), unix.SYS_SETRESUID, uid, uid, uid)
	c.addCaps(p, c.User.UID)
	// Taking on another user cleared it (prctl(2)).
	p.Do("prctl PR_SET_PDEATHSIG", unix.SYS_PRCTL, stub.Int(unix.PR_SET_PDEATHSIG), stub.Int(int(unix.SIGKILL)), stub.Int(0), stub.Int(0), stub.Int(0))
}

// addCaps sets the capabilities of a thread to those of a user. One other
// than 0 has none, unless they are ambient, and gets none by execve(2).
func (c *Config) addCaps(p *stub.Program, uid uint32) {
	caps := c.Caps
	if uid != 0 && !c.Ambient {
		caps = 0
	}
	inheritable := uint64(0)
	if c.Ambient {
		inheritable = caps
	}
	// struct __user_cap_header_struct, and two of __user_cap_data_struct.
	head := binary.NativeEndian.AppendUint32(nil, unix.LINUX_CAPABILITY_VERSION_3)
	head = binary.NativeEndian.AppendUint32(head, 0)
	var data []byte
	for _, half := range [2]int{0, 32} {
		for _, set := range [3]uint64{caps, caps, inheritable} { // effective, permitted, inheritable
			data = binary.NativeEndian.AppendUint32(data, uint32(set>>half))
		}
	}
	p.Do("set capabilities", unix.SYS_CAPSET, p.Bytes(head), p.Bytes(data))
	if !c.Ambient {
		return
	}
	for n := range lastCap() + 1 {
		if caps&(1<<n) != 0 {
			p.Do("raise ambient capability "+strconv.Itoa(n), unix.SYS_PRCTL, stub.Int(unix.PR_CAP_AMBIENT), stub.Int(unix.PR_CAP_AMBIENT_RAISE), stub.Int(n), stub.Int(0), stub.Int(0))
		}
	}
}

// rlimitError says why a resource limit could not be set.
func rlimitError(r Rlimit, err error) error {
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
	p := new(stub.Program)
	c.addBecome(p)
	addDefaultSignals(p)
	if err := p.Run(); err != nil {
		return err
	}
	path, err := LookPath(c.Args[0], c.Env)
	if err != nil {
		return err
	}
	return ExecFailed(path, syscall.Exec(path, c.Args, c.Env))
}

// addDefaultSignals undoes that a signal is ignored, which execve(2) passes on: a
// build that was started with nohup(1) is no reason that its steps ignore
// SIGHUP. SIGKILL and SIGSTOP cannot be changed, nor have they been.
func addDefaultSignals(p *stub.Program) {
	var standard stub.Arg
	for sig := 1; sig <= 64; sig++ {
		// struct kernel_sigaction: handler, flags, restorer, mask.
		var act [4]uint64
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&act)), 8, 0, 0)
		if errno != 0 || act[0] != 1 { // SIG_IGN
			continue
		}
		if standard == (stub.Arg{}) {
			standard = p.Bytes(make([]byte, unsafe.Sizeof(act)))
		}
		p.Do("set signal "+strconv.Itoa(sig), unix.SYS_RT_SIGACTION, stub.Int(sig), standard, stub.Int(0), stub.Int(8))
	}
}

// ExecFailed says why execve(2) did not work, with the exit code of a shell.
func ExecFailed(path string, err error) error {
	_, e := os.Stat(path)
	return execFailed(path, err, e == nil)
}

// execFailed is ExecFailed for a path that is there, or not.
func execFailed(path string, err error, there bool) error {
	code := 126
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		code = 127
		if there {
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
	return "", lookupFailed(name, denied)
}

// lookupFailed is that no directory of PATH has a file of that name that may be
// executed. denied says that one has a file that may not.
func lookupFailed(name string, denied bool) error {
	if denied {
		return execError(name, unix.EACCES)
	}
	return &Failure{Code: 127, Text: fmt.Sprintf("exec: %q: executable file not found in $PATH", name)}
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
	p := new(stub.Program)
	c.addCaps(p, 0)
	addDefaultSignals(p)
	if err := p.Run(); err != nil {
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
	pid, err = syscall.ForkExec(path, c.Args, &syscall.ProcAttr{Env: c.Env, Files: []uintptr{0, 1, 2}, Sys: attr})
	if err != nil {
		return 0, ExecFailed(path, err)
	}
	return pid, nil
}
