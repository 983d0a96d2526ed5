package child

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// attributes are those of one mount, as opposed to the filesystem's options.
type attributes struct {
	set, clear  uint64 // MOUNT_ATTR_*
	recursive   bool   // rbind
	propagation uint64 // MS_PRIVATE …; 0: left as it is
	propagateR  bool   // to all below
}

// splitOptions separates what mount(8) turns into attributes of the mount from
// what the filesystem is told.
func splitOptions(options []string) (a attributes, data []string) {
	for _, o := range options {
		if !a.add(o) {
			data = append(data, o)
		}
	}
	return a, data
}

func (a *attributes) add(option string) bool {
	set := func(on bool, bit uint64) {
		if on {
			a.set, a.clear = a.set|bit, a.clear&^bit
		} else {
			a.set, a.clear = a.set&^bit, a.clear|bit
		}
	}
	atime := func(v uint64) { a.set, a.clear = a.set&^unix.MOUNT_ATTR__ATIME|v, a.clear|unix.MOUNT_ATTR__ATIME }
	propagate := func(v uint64) { a.propagation, a.propagateR = v, option[0] == 'r' }
	switch option {
	case "defaults", "bind", "async", "relatime":
	case "rbind":
		a.recursive = true
	case "ro", "rro", "rw":
		set(option != "rw", unix.MOUNT_ATTR_RDONLY)
		a.recursive = a.recursive || option == "rro"
	case "nosuid", "suid":
		set(option == "nosuid", unix.MOUNT_ATTR_NOSUID)
	case "nodev", "dev":
		set(option == "nodev", unix.MOUNT_ATTR_NODEV)
	case "noexec", "exec":
		set(option == "noexec", unix.MOUNT_ATTR_NOEXEC)
	case "nodiratime", "diratime":
		set(option == "nodiratime", unix.MOUNT_ATTR_NODIRATIME)
	case "noatime":
		atime(unix.MOUNT_ATTR_NOATIME)
	case "strictatime":
		atime(unix.MOUNT_ATTR_STRICTATIME)
	case "private", "rprivate":
		propagate(unix.MS_PRIVATE)
	case "slave", "rslave":
		propagate(unix.MS_SLAVE)
	case "shared", "rshared":
		propagate(unix.MS_SHARED)
	case "unbindable", "runbindable":
		propagate(unix.MS_UNBINDABLE)
	default:
		return false
	}
	return true
}

// mountFlags gives the attributes in the terms of mount(2).
func (a attributes) mountFlags() uintptr {
	var f uintptr
	for _, p := range [...]struct {
		attr uint64
		flag uintptr
	}{
		{unix.MOUNT_ATTR_RDONLY, unix.MS_RDONLY},
		{unix.MOUNT_ATTR_NOSUID, unix.MS_NOSUID},
		{unix.MOUNT_ATTR_NODEV, unix.MS_NODEV},
		{unix.MOUNT_ATTR_NOEXEC, unix.MS_NOEXEC},
		{unix.MOUNT_ATTR_NODIRATIME, unix.MS_NODIRATIME},
		{unix.MOUNT_ATTR_NOATIME, unix.MS_NOATIME},
		{unix.MOUNT_ATTR_STRICTATIME, unix.MS_STRICTATIME},
	} {
		if a.set&p.attr != 0 {
			f |= p.flag
		}
	}
	return f
}

// bindTree returns a copy of the mount at m.Source, attached nowhere.
func bindTree(m Mount) (int, error) {
	a, _ := splitOptions(m.Options) // "mode=" and the like mean nothing to a bind mount
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if a.recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, flags)
	if err != nil {
		return -1, fmt.Errorf("bind %s: %w", m.Source, err)
	}
	if a.propagation == 0 {
		a.propagation, a.propagateR = unix.MS_PRIVATE, true
	}
	if err := a.apply(fd); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind %s: %w", m.Source, err)
	}
	return fd, nil
}

// apply gives the detached mount fd the attributes.
func (a attributes) apply(fd int) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if a.recursive || a.propagateR {
		flags |= unix.AT_RECURSIVE
	}
	attr := unix.MountAttr{Attr_set: a.set, Attr_clr: a.clear, Propagation: a.propagation}
	err := unix.MountSetattr(fd, "", flags, &attr)
	if err == nil || err != unix.ENOSYS {
		return err
	}
	// Before Linux 5.12, one mount at a time.
	path := "/proc/self/fd/" + strconv.Itoa(fd)
	if err := unix.Mount("", path, "", uintptr(a.propagation)|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("set propagation: %w", err)
	}
	if a.set == 0 && a.clear == 0 {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return fmt.Errorf("remount: statfs: %w", err)
	}
	if err := unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|a.remountFlags(st.Flags), ""); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	return nil
}

// remountFlags is mountFlags for a mount that has those of statfs(2): a remount
// drops all that it does not name. Where a is silent about times, so is mount(2),
// which then leaves them as they are.
func (a attributes) remountFlags(has int64) uintptr {
	// Linux has the same bits for them, MOUNT_ATTR_* and ST_*.
	const kept = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	a.set |= uint64(has) & kept &^ a.clear
	return a.mountFlags()
}

// setAttr sets and clears attributes of a mount.
func setAttr(fd int, set, clear uint64, recursive bool) error {
	return attributes{set: set, clear: clear, recursive: recursive, propagation: unix.MS_PRIVATE, propagateR: recursive}.apply(fd)
}

// filesystemTree mounts a new filesystem of type m.Type, attached nowhere.
func filesystemTree(m Mount) (int, error) {
	fs, err := unix.Fsopen(m.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("mount %s: fsopen: %w", m.Type, err)
	}
	defer unix.Close(fs)
	if m.Source != "" {
		if err := unix.FsconfigSetString(fs, "source", m.Source); err != nil {
			return -1, fsError(fs, "mount "+m.Type+": source "+m.Source, err)
		}
	}
	a, options := splitOptions(m.Options)
	for _, o := range options {
		if o == "newinstance" && m.Type == "devpts" || o == "tmpcopyup" {
			continue // always so, since Linux 4.7; an extension of runc's
		}
		if err := fsOption(fs, o); err != nil {
			return -1, fmt.Errorf("mount %s: %w", m.Type, err)
		}
	}
	return fsCreate(fs, m.Type, a.set)
}

func fsOption(fs int, option string) error {
	key, value, ok := strings.Cut(option, "=")
	var err error
	if ok {
		err = unix.FsconfigSetString(fs, key, value)
	} else {
		err = unix.FsconfigSetFlag(fs, key)
	}
	if err != nil {
		return fsError(fs, "option "+option, err)
	}
	return nil
}

func fsCreate(fs int, kind string, attr uint64) (int, error) {
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fsError(fs, "mount "+kind, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attr))
	if err != nil {
		return -1, fsError(fs, "mount "+kind+": fsmount", err)
	}
	return fd, nil
}

// fsError adds what the kernel has to say, which can be read from the
// filesystem context (fsopen(2)).
func fsError(fs int, what string, err error) error {
	if said := kernelMessages(fs); said != "" {
		return fmt.Errorf("%s: %w (%s)", what, err, said)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func kernelMessages(fs int) string {
	var out []string
	buf := make([]byte, 1024)
	for {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			return strings.Join(out, "; ")
		}
		// "e overlay: text": a letter for how serious it is.
		out = append(out, strings.TrimSpace(strings.TrimLeft(string(buf[:n]), "ewi ")))
	}
}

func unknownParameter(fs int) bool {
	said := kernelMessages(fs)
	return said == "" || strings.Contains(said, "Unknown parameter")
}

// attach puts a detached mount at a path, or, with path "", at the file at.
func attach(fd, at int, path string) error {
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH
	if path == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	if err := unix.MoveMount(fd, "", at, path, flags); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// mount mounts m at m.Target in the root.
func (r *rootfs) mount(m Mount) error {
	if r.outside && ofInside(m) {
		return r.leaveInside(m)
	}
	var fd int
	var err error
	switch {
	case m.Type == fileType:
		fd, err = r.fileTree(m)
	case m.Type == DeviceType:
		fd, err = deviceTree(m)
	case m.Type == "overlay":
		fd, err = overlayTree(m)
	case m.Type == "bind" || m.Type == "rbind" || m.Type == "" || isBind(m.Options):
		if m.Type == "rbind" {
			m.Options = append([]string{"rbind"}, m.Options...)
		}
		fd, err = bindTree(m)
	default:
		fd, err = r.filesystem(m)
	}
	if err == nil && m.Sub != "" {
		whole := fd
		fd, err = subTree(whole, m.Sub)
		unix.Close(whole)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", m.Target, err)
	}
	defer unix.Close(fd)
	return r.mountFD(fd, m.Target)
}

// mountFD attaches a detached mount at target in the root.
func (r *rootfs) mountFD(fd int, target string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%s: %w", target, err)
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	at, err := r.mountPoint(target, isDir)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	if r.isInside(at) {
		return ErrInside
	}
	if err := attach(fd, at, ""); err != nil {
		// The kernel says no more than EINVAL.
		if e := unix.Fstat(at, &st); e == nil && isDir != (st.Mode&unix.S_IFMT == unix.S_IFDIR) {
			err = errors.New("a directory cannot be mounted on a file, nor a file on a directory")
		}
		return fmt.Errorf("%s: %w", target, err)
	}
	return nil
}

func isBind(options []string) bool {
	for _, o := range options {
		if o == "bind" || o == "rbind" {
			return true
		}
	}
	return false
}

// rebind mounts the file or directory at path in the root on itself.
func (r *rootfs) rebind(path string, attr uint64) error {
	at, err := r.open(path)
	if errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(at)
	fd, err := unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("bind %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := setAttr(fd, attr, 0, true); err != nil {
		return fmt.Errorf("bind %s: %w", path, err)
	}
	if err := attach(fd, at, ""); err != nil {
		return fmt.Errorf("bind %s: %w", path, err)
	}
	return nil
}
