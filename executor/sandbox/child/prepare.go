package child

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/861fb494/build/executor/sandbox/stub"
	"golang.org/x/sys/unix"
)

// ErrInside says that something is to be mounted that only the first process of the
// sandbox can mount, or upon that: this program has to be the first process.
var ErrInside = errors.New("has to be mounted by the sandbox's first process")

// Prepared is a sandbox whose first process has yet to be started, by the thread
// that prepared it.
type Prepared struct {
	Program *stub.Program
	// Files are the descriptors that Program knows by number, from
	// stub.ReportFD+1 on.
	Files []int
	Made  []MadeDir

	config  *Config
	root    *rootfs
	opened  []int
	rlimits map[int]int    // from a call of Program's to the limit in Config
	execs   map[int]string // from a call of Program's to the file it executes
	look    int            // the call that begins to look for the command
}

// PrepareAhead mounts what nearly every sandbox has, in the namespaces of this
// thread. The result is for one Config.
func PrepareAhead() Ahead { return Ahead{makeAhead()} }

// Ahead is what has been mounted before it was known what for.
type Ahead struct{ made []made }

// Close lets go of it.
func (a Ahead) Close() {
	for _, m := range a.made {
		unix.Close(m.fd)
	}
}

// Prepare makes the sandbox c, but for what only its first process can do. The
// calling thread is in mount, UTS and IPC namespaces of its own, and shares root and
// working directory with no other thread. ahead is used up, whatever the result. It
// returns ErrInside where it cannot be done in this way. With an error, too, the
// result says what has been made, and is to be closed.
func (c *Config) Prepare(ahead Ahead) (*Prepared, error) {
	c.ahead, c.outside = ahead.made, true
	p := &Prepared{Program: new(stub.Program), config: c}
	if c.replaced(Mount{Target: "/proc"}) {
		ahead.Close()
		return p, ErrInside
	}
	if err := c.enterNetwork(); err != nil {
		ahead.Close()
		return p, err
	}
	var err error
	if p.root, err = c.mountAll(); err != nil {
		if p.root != nil {
			p.Made = p.root.made()
		}
		return p, err
	}
	p.Made = p.root.made()
	dir, err := p.root.directory(c.Dir)
	if err != nil {
		return p, fmt.Errorf("working directory: %w", err)
	}
	p.opened = append(p.opened, dir)
	if p.root.isInside(dir) {
		return p, ErrInside
	}
	if err := p.addInside(dir); err != nil {
		return p, err
	}
	p.addCommand()
	return p, nil
}

// Close closes the descriptors.
func (p *Prepared) Close() {
	if p.root != nil {
		p.root.close()
	}
	for _, fd := range p.opened {
		unix.Close(fd)
	}
}

// file gives the program a descriptor, and returns the number there.
func (p *Prepared) file(fd int) stub.Arg {
	p.Files = append(p.Files, fd)
	return stub.Int(stub.ReportFD + len(p.Files))
}

// addInside adds to the program what only the first process can do about the
// sandbox.
func (p *Prepared) addInside(dir int) error {
	c, r, prog := p.config, p.root, p.Program
	zero := prog.String("0")
	for _, file := range c.Cgroups {
		fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("join cgroup: %w", &os.PathError{Op: "open", Path: file, Err: err})
		}
		p.opened = append(p.opened, fd)
		prog.Do("join cgroup: "+file, unix.SYS_WRITE, p.file(fd), zero, stub.Int(1))
	}
	addNewCgroupNS(prog) // only now that the process is in its cgroup
	addNewKeyring(prog)
	for _, m := range r.inside {
		a, options := splitOptions(m.Options)
		if len(options) > 0 {
			return ErrInside
		}
		// Not by its path: that one could lead elsewhere by now.
		prog.Do("open "+m.Target, unix.SYS_FCHDIR, p.file(m.at))
		prog.Do("mount "+m.Target, unix.SYS_MOUNT, prog.String(m.Source), prog.String("."), prog.String(m.Type), stub.Uint(uint64(a.mountFlags())), stub.Int(0))
	}
	addPivot(prog, p.file(r.fd))
	gone := []syscall.Errno{unix.ENOENT, unix.ENOTDIR}
	if !c.Privileged {
		for _, path := range slices.DeleteFunc(slices.Clone(ReadOnlyPaths), func(p string) bool { return !inProc(p) || missing(p) }) {
			at := prog.String(path)
			prog.Add(stub.Call{
				What: "read-only path: bind " + path, Number: unix.SYS_MOUNT, Args: []stub.Arg{at, at, stub.Int(0), stub.Int(unix.MS_BIND | unix.MS_REC), stub.Int(0)},
				Tolerate: gone, Skip: 1,
			})
			const flags = unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
			prog.Do("read-only path: remount "+path, unix.SYS_MOUNT, stub.Int(0), at, stub.Int(0), stub.Int(flags), stub.Int(0))
		}
	}
	empty := prog.String("")
	for _, m := range r.covers {
		prog.Add(stub.Call{
			What: "mask " + m.path, Number: unix.SYS_MOVE_MOUNT, Args: []stub.Arg{p.file(m.fd), empty, stub.Int(unix.AT_FDCWD), prog.String(m.path), stub.Int(unix.MOVE_MOUNT_F_EMPTY_PATH)},
			Tolerate: gone,
		})
	}
	prog.Do("working directory "+c.Dir, unix.SYS_FCHDIR, p.file(dir))
	// Ours, and the host's that our parent left open, must not reach the command.
	prog.Do("close descriptors", unix.SYS_CLOSE_RANGE, stub.Int(stub.ReportFD), stub.Uint(1<<32-1), stub.Int(unix.CLOSE_RANGE_CLOEXEC))
	return nil
}

// addCommand adds to the program what restrict, become and exec do.
func (p *Prepared) addCommand() {
	c, prog := p.config, p.Program
	p.rlimits, p.execs = map[int]int{}, map[int]string{}
	for i, l := range c.Rlimits {
		n := prog.Do("set resource limit", unix.SYS_PRLIMIT64, stub.Int(0), stub.Int(l.Resource), prog.Words(stub.Uint(l.Soft), stub.Uint(l.Hard)), stub.Int(0))
		p.rlimits[n] = i
	}
	c.addRestrict(prog)
	c.addBecome(prog)
	addDefaultSignals(prog)

	args, env := prog.Strings(c.Args), prog.Strings(c.Env)
	exec := func(path string, tolerate ...syscall.Errno) {
		n := prog.Add(stub.Call{What: "exec " + path, Number: unix.SYS_EXECVE, Args: []stub.Arg{prog.String(path), args, env}, Tolerate: tolerate})
		p.execs[n] = path
	}
	name := c.Args[0]
	p.look = prog.Len()
	if strings.ContainsRune(name, '/') {
		exec(name)
		return
	}
	// As LookPath does it: the first one that the user may execute is it. A
	// directory passes for one until it is executed.
	access := unix.Faccessat2(unix.AT_FDCWD, "/", unix.X_OK, unix.AT_EACCESS) != unix.ENOSYS
	for dir := range strings.SplitSeq(pathOf(c.Env), ":") {
		at := path.Join(dir, name)
		if !access {
			exec(at, unix.EACCES, unix.ENOENT, unix.ENOTDIR)
			continue
		}
		prog.Add(stub.Call{
			What: "access " + at, Number: unix.SYS_FACCESSAT2, Args: []stub.Arg{stub.Int(unix.AT_FDCWD), prog.String(at), stub.Int(unix.X_OK), stub.Int(unix.AT_EACCESS)},
			Tolerate: []syscall.Errno{stub.Any}, Skip: 1,
		})
		exec(at, unix.EACCES)
	}
	prog.Do("exec", unix.SYS_CLOSE, stub.Int(-1)) // fails
}

// Failed says why the first process did not get to execute the command, given what
// the program has reported. It is to be called by the thread that prepared it.
func (p *Prepared) Failed(report []byte) error {
	err := p.Program.Failure(report)
	f, ok := err.(*stub.Failure)
	if !ok {
		return err
	}
	c := p.config
	if i, ok := p.rlimits[f.Index]; ok {
		return rlimitError(c.Rlimits[i], f.Err)
	}
	if file, ok := p.execs[f.Index]; ok {
		return p.execFailed(file, f.Err)
	}
	if f.Index < p.look {
		return err
	}
	return p.notFound(f.Errs)
}

// execFailed is the error err of execve(2) of file.
func (p *Prepared) execFailed(file string, err syscall.Errno) error {
	name := p.config.Args[0]
	kind, there := p.stat(file)
	switch {
	case err == unix.EACCES && kind == unix.S_IFDIR:
		return execError(name, unix.EISDIR)
	case err == unix.EACCES && file == name, !there:
		return execError(name, err)
	}
	return execFailed(file, err, there)
}

// notFound is that no directory of PATH has the command, given what the calls
// have returned.
func (p *Prepared) notFound(errs []syscall.Errno) error {
	denied := false
	for i := p.look; i < len(errs); i++ {
		if errs[i] != unix.EACCES {
			continue
		}
		if file, ok := p.execs[i]; ok {
			kind, there := p.stat(file)
			if kind == unix.S_IFDIR {
				continue
			}
			return execFailed(file, errs[i], there)
		}
		denied = true
	}
	return lookupFailed(p.config.Args[0], denied)
}

// stat returns the type of a file in the root, as the command would find it but for
// what is mounted by the first process.
func (p *Prepared) stat(file string) (kind uint32, there bool) {
	if !path.IsAbs(file) {
		file = path.Join(p.config.Dir, file)
	}
	fd, err := p.root.open(file)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, false
	}
	return st.Mode & unix.S_IFMT, true
}

// insideMount is one that the first process is to make, on the file at.
type insideMount struct {
	Mount
	at   int
	path string // in the root, without links
}

// coveredPath is a path to be hidden by the mount fd.
type coveredPath struct {
	path string
	fd   int
}

// ofInside reports whether a filesystem shows what it shows for the namespaces of
// who mounts it, of the kinds that a thread does not have for itself: those of
// processes and cgroups.
func ofInside(m Mount) bool { return m.Type == "proc" || m.Type == "cgroup2" }

// inProc reports whether a standard path is in /proc.
func inProc(path string) bool { return strings.HasPrefix(path, "/proc/") }

// leaveInside makes the mount point for m, and leaves the rest to the first process.
func (r *rootfs) leaveInside(m Mount) error {
	at, err := r.mountPoint(m.Target, true)
	if err != nil {
		return err
	}
	r.inside = append(r.inside, insideMount{m, at, r.pathOf(at)})
	return nil
}

// isInside reports whether at is in what the first process has yet to mount.
func (r *rootfs) isInside(at int) bool {
	if len(r.inside) == 0 {
		return false
	}
	p := r.pathOf(at)
	return slices.ContainsFunc(r.inside, func(m insideMount) bool { return p == m.path || strings.HasPrefix(p, m.path+"/") })
}

// coverInside prepares to hide those of MaskedPaths that are in /proc.
func (r *rootfs) coverInside() error {
	if !r.outside {
		return nil
	}
	for _, p := range MaskedPaths {
		if !inProc(p) || missing(p) {
			continue
		}
		var fd int
		var err error
		if isDir(p) {
			fd, err = filesystemTree(covering)
		} else {
			fd, err = r.clone("/dev/null")
		}
		if err != nil {
			return err
		}
		r.covers = append(r.covers, coveredPath{p, fd})
	}
	return nil
}

// missing reports whether this kernel's /proc has no such path, so far as can be
// seen: the host's may be one of processes alone.
func missing(p string) bool {
	var st unix.Stat_t
	return unix.Lstat(p, &st) == unix.ENOENT && unix.Lstat("/proc/version", &st) == nil
}

// isDir reports whether a path in /proc is a directory, by the host's.
func isDir(p string) bool {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return p == "/proc/acpi" || p == "/proc/asound" || p == "/proc/scsi"
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR
}
