package child

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fileType is the type of mounts that are a file in memory, with Mount.Data
// for its content: nothing of it touches a disk, and it goes with the sandbox.
const fileType = "file"

// fileTree makes such a file and returns it as a mount of its own: all of a
// sandbox's are in one file system, of which nothing else can be reached.
func (r *rootfs) fileTree(m Mount) (int, error) {
	n, a, err := numbers(m.Options, "uid", "gid", "mode")
	if err != nil {
		return -1, fmt.Errorf("mount file: %w", err)
	}
	mode, ok := n["mode"]
	if !ok {
		mode = 0o600
	}
	if r.memory < 0 {
		if r.memory, err = r.filesystem(inMemory); err != nil {
			return -1, err
		}
	}
	r.files++
	name := strconv.Itoa(r.files)
	if err := writeAt(r.memory, name, m.Data, int(n["uid"]), int(n["gid"]), mode); err != nil {
		return -1, fmt.Errorf("mount file: %w", err)
	}
	fd, err := cloneSub(r.memory, name)
	if errors.Is(err, unix.EINVAL) {
		fd, err = subTree(r.memory, name)
		r.closeMemory() // once attached somewhere it cannot be again
	}
	if err != nil {
		return -1, err
	}
	if err := setAttr(fd, a.set, a.clear, false); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount file: %w", err)
	}
	return fd, nil
}

// closeMemory lets go of the file system of files in memory; those that are
// mounted stay.
func (r *rootfs) closeMemory() {
	closeFD(r.memory)
	r.memory = -1
}

// numbers reads the options NAME=NUMBER of these names; a mode is in octal.
// What else there is must be attributes of the mount.
func numbers(options []string, names ...string) (map[string]uint32, attributes, error) {
	a, rest := splitOptions(options)
	out := map[string]uint32{}
	for _, o := range rest {
		key, value, _ := strings.Cut(o, "=")
		if !slices.Contains(names, key) {
			return nil, a, fmt.Errorf("option %q is not known", o)
		}
		base := 10
		if key == "mode" {
			base = 8
		}
		n, err := strconv.ParseUint(value, base, 31)
		if err != nil {
			return nil, a, fmt.Errorf("option %q: %w", o, err)
		}
		out[key] = uint32(n)
	}
	return out, a, nil
}

// DeviceType is the type of mounts that are a device node: its options are
// "major=", "minor=", "uid=", "gid=" and "mode=" with the type of file, as in
// stat(2). The node counts whatever the root's filesystem allows.
const DeviceType = "device"

func deviceTree(m Mount) (int, error) {
	n, a, err := numbers(m.Options, "major", "minor", "uid", "gid", "mode")
	if err != nil {
		return -1, fmt.Errorf("make device: %w", err)
	}
	memory, err := filesystemTree(inMemory)
	if err != nil {
		return -1, err
	}
	defer unix.Close(memory)
	err = unix.Mknodat(memory, "device", n["mode"], int(unix.Mkdev(n["major"], n["minor"])))
	if err == nil {
		err = unix.Fchownat(memory, "device", int(n["uid"]), int(n["gid"]), unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		// mknod(2) heeds the umask.
		err = unix.Fchmodat(memory, "device", n["mode"]&0o7777, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("make device %d:%d: %w", n["major"], n["minor"], err)
	}
	fd, err := subTree(memory, "device")
	if err != nil {
		return -1, err
	}
	if err := setAttr(fd, a.set, a.clear, false); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make device: %w", err)
	}
	return fd, nil
}

func writeAt(dir int, name string, data []byte, uid, gid int, mode uint32) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(data)
	if err == nil {
		err = unix.Fchown(fd, uid, gid)
	}
	if err == nil {
		err = unix.Fchmod(fd, mode&0o7777)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// subTree is the directory or file at path in the detached mount fd, as a
// mount. Symbolic links are resolved in the mount.
func subTree(fd int, path string) (int, error) {
	sub, err := cloneSub(fd, path)
	if !errors.Is(err, unix.EINVAL) {
		return sub, err
	}
	// Before Linux 6.15 only what is attached somewhere can be cloned. This
	// process's mount namespace is its own, and /proc is there.
	if err := attach(fd, unix.AT_FDCWD, "/proc"); err != nil {
		return -1, err
	}
	sub, err = cloneSub(fd, path)
	if uerr := unix.Unmount("/proc", unix.MNT_DETACH); err == nil && uerr != nil {
		unix.Close(sub)
		return -1, fmt.Errorf("detach: %w", uerr)
	}
	return sub, err
}

func cloneSub(fd int, path string) (int, error) {
	at, err := openIn(fd, path)
	if err != nil {
		return -1, fmt.Errorf("open %s in the mount: %w", path, err)
	}
	defer unix.Close(at)
	sub, err := unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, fmt.Errorf("open_tree of %s in the mount: %w", path, err)
	}
	return sub, nil
}
