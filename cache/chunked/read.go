package chunked

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/internal/blake"
)

// piece is a stretch of a file: a chunk, or a hole, whose sum is zero.
type piece struct {
	sum  Sum
	size int64
}

// ReadOptions are those of Snapshot.Read.
type ReadOptions struct {
	// Alone says that nobody else has the directory. Otherwise a file that is
	// open for writing is left out, whatever its times say.
	Alone bool
	// Memory knows the chunks of files that have been read before, and learns
	// those of others. May be nil.
	Memory *Memory
	// Has reports chunks whose bytes are not wanted.
	Has func(Sum) bool
	// Limit is how many bytes of content there may be.
	Limit int64
}

// ErrTooLarge is the error for a directory with more content than the limit.
var ErrTooLarge = errors.New("it is too large")

// Read cuts the content of files into chunks and calls chunk for those that are
// wanted. data is chunk's until it returns. A file that changes while it is read
// is read again, and left out if it does not stop.
func (s *Snapshot) Read(ctx context.Context, o ReadOptions, chunk func(c Chunk, data []byte) error) error {
	cut, err := newSplitter()
	if err != nil {
		return err
	}
	r := reader{ReadOptions: o, ctx: ctx, dirs: dirs{root: s.root}, cut: cut, chunk: chunk}
	defer r.dirs.close()
	var size int64
	for i := range s.files {
		f := &s.files[i]
		if !hasContent(&f.Change) {
			continue
		}
		why, err := r.file(f)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		if why != "" {
			f.gone = true
			if why != removed {
				s.left.add(f.Path, why)
			}
			continue
		}
		for _, p := range f.pieces {
			if p.sum != (Sum{}) {
				size += p.size
			}
		}
		if size > o.Limit {
			return ErrTooLarge
		}
	}
	s.dropLinks()
	return nil
}

// dropLinks leaves out the further names of files that were left out, or were
// replaced by others since they were found.
func (s *Snapshot) dropLinks() {
	first := map[string]*file{}
	for i := range s.files {
		if f := &s.files[i]; f.HardLink != "" {
			first[f.HardLink] = nil
		}
	}
	for i := range s.files {
		f := &s.files[i]
		if _, ok := first[f.Path]; ok {
			first[f.Path] = f
		}
		if f.HardLink == "" {
			continue
		}
		to := first[f.HardLink] // which comes before
		if to.gone || to.stamp.ino != f.stamp.ino || to.stamp.dev != f.stamp.dev {
			f.gone = true
			s.left.add(f.Path, "it was another name of "+f.HardLink+", which changed or was left out")
		}
	}
}

// reader is a Read under way.
type reader struct {
	ReadOptions
	ctx   context.Context
	dirs  dirs
	cut   *splitter
	chunk func(Chunk, []byte) error
}

// removed is why a file is left out that is not there any more.
const removed = "it was removed"

// file fills in what f is now, and its pieces; or says why it is left out.
func (r *reader) file(f *file) (why string, err error) {
	for range 3 {
		if err := context.Cause(r.ctx); err != nil {
			return "", err
		}
		dir, name, err := r.dirs.at(f.Path)
		var now file
		if err == nil {
			now, err = lstat(dir, name, f.Path)
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return removed, nil
		}
		if err != nil {
			return err.Error(), nil
		}
		if now.Type() != unix.S_IFREG {
			return "it became another kind of file while it was read", nil
		}
		if err := checkMeta(&now.Change); err != nil {
			return err.Error(), nil
		}
		*f = now
		if r.Alone && r.remembered(f) {
			return "", nil
		}
		in, err := openFile(dir, name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) {
			continue
		}
		if err != nil {
			return (&os.PathError{Op: "open", Path: f.Path, Err: err}).Error(), nil
		}
		ok, why, err := r.open(f, in)
		in.Close()
		if err != nil || ok || why != "" {
			return why, err
		}
	}
	return "it kept changing while it was read", nil
}

// openFile opens a regular file to be read: whatever is there now, it is not
// waited for.
func openFile(dir int, name string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) { // O_NOATIME is the owner's privilege
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// remembered fills in the pieces of a file that was read before, if none of them
// is wanted.
func (r *reader) remembered(f *file) bool {
	pieces, ok := r.Memory.get(f.stamp)
	if !ok {
		return false
	}
	for _, p := range pieces {
		if p.sum != (Sum{}) && !r.Has(p.sum) {
			return false
		}
	}
	f.pieces = pieces
	return true
}

// open reads the open file; !ok: it is not what it was, so try again.
func (r *reader) open(f *file, in *os.File) (ok bool, why string, err error) {
	const writers = "somebody has it open for writing"
	if !r.Alone {
		if written(in) {
			return false, writers, nil
		}
		if wait := f.stamp.wait(time.Now()); wait > 0 {
			// What is written in the same moment would not show.
			select {
			case <-time.After(min(wait, 2*time.Second)):
			case <-r.ctx.Done():
				return false, "", context.Cause(r.ctx)
			}
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(in.Fd()), &st); err != nil || stampOf(&st) != f.stamp {
		return false, "", err
	}
	if !r.Alone && r.remembered(f) {
		return true, "", nil
	}
	settled := f.stamp.settled(time.Now())
	total, err := r.pieces(f, in)
	if err != nil {
		return false, "", err
	}
	if !r.Alone && written(in) {
		return false, writers, nil
	}
	if err := unix.Fstat(int(in.Fd()), &st); err != nil || stampOf(&st) != f.stamp || total != f.Size {
		return false, "", err
	}
	if settled {
		r.Memory.put(f.stamp, f.pieces)
	}
	return true, "", nil
}

// written reports whether somebody has the file open for writing, or mapped so:
// then nobody can be given a lease for reading it, fcntl(2). Where the file
// system knows no leases the answer is no.
func written(f *os.File) bool {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if err == nil {
		_, _ = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	}
	return errors.Is(err, unix.EAGAIN)
}

// pieces cuts the file up. total is how many bytes it came to.
func (r *reader) pieces(f *file, in *os.File) (total int64, err error) {
	f.pieces = f.pieces[:0]
	for total < f.Size {
		start, end := total, f.Size
		if f.allocated < f.Size {
			start, end = extent(in, total, f.Size)
		}
		if start > total {
			f.pieces = append(f.pieces, piece{size: start - total})
			total = start
		}
		if start == end {
			continue
		}
		err := r.cut.split(io.NewSectionReader(in, start, end-start), end-start, func(data []byte) error {
			if err := context.Cause(r.ctx); err != nil {
				return err
			}
			p := piece{sum: blake.Sum256(data), size: int64(len(data))}
			f.pieces = append(f.pieces, p)
			total += p.size
			if r.Has(p.sum) {
				return nil
			}
			return r.chunk(Chunk{Sum: p.sum, Size: uint32(p.size)}, data)
		})
		if err != nil {
			return total, err
		}
		if total < end {
			break // it has become shorter
		}
	}
	return total, nil
}

// extent is the next stretch of data at or after offset at, in a file of size
// bytes; an empty one at its end says that only a hole follows. See lseek(2).
func extent(f *os.File, at, size int64) (start, end int64) {
	start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size
	}
	if err != nil {
		return at, size // holes are not told of here
	}
	end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	if err != nil || end <= start || end > size {
		end = size
	}
	return min(start, size), end
}

// Again reads chunks that are wanted now from the files that have them. One that
// is not there any more is passed over.
func (s *Snapshot) Again(ctx context.Context, want func(Sum) bool, chunk func(c Chunk, data []byte) error) error {
	d := dirs{root: s.root}
	defer d.close()
	buf := make([]byte, maxChunk)
	for i := range s.files {
		f := &s.files[i]
		if f.gone || !hasContent(&f.Change) {
			continue
		}
		if err := f.again(ctx, &d, buf, want, chunk); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return nil
}

func (f *file) again(ctx context.Context, d *dirs, buf []byte, want func(Sum) bool, chunk func(c Chunk, data []byte) error) error {
	var in *os.File
	defer func() { in.Close() }() // nil is an error, and no harm
	at := int64(0)
	for _, p := range f.pieces {
		offset := at
		at += p.size
		if p.sum == (Sum{}) || !want(p.sum) {
			continue
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if in == nil {
			dir, name, err := d.at(f.Path)
			if err != nil {
				return nil
			}
			if in, err = openFile(dir, name); err != nil {
				return nil
			}
		}
		data := buf[:p.size]
		if _, err := in.ReadAt(data, offset); err != nil || blake.Sum256(data) != p.sum {
			continue
		}
		if err := chunk(Chunk{Sum: p.sum, Size: uint32(p.size)}, data); err != nil {
			return err
		}
	}
	return nil
}

// Sums calls f with the chunks of all files, each as often as it is there.
func (s *Snapshot) Sums(f func(Chunk)) {
	for i := range s.files {
		if s.files[i].gone {
			continue
		}
		for _, p := range s.files[i].pieces {
			if p.sum != (Sum{}) {
				f(Chunk{Sum: p.sum, Size: uint32(p.size)})
			}
		}
	}
}

// List is the snapshot, after Read, as a list: packs are where its chunks lie.
func (s *Snapshot) List(packs [][]Chunk) (*List, error) {
	number := map[Sum]int{}
	n := 0
	for _, p := range packs {
		for _, c := range p {
			if _, ok := number[c.Sum]; !ok {
				number[c.Sum] = n
			}
			n++
		}
	}
	l := &List{Packs: packs}
	for i := range s.files {
		f := &s.files[i]
		if f.gone {
			continue
		}
		var parts []Part
		for _, p := range f.pieces {
			if p.sum == (Sum{}) {
				parts = append(parts, Part{Hole: p.size})
				continue
			}
			at, ok := number[p.sum]
			if !ok {
				return nil, fmt.Errorf("%s: a chunk of it is in no pack", f.Path)
			}
			if k := len(parts) - 1; k >= 0 && parts[k].Count > 0 && parts[k].First+parts[k].Count == at {
				parts[k].Count++
				continue
			}
			parts = append(parts, Part{First: at, Count: 1})
		}
		l.Entries = append(l.Entries, f.Change)
		l.Content = append(l.Content, parts)
	}
	return l, nil
}
