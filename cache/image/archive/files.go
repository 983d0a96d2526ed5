package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/861fb494/build/cache/image"
)

// maxFiles bounds how many files an archive may have, maxLinks how many
// symbolic links lead to one.
const (
	maxFiles = 200_000
	maxLinks = 16
)

// files are the files of an archive, by their paths in it.
type files interface {
	// Open opens a regular file; errNoFile is wrapped if there is none.
	Open(name string) (io.ReadCloser, error)
	Close() error
}

// open opens the archive at name.
func open(ctx context.Context, name string, o Options) (files, error) {
	if name == "-" {
		return spool(ctx, io.NopCloser(o.Stdin), o.Temp)
	}
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		root, err := os.OpenRoot(name)
		return directory{root}, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	head := make([]byte, 4)
	if _, err := io.ReadFull(f, head); err != nil {
		f.Close()
		return nil, fmt.Errorf("no archive: %w", err)
	}
	compressed := bytes.HasPrefix(head, []byte{0x1f, 0x8b}) || bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd})
	if !st.Mode().IsRegular() {
		return spool(ctx, readCloser{io.MultiReader(bytes.NewReader(head), f), f}, o.Temp)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	if compressed {
		return spool(ctx, f, o.Temp)
	}
	return index(ctx, f)
}

type readCloser struct {
	io.Reader
	io.Closer
}

// spool copies r, decompressed, to a temporary file, since the files of an
// archive come in any order. It closes r.
func spool(ctx context.Context, r io.ReadCloser, temp string) (files, error) {
	plain, err := image.Decompress(r)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	f, err := os.CreateTemp(temp, "load-*")
	if err != nil {
		return nil, err
	}
	// The file has no name from here on, so nothing is left whatever happens.
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := io.Copy(f, stopping{ctx, plain}); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return index(ctx, f)
}

// stopping ends reading with its context.
type stopping struct {
	ctx context.Context
	r   io.Reader
}

func (s stopping) Read(p []byte) (int, error) {
	if err := context.Cause(s.ctx); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}

// directory is an unpacked archive. os.Root keeps symbolic links inside.
type directory struct{ root *os.Root }

func (d directory) Open(name string) (io.ReadCloser, error) {
	f, err := d.root.Open(path.Clean(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, errNoFile)
	}
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s is no regular file", name))
	}
	return f, nil
}

func (d directory) Close() error { return d.root.Close() }

// packed is a tar. Its files are read in place.
type packed struct {
	f     *os.File
	where map[string]section
	links map[string]string // symbolic and hard links: the target's path
}

type section struct{ offset, size int64 }

// index notes where the files of the tar f are. It takes f over.
func index(ctx context.Context, f *os.File) (_ files, err error) {
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	p := &packed{f: f, where: map[string]section{}, links: map[string]string{}}
	t := tar.NewReader(f)
	for n := 0; ; n++ {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return p, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read tar: %w", err)
		}
		if n == maxFiles {
			return nil, fmt.Errorf("more than %d files", maxFiles)
		}
		name, ok := inside(h.Name)
		if !ok {
			return nil, fmt.Errorf("the path %q leads out of the archive", h.Name)
		}
		delete(p.links, name) // of two of the same name the latter counts, as in any tar
		delete(p.where, name)
		switch h.Typeflag {
		case tar.TypeReg:
			if sparse(h) {
				return nil, fmt.Errorf("%s is a sparse file, which no image archive has", name)
			}
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			p.where[name] = section{at, h.Size}
		case tar.TypeSymlink:
			p.links[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			p.links[name] = path.Clean(h.Linkname)
		case tar.TypeDir, tar.TypeXGlobalHeader:
		default:
			return nil, fmt.Errorf("%s has type %q, which no image archive has", name, h.Typeflag)
		}
	}
}

// sparse reports a file whose bytes in the tar are not its content.
func sparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

// inside is the path of a tar's entry, clean and relative, and false if it
// leads out.
func inside(name string) (string, bool) {
	name = path.Clean(name)
	return name, name != ".." && !strings.HasPrefix(name, "../") && !path.IsAbs(name)
}

func (p *packed) Open(name string) (io.ReadCloser, error) {
	name = path.Clean(name)
	for range maxLinks {
		to, ok := p.links[name]
		if !ok {
			break
		}
		name = to
	}
	s, ok := p.where[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, errNoFile)
	}
	return io.NopCloser(io.NewSectionReader(p.f, s.offset, s.size)), nil
}

func (p *packed) Close() error { return p.f.Close() }
