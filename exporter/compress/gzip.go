package compress

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
)

// blockSize is how much of the input is compressed on its own, in bytes. At
// this size the blocks' ends cost about a thousandth, and a layer of a few
// megabytes already keeps several cores busy.
const blockSize = 1 << 20

// windowSize is how far back deflate refers (RFC 1951); that much of the block
// before is each block's dictionary.
const windowSize = 32 << 10

// gzipWriter makes one gzip member (RFC 1952), in parallel: every block is
// compressed on its own with the end of the one before as its dictionary, and
// ended by an empty stored block, as pigz does. The output is one valid deflate
// stream that depends on the level and blockSize alone.
type gzipWriter struct {
	pool  *Pool
	level int

	block []byte // being filled; with the dictionary in front
	dict  int    // length of the dictionary
	crc   uint32
	size  uint32 // modulo 2^32, as the trailer has it

	queue chan chan result // blocks in their order; the reader is drain
	done  chan struct{}    // closed by drain
	ended bool

	mu  sync.Mutex
	err error
}

type result struct {
	data []byte
	err  error
}

func (p *Pool) gzip(w io.Writer, level int) (io.WriteCloser, error) {
	// Flags, time and extra flags are 0, and the operating system unknown.
	if _, err := w.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}); err != nil {
		return nil, err
	}
	g := &gzipWriter{
		pool:  p,
		level: level,
		block: make([]byte, 0, windowSize+blockSize),
		// Memory is bounded by the blocks that wait here.
		queue: make(chan chan result, cap(p.slots)+1),
		done:  make(chan struct{}),
	}
	go g.drain(w)
	return g, nil
}

// Write fails after the first failure of the underlying writer.
func (g *gzipWriter) Write(p []byte) (int, error) {
	n := len(p)
	g.crc = crc32.Update(g.crc, crc32.IEEETable, p)
	g.size += uint32(n)
	for len(p) > 0 {
		if len(g.block)-g.dict == blockSize {
			if err := g.failed(); err != nil {
				return 0, err
			}
			g.send(false)
		}
		m := min(len(p), blockSize-(len(g.block)-g.dict))
		g.block = append(g.block, p[:m]...)
		p = p[m:]
	}
	return n, nil
}

// Close writes the rest and the trailer, and waits for all of it.
func (g *gzipWriter) Close() error {
	if g.ended {
		return g.failed()
	}
	g.ended = true
	g.send(true)
	trailer := make(chan result, 1)
	trailer <- result{data: binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, g.crc), g.size)}
	g.queue <- trailer
	close(g.queue)
	<-g.done
	return g.failed()
}

// send hands the block over to be compressed and begins the next.
func (g *gzipWriter) send(last bool) {
	block, dict := g.block, g.dict
	out := make(chan result, 1)
	g.queue <- out
	go func() {
		g.pool.slots <- struct{}{}
		defer func() { <-g.pool.slots }()
		data, err := deflate(g.level, block[:dict], block[dict:], last)
		out <- result{data, err}
	}()
	g.dict = min(len(block), windowSize)
	g.block = append(make([]byte, 0, windowSize+blockSize), block[len(block)-g.dict:]...)
}

// drain writes the blocks in their order. After a failure it goes on receiving,
// so that nobody waits for it.
func (g *gzipWriter) drain(w io.Writer) {
	defer close(g.done)
	for out := range g.queue {
		r := <-out
		if g.failed() != nil {
			continue
		}
		err := r.err
		if err == nil {
			_, err = w.Write(r.data)
		}
		if err != nil {
			g.mu.Lock()
			g.err = err
			g.mu.Unlock()
		}
	}
}

func (g *gzipWriter) failed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// deflaters keeps compressors, which are large, one pool a level.
var deflaters [10]sync.Pool

// deflate compresses block, which follows dict.
func deflate(level int, dict, block []byte, last bool) ([]byte, error) {
	if level < 0 || level >= len(deflaters) {
		return nil, fmt.Errorf("gzip: level %d is not 0 to 9", level)
	}
	var b bytes.Buffer
	b.Grow(len(block)/2 + 64)
	w, _ := deflaters[level].Get().(*flate.Writer)
	if w == nil {
		var err error
		if w, err = flate.NewWriterDict(&b, level, dict); err != nil {
			return nil, err
		}
	} else {
		w.ResetDict(&b, dict)
	}
	defer deflaters[level].Put(w)
	if _, err := w.Write(block); err != nil {
		return nil, err
	}
	var err error
	if last {
		err = w.Close()
	} else {
		err = w.Flush()
	}
	return b.Bytes(), err
}
