package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/861fb494/build/executor/sandbox/child"
)

// unmake removes from upper, the host directory that took what was written to
// the root, the mount points that were made there and are still empty, and puts
// the directories above them back as they were: a step's layer is to hold what
// the step did.
func unmake(upper string, made []child.MadeDir) error {
	if len(made) == 0 {
		return nil
	}
	root, err := os.OpenRoot(upper)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("remove mount points: %w", err)
	}
	defer root.Close()
	touched := make([]bool, len(made))
	for i, d := range made {
		now, err := child.StateOf(filepath.Join(upper, d.Path))
		touched[i] = err != nil || now != d.After
		// Removing something changes this; only the process's change counts.
		made[i].After.Mtime = now.Mtime - d.After.Mtime
	}
	var errs []error
	for i, d := range slices.Backward(made) {
		errs = append(errs, removeEmpty(root, &d))
		if d.Copied && !touched[i] {
			// Nothing was done with it: it is here only for what was made in it.
			if err := removeDir(root, d.Path); err == nil || !errors.Is(err, syscall.ENOTEMPTY) {
				errs = append(errs, ignoreGone(err))
				continue
			}
		}
		if d.Mtime != 0 && d.After.Mtime == 0 {
			t := time.Unix(0, d.Mtime)
			errs = append(errs, ignoreGone(root.Chtimes(relative(d.Path), time.Time{}, t)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove mount points: %w", err)
	}
	return nil
}

// removeEmpty removes what was made in the directory and is as it was made.
func removeEmpty(root *os.Root, d *child.MadeDir) error {
	var errs []error
	for _, name := range d.Dirs {
		err := removeDir(root, path.Join(d.Path, name))
		if err != nil && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.ENOTDIR) {
			errs = append(errs, ignoreGone(err))
		}
	}
	for _, name := range d.Files {
		p := relative(path.Join(d.Path, name))
		if st, err := root.Lstat(p); err == nil && st.Mode().IsRegular() && st.Size() == 0 {
			errs = append(errs, ignoreGone(root.Remove(p)))
		}
	}
	return errors.Join(errs...)
}

// removeDir removes a directory, and nothing else.
func removeDir(root *os.Root, p string) error {
	if st, err := root.Lstat(relative(p)); err != nil {
		return err
	} else if !st.IsDir() {
		return syscall.ENOTDIR
	}
	return root.Remove(relative(p))
}

func relative(p string) string {
	if p = strings.TrimPrefix(p, "/"); p == "" {
		return "."
	}
	return p
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	return err
}
