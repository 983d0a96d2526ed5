// Package readahead reads ahead, so that what makes bytes and what takes them run
// side by side.
package readahead

import (
	"errors"
	"io"
	"sync"
)

const (
	// blocks and blockSize, in bytes, are how far a Reader is ahead at most.
	blocks    = 4
	blockSize = 128 << 10
	// handOver is how much is given to somebody who waits.
	handOver = blockSize / 4
)

var pool = sync.Pool{New: func() any { return new([blockSize]byte) }}

// Reader is what another reader yields, which a goroutine reads. It is for one
// goroutine at a time.
type Reader struct {
	full chan block // read, in order; the last has an error
	free chan *[blockSize]byte
	stop chan struct{}
	done chan struct{} // closed by the goroutine
	once sync.Once

	now  block
	rest []byte // of now
}

type block struct {
	buf *[blockSize]byte
	n   int
	err error // what the Read behind the n bytes gave
}

var errClosed = errors.New("read after the end was given up")

// New begins to read r; Close ends it.
func New(r io.Reader) *Reader {
	a := &Reader{
		full: make(chan block, blocks), free: make(chan *[blockSize]byte, blocks),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	for range blocks {
		a.free <- nil // made when it is needed
	}
	go a.fill(r)
	return a
}

func (a *Reader) fill(r io.Reader) {
	defer close(a.done)
	for {
		var b block
		select {
		case <-a.stop:
			return
		case b.buf = <-a.free:
		}
		if b.buf == nil {
			b.buf = pool.Get().(*[blockSize]byte)
		}
		for b.n < blockSize && b.err == nil {
			var n int
			n, b.err = r.Read(b.buf[b.n:])
			if b.n += n; b.n >= handOver && len(a.full) == 0 {
				break
			}
		}
		a.full <- b // which has room for all blocks
		if b.err != nil {
			return
		}
	}
}

// next waits for the next block if all of this one has been taken.
func (a *Reader) next() error {
	for len(a.rest) == 0 {
		if a.now.err != nil {
			return a.now.err
		}
		if a.now.buf != nil {
			a.free <- a.now.buf
			a.now.buf = nil
		}
		a.now = <-a.full
		a.rest = a.now.buf[:a.now.n]
	}
	return nil
}

// Read implements io.Reader. Errors of the reader below come behind all bytes
// before them, and again with each further call.
func (a *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := a.next(); err != nil {
		return 0, err
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// WriteTo implements io.WriterTo: w gets the bytes as they were read.
func (a *Reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		if err := a.next(); err != nil {
			if err == io.EOF {
				err = nil
			}
			return total, err
		}
		n, err := w.Write(a.rest)
		total += int64(n)
		a.rest = a.rest[n:]
		if err != nil {
			return total, err
		}
	}
}

// Close ends the reading ahead, and waits until the reader below is not read any
// more; it does not close that. It may be called twice.
func (a *Reader) Close() error {
	a.once.Do(func() {
		close(a.stop)
		<-a.done
		a.rest = nil
		if a.now.err == nil {
			a.now.err = errClosed
		}
		a.put(a.now.buf)
		a.now.buf = nil
		for range len(a.full) {
			a.put((<-a.full).buf)
		}
		for range len(a.free) {
			a.put(<-a.free)
		}
	})
	return nil
}

func (a *Reader) put(b *[blockSize]byte) {
	if b != nil {
		pool.Put(b)
	}
}
