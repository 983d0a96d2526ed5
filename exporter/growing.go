package exporter

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/internal/oci"
)

// growing is a blob that is being made in a file, and can be read meanwhile.
type growing struct {
	file *os.File

	mu      sync.Mutex
	size    int64         // written so far
	changed chan struct{} // closed when any of this changes
	ended   bool
	blob    blob
	err     error
	freed   int64     // so much of its beginning is not in the file any more
	last    *follower // the last that was opened
}

// errFreed is that a blob's beginning is not in its file any more.
var errFreed = errors.New("the blob was read once and is not kept")

func newGrowing(f *os.File) *growing { return &growing{file: f, changed: make(chan struct{})} }

// Write implements io.Writer.
func (g *growing) Write(p []byte) (int, error) {
	n, err := g.file.Write(p)
	g.change(func() { g.size += int64(n) })
	return n, err
}

// end says what has come out, or why nothing has.
func (g *growing) end(b blob, err error) {
	g.change(func() { g.ended, g.blob, g.err = true, b, err })
}

func (g *growing) change(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
	close(g.changed)
	g.changed = make(chan struct{})
}

// wait waits for the end.
func (g *growing) wait(ctx context.Context) (blob, error) {
	for {
		g.mu.Lock()
		ended, changed := g.ended, g.changed
		g.mu.Unlock()
		if ended {
			return g.blob, g.err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return blob{}, context.Cause(ctx)
		}
	}
}

// desc waits for the end too.
func (g *growing) desc(ctx context.Context) (oci.Descriptor, error) {
	b, err := g.wait(ctx)
	return b.desc, err
}

// open reads the blob from its beginning to its end, also where that is to come.
func (g *growing) open() (io.ReadCloser, error) { return g.follow(false) }

// openOnce is open for a reader that is the only one, most likely: what it has read
// goes out of the file. So a blob that is sent as fast as it is made takes next to
// no room, neither of the disk nor of the memory that files are written to. The next
// open is errFreed then.
func (g *growing) openOnce() (io.ReadCloser, error) { return g.follow(true) }

func (g *growing) follow(once bool) (io.ReadCloser, error) {
	flags := os.O_RDONLY
	if once {
		flags = os.O_RDWR
	}
	f, err := os.OpenFile(g.file.Name(), flags, 0)
	if err != nil {
		return nil, err
	}
	r := &follower{File: f, g: g, once: once, closed: make(chan struct{})}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.freed > 0 {
		f.Close()
		return nil, errFreed
	}
	g.last = r
	return r, nil
}

// whole reports whether the file has all that was written to it.
func (g *growing) whole() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.freed == 0
}

type follower struct {
	*os.File
	g       *growing
	at      int64
	once    bool // see openOnce
	closed  chan struct{}
	closing sync.Once
}

// freeStep is how much is read before it is freed, in bytes.
const freeStep = 1 << 20

// free frees what was read, unless somebody else began to read too.
func (f *follower) free() {
	g := f.g
	g.mu.Lock()
	defer g.mu.Unlock()
	from, to := g.freed, f.at/freeStep*freeStep
	if to == from || g.last != f {
		return
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from); err != nil {
		f.once = false // a file system without holes
		return
	}
	g.freed = to
}

// Read waits for bytes that are to come, until Close is called.
func (f *follower) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		f.g.mu.Lock()
		left, ended, err, changed := f.g.size-f.at, f.g.ended, f.g.err, f.g.changed
		f.g.mu.Unlock()
		switch {
		case ended && err != nil:
			return 0, err
		case left > 0:
			n, err := f.ReadAt(p[:min(int64(len(p)), left)], f.at)
			f.at += int64(n)
			if f.once {
				f.free()
			}
			return n, err
		case ended:
			return 0, io.EOF
		}
		select {
		case <-changed:
		case <-f.closed:
			return 0, errors.New("closed")
		}
	}
}

// Close may be called during a Read.
func (f *follower) Close() error {
	f.closing.Do(func() { close(f.closed) })
	return f.File.Close()
}
