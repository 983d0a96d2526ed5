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

// gzipBlock is how much of the input is compressed on its own, in bytes. At
// this size the blocks' ends cost about a thousandth, and a layer of a few
// megabytes already keeps several cores busy.
const gzipBlock = 1 << 20

// windowSize is how far back deflate refers (RFC 1951); that much of the block
// before is each block's dictionary.
const windowSize = 32 << 10

// gzipWriter makes one gzip member (RFC 1952), in parallel: every block is
// compressed on its own with the end of the one before as its dictionary, and
// ended by an empty stored block, as pigz does. The output is one valid deflate
// stream that depends on the level and gzipBlock alone.
type gzipWriter struct {
	*blockWriter
	w    io.Writer
	crc  uint32
	size uint32 // modulo 2^32, as the trailer has it
}

func (p *Pool) gzip(w io.Writer, level int) (io.WriteCloser, error) {
	if level < 0 || level >= len(deflaters) {
		return nil, fmt.Errorf("gzip: level %d is not 0 to 9", level)
	}
	// Flags, time and extra flags are 0, and the operating system unknown.
	if _, err := w.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}); err != nil {
		return nil, err
	}
	pack := func(out, dict, block []byte, last bool) ([]byte, error) {
		return deflate(level, out, dict, block, last)
	}
	return &gzipWriter{w: w, blockWriter: p.blocks(w, codec{size: gzipBlock, window: windowSize, pack: pack})}, nil
}

func (g *gzipWriter) Write(p []byte) (int, error) {
	g.crc = crc32.Update(g.crc, crc32.IEEETable, p)
	g.size += uint32(len(p))
	return g.blockWriter.Write(p)
}

// Close writes the rest and the trailer.
func (g *gzipWriter) Close() error {
	ended := g.ended
	err := g.blockWriter.Close()
	if ended || err != nil {
		return err
	}
	_, err = g.w.Write(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, g.crc), g.size))
	return err
}

// deflaters keeps compressors, which are large, one pool a level.
var deflaters [10]sync.Pool

// deflate appends to out what block, which follows dict, is compressed.
func deflate(level int, out, dict, block []byte, last bool) ([]byte, error) {
	b := bytes.NewBuffer(out)
	b.Grow(len(block)/2 + 64)
	w, _ := deflaters[level].Get().(*flate.Writer)
	if w == nil {
		var err error
		if w, err = flate.NewWriterDict(b, level, dict); err != nil {
			return nil, err
		}
	} else {
		w.ResetDict(b, dict)
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
	data := b.Bytes()
	*b = bytes.Buffer{} // the pooled writer refers to it, and out is not for ever
	return data, err
}
