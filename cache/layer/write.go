package layer

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"iter"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/blake"
)

// Options are those of Write.
type Options struct {
	// Epoch is the latest modification time written: later ones become it.
	// Zero: as they are.
	Epoch time.Time
	// Notice is told of what a tar cannot hold and Write left out. May be nil.
	Notice func(message string)
	// Verify compares what is read with the digests of changes.
	Verify bool
}

// copyBuffers are for reading files. 128 KiB: fewer system calls than io.Copy's
// 32 KiB, and still within a core's second-level cache.
var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// Write writes changes to w as a layer tar, uncompressed, and returns its size
// in bytes. The content of files is read from under dir, at their paths. Names
// that begin with ".wh." cannot be in a layer; a file that is not what its
// change says is an error too. Sockets are left out.
func Write(ctx context.Context, w io.Writer, changes iter.Seq2[tree.Change, error], dir string, o Options) (size int64, err error) {
	files, err := newOpener(dir)
	if err != nil {
		return 0, err
	}
	defer files.Close()
	count := &counter{w: w}
	tw := tar.NewWriter(count)
	for u := range ahead(changes, files) {
		err := ctx.Err()
		if err == nil {
			err = u.err
		}
		if err == nil {
			err = writeChange(ctx, tw, u, o)
		}
		if err != nil {
			return count.n, fmt.Errorf("write layer: %w", err)
		}
	}
	if err := tw.Close(); err != nil {
		return count.n, fmt.Errorf("write layer: %w", err)
	}
	return count.n, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func writeChange(ctx context.Context, tw *tar.Writer, u *upcoming, o Options) error {
	c := &u.Change
	if strings.Contains(c.Path, "/"+whiteout) {
		return fmt.Errorf("%s: names that begin with %q stand for removed files and cannot be in a layer", c.Path, whiteout)
	}
	if c.Removed {
		return writeMarker(tw, path.Join(path.Dir(c.Path), whiteout+path.Base(c.Path)))
	}
	if c.Type() == unix.S_IFSOCK {
		notice(o.Notice, "%s is a socket: it is not part of the layer", c.Path)
		return nil
	}
	h, err := header(c, o)
	if err != nil {
		return err
	}
	if err := tw.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", c.Path, err)
	}
	if c.Opaque {
		return writeMarker(tw, path.Join(c.Path, opaque))
	}
	if u.file != nil {
		return writeContent(ctx, tw, u, o.Verify)
	}
	return nil
}

func notice(f func(string), format string, args ...any) {
	if f != nil {
		f(fmt.Sprintf(format, args...))
	}
}

func writeMarker(tw *tar.Writer, p string) error {
	err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: p[1:], ModTime: time.Unix(0, 0)})
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return nil
}

// header is the tar header of a change that is not a removal.
func header(c *tree.Change, o Options) (*tar.Header, error) {
	at := c.ModTime
	if !o.Epoch.IsZero() && at.After(o.Epoch) {
		at = o.Epoch
	}
	h := &tar.Header{
		Name:    c.Path[1:],
		Mode:    int64(c.Perm()),
		Uid:     c.UID,
		Gid:     c.GID,
		ModTime: time.Unix(at.Unix(), 0),
		// PAX, so that nothing is rounded or cut; a header that needs no PAX
		// record is written as USTAR all the same.
		Format: tar.FormatPAX,
	}
	switch c.Type() {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, c.Size
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
		if c.Path == "/" {
			h.Name = "./"
		}
	case unix.S_IFLNK:
		h.Typeflag, h.Linkname = tar.TypeSymlink, c.Link
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if c.Type() == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(c.Major), int64(c.Minor)
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil, fmt.Errorf("%s: a file of type %#o cannot be in a layer", c.Path, c.Type())
	}
	if c.HardLink != "" {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, c.HardLink[1:], 0
		h.Devmajor, h.Devminor = 0, 0
	}
	for k, v := range c.Xattrs {
		if !Portable(k) {
			continue
		}
		if strings.Contains(k, "=") {
			notice(o.Notice, "%s: the extended attribute %q is not part of the layer: a tar cannot hold its name", c.Path, k)
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[schilyXattr+k] = v
	}
	return h, nil
}

func writeContent(ctx context.Context, w io.Writer, c *upcoming, verify bool) error {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	var h *blake3.Hasher
	if verify && c.Digest != "" {
		h = blake.Get()
		defer blake.Put(h)
		h.Reset()
	}
	var total int64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := c.file.Read(*buf)
		total += int64(n)
		if total > c.Size || err == io.EOF && total < c.Size {
			return fmt.Errorf("%s %w: it has %d bytes, not %d", c.Path, errChanged, total, c.Size)
		}
		if h != nil {
			h.Write((*buf)[:n])
		}
		if _, werr := w.Write((*buf)[:n]); werr != nil {
			return fmt.Errorf("%s: %w", c.Path, werr)
		}
		if err == io.EOF {
			if h != nil && blake.Digest(h) != c.Digest {
				return fmt.Errorf("%s %w: its content is another", c.Path, errChanged)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}
