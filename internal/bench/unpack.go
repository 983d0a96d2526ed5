package main

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path"

	"github.com/861fb494/build/internal/testbase"
)

// unpack writes the files of a base image's layer below dir, which is made.
func unpack(part, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := testbase.Tar(w, part)
		w.CloseWithError(err) // io.EOF where it is nil
		done <- err
	}()
	err = untar(root, r)
	r.CloseWithError(err)
	return errors.Join(err, <-done)
}

func untar(root *os.Root, r io.Reader) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		name := path.Clean(h.Name)
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(name, 0o755)
		case tar.TypeSymlink:
			err = root.Symlink(h.Linkname, name)
		case tar.TypeReg:
			err = writeFrom(root, name, h.FileInfo().Mode().Perm(), tr)
		}
		if err != nil {
			return err
		}
	}
}

func writeFrom(root *os.Root, name string, mode os.FileMode, r io.Reader) error {
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	return f.Close()
}
