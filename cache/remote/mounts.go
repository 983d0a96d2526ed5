package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/chunked"
	"github.com/861fb494/build/internal/oci"
)

// indexMount is a cache mount in an index.
type indexMount struct {
	ID      string       `json:"id"`
	Created time.Time    `json:"created,omitzero"`
	Files   int          `json:"files"`
	Size    int64        `json:"size"` // bytes of content
	List    oci.Digest   `json:"list"`
	Packs   []oci.Digest `json:"packs"`
}

func (m indexMount) check() error {
	switch {
	case m.ID == "" || len(m.ID) > maxText:
		return fmt.Errorf("an id of %d bytes; want 1 to %d", len(m.ID), maxText)
	case !isDigest(m.List, "sha256"):
		return fmt.Errorf("list %.80q is not a digest", m.List)
	case len(m.Packs) > chunked.MaxPacks:
		return fmt.Errorf("%d packs; at most %d are taken", len(m.Packs), chunked.MaxPacks)
	case m.Size < 0 || m.Files < 0:
		return fmt.Errorf("%d bytes in %d files", m.Size, m.Files)
	}
	for _, p := range m.Packs {
		if !isDigest(p, "sha256") {
			return fmt.Errorf("pack %.80q is not a digest", p)
		}
	}
	return nil
}

// StoredMount is a cache mount that a cache has.
type StoredMount struct {
	ID      string
	Created time.Time
	Files   int
	Size    int64 // bytes of content

	list  oci.Descriptor
	packs []oci.Descriptor
}

// Fetched is how many bytes it takes to have it all.
func (m StoredMount) Fetched() int64 {
	n := m.list.Size
	for _, p := range m.packs {
		n += p.Size
	}
	return n
}

// addMounts takes in the mounts of an index, and the blobs that they are of.
func (c *Cache) addMounts(mounts []indexMount, blobs map[oci.Digest]oci.Descriptor) error {
	blob := func(d oci.Digest, mediaType string, limit int64) (oci.Descriptor, error) {
		b, ok := blobs[d]
		if !ok || b.MediaType != mediaType || b.Size > limit {
			return b, fmt.Errorf("the manifest has no %s %s of at most %d bytes", mediaType, d, limit)
		}
		return b, nil
	}
	for i, m := range mounts {
		out := StoredMount{ID: m.ID, Created: m.Created, Files: m.Files, Size: m.Size}
		var err error
		if out.list, err = blob(m.List, mountType, chunked.MaxList); err != nil {
			return fmt.Errorf("mount %d: %w", i, err)
		}
		for _, d := range m.Packs {
			p, err := blob(d, packType, maxPackBlob)
			if err != nil {
				return fmt.Errorf("mount %d: %w", i, err)
			}
			out.packs = append(out.packs, p)
		}
		if _, ok := c.mounts[m.ID]; !ok {
			c.mounts[m.ID] = out
		}
	}
	return nil
}

// Mount is the cache mount id, if the cache has it.
func (c *Cache) Mount(id string) (StoredMount, bool) {
	if c == nil {
		return StoredMount{}, false
	}
	m, ok := c.mounts[id]
	return m, ok
}

// mountList is the list of a mount's files, and its bytes. note are bytes that may
// be them already.
func (c *Cache) mountList(ctx context.Context, m StoredMount, note []byte, open opener) (*chunked.List, []byte, error) {
	data := note
	if digest.FromBytes(note) != m.list.Digest {
		r, err := open(ctx, m.list) // whose size addMounts has checked
		if err != nil {
			return nil, nil, err
		}
		defer r.Close()
		if data, err = io.ReadAll(Verify(r, m.list)); err != nil {
			return nil, nil, err
		}
	}
	l, err := chunked.Decode(data)
	if err == nil && (len(l.Packs) != len(m.packs) || l.Size() != m.Size) {
		err = fmt.Errorf("a list of %d packs and %d bytes; the index says %d and %d", len(l.Packs), l.Size(), len(m.packs), m.Size)
	}
	return l, data, err
}

// RestoreOptions are those of RestoreMount.
type RestoreOptions struct {
	Limit    int64                        // bytes of content that are taken at most
	Progress func(current, total int64)   // of content, in bytes; may be nil, is called by several goroutines
	Notice   func(path string, err error) // see chunked.RestoreOptions
}

// ErrDamaged is the error for a mount of which a part is missing, or is not what it
// is said to be: it cannot be had another time either.
var ErrDamaged = errors.New("it is damaged")

// damagedError is an ErrDamaged that reads as what it wraps.
type damagedError struct{ error }

func (damagedError) Is(target error) bool { return target == ErrDamaged }
func (e damagedError) Unwrap() error      { return e.error }

// opener opens a blob.
type opener func(context.Context, oci.Descriptor) (io.ReadCloser, error)

// watched is an opener that says in failed whether it, or what it opened, failed to
// read what may well be there.
func watched(open opener, failed *atomic.Bool) opener {
	return func(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
		r, err := open(ctx, d)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				failed.Store(true)
			}
			return nil, err
		}
		return &watchedReader{r, failed}, nil
	}
}

type watchedReader struct {
	io.ReadCloser
	failed *atomic.Bool
}

func (w *watchedReader) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		w.failed.Store(true)
	}
	return n, err
}

// RestoreMount fills the empty directory dir with what the mount m has, and
// returns notes for cache.MountInit and how many bytes were fetched. After an
// error dir may have anything in it. One that is not an ErrDamaged, nor a
// chunked.ErrTooLarge, is of the network, the disk or ctx, and may pass.
func (c *Cache) RestoreMount(ctx context.Context, m StoredMount, dir string, o RestoreOptions) (notes map[string][]byte, fetched int64, err error) {
	var got atomic.Int64
	var failed atomic.Bool
	notes, err = c.restoreMount(ctx, m, dir, o, &got, watched(c.place.Blob, &failed))
	var local *os.PathError
	if err != nil && !failed.Load() && ctx.Err() == nil && !errors.Is(err, chunked.ErrTooLarge) && !errors.As(err, &local) {
		err = damagedError{err}
	}
	if err != nil {
		return nil, got.Load(), fmt.Errorf("restore cache mount %s from %s: %w", m.ID, c.place, err)
	}
	return notes, got.Load(), nil
}

func (c *Cache) restoreMount(ctx context.Context, m StoredMount, dir string, o RestoreOptions, got *atomic.Int64, open opener) (map[string][]byte, error) {
	if m.Size > o.Limit {
		return nil, fmt.Errorf("%w: %d bytes; at most %d are taken", chunked.ErrTooLarge, m.Size, o.Limit)
	}
	l, data, err := c.mountList(ctx, m, nil, open)
	if err != nil {
		return nil, err
	}
	got.Add(m.list.Size)
	ro := chunked.RestoreOptions{
		Open: func(ctx context.Context, i int) (io.ReadCloser, error) {
			r, err := open(ctx, m.packs[i])
			if err != nil {
				return nil, err
			}
			return &counter{ReadCloser: Verify(r, m.packs[i]), n: got}, nil
		},
		Parallel: uploads,
		Notice:   o.Notice,
	}
	if o.Progress != nil {
		ro.Progress = func(n int64) { o.Progress(n, m.Size) }
	}
	memory, err := l.Restore(ctx, dir, ro)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{cache.NoteChunks: memory.Bytes(), cache.NoteList: data}, nil
}
