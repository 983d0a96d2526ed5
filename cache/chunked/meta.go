package chunked

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
)

// setMeta sets owner, mode, extended attributes and times: the owner first, since
// chown clears setuid bits and file capabilities.
func (r *restorer) setMeta(d *dirs, e *tree.Change) error {
	dir, name, err := int(r.root.Fd()), ".", error(nil)
	if e.Path != "/" {
		dir, name, err = d.at(e.Path)
	}
	if err != nil {
		return err
	}
	if err := unix.Fchownat(dir, name, e.UID, e.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: fmt.Sprintf("chown to %d:%d", e.UID, e.GID), Path: e.Path, Err: err}
	}
	if e.Type() != unix.S_IFLNK {
		if err := unix.Fchmodat(dir, name, e.Perm(), 0); err != nil {
			return &os.PathError{Op: "chmod", Path: e.Path, Err: err}
		}
	}
	// The system calls on xattrs have no *at form before Linux 6.13.
	at := "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
	for _, k := range slices.Sorted(maps.Keys(e.Xattrs)) {
		err := unix.Lsetxattr(at, k, []byte(e.Xattrs[k]), 0)
		if (errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM)) && r.Notice != nil {
			r.Notice(e.Path, fmt.Errorf("%s: %w", k, err))
			err = nil
		}
		if err != nil {
			return &os.PathError{Op: "set xattr " + k + " of", Path: e.Path, Err: err}
		}
	}
	ts, err := unix.TimeToTimespec(e.ModTime)
	if err == nil {
		err = unix.UtimesNanoAt(dir, name, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return &os.PathError{Op: "set time of", Path: e.Path, Err: err}
	}
	return nil
}
