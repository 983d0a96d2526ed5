package overlay

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Supported reports why snapshots below dir, which is there, could not be
// mounted: no overlayfs, a file system that it cannot write upon (overlayfs
// itself, NFS), or no right to mount. Nothing is mounted for it.
func Supported(dir string) error {
	probe, err := os.MkdirTemp(dir, ".overlay-probe-")
	if err != nil {
		return fmt.Errorf("probe overlayfs: %w", err)
	}
	defer os.RemoveAll(probe)
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("probe overlayfs: %w", err)
	}
	defer unix.Close(fs)
	for _, d := range []string{"lowerdir", "upperdir", "workdir"} {
		path := filepath.Join(probe, d)
		if err := os.Mkdir(path, 0o700); err != nil {
			return fmt.Errorf("probe overlayfs: %w", err)
		}
		// By descriptor: fsconfig takes no more than 255 bytes.
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("probe overlayfs: %w", err)
		}
		defer unix.Close(fd)
		if err := unix.FsconfigSetString(fs, d, fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil {
			return fmt.Errorf("probe overlayfs: %s: %w", d, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("probe overlayfs: %w", err)
	}
	// A file system that is not attached anywhere goes with its descriptor.
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("probe overlayfs: %w", err)
	}
	unix.Close(m)
	return nil
}
