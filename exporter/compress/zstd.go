package compress

import (
	"io"
	"strconv"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// zstdBlock is how much of the input is a frame of its own (RFC 8878, section 3:
// the frames of a file are decompressed one after the other), in bytes: as much
// as the compressor's window, so that all of a frame is looked back at. The ends of
// frames of this size cost about two hundredths.
const zstdBlock = 8 << 20

// zstdLevel is the compressor's level, and whether it makes frames side by side.
// The higher levels look further back than a frame is long: theirs is one frame.
func zstdLevel(level int) (l zstd.EncoderLevel, blocks bool) {
	l = zstd.EncoderLevelFromZstd(level)
	return l, l <= zstd.SpeedDefault
}

func zstdRecipe(level int) string {
	// Levels of zstd map to fewer of the compressor's.
	l, blocks := zstdLevel(level)
	recipe := "zstd klauspost/" + version + " level=" + l.String()
	if blocks {
		recipe += " block=" + strconv.Itoa(zstdBlock)
	}
	return recipe
}

func (p *Pool) zstd(w io.Writer, level int) (io.WriteCloser, error) {
	l, blocks := zstdLevel(level)
	if !blocks {
		// The compressor's own concurrency overlaps its stages and leaves the
		// bytes alone.
		return zstd.NewWriter(w, zstd.WithEncoderLevel(l), zstd.WithEncoderConcurrency(min(cap(p.slots), 2)))
	}
	pack := func(out, _, block []byte, _ bool) ([]byte, error) { return zstdFrame(l, out, block) }
	return p.blocks(w, codec{size: zstdBlock, pack: pack}), nil
}

// frames keeps compressors, one pool a level.
var frames [zstd.SpeedDefault + 1]sync.Pool

func zstdFrame(l zstd.EncoderLevel, out, block []byte) ([]byte, error) {
	z, _ := frames[l].Get().(*zstd.Encoder)
	if z == nil {
		var err error
		z, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(l), zstd.WithEncoderConcurrency(1), zstd.WithZeroFrames(true),
			zstd.WithEncoderCRC(false), // a layer has its digest
			zstd.WithLowerEncoderMem(true),
		)
		if err != nil {
			return nil, err
		}
	}
	defer frames[l].Put(z)
	return z.EncodeAll(block, out), nil
}
