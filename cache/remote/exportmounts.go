package remote

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sync/errgroup"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/chunked"
	"github.com/861fb494/build/internal/oci"
)

// Mount is a cache mount to be put out.
type Mount struct {
	ID string
	// Used: a step of this build ran with it. Of one that was not used, what the
	// cache has is kept: it may be newer than what is here.
	Used bool
	// Damaged: what a cache has of it was found to be damaged. All of it is sent, and
	// as other blobs.
	Damaged bool
	// Hold holds the mount to be read, for which it waits so long; see
	// cache.Store.HoldMount for its errors.
	Hold func(ctx context.Context, wait time.Duration) (*cache.HeldMount, error)
}

// MountOptions say which cache mounts an Export puts out.
type MountOptions struct {
	List  []Mount
	Limit int64 // bytes of content; a mount that has more is left out
	// Keep are prefixes of ids of further mounts: those that the cache has stay.
	Keep []string
	// From are the caches that may have a mount which is not here. It may be nil.
	From func(id string) []*Cache
	// Warn is told of what is left out. It may be nil if List is empty.
	Warn func(message string)
}

// patience is how long a mount is waited for that a step uses alone. Another build
// may use it for hours.
const patience = time.Minute

// MountStats are of one mount of an Export.
type MountStats struct {
	ID    string
	Files int
	Size  int64 // bytes of content
	Sent  int64 // bytes, list and all
	Kept  bool  // what a cache had is kept
}

// exportMounts puts the cache mounts out.
func (e *export) exportMounts(ctx context.Context) error {
	o := e.o.Mounts
	if len(o.List) == 0 && len(o.Keep) == 0 {
		return nil
	}
	before, err := Open(ctx, e.place)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		before = nil // it is replaced, whatever it is
	}
	list := slices.Concat(o.List, before.others(o))
	slices.SortFunc(list, func(a, b Mount) int { return strings.Compare(a.ID, b.ID) })
	for _, m := range list {
		if len(m.ID) > maxText || len(e.index.Mounts) == maxMounts {
			o.Warn(fmt.Sprintf("the cache mount %.80s is left out of the cache: its id is too long, or there are too many", m.ID))
			continue
		}
		sent := e.sent.Load()
		out, kept, err := e.mount(ctx, m, before)
		if err != nil {
			return fmt.Errorf("cache mount %s: %w", m.ID, err)
		}
		if out == nil {
			continue
		}
		e.index.Mounts = append(e.index.Mounts, *out)
		e.mounts = append(e.mounts, MountStats{ID: m.ID, Files: out.Files, Size: out.Size, Sent: e.sent.Load() - sent, Kept: kept})
	}
	return nil
}

// others are the mounts of the cache that o says to keep, beside those it lists.
// Nothing is known of what is here.
func (c *Cache) others(o MountOptions) []Mount {
	if c == nil {
		return nil
	}
	var out []Mount
	nowhere := func(context.Context, time.Duration) (*cache.HeldMount, error) { return nil, fs.ErrNotExist }
	for id := range c.mounts {
		listed := slices.ContainsFunc(o.List, func(m Mount) bool { return m.ID == id })
		if !listed && slices.ContainsFunc(o.Keep, func(p string) bool { return strings.HasPrefix(id, p) }) {
			out = append(out, Mount{ID: id, Hold: nowhere})
		}
	}
	return out
}

// mount puts one mount out; nil: there is none to be put out. An error is one of
// the place: what is wrong with the mount here is a warning.
func (e *export) mount(ctx context.Context, m Mount, before *Cache) (out *indexMount, kept bool, err error) {
	stored, ok := before.Mount(m.ID)
	ok = ok && stored.Size <= e.o.Mounts.Limit
	if ok && !m.Used {
		if out, err := e.keep(ctx, stored); out != nil || err != nil {
			return out, true, err
		}
		ok = false
	}
	x := &mountExport{export: e, Mount: m}
	if m.Damaged {
		x.salt = make([]byte, 8)
		rand.Read(x.salt) // never fails
	}
	if ok && !m.Damaged {
		if err := x.known(ctx, before, stored); err != nil {
			return nil, false, err
		}
	}
	out, err = x.run(ctx)
	switch {
	case err == nil:
		return out, false, nil
	case ctx.Err() != nil || errors.Is(err, errPlace):
		return nil, false, err
	case errors.Is(err, fs.ErrNotExist) && !m.Used:
		out, err = e.elsewhere(ctx, m.ID)
		return out, true, err
	}
	text := fmt.Sprintf("the cache mount %s is left out of the cache: %v", m.ID, err)
	if errors.Is(err, chunked.ErrTooLarge) {
		text = fmt.Sprintf("the cache mount %s is left out of the cache: it has more than mounts-max-size=%s", m.ID, units.BytesSize(float64(e.o.Mounts.Limit)))
	}
	if ok && !m.Damaged {
		if out, err = e.keep(ctx, stored); err != nil {
			return nil, false, err
		}
	}
	if out != nil {
		text += "; what the cache has of it stays"
	}
	e.o.Mounts.Warn(text)
	return out, true, nil
}

// errPlace marks the errors of the place that a cache is written to.
var errPlace = errors.New("the cache's place failed")

// placeError is an errPlace that reads as what it wraps.
type placeError struct{ error }

func (placeError) Is(target error) bool { return target == errPlace }
func (e placeError) Unwrap() error      { return e.error }

// present asks which blobs the place has.
func (e *export) present(ctx context.Context, blobs []oci.Descriptor) ([]bool, error) {
	out := make([]bool, len(blobs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(uploads)
	for i, b := range blobs {
		g.Go(func() (err error) {
			out[i], err = e.place.Has(ctx, b)
			return err
		})
	}
	return out, g.Wait()
}

// keep leaves a mount in the cache as it is; nil: not all of it is there any more.
func (e *export) keep(ctx context.Context, m StoredMount) (*indexMount, error) {
	there, err := e.present(ctx, append([]oci.Descriptor{m.list}, m.packs...))
	if err != nil || slices.Contains(there, false) {
		return nil, err
	}
	return e.stored(m), nil
}

// stored is the index's entry of a mount that lies in the place.
func (e *export) stored(m StoredMount) *indexMount {
	out := &indexMount{ID: m.ID, Created: m.Created, Files: m.Files, Size: m.Size, List: e.note(m.list), Packs: []oci.Digest{}}
	for _, p := range m.packs {
		out.Packs = append(out.Packs, e.note(p))
	}
	return out
}

// elsewhere copies a mount that is not here from another cache.
func (e *export) elsewhere(ctx context.Context, id string) (*indexMount, error) {
	if e.o.Mounts.From == nil {
		return nil, nil
	}
	for _, c := range e.o.Mounts.From(id) {
		m, ok := c.Mount(id)
		if !ok || m.Size > e.o.Mounts.Limit || c.place.String() == e.place.String() {
			continue
		}
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(uploads)
		for _, d := range append([]oci.Descriptor{m.list}, m.packs...) {
			g.Go(func() error {
				open := func() (io.ReadCloser, error) {
					r, err := c.place.Blob(gctx, d)
					if err != nil {
						return nil, err
					}
					return Verify(r, d), nil
				}
				return e.place.Put(gctx, d, e.counted(open), e.origins(d, ""))
			})
		}
		err := g.Wait()
		if err == nil {
			return e.stored(m), nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		e.o.Mounts.Warn(fmt.Sprintf("the cache mount %s is left out of the cache: copy it from %s: %v", id, c.place, err))
	}
	return nil, nil
}

// mountExport is a mount that is put out as it is here.
type mountExport struct {
	*export
	Mount
	salt []byte // see chunked.NewPacker
	old  []oldPack
	in   map[chunked.Sum]int // which of old a chunk is in; fresh
	size int64               // bytes of chunks that are new to the place
}

// oldPack is a pack that the place has already.
type oldPack struct {
	oci.Descriptor
	chunks []chunked.Chunk
}

// fresh is the number of all packs that are made now.
const fresh = -1

// known finds out which chunks the place has. A list that is not to be had is as
// good as none.
func (x *mountExport) known(ctx context.Context, before *Cache, m StoredMount) error {
	var note []byte
	if held, err := x.Hold(ctx, 0); err == nil {
		note = held.Note(cache.NoteList)
		held.Release()
	}
	l, _, err := before.mountList(ctx, m, note, before.place.Blob)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		x.o.Mounts.Warn(fmt.Sprintf("the cache mount %s is sent as a whole: %v", x.ID, err))
		return nil
	}
	there, err := x.present(ctx, m.packs)
	if err != nil {
		return err
	}
	for i, p := range m.packs {
		if there[i] {
			x.old = append(x.old, oldPack{Descriptor: p, chunks: l.Packs[i]})
		}
	}
	return nil
}

// run reads the mount and sends what is new.
func (x *mountExport) run(ctx context.Context) (*indexMount, error) {
	held, err := x.Hold(ctx, patience)
	if err != nil {
		return nil, err
	}
	release := sync.OnceFunc(held.Release)
	defer release()
	s, err := chunked.Scan(ctx, held.Dir)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if s.Estimate > x.o.Mounts.Limit {
		return nil, chunked.ErrTooLarge
	}
	memory := chunked.NewMemory(held.Note(cache.NoteChunks))
	up := x.newUpload(ctx)
	defer up.abandon()
	if err := x.read(ctx, s, chunked.ReadOptions{Alone: held.Alone, Memory: memory, Limit: x.o.Mounts.Limit}, up); err != nil {
		return nil, err
	}
	// A note that cannot be written costs time later and no more.
	_ = held.PutNote(cache.NoteChunks, memory.Bytes())
	release() // all that is wanted of it has been read
	packs, err := up.wait()
	if err != nil {
		return nil, err
	}
	out := &indexMount{ID: x.ID, Created: time.Now().UTC(), Files: s.Len(), Packs: []oci.Digest{}}
	var chunks [][]chunked.Chunk
	for _, p := range append(x.needed(s), packs...) {
		chunks = append(chunks, p.chunks)
		out.Packs = append(out.Packs, x.note(p.Descriptor))
	}
	l, err := s.List(chunks)
	if err != nil {
		return nil, err
	}
	data, err := l.Encode(x.salt)
	if err != nil {
		return nil, err
	}
	out.Size = l.Size()
	d := descriptor(mountType, data)
	if err := x.place.Put(ctx, d, x.counted(bytesOf(data)), nil); err != nil {
		return nil, placeError{err}
	}
	out.List = x.note(d)
	_ = held.PutNote(cache.NoteList, data)
	x.tellLeft(s)
	return out, nil
}

// tellLeft warns of files that are not in the cache.
func (x *mountExport) tellLeft(s *chunked.Snapshot) {
	left, n := s.Left()
	if n == 0 {
		return
	}
	text := fmt.Sprintf("the cache has %d files of the cache mount %s not:", n, x.ID)
	if n == 1 {
		text = fmt.Sprintf("the cache has a file of the cache mount %s not:", x.ID)
	}
	for i, o := range left {
		if i == 3 {
			text += fmt.Sprintf(" and %d more", n-i)
			break
		}
		if i > 0 {
			text += ";"
		}
		text += fmt.Sprintf(" %.200q: %s", o.Path, o.Why)
	}
	x.o.Mounts.Warn(text)
}

// read puts the chunks that the place has not into packs, and those of packs of
// which too little is needed.
func (x *mountExport) read(ctx context.Context, s *chunked.Snapshot, o chunked.ReadOptions, up *upload) error {
	x.in = map[chunked.Sum]int{}
	for i, p := range x.old {
		for _, c := range p.chunks {
			if _, ok := x.in[c.Sum]; !ok {
				x.in[c.Sum] = i
			}
		}
	}
	add := func(c chunked.Chunk, data []byte) error {
		x.in[c.Sum] = fresh
		return up.packer.Add(c, data)
	}
	o.Has = func(s chunked.Sum) bool { _, ok := x.in[s]; return ok }
	err := s.Read(ctx, o, func(c chunked.Chunk, data []byte) error {
		x.size += int64(len(data))
		return add(c, data)
	})
	if err != nil {
		return err
	}
	again := x.repack(s)
	if slices.Contains(again, true) {
		err = s.Again(ctx, func(s chunked.Sum) bool { i := x.in[s]; return i != fresh && again[i] }, add)
	}
	if err == nil {
		err = up.packer.Finish()
	}
	return err
}

// needed are the packs, of those that the place has, that the snapshot needs.
func (x *mountExport) needed(s *chunked.Snapshot) []oldPack {
	used := make([]bool, len(x.old))
	s.Sums(func(c chunked.Chunk) {
		if i := x.in[c.Sum]; i != fresh {
			used[i] = true
		}
	})
	var out []oldPack
	for i, p := range x.old {
		if used[i] {
			out = append(out, p)
		}
	}
	return out
}
