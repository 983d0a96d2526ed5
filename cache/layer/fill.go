package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/blake"
)

// filler gives files that were made their content and metadata, and hashes them,
// while the tar is read on. Several files go together, so that goroutines have
// little to say to each other; a large one goes piece by piece.
type filler struct {
	notice  func(string)
	ctx     context.Context // of add, ended by the first error
	cancel  context.CancelFunc
	workers sync.WaitGroup
	work    chan *batch // nil: no goroutines yet
	now     *batch      // being collected

	mu  sync.Mutex
	err error // the first
}

// batch is files and the bytes of their content, one behind the other.
type batch struct {
	buf   *[]byte // of copyBuffers
	n     int
	files []unfilled
	rest  chan piece    // the content of the last file, if that is a large one
	done  chan struct{} // closed when nothing is done with the files any more
}

type unfilled struct {
	fd   int
	file *inode // gets the Digest
	size int    // of its bytes in the batch
}

// piece is a part of a large file.
type piece struct {
	buf *[]byte // of copyBuffers
	n   int
}

const (
	// largeFile is the size in bytes above which a file goes piece by piece.
	largeFile = 64 << 10
	// batchFiles bounds the files that are open in a batch.
	batchFiles = 32
	// fillers is how many goroutines there are at most.
	fillers = 4
)

func newFiller(ctx context.Context, notice func(string)) *filler {
	f := &filler{notice: notice, now: newBatch()}
	f.ctx, f.cancel = context.WithCancel(ctx)
	return f
}

func newBatch() *batch {
	return &batch{buf: copyBuffers.Get().(*[]byte), done: make(chan struct{})}
}

// add takes the file fd, which it closes in the end, and the content of file
// from r.
func (f *filler) add(r io.Reader, fd int, file *inode) error {
	size := int(file.Size)
	if file.Size > largeFile {
		size = 0
	}
	if f.now.n+size > len(*f.now.buf) {
		f.send()
	}
	b := f.now
	b.files = append(b.files, unfilled{fd: fd, file: file, size: size})
	file.filling = b.done
	if _, err := io.ReadFull(r, (*b.buf)[b.n:b.n+size]); err != nil {
		return fmt.Errorf("%s: read tar: %w", file.Path, err)
	}
	b.n += size
	if file.Size > largeFile {
		b.rest = make(chan piece, fillers)
		f.send()
		defer close(b.rest)
		return f.addPieces(r, b.rest, file)
	}
	if len(b.files) >= batchFiles {
		f.send()
	}
	return nil
}

func (f *filler) addPieces(r io.Reader, to chan<- piece, file *inode) error {
	for left := file.Size; left > 0; {
		p := piece{buf: copyBuffers.Get().(*[]byte)}
		p.n = int(min(left, int64(len(*p.buf))))
		if _, err := io.ReadFull(r, (*p.buf)[:p.n]); err != nil {
			copyBuffers.Put(p.buf)
			return fmt.Errorf("%s: read tar: %w", file.Path, err)
		}
		left -= int64(p.n)
		select {
		case to <- p:
		case <-f.ctx.Done():
			copyBuffers.Put(p.buf)
			return f.failed()
		}
	}
	return nil
}

// fail ends it all because of err.
func (f *filler) fail(err error) {
	f.mu.Lock()
	if f.err == nil {
		f.err = err
	}
	f.mu.Unlock()
	f.cancel()
}

// failed is why there is no use in adding more; nil if there is.
func (f *filler) failed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	return f.ctx.Err()
}

// send gives the files collected so far to the goroutines.
func (f *filler) send() {
	if f.work == nil {
		workers := min(fillers, runtime.GOMAXPROCS(0))
		f.work = make(chan *batch, workers)
		for range workers {
			f.workers.Go(f.run)
		}
	}
	f.work <- f.now
	f.now = newBatch()
}

// wait finishes all files, unless something has failed, and returns what.
func (f *filler) wait() error {
	if f.work == nil {
		w := writer{h: blake.Get()}
		f.fillAll(f.now, &w)
		blake.Put(w.h)
	} else {
		f.work <- f.now
		close(f.work)
		f.workers.Wait()
	}
	err := f.failed()
	f.cancel()
	return err
}

// run fills batches until there are no more.
func (f *filler) run() {
	w := writer{h: blake.Get()}
	defer blake.Put(w.h)
	for b := range f.work {
		f.fillAll(b, &w)
	}
}

// settle waits until nothing is done with file any more.
func (f *filler) settle(file *inode) {
	if file.filling == nil {
		return
	}
	if file.filling == f.now.done {
		f.send()
	}
	<-file.filling
	file.filling = nil
}

// close gives up what is left of the batch.
func (b *batch) close() {
	defer close(b.done)
	for _, u := range b.files {
		unix.Close(u.fd)
	}
	if b.rest != nil {
		for p := range b.rest {
			copyBuffers.Put(p.buf)
		}
	}
	copyBuffers.Put(b.buf)
}

// fillAll fills the files of b, or closes them if something has failed.
func (f *filler) fillAll(b *batch, w *writer) {
	defer b.close()
	at := 0
	for len(b.files) > 0 && f.failed() == nil {
		u := b.files[0]
		b.files = b.files[1:]
		var rest chan piece
		if len(b.files) == 0 {
			rest = b.rest
		}
		err := f.fill(&u, (*b.buf)[at:at+u.size], rest, w)
		if cerr := unix.Close(u.fd); err == nil {
			err = cerr
		}
		if err != nil {
			f.fail(&os.PathError{Op: "write", Path: u.file.Path, Err: err})
		}
		at += u.size
	}
}

func (f *filler) fill(u *unfilled, content []byte, rest <-chan piece, w *writer) error {
	w.begin(u.fd)
	if err := w.write(content); err != nil {
		return err
	}
	if rest != nil {
		if err := w.writeAll(rest, u.file.Size); err != nil {
			return err
		}
	}
	if w.size != u.file.Size {
		return nil // it was given up in the middle: why is known where it was read
	}
	if w.hole {
		if err := unix.Ftruncate(u.fd, w.size); err != nil {
			return err
		}
	}
	u.file.Digest = blake.Digest(w.h)
	return f.setMeta(u.fd, &u.file.Entry)
}

var zeros [64 << 10]byte

// hugePage is the size in bytes of what the kernel maps at once, where a file was
// written so.
const hugePage = 2 << 20

// writer writes and hashes files, one after the other. Blocks of zeros become holes.
type writer struct {
	h    *blake3.Hasher
	fd   int
	size int64
	hole bool     // the file ends in one so far
	run  [][]byte // the end of the file, if not a hole, that is not written yet
}

func (w *writer) begin(fd int) {
	w.h.Reset()
	w.fd, w.size, w.hole, w.run = fd, 0, false, w.run[:0]
}

// writeAll writes a large file. A program's pieces are kept until they are a huge page:
// one that is written at once is one in the kernel's cache too, where the file system
// can, and the program starts in less time for as long as it is there. Compilers start
// hundreds of times in a step.
func (w *writer) writeAll(pieces <-chan piece, size int64) error {
	var kept []piece
	defer func() {
		for _, p := range kept {
			copyBuffers.Put(p.buf)
		}
	}()
	program := false
	for p := range pieces {
		kept = append(kept, p)
		if w.size == 0 {
			program = size >= hugePage && bytes.HasPrefix((*p.buf)[:p.n], []byte("\x7fELF"))
		}
		if err := w.add((*p.buf)[:p.n]); err != nil {
			return err
		}
		if program && w.size%hugePage != 0 && w.size < size {
			continue
		}
		if err := w.flush(); err != nil {
			return err
		}
		for _, p := range kept {
			copyBuffers.Put(p.buf)
		}
		kept = kept[:0]
	}
	return w.flush()
}

func (w *writer) write(p []byte) error {
	if err := w.add(p); err != nil {
		return err
	}
	return w.flush()
}

// add takes p, which must stay as it is until flush.
func (w *writer) add(p []byte) error {
	w.h.Write(p)
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		w.hole = n >= 4096 && bytes.Equal(p[:n], zeros[:n])
		if w.hole {
			if err := w.flush(); err != nil {
				return err
			}
		} else {
			w.run = append(w.run, p[:n])
		}
		w.size += int64(n)
		p = p[n:]
	}
	return nil
}

// flush writes what was added, in one call.
func (w *writer) flush() error {
	at := w.size
	for _, b := range w.run {
		at -= int64(len(b))
	}
	for run := w.run; len(run) > 0; {
		var n int
		var err error
		if len(run) == 1 { // as of most files, without a list to allocate
			n, err = unix.Pwrite(w.fd, run[0], at)
		} else {
			n, err = unix.Pwritev(w.fd, run, at)
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		at += int64(max(n, 0))
		for len(run) > 0 && n >= len(run[0]) {
			n -= len(run[0])
			run = run[1:]
		}
		if n > 0 {
			run[0] = run[0][n:]
		}
	}
	clear(w.run)
	w.run = w.run[:0]
	return nil
}

// setMeta gives a new file what it does not have of e's metadata yet: owner
// first, since chown clears setuid bits and file capabilities.
func (f *filler) setMeta(fd int, e *tree.Entry) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if int(st.Uid) != e.UID || int(st.Gid) != e.GID {
		if err := unix.Fchown(fd, e.UID, e.GID); err != nil {
			return fmt.Errorf("chown to %d:%d: %w", e.UID, e.GID, err)
		}
	}
	if st.Mode&0o7777 != e.Perm() {
		if err := unix.Fchmod(fd, e.Perm()); err != nil {
			return err
		}
	}
	if len(e.Xattrs) > 0 {
		if err := f.setXattrs(fd, e); err != nil {
			return err
		}
	}
	ts, err := unix.TimeToTimespec(e.ModTime)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(fd, "", []unix.Timespec{{Nsec: unix.UTIME_OMIT}, ts}, unix.AT_EMPTY_PATH)
}

// setXattrs leaves out what the filesystem does not take, as applier.setMeta
// does.
func (f *filler) setXattrs(fd int, e *tree.Entry) error {
	told := false
	for _, k := range slices.Sorted(maps.Keys(e.Xattrs)) {
		err := unix.Fsetxattr(fd, k, []byte(e.Xattrs[k]), 0)
		if err == nil {
			continue
		}
		if k == capability || !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("set xattr %s: %w", k, err)
		}
		if !told {
			told = true
			notice(f.notice, "%s: %v: its extended attributes are left out", e.Path, err)
		}
	}
	return nil
}
