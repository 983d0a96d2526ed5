package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/internal/flock"
)

// ErrUnsupported is wrapped by Supported's error where the kernel, the file
// system or a lack of rights is the reason. Any other error, of a full disk say,
// tells nothing of that.
var ErrUnsupported = errors.New("overlayfs cannot be used here")

const probePrefix = ".overlay-probe-"

// Supported reports why snapshots below dir, which is there, could not be
// mounted: no overlayfs, a file system that it cannot write upon (overlayfs
// itself, NFS), or no right to mount. Nothing is mounted for it.
func Supported(dir string) error {
	if err := supported(dir); err != nil {
		return fmt.Errorf("probe overlayfs: %w", err)
	}
	return nil
}

func supported(dir string) error {
	// One at a time, so that what a killed process has left can be told.
	lock, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if flock.Alone(lock) == nil { // else it is a file system where directories cannot be locked
		left, _ := filepath.Glob(filepath.Join(dir, probePrefix+"*"))
		for _, path := range left {
			_ = os.RemoveAll(path) // it takes little room
		}
	}
	probe, err := os.MkdirTemp(dir, probePrefix)
	if err != nil {
		return err
	}
	err = mountable(probe)
	if rerr := os.RemoveAll(probe); err == nil {
		err = rerr
	}
	return err
}

// mountable mounts an overlay in the directory probe, without attaching it.
func mountable(probe string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return unsupported(err)
	}
	defer unix.Close(fs)
	for _, d := range []string{"lowerdir", "upperdir", "workdir"} {
		path := filepath.Join(probe, d)
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		// By descriptor: fsconfig takes no more than 255 bytes.
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.FsconfigSetString(fs, d, fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil {
			return fmt.Errorf("%s: %w", d, unsupported(err))
		}
	}
	// Some of these take rights over extended attributes that root of a user
	// namespace has not.
	for _, o := range options(nil) {
		key, value, _ := strings.Cut(o, "=")
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return fmt.Errorf("%s: %w", o, unsupported(err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return unsupported(err)
	}
	// A file system that is not attached anywhere goes with its descriptor.
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return unsupported(err)
	}
	unix.Close(m)
	return nil
}

func unsupported(err error) error {
	for _, other := range []error{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.EINTR} {
		if errors.Is(err, other) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrUnsupported, err)
}
