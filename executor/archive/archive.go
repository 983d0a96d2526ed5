// Package archive recognises archives by their content and extracts them into a
// tree, as ADD does and as a context that comes as a tar needs it.
package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/gunzip"
	"github.com/861fb494/build/internal/oci"
)

// Reader is an open archive.
type Reader struct {
	tar    *tar.Reader
	first  *tar.Header
	closer io.Closer
}

// ErrNone is the error of Open for what is no archive.
var ErrNone = errors.New("not a tar archive")

// errFilters is of data that may well be an archive: to take it for a file would
// be to leave out files without a word.
var errFilters = errors.New("xz data with filters beside LZMA2 (xz --x86, --delta) cannot be read: compress it without them, or take it as it is with ADD --unpack=false")

// Open recognises a tar, plain or compressed with gzip, bzip2, xz or zstd.
// Anything else is ErrNone; r has then been read from.
func Open(r io.Reader) (*Reader, error) {
	plain, err := decompress(bufio.NewReaderSize(r, 128<<10))
	if errors.Is(err, errFilters) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrNone, err)
	}
	t := tar.NewReader(plain)
	first, err := t.Next()
	if err != nil {
		plain.Close()
		return nil, fmt.Errorf("%w: %v", ErrNone, err)
	}
	return &Reader{tar: t, first: first, closer: plain}, nil
}

// Close releases the decompressor.
func (a *Reader) Close() error { return a.closer.Close() }

// decompress recognises gzip, bzip2, xz and zstd; anything else is as it is.
func decompress(r *bufio.Reader) (io.ReadCloser, error) {
	head, err := r.Peek(14)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 0x08}):
		return io.NopCloser(gunzip.NewReader(r)), nil
	case bytes.HasPrefix(head, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(r)), nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		if hasFilters(head) {
			return nil, errFilters
		}
		x, err := xz.NewReader(r)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(x), nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), isSkippable(head):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// hasFilters reports whether the first block of xz data has more filters than
// LZMA2, which each has. Behind the stream's header of 12 bytes come the size of
// the block's, 0 for no block, and its flags: the lower two bits are the number of
// filters less one (the .xz file format, sections 2.1.1 and 3.1).
func hasFilters(head []byte) bool {
	return len(head) >= 14 && head[12] != 0 && head[13]&3 != 0
}

// isSkippable reports whether head begins a frame that decoders of zstd skip (RFC
// 8878, section 3.1.2), as what pzstd(1) writes does.
func isSkippable(head []byte) bool {
	return len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18})
}

// Options are those of Extract. The zero value works.
type Options struct {
	// Owner owns all that is extracted; nil keeps the archive's owners.
	Owner *Owner
	// Digests, if not nil, gets the content digests of the files written.
	Digests *tree.Digests
	// Now is the time of directories that the archive has no entries for.
	Now time.Time
}

// Owner is a user and a group by number.
type Owner struct{ UID, GID int }

// Extract writes the archive below the directory root of to, which is there and
// has no links in its path. As with Docker and BuildKit root is the archive's
// root: names and links are resolved in it, ".." stops at it, absolute links
// begin there.
func (a *Reader) Extract(ctx context.Context, to *tree.Tree, root string, o Options) error {
	x := extraction{ctx: ctx, to: to, root: root, tar: a.tar, o: o}
	hdr := a.first
	var err error
	for ; err == nil; hdr, err = a.tar.Next() {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := x.entry(hdr); err != nil {
			return fmt.Errorf("%s: %w", hdr.Name, err)
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Newest is the time of the regular file in the archive that was changed last,
// nil if there is none. The archive is read to its end.
func (a *Reader) Newest(ctx context.Context) (*time.Time, error) {
	var newest *time.Time
	hdr := a.first
	var err error
	for ; err == nil; hdr, err = a.tar.Next() {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if t := hdr.ModTime.UTC(); hdr.Typeflag == tar.TypeReg && (newest == nil || t.After(*newest)) {
			newest = &t
		}
	}
	if errors.Is(err, io.EOF) {
		return newest, nil
	}
	return nil, err
}

// extraction is an archive being extracted.
type extraction struct {
	ctx  context.Context // of the one Extract
	to   *tree.Tree
	root string
	tar  *tar.Reader
	o    Options
}

func (x *extraction) entry(hdr *tar.Header) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if path.Clean(hdr.Name) == "." {
		return nil // the destination stays as it is
	}
	name := path.Clean("/" + hdr.Name)
	if name == "/" {
		// An archive of "/" itself says what the destination is to be like.
		if hdr.Typeflag == tar.TypeDir {
			return x.create(hdr, x.root, true)
		}
		return errors.New("it would replace the destination")
	}
	above, err := x.to.ResolveIn(x.root, path.Dir(name), true)
	if err != nil {
		return err
	}
	if err := x.above(path.Dir(name), above); err != nil {
		return err
	}
	p := path.Join(above, path.Base(name))
	old, err := x.to.Quick(p)
	there := err == nil
	switch {
	case there && (!old.IsDir() || hdr.Typeflag != tar.TypeDir):
		if err := x.to.RemoveAll(p); err != nil {
			return err
		}
		x.learn(p, "")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return x.create(hdr, p, there && old.IsDir())
}

// above makes directories that the archive has no entries for: name as it says,
// p with links followed. A link that leads nowhere is not followed to make one.
func (x *extraction) above(name, p string) error {
	link, err := x.to.ResolveIn(x.root, name, false)
	if err != nil {
		return err
	}
	if _, err := x.to.Quick(link); err == nil {
		return nil
	}
	return x.mkdirAll(p)
}

func (x *extraction) mkdirAll(p string) error {
	if _, err := x.to.Quick(p); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := x.mkdirAll(path.Dir(p)); err != nil {
		return err
	}
	parent, err := x.to.Quick(path.Dir(p))
	if err != nil {
		return err
	}
	mode := 0o755 | parent.Mode&unix.S_ISGID // as mkdir(2) has it
	if err := x.to.Mkdir(p, mode); err != nil {
		return err
	}
	return x.to.SetMeta(p, tree.Entry{Mode: unix.S_IFDIR | mode, ModTime: x.o.Now})
}

func (x *extraction) create(hdr *tar.Header, p string, isDir bool) error {
	e := tree.Entry{Mode: uint32(hdr.Mode) & 0o7777, UID: hdr.Uid, GID: hdr.Gid, ModTime: bounded(hdr.ModTime)}
	var err error
	switch hdr.Typeflag {
	case tar.TypeDir:
		e.Mode |= unix.S_IFDIR
		if !isDir {
			err = x.to.Mkdir(p, e.Perm())
		}
	case tar.TypeReg, tar.TypeGNUSparse:
		e.Mode |= unix.S_IFREG
		err = x.regular(p)
	case tar.TypeSymlink:
		e.Mode |= unix.S_IFLNK
		err = x.to.Symlink(hdr.Linkname, p)
	case tar.TypeLink:
		return x.link(hdr, p, e)
	case tar.TypeChar:
		e.Mode |= unix.S_IFCHR
		err = x.to.Mknod(p, e.Mode, uint32(hdr.Devmajor), uint32(hdr.Devminor))
	case tar.TypeBlock:
		e.Mode |= unix.S_IFBLK
		err = x.to.Mknod(p, e.Mode, uint32(hdr.Devmajor), uint32(hdr.Devminor))
	case tar.TypeFifo:
		e.Mode |= unix.S_IFIFO
		err = x.to.Mknod(p, e.Mode, 0, 0)
	default:
		err = fmt.Errorf("entries of type %q are not known", hdr.Typeflag)
	}
	if err != nil {
		return err
	}
	e.Xattrs = xattrsOf(hdr)
	return x.setMeta(p, e)
}

// bounded is t, or the epoch for a time before it and for one that a count of
// nanoseconds in 64 bits does not reach, as with Docker and BuildKit.
func bounded(t time.Time) time.Time {
	if epoch := time.Unix(0, 0); t.Before(epoch) || t.After(time.Unix(0, math.MaxInt64)) {
		return epoch
	}
	return t
}

// setMeta sets what the header says. Extended attributes that the file system
// or this process's rights do not allow are left out, as with Docker.
func (x *extraction) setMeta(p string, e tree.Entry) error {
	if x.o.Owner != nil {
		e.UID, e.GID = x.o.Owner.UID, x.o.Owner.GID
	}
	err := x.to.SetMeta(p, e)
	if len(e.Xattrs) > 0 && (errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM)) {
		e.Xattrs = nil
		err = x.to.SetMeta(p, e)
	}
	return err
}

func xattrsOf(hdr *tar.Header) map[string]string {
	var out map[string]string
	for k, v := range hdr.PAXRecords {
		// Other attributes do not get into a layer: see cache/layer.
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok && name == "security.capability" {
			out = map[string]string{name: v}
		}
	}
	return out
}

func (x *extraction) regular(p string) error {
	f, err := x.to.Create(p)
	if err != nil {
		return err
	}
	h := blake.Get()
	defer blake.Put(h)
	_, err = io.Copy(io.MultiWriter(f, h), reader{x.ctx, x.tar})
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	x.learn(p, blake.Digest(h))
	return nil
}

// reader ends with ctx: a large file takes a while.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// learn notes the digest of the file at p; "" forgets it.
func (x *extraction) learn(p string, d oci.Digest) {
	if x.o.Digests != nil {
		x.o.Digests.Set(p, d)
	}
}

// link makes a hard link; its header then says what mode and owner the file has
// under all its names.
func (x *extraction) link(hdr *tar.Header, p string, e tree.Entry) error {
	name := path.Clean("/" + hdr.Linkname)
	target, err := x.to.ResolveIn(x.root, path.Dir(name), true)
	if err != nil {
		return err
	}
	target = path.Join(target, path.Base(name))
	if err := x.to.Link(target, p); err != nil {
		return err
	}
	old, err := x.to.Quick(p)
	if err != nil {
		return err
	}
	if x.o.Digests != nil {
		x.learn(p, x.o.Digests.Get(target))
	}
	e.Mode |= old.Type()
	if old.Type() == unix.S_IFLNK {
		e.ModTime = old.ModTime
	}
	return x.setMeta(p, e)
}
