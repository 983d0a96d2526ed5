package exporter

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/internal/oci"
)

// files is the Exporter of root filesystems, in a directory or a tar.
type files struct {
	o   Options
	out Output
}

// filesystem is where the files of an image are written. Directories come
// first, parents before what is in them; finish comes last.
type filesystem interface {
	dir(name string, h *tar.Header) error
	file(name string, h *tar.Header, content io.Reader) error // all but directories and hard links
	link(name, target string) error
	finish() error
}

// Layer does nothing: files are read when all layers are there.
func (e *files) Layer(context.Context, oci.Layer) error { return nil }

// Close does nothing.
func (e *files) Close() error { return nil }

// Export writes the files of the image; of several platforms each into a
// directory of its own, such as "linux_amd64". The descriptor is empty.
func (e *files) Export(ctx context.Context, r oci.Result) (oci.Descriptor, error) {
	write := e.tar
	if e.out.Type == TypeLocal {
		write = e.directory
	}
	err := write(ctx, r)
	if err != nil {
		err = fmt.Errorf("write %s: %w", e.out.Dest, err)
	}
	return oci.Descriptor{}, err
}

func (e *files) tar(ctx context.Context, r oci.Result) error {
	f, err := createFile(e.out.Dest, e.o.Stdout)
	if err != nil {
		return err
	}
	return f.finish(writeFiles(ctx, r, &tarFiles{tar.NewWriter(f)}))
}

func (e *files) directory(ctx context.Context, r oci.Result) error {
	_, err := os.Lstat(e.out.Dest)
	made := errors.Is(err, os.ErrNotExist)
	if err := os.MkdirAll(e.out.Dest, 0o777); err != nil {
		return err
	}
	root, err := os.OpenRoot(e.out.Dest)
	if err != nil {
		return err
	}
	defer root.Close()
	err = writeFiles(ctx, r, &dirFiles{root: root})
	if err != nil && made {
		os.RemoveAll(e.out.Dest)
	}
	return err
}

func writeFiles(ctx context.Context, r oci.Result, to filesystem) error {
	for _, img := range r.Images {
		prefix := ""
		if len(r.Images) > 1 || r.Index {
			p := img.Platform
			prefix = strings.Trim(p.OS+"_"+p.Architecture+"_"+p.Variant, "_")
			h := &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(0, 0)}
			if img.Epoch != nil {
				h.ModTime = *img.Epoch
			}
			if err := to.dir(prefix, h); err != nil {
				return err
			}
		}
		if err := writeImage(ctx, img, prefix, to); err != nil {
			return err
		}
	}
	return to.finish()
}

// writeImage reads each layer's tar twice: first to see which files are left in
// the end, then for their content.
func writeImage(ctx context.Context, img oci.PlatformImage, prefix string, to filesystem) error {
	layers := img.Layers
	t, entries, err := flatten(ctx, layers)
	if err != nil {
		return err
	}
	if img.Epoch != nil {
		t.date(t.root, *img.Epoch)
	}
	for _, d := range t.dirs() {
		if err := to.dir(path.Join(prefix, d.paths[0]), d.header); err != nil {
			return err
		}
	}
	for i, l := range layers {
		err := walkTar(ctx, l, func(k int, _ *tar.Header, content io.Reader) error {
			n := entries[i][k]
			if n == nil || len(n.paths) == 0 {
				return nil // hidden by a later layer, or a directory
			}
			first := path.Join(prefix, n.paths[0])
			if err := to.file(first, n.header, content); err != nil {
				return err
			}
			for _, p := range n.paths[1:] {
				if err := to.link(path.Join(prefix, p), first); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("layer %s: %w", l.DiffID, err)
		}
	}
	return nil
}

// tarFiles writes to a tar, with owners, times and extended attributes.
type tarFiles struct{ w *tar.Writer }

func (t *tarFiles) header(name string, h *tar.Header) *tar.Header {
	c := *h
	c.Name, c.Format = name, tar.FormatUnknown
	c.AccessTime, c.ChangeTime = time.Time{}, time.Time{}
	return &c
}

func (t *tarFiles) dir(name string, h *tar.Header) error {
	return t.w.WriteHeader(t.header(name+"/", h))
}

func (t *tarFiles) file(name string, h *tar.Header, content io.Reader) error {
	if err := t.w.WriteHeader(t.header(name, h)); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	_, err := io.Copy(t.w, content)
	return err
}

func (t *tarFiles) link(name, target string) error {
	return t.w.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target})
}

func (t *tarFiles) finish() error { return t.w.Close() }

// dirFiles writes to a directory. As with docker buildx, files belong to whoever
// runs this, and extended attributes are left out. What is there is kept, unless
// it is in the way. os.Root keeps everything inside whatever symbolic links are
// there.
type dirFiles struct {
	root *os.Root
	dirs []dirTimes
}

// dirTimes is what a directory gets once it is full.
type dirTimes struct {
	name   string
	header *tar.Header
}

func (d *dirFiles) dir(name string, h *tar.Header) error {
	st, err := d.root.Lstat(name)
	if err == nil && !st.IsDir() {
		if err := d.root.Remove(name); err != nil {
			return err
		}
	}
	if err != nil || !st.IsDir() {
		if err := d.root.Mkdir(name, 0o700); err != nil {
			return err
		}
	} else if err := d.root.Chmod(name, st.Mode()|0o700); err != nil {
		return err
	}
	d.dirs = append(d.dirs, dirTimes{name, h})
	return nil
}

func (d *dirFiles) file(name string, h *tar.Header, content io.Reader) error {
	if err := d.clear(name); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		if err == nil {
			err = f.Chmod(h.FileInfo().Mode())
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
		return d.root.Chtimes(name, h.ModTime, h.ModTime)
	case tar.TypeSymlink:
		return d.root.Symlink(h.Linkname, name) // its target is the image's affair, and is never followed here
	}
	return d.node(name, h)
}

// clear makes room for a file.
func (d *dirFiles) clear(name string) error {
	err := d.root.Remove(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// node makes a device or a fifo.
func (d *dirFiles) node(name string, h *tar.Header) error {
	parent, err := d.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	if err := unix.Mknodat(int(parent.Fd()), path.Base(name), kind|uint32(h.Mode&0o7777), int(dev)); err != nil {
		return fmt.Errorf("make device %s: %w (type=tar holds devices without special rights)", name, err)
	}
	return d.root.Chmod(name, h.FileInfo().Mode().Perm())
}

func (d *dirFiles) link(name, target string) error {
	if err := d.clear(name); err != nil {
		return err
	}
	return d.root.Link(target, name)
}

// finish gives directories their modes and times, the innermost first: writing
// in them changed the times, and a mode may forbid it.
func (d *dirFiles) finish() error {
	for _, dir := range slices.Backward(d.dirs) {
		if err := d.root.Chmod(dir.name, dir.header.FileInfo().Mode()); err != nil {
			return err
		}
		if err := d.root.Chtimes(dir.name, dir.header.ModTime, dir.header.ModTime); err != nil {
			return err
		}
	}
	return nil
}
