package builder

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/overlay"
	"github.com/861fb494/build/cache/plain"
	"github.com/861fb494/build/internal/flock"
)

// newDriver opens the snapshots of the state directory root with the driver
// called name, or the one that they are kept with.
func newDriver(root, name string) (d cache.Driver, notice string, err error) {
	switch name {
	case "auto":
		name = ""
	case "", "overlay", "plain":
	default:
		return nil, "", fmt.Errorf("unknown storage driver %q: want overlay, plain or auto", name)
	}
	chosen := filepath.Join(root, "driver")
	kept, err := os.ReadFile(chosen)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, "", fmt.Errorf("open state directory: %w", err)
	}
	was := string(kept)
	if !isDriver(was) {
		if was, notice, err = chooseDriver(root, chosen, name); err != nil {
			return nil, "", err
		}
	}
	if name != "" && name != was {
		return nil, "", fmt.Errorf("%s keeps its snapshots with the driver %q: use that, or another --root, for %q", root, was, name)
	}
	dir := filepath.Join(root, "snapshots")
	if was == "plain" {
		d, err = plain.New(dir, plain.Options{})
	} else {
		d, err = overlay.New(dir, overlay.Options{})
	}
	return d, notice, err
}

func isDriver(name string) bool { return name == "overlay" || name == "plain" }

// chooseDriver chooses how snapshots are kept, where the file chosen does not
// say it: there are none yet, or it is damaged. The choice holds for the state
// directory as a whole, since one driver cannot read the other's, and so for
// processes that open it at the same time: the first one chooses.
func chooseDriver(root, chosen, name string) (_, notice string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open state directory: %w", err)
		}
	}()
	f, err := os.OpenFile(chosen, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	// Where the file system has no locks, the other process is hoped to want the
	// same.
	_ = flock.Alone(f)
	kept, err := io.ReadAll(f)
	if err != nil {
		return "", "", err
	}
	if isDriver(string(kept)) {
		return string(kept), "", nil // another process was first
	}
	switch was := driverOf(filepath.Join(root, "snapshots")); {
	case was != "":
		name = was
	case name == "":
		name = "overlay"
		if err := overlay.Supported(root); errors.Is(err, overlay.ErrUnsupported) {
			name = "plain"
			notice = fmt.Sprintf("snapshots in %s are copies, which is slower and takes more room: %v", root, err)
		} else if err != nil {
			return "", "", err
		}
	}
	if err := f.Truncate(int64(len(name))); err != nil {
		return "", "", err
	}
	_, err = f.WriteAt([]byte(name), 0)
	return name, notice, err
}

// driverOf is the driver that has made the directory of snapshots, "" if none
// has: only the plain one keeps trees.
func driverOf(dir string) string {
	if _, err := os.Lstat(filepath.Join(dir, "trees")); err == nil {
		return "plain"
	}
	if _, err := os.Lstat(filepath.Join(dir, "layers")); err == nil {
		return "overlay"
	}
	return ""
}
