package chunked

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/blake"
)

// RestoreOptions are those of Restore.
type RestoreOptions struct {
	// Open opens a pack, by its number. That its bytes are those of the pack is
	// its reader's to find out; chunks are checked here.
	Open func(ctx context.Context, pack int) (io.ReadCloser, error)
	// Parallel is how many packs are read at a time.
	Parallel int
	// Progress is told how many bytes of content have been written, of Size. May
	// be nil; may be called by several goroutines.
	Progress func(current int64)
	// Notice is told of extended attributes that the file system does not take:
	// they are left out. May be nil.
	Notice func(path string, err error)
}

// Restore makes the directory dir, which is there and empty, what the list says.
// The list is one that Decode returned. Nothing outside of dir is touched. What
// is there after an error is for the caller to remove. Memory knows the files'
// chunks; files of it are not to be changed before Restore returns.
func (l *List) Restore(ctx context.Context, dir string, o RestoreOptions) (*Memory, error) {
	root, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	r := restorer{List: l, RestoreOptions: o, root: root}
	if err := r.skeleton(ctx); err != nil {
		return nil, err
	}
	if err := r.fill(ctx); err != nil {
		return nil, err
	}
	return r.finish(ctx)
}

type restorer struct {
	*List
	RestoreOptions
	root *os.File
	done atomic.Int64 // bytes
}

// skeleton makes directories, empty files, links.
func (r *restorer) skeleton(ctx context.Context) error {
	at, to := dirs{root: r.root}, dirs{root: r.root}
	defer at.close()
	defer to.close()
	for i := range r.Entries {
		e := &r.Entries[i]
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if e.Path == "/" {
			continue
		}
		dir, name, err := at.at(e.Path)
		if err != nil {
			return err
		}
		switch {
		case e.HardLink != "":
			var from int
			var old string
			if from, old, err = to.at(e.HardLink); err == nil {
				err = unix.Linkat(from, old, dir, name, 0)
			}
		case e.IsDir():
			err = unix.Mkdirat(dir, name, 0o700)
		case e.Type() == unix.S_IFLNK:
			err = unix.Symlinkat(e.Link, dir, name)
		default:
			err = create(dir, name, e.Size)
		}
		if err != nil {
			return &os.PathError{Op: "make", Path: e.Path, Err: err}
		}
	}
	return nil
}

// create makes a file of holes.
func create(dir int, name string, size int64) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if size == 0 {
		return nil
	}
	return unix.Ftruncate(fd, size)
}

// ref is where a chunk is wanted.
type ref struct {
	entry  int32
	offset int64
}

// uses is where chunks are wanted: those of chunk n are refs[first[n]:first[n+1]].
type uses struct {
	first []int32
	refs  []ref
}

func (r *restorer) uses() uses {
	n := 0
	for _, p := range r.Packs {
		n += len(p)
	}
	each := func(f func(chunk, entry int, offset int64)) {
		starts := r.starts()
		for i, parts := range r.Content {
			at := int64(0)
			for _, p := range parts {
				for k := range p.Count {
					c := p.First + k
					f(c, i, at)
					at += starts[c+1] - starts[c]
				}
				at += p.Hole
			}
		}
	}
	u := uses{first: make([]int32, n+1)}
	each(func(chunk, _ int, _ int64) { u.first[chunk+1]++ })
	for i := range n {
		u.first[i+1] += u.first[i]
	}
	u.refs = make([]ref, u.first[n])
	next := make([]int32, n)
	copy(next, u.first)
	each(func(chunk, entry int, offset int64) {
		u.refs[next[chunk]] = ref{int32(entry), offset}
		next[chunk]++
	})
	return u
}

// fill writes the files' content.
func (r *restorer) fill(ctx context.Context) error {
	u := r.uses()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(r.Parallel, 1))
	first := 0
	for i, chunks := range r.Packs {
		at := first
		first += len(chunks)
		if u.first[at] == u.first[first] {
			continue // nothing of it is wanted
		}
		g.Go(func() error {
			if err := r.pack(ctx, i, at, u); err != nil {
				return fmt.Errorf("pack %d: %w", i+1, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// pack writes what the pack i has, whose chunks are numbered from first.
func (r *restorer) pack(ctx context.Context, i, first int, u uses) error {
	in, err := r.Open(ctx, i)
	if err != nil {
		return err
	}
	defer in.Close()
	z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxPack), zstd.WithDecoderLowmem(true))
	if err != nil {
		return err
	}
	defer z.Close()
	w := writer{restorer: r, dirs: dirs{root: r.root}, entry: -1}
	defer w.close()
	buf := make([]byte, maxChunk)
	for k, c := range r.Packs[i] {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		data := buf[:c.Size]
		if _, err := io.ReadFull(z, data); err != nil {
			return fmt.Errorf("chunk %d: %w", k, err)
		}
		refs := u.refs[u.first[first+k]:u.first[first+k+1]]
		if len(refs) == 0 {
			continue
		}
		if blake.Sum256(data) != c.Sum {
			return fmt.Errorf("chunk %d is not what its digest says", k)
		}
		for _, ref := range refs {
			if err := w.write(ref, data); err != nil {
				return &os.PathError{Op: "write", Path: r.Entries[ref.entry].Path, Err: err}
			}
		}
	}
	// To the end: there its reader compares what it has read.
	n, err := io.Copy(io.Discard, io.LimitReader(z, 1))
	if err == nil && n > 0 {
		err = errors.New("there is more in it than its chunks")
	}
	if err != nil {
		return err
	}
	return w.close()
}

// writer writes to files and keeps the one written to last open.
type writer struct {
	*restorer
	dirs  dirs
	f     *os.File
	entry int32 // of f; -1: none
}

func (w *writer) write(to ref, data []byte) error {
	if w.entry != to.entry {
		if err := w.closeFile(); err != nil {
			return err
		}
		dir, name, err := w.dirs.at(w.Entries[to.entry].Path)
		if err != nil {
			return err
		}
		fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		w.f, w.entry = os.NewFile(uintptr(fd), name), to.entry
	}
	if _, err := w.f.WriteAt(data, to.offset); err != nil {
		return err
	}
	n := w.done.Add(int64(len(data)))
	if w.Progress != nil {
		w.Progress(n)
	}
	return nil
}

func (w *writer) closeFile() error {
	if w.entry < 0 {
		return nil
	}
	w.entry = -1
	return w.f.Close()
}

func (w *writer) close() error {
	w.dirs.close()
	return w.closeFile()
}

// finish sets metadata; that of a directory once it has all that is in it.
func (r *restorer) finish(ctx context.Context) (*Memory, error) {
	m := NewMemory(nil)
	d := dirs{root: r.root}
	defer d.close()
	var open []*tree.Change // directories that are not finished
	leave := func(p string) error {
		for len(open) > 0 && !within(open[len(open)-1].Path, p) {
			if err := r.setMeta(&d, open[len(open)-1]); err != nil {
				return err
			}
			open = open[:len(open)-1]
		}
		return nil
	}
	chunks := r.chunks()
	for i := range r.Entries {
		e := &r.Entries[i]
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		if err := leave(e.Path); err != nil {
			return nil, err
		}
		if e.IsDir() {
			open = append(open, e)
			continue
		}
		if e.HardLink != "" {
			continue // it has the metadata of what it links to
		}
		if err := r.setMeta(&d, e); err != nil {
			return nil, err
		}
		if hasContent(e) {
			s, err := stampAt(&d, e.Path)
			if err != nil {
				return nil, err
			}
			if s.ctime%int64(time.Second) != 0 { // of a file system whose times are fine enough
				m.put(s, pieces(r.Content[i], chunks))
			}
		}
	}
	if err := leave(""); err != nil {
		return nil, err
	}
	// What is changed from now on gets other times.
	select {
	case <-time.After(grain):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return m, nil
}

func stampAt(d *dirs, p string) (stamp, error) {
	dir, name, err := d.at(p)
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return stamp{}, &os.PathError{Op: "stat", Path: p, Err: err}
	}
	return stampOf(&st), nil
}

// within reports whether p is dir or lies below it.
func within(dir, p string) bool {
	return p == dir || dir == "/" && p != "" || strings.HasPrefix(p, dir+"/")
}

// chunks is those of all packs.
func (l *List) chunks() []Chunk { return slices.Concat(l.Packs...) }

func pieces(parts []Part, chunks []Chunk) []piece {
	var out []piece
	for _, p := range parts {
		if p.Count == 0 {
			out = append(out, piece{size: p.Hole})
		}
		for _, c := range chunks[p.First : p.First+p.Count] {
			out = append(out, piece{sum: c.Sum, size: int64(c.Size)})
		}
	}
	return out
}
