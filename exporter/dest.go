package exporter

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

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
		return nil, fmt.Errorf("%s is a directory", dest)
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
// and not after it.
func (out Output) Check() error {
	a, err := out.attributes()
	if err != nil || out.Dest == "" || out.Dest == "-" || out.Type == TypeLocal || !a.tar {
		return err
	}
	st, err := os.Stat(out.Dest)
	switch {
	case err == nil && st.IsDir():
		err = fmt.Errorf("%s is a directory; want a file", out.Dest)
	case errors.Is(err, os.ErrNotExist):
		// A link to what is not there yet is replaced by the file.
		_, err = os.Stat(filepath.Dir(out.Dest))
	}
	if err != nil {
		return fmt.Errorf("output type=%s: %w", out.Type, err)
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
