package child

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// StandardMounts are those that BuildKit and containerd give to every container
// (OCI runtime specification, "Default Filesystems").
func (c *Config) StandardMounts() []Mount {
	sys := Mount{Type: "sysfs", Source: "sysfs", Target: "/sys", Options: []string{"nosuid", "noexec", "nodev", "ro"}}
	if !c.NewNetNS && c.NetNS == "" {
		// sysfs shows the network namespace of who mounts it, and may be mounted
		// by that namespace's owner alone. A bind mount shows the same.
		sys = Mount{Type: "bind", Source: "/sys", Target: "/sys", Options: []string{"bind", "nosuid", "noexec", "nodev", "ro"}}
	}
	if c.Privileged {
		sys.Options[len(sys.Options)-1] = "rw"
	}
	dev := []string{"nosuid", "strictatime", "mode=755", "size=65536k"}
	if c.NoDev {
		dev = append(dev, "nodev")
	}
	return slices.DeleteFunc([]Mount{
		{Type: "proc", Source: "proc", Target: "/proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Type: "tmpfs", Source: "tmpfs", Target: devDir, Options: dev},
		{Type: "devpts", Source: "devpts", Target: "/dev/pts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Type: "tmpfs", Source: "shm", Target: "/dev/shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(c.ShmSize, 10)}},
		{Type: "mqueue", Source: "mqueue", Target: "/dev/mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sys,
	}, c.replaced)
}

// replaced reports a standard mount in whose place the caller has one of its
// own.
func (c *Config) replaced(m Mount) bool {
	return m.Target != devDir && slices.ContainsFunc(c.Mounts, func(own Mount) bool { return path.Clean(own.Target) == m.Target })
}

// Paths that tell or change what concerns the whole machine, as containerd has
// them.
var (
	MaskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
		"/sys/firmware", "/sys/devices/virtual/powercap",
	}
	ReadOnlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// mountAll makes all mounts, in a mount namespace that is this thread's own.
func (c *Config) mountAll() (*rootfs, error) {
	r, err := c.mountRoot("/")
	if err != nil {
		return nil, err
	}
	err = r.mountAll(c)
	r.closeAhead()
	r.noteMade()
	if err == nil && c.ReadOnly {
		if err = setAttr(r.fd, unix.MOUNT_ATTR_RDONLY, 0, false); err != nil {
			err = fmt.Errorf("make root read-only: %w", err)
		}
	}
	if err != nil {
		r.close()
	}
	return r, err // for what has been made
}

func (r *rootfs) mountAll(c *Config) (err error) {
	for _, m := range c.StandardMounts() {
		if err := r.mount(m); err != nil {
			return fmt.Errorf("mount %w", err)
		}
	}
	if err := r.devices(c.Privileged); err != nil {
		return err
	}
	if err := r.mountCgroups(c); err != nil {
		return err
	}
	// Before the mounts that others have a say in: what they put at /dev/null is no
	// cover.
	null := cover{fd: -1}
	defer null.close()
	if !c.Privileged {
		if null.fd, err = r.clone("/dev/null"); err != nil {
			return fmt.Errorf("mask: %w", err)
		}
		if err := r.coverInside(); err != nil {
			return fmt.Errorf("mask: %w", err)
		}
	}
	for _, m := range c.Mounts {
		if r.outside && ofInside(m) {
			return ErrInside // after those of before it
		}
		if err := r.mount(m); err != nil {
			return fmt.Errorf("mount %w", err)
		}
	}
	r.closeMemory()
	if !c.Privileged {
		return r.mask(&null)
	}
	return nil
}

// mask hides MaskedPaths, files with null, and protects ReadOnlyPaths.
func (r *rootfs) mask(null *cover) error {
	for _, p := range ReadOnlyPaths {
		if r.outside && inProc(p) {
			continue
		}
		if err := r.rebind(p, unix.MOUNT_ATTR_RDONLY); err != nil {
			return fmt.Errorf("read-only path: %w", err)
		}
	}
	empty := cover{fd: -1} // one read-only tmpfs for all directories
	defer empty.close()
	for _, p := range MaskedPaths {
		if r.outside && inProc(p) {
			continue
		}
		if err := r.maskPath(p, null, &empty); err != nil {
			return fmt.Errorf("mask %s: %w", p, err)
		}
	}
	return nil
}

func (r *rootfs) maskPath(p string, null, empty *cover) error {
	at, err := r.open(p)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	} else if err != nil {
		return err
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return null.put(at)
	}
	if empty.fd < 0 {
		if empty.fd, err = r.filesystem(covering); err != nil {
			return err
		}
	}
	return empty.put(at)
}

// cover is a mount that hides others.
type cover struct {
	fd   int // -1: none yet
	used bool
}

// put hides at. The first time it is the mount itself that does: before Linux 6.15
// what is attached nowhere cannot be cloned.
func (c *cover) put(at int) error {
	if !c.used {
		c.used = true
		return attach(c.fd, at, "")
	}
	fd, err := unix.OpenTree(c.fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return attach(fd, at, "")
}

func (c *cover) close() { closeFD(c.fd) }

// clone returns a copy of the mount at path in the root, attached nowhere.
func (r *rootfs) clone(path string) (int, error) {
	at, err := r.open(path)
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	return unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

// Device is a device node.
type Device struct {
	Name         string // below /dev
	Mode         uint32 // as in stat(2)
	Major, Minor uint32
	UID, GID     uint32
}

// Devices and links that every container has (OCI runtime specification,
// "Default Devices" and "Dev symbolic links").
var (
	defaultDevices = []Device{
		{Name: "null", Major: 1, Minor: 3}, {Name: "zero", Major: 1, Minor: 5}, {Name: "full", Major: 1, Minor: 7},
		{Name: "random", Major: 1, Minor: 8}, {Name: "urandom", Major: 1, Minor: 9}, {Name: "tty", Major: 5, Minor: 0},
	}
	devLinks = [][2]string{
		{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
		{"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"},
	}
)

// devDir is where the devices are.
const devDir = "/dev"

// devices fills /dev, but for what is there already.
func (r *rootfs) devices(privileged bool) error {
	dev, err := r.open(devDir)
	if err != nil {
		return fmt.Errorf("open /dev: %w", err)
	}
	defer unix.Close(dev)
	if !r.devFilled {
		if err := fillDev(dev, r.device); err != nil {
			return err
		}
	}
	if privileged {
		return r.hostDevices(dev)
	}
	return nil
}

// fillDev makes the default devices and links in dev.
func fillDev(dev int, device func(dev int, name string, mode uint32, number uint64) error) error {
	for _, d := range defaultDevices {
		if err := device(dev, d.Name, unix.S_IFCHR|0o666, unix.Mkdev(d.Major, d.Minor)); err != nil {
			return fmt.Errorf("make /dev/%s: %w", d.Name, err)
		}
	}
	for _, l := range devLinks {
		if err := unix.Symlinkat(l[0], dev, l[1]); err != nil {
			return fmt.Errorf("make link /dev/%s: %w", l[1], err)
		}
	}
	return nil
}

// device makes a device node, or where that is not allowed or would not count,
// binds the host's.
func (r *rootfs) device(dev int, name string, mode uint32, number uint64) error {
	if !r.nodev {
		if err := mknod(dev, name, mode, number); err != unix.EPERM {
			return err
		}
	}
	return r.mount(Mount{Type: "bind", Source: "/dev/" + name, Target: "/dev/" + name})
}

func mknod(dev int, name string, mode uint32, number uint64) error {
	if err := unix.Mknodat(dev, name, mode, int(number)); err != nil {
		return err
	}
	// mknod(2) heeds the umask.
	return unix.Fchmodat(dev, name, mode&0o7777, 0)
}

// hostDevices makes the other devices of the host's /dev.
func (r *rootfs) hostDevices(dev int) error {
	devices, err := HostDevices()
	if err != nil {
		return err
	}
	for _, d := range devices {
		for i := range d.Name {
			if d.Name[i] == '/' {
				if err := ignoreExists(unix.Mkdirat(dev, d.Name[:i], 0o755)); err != nil {
					return fmt.Errorf("make /dev/%s: %w", d.Name[:i], err)
				}
			}
		}
		if err := ignoreExists(unix.Mknodat(dev, d.Name, d.Mode, int(unix.Mkdev(d.Major, d.Minor)))); err != nil {
			return fmt.Errorf("make /dev/%s: %w", d.Name, err)
		}
		if err := unix.Fchownat(dev, d.Name, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("make /dev/%s: %w", d.Name, err)
		}
	}
	return nil
}

// HostDevices lists the devices of the host's /dev but for those that every
// sandbox has anyway. What is gone again meanwhile is left out.
func HostDevices() ([]Device, error) {
	var out []Device
	if err := hostDevices("", &out); err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return out, nil
}

func hostDevices(dir string, out *[]Device) error {
	entries, err := os.ReadDir("/dev/" + dir)
	if err != nil {
		return ignoreGone(err)
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		switch {
		case e.IsDir() && (name == "pts" || name == "shm" || name == "mqueue"):
		case e.IsDir():
			if err := hostDevices(name, out); err != nil {
				return err
			}
		case e.Type()&fs.ModeDevice == 0 || name == "console" || name == "ptmx" || isDefaultDevice(name):
		default:
			var st unix.Stat_t
			if err := unix.Lstat("/dev/"+name, &st); err != nil {
				if err := ignoreGone(err); err != nil {
					return err
				}
				continue
			}
			*out = append(*out, Device{Name: name, Mode: st.Mode, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), UID: st.Uid, GID: st.Gid})
		}
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func isDefaultDevice(name string) bool {
	return slices.ContainsFunc(defaultDevices, func(d Device) bool { return d.Name == name })
}

func ignoreExists(err error) error {
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// mountCgroups shows the process its own cgroups: those of version 2 in a
// cgroup namespace, those of version 1 by binding their directories.
func (r *rootfs) mountCgroups(c *Config) error {
	mode := "ro"
	if c.Privileged {
		mode = "rw"
	}
	options := []string{"nosuid", "nodev", "noexec", mode}
	if c.CgroupV2 {
		m := Mount{Type: "cgroup2", Source: "cgroup", Target: "/sys/fs/cgroup", Options: options}
		if err := r.mount(m); err != nil {
			return fmt.Errorf("mount %w", err)
		}
		return nil
	}
	if len(c.CgroupV1) == 0 {
		return nil
	}
	if err := r.mount(Mount{Type: "tmpfs", Source: "cgroup", Target: "/sys/fs/cgroup", Options: []string{"nosuid", "nodev", "noexec", "mode=755"}}); err != nil {
		return fmt.Errorf("mount %w", err)
	}
	for controller, dir := range c.CgroupV1 {
		if err := r.mount(Mount{Type: "bind", Source: dir, Target: "/sys/fs/cgroup/" + controller, Options: options}); err != nil {
			return fmt.Errorf("mount %w", err)
		}
	}
	at, err := r.open("/sys/fs/cgroup")
	if err != nil {
		return fmt.Errorf("open /sys/fs/cgroup: %w", err)
	}
	defer unix.Close(at)
	if err := setAttr(at, unix.MOUNT_ATTR_RDONLY, 0, false); err != nil {
		return fmt.Errorf("make /sys/fs/cgroup read-only: %w", err)
	}
	return nil
}
