package exporter

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// file is a file that gets its name once it is whole.
type file struct {
	io.Writer
	f     *os.File // nil: standard output
	final string   // empty: f is no regular file and is written in place
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
		return nil, fmt.Errorf("%s is a directory", dest)
	case err == nil && !st.Mode().IsRegular():
		f, err := os.OpenFile(dest, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		return &file{Writer: f, f: f}, nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	// Not os.CreateTemp: the mode is to be what the user's umask makes of 0666.
	temp := filepath.Join(filepath.Dir(dest), "."+filepath.Base(dest)+"."+rand.Text()[:8]+".tmp")
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, err
	}
	return &file{Writer: f, f: f, final: dest}, nil
}

// finish ends the writing, whose outcome so far is err: the file gets its name,
// or it is removed.
func (d *file) finish(err error) error {
	if d.f == nil {
		return err
	}
	if e := d.f.Close(); err == nil {
		err = e
	}
	if d.final == "" {
		return err
	}
	if err == nil {
		err = os.Rename(d.f.Name(), d.final)
	}
	if err != nil {
		os.Remove(d.f.Name())
	}
	return err
}
