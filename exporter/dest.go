package exporter

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/image"
)

// file is a file that gets its name once it is whole.
type file struct {
	io.Writer
	draft *image.Draft
	final string
	plain *os.File // written in place: a named pipe, a device
}

// createFile begins to write dest; "-" is stdout. What is no regular file, such
// as a named pipe, is written in place; a symbolic link is followed.
func createFile(dest string, stdout io.Writer) (*file, error) {
	if dest == "-" {
		return &file{Writer: stdout}, nil
	}
	if real, err := filepath.EvalSymlinks(dest); err == nil {
		dest = real
	}
	switch st, err := os.Stat(dest); {
	case err == nil && st.IsDir():
		return nil, fmt.Errorf("%s is a directory; want a file", dest)
	case err == nil && !st.Mode().IsRegular():
		f, err := os.OpenFile(dest, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		return &file{Writer: f, plain: f}, nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	d, err := image.NewDraft(filepath.Dir(dest), 0o666)
	if err != nil {
		return nil, err
	}
	return &file{Writer: d, draft: d, final: dest}, nil
}

// Check looks whether Dest can be written, which is worth knowing before a build
// and not after it. It leaves nothing behind.
func (out Output) Check() error {
	a, err := out.attributes()
	if err != nil || out.Dest == "" || out.Dest == "-" {
		return err
	}
	switch {
	case out.Type == TypeLocal:
		err = checkDir(out.Dest)
	case a.tar:
		err = CheckFile(out.Dest)
	default:
		if err = checkDir(out.Dest); err == nil {
			if _, _, err = oldLayout(out.Dest); err != nil {
				err = fmt.Errorf("%s: %w", out.Dest, err)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("output type=%s: %w", out.Type, err)
	}
	return nil
}

// CheckFile looks whether a file, which may be there, can be written at path.
func CheckFile(path string) error {
	if st, err := os.Stat(path); err == nil && !st.IsDir() && !st.Mode().IsRegular() {
		return accessible(path, unix.W_OK) // to open a pipe would wait for its reader
	}
	f, err := createFile(path, nil)
	if err == nil && f.draft != nil {
		f.draft.Discard()
	}
	return err
}

// checkDir looks whether a directory can be made at path, or, where it is there,
// written to.
func checkDir(path string) error {
	for dir := filepath.Clean(path); ; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		switch {
		case err == nil && !st.IsDir():
			return fmt.Errorf("%s is no directory", dir)
		case err == nil:
			return accessible(dir, unix.W_OK|unix.X_OK)
		case !errors.Is(err, os.ErrNotExist) || dir == filepath.Dir(dir):
			return err
		}
		if _, err := os.Lstat(dir); err == nil {
			return fmt.Errorf("%s is a link to what is not there", dir)
		}
	}
}

// accessible is access(2), which knows of rights and of file systems that are
// read-only.
func accessible(path string, mode uint32) error {
	if err := unix.Access(path, mode); err != nil {
		return &os.PathError{Op: "write to", Path: path, Err: err}
	}
	return nil
}

// finish ends the writing, whose outcome so far is err: the file gets its name,
// or it is gone.
func (f *file) finish(err error) error {
	switch {
	case f.plain != nil:
		if e := f.plain.Close(); err == nil {
			err = e
		}
	case f.draft != nil && err != nil:
		f.draft.Discard()
	case f.draft != nil:
		err = f.draft.Commit(f.final)
	}
	return err
}
