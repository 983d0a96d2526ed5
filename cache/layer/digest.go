package layer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/oci"
)

// Digest is the content digest of a layer: blake3 over type, path, mode, owner,
// device, link target, xattrs, content digest, hard link, removal and opaqueness
// of its changes, in order; not over times and inode numbers. It is empty where
// a regular file's digest is not known: see Hash.
func Digest(changes []tree.Change) oci.Digest {
	d := newDigester()
	for i := range changes {
		d.add(&changes[i])
	}
	return d.sum()
}

type digester struct {
	h       *blake3.Hasher
	buf     []byte
	unknown bool // a regular file's digest
}

func newDigester() *digester {
	return &digester{h: blake.Get(), buf: []byte("layer1\n")}
}

func (d *digester) text(s string) {
	d.buf = append(binary.AppendUvarint(d.buf, uint64(len(s))), s...)
}

func (d *digester) add(c *tree.Change) {
	if len(d.buf) > 8<<10 { // as much as is hashed in parallel
		d.h.Write(d.buf)
		d.buf = d.buf[:0]
	}
	d.text(c.Path)
	switch {
	case c.Removed:
		d.buf = append(d.buf, 'r')
		return
	case c.Opaque:
		d.buf = append(d.buf, 'o')
	default:
		d.buf = append(d.buf, 'e')
	}
	if c.Type() == unix.S_IFREG && c.Digest == "" {
		d.unknown = true
	}
	for _, n := range [...]uint64{uint64(c.Mode), uint64(c.UID), uint64(c.GID), uint64(c.Major), uint64(c.Minor)} {
		d.buf = binary.AppendUvarint(d.buf, n)
	}
	d.text(c.Link)
	d.text(c.HardLink)
	d.text(string(c.Digest))
	x := portable(c.Xattrs)
	d.buf = binary.AppendUvarint(d.buf, uint64(len(x)))
	if len(x) == 0 {
		return
	}
	for _, k := range slices.Sorted(maps.Keys(x)) {
		d.text(k)
		d.text(x[k])
	}
}

// sum is the digest, and the end of d.
func (d *digester) sum() oci.Digest {
	defer blake.Put(d.h)
	if d.unknown {
		return ""
	}
	d.h.Write(d.buf)
	d.buf = d.buf[:0]
	return blake.Digest(d.h)
}

// Hash fills in the Digest of regular files that lack it, reading them under
// dir, limit of them at a time. Hard links are read once.
func Hash(ctx context.Context, changes []tree.Change, dir string, limit int) error {
	if err := hashFiles(ctx, changes, dir, limit); err != nil {
		return err
	}
	return hashLinks(changes)
}

// hashFiles is Hash but for hard links.
func hashFiles(ctx context.Context, changes []tree.Change, dir string, limit int) error {
	if !slices.ContainsFunc(changes, func(c tree.Change) bool { return unhashed(&c) }) {
		return nil
	}
	files, err := newOpener(dir)
	if err != nil {
		return err
	}
	defer files.Close()
	g, ctx := errgroup.WithContext(ctx)
	next := make(chan *tree.Change)
	for range max(limit, 1) {
		g.Go(func() error { return hashAll(ctx, next, files) })
	}
	g.Go(func() error {
		defer close(next)
		for i := range changes {
			c := &changes[i]
			if !unhashed(c) {
				continue
			}
			select {
			case next <- c:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("hash layer: %w", err)
	}
	return nil
}

// unhashed reports whether c is a regular file that has to be read.
func unhashed(c *tree.Change) bool {
	return !c.Removed && c.Type() == unix.S_IFREG && c.Digest == "" && c.HardLink == ""
}

// hashLinks gives hard links the digest of what they link to.
func hashLinks(changes []tree.Change) error {
	first := map[string]oci.Digest{}
	for i := range changes {
		if c := &changes[i]; c.HardLink != "" {
			first[c.HardLink] = ""
		}
	}
	if len(first) == 0 {
		return nil
	}
	for i := range changes {
		if c := &changes[i]; c.HardLink == "" {
			if _, ok := first[c.Path]; ok {
				first[c.Path] = c.Digest
			}
		}
	}
	for i := range changes {
		c := &changes[i]
		if c.HardLink == "" || c.Removed || c.Type() != unix.S_IFREG || c.Digest != "" {
			continue
		}
		if c.Digest = first[c.HardLink]; c.Digest == "" {
			return fmt.Errorf("hash layer: %s is a hard link to %s, which is not in the layer", c.Path, c.HardLink)
		}
	}
	return nil
}

func hashAll(ctx context.Context, next <-chan *tree.Change, files *opener) error {
	h := blake.Get()
	defer blake.Put(h)
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for c := range next {
		if err := hashFile(ctx, c, files, h, *buf); err != nil {
			return err
		}
	}
	return nil
}

func hashFile(ctx context.Context, c *tree.Change, files *opener, h *blake3.Hasher, buf []byte) error {
	f, err := files.open(c)
	if err != nil {
		return err
	}
	defer f.Close()
	h.Reset()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			c.Digest = blake.Digest(h)
			return nil
		}
		if err != nil {
			return err
		}
	}
}
