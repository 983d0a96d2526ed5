package shelf

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// discard renames path into the directory bin, of the same filesystem, and
// deletes it there: at no time is half a tree under its old name. What is not
// there is no error. Filesystems mounted in it, in this mount namespace, are
// unmounted, never emptied.
func discard(bin, path string) error {
	left, err := throwAway(bin, path)
	if err != nil || left == "" {
		return err
	}
	return erase(left)
}

// throwAway is discard without the deletion: it returns where path is now, or "".
func throwAway(bin, path string) (left string, err error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err := unmount(path); err != nil {
		return "", fmt.Errorf("remove %s: %w", path, err)
	}
	to := filepath.Join(bin, rand.Text())
	err = os.Rename(path, to)
	if errors.Is(err, fs.ErrPermission) { // immutable, or a directory of ours without its w
		soften(path)
		err = os.Rename(path, to)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // somebody else was faster
	}
	if err != nil {
		return "", fmt.Errorf("remove: %w", err)
	}
	return to, nil
}

// empty deletes what killed processes left in bin.
func empty(bin string) error {
	left, err := os.ReadDir(bin)
	if err != nil {
		return fmt.Errorf("empty trash: %w", err)
	}
	var errs []error
	for _, e := range left {
		path := filepath.Join(bin, e.Name())
		if err := unmount(path); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, erase(path))
	}
	return errors.Join(errs...)
}

func erase(path string) error {
	if os.RemoveAll(path) == nil {
		return nil
	}
	// What cannot be read or softened is tried again below, and told there.
	_ = filepath.WalkDir(path, func(p string, _ fs.DirEntry, _ error) error {
		soften(p)
		return nil
	})
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}

// Flags of an inode that forbid to delete it or what is in it: FS_IMMUTABLE_FL
// and FS_APPEND_FL of linux/fs.h; see ioctl_iflags(2).
const protected = 0x10 | 0x20

// soften makes a file or directory deletable, as far as that can be done.
func soften(path string) {
	fi, err := os.Lstat(path)
	if err != nil || !fi.IsDir() && !fi.Mode().IsRegular() {
		return
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		if flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS); err == nil && flags&protected != 0 {
			_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^protected)
		}
		unix.Close(fd)
	}
	if fi.IsDir() && fi.Mode()&0o700 != 0o700 {
		_ = os.Chmod(path, 0o700)
	}
}

// unmount detaches what is mounted at path or below.
func unmount(path string) error {
	real, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return err
	}
	real = filepath.Join(real, filepath.Base(path))
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.Mountpoint != real && !strings.HasPrefix(m.Mountpoint, real+"/"), false
	})
	if err != nil {
		return err
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		if err := unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", mounts[i].Mountpoint, err)
		}
	}
	return nil
}
