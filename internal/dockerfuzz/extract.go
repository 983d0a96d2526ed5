package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// extract unpacks an archive of ADD into the destination, whose links and names
// do not lead out of it. It reports false for what is no archive.
func (c *copying) extract(file string) (bool, error) {
	st, err := os.Lstat(file)
	if err != nil || !st.Mode().IsRegular() {
		return false, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return false, err
	}
	r, err := inflate(data)
	if err != nil {
		return false, nil
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		return false, nil
	}
	if _, err := tar.NewReader(bytes.NewReader(plain)).Next(); err != nil {
		return false, nil
	}
	at, err := resolve(c.to, c.dest, true)
	if err != nil {
		return true, err
	}
	if err := makeDirs(c.to, at, 0o755, c.uid, c.gid); err != nil {
		return true, err
	}
	dest := filepath.Join(c.to, at)
	dirs := map[string]int64{}
	for tr := tar.NewReader(bytes.NewReader(plain)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return true, err
		}
		if err := c.member(dest, h, tr, dirs); err != nil {
			return true, fmt.Errorf("member %s: %w", h.Name, err)
		}
	}
	for d, t := range dirs { // what came into them changed their times
		if st, err := os.Lstat(d); err == nil && st.IsDir() {
			if err := setTime(d, t); err != nil {
				return true, err
			}
		}
	}
	return true, nil
}

func (c *copying) member(dest string, h *tar.Header, r io.Reader, dirs map[string]int64) error {
	name := path.Clean("/" + h.Name)
	above, err := resolve(dest, path.Dir(name), true)
	if err != nil {
		return err
	}
	// A link that leads nowhere is not followed to make directories.
	if link, err := resolve(dest, path.Dir(name), false); err == nil && lstat(dest, link)&os.ModeSymlink != 0 && lstat(dest, above)&os.ModeIrregular != 0 {
		return fmt.Errorf("%s leads nowhere", path.Dir(name))
	}
	uid, gid := h.Uid, h.Gid
	if c.uid >= 0 {
		uid, gid = c.uid, c.gid
	}
	if err := makeDirs(dest, above, 0o755, 0, 0); err != nil {
		return err
	}
	p := filepath.Join(dest, above, path.Base(name))
	if st, err := os.Lstat(p); err == nil && !(st.IsDir() && h.Typeflag == tar.TypeDir) {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
	}
	e := Entry{Mode: uint32(h.Mode), UID: uid, GID: gid, Time: h.ModTime.Unix(), Kind: File}
	switch h.Typeflag {
	case tar.TypeReg:
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if err := os.WriteFile(p, data, 0o600); err != nil {
			return err
		}
	case tar.TypeDir:
		e.Kind = Dir
		if err := os.Mkdir(p, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
		dirs[p] = e.Time
	case tar.TypeSymlink:
		e.Kind = Symlink
		if err := os.Symlink(h.Linkname, p); err != nil {
			return err
		}
	case tar.TypeFifo:
		if err := unix.Mkfifo(p, 0o600); err != nil {
			return err
		}
	case tar.TypeLink:
		target, err := resolve(dest, path.Clean("/"+strings.TrimPrefix(h.Linkname, "/")), false)
		if err != nil {
			return err
		}
		if err := os.Link(filepath.Join(dest, target), p); err != nil {
			return err
		}
	}
	return setMeta(p, e)
}
