// Package compress compresses layers: the same bytes from the same tar on every
// machine, whatever the number of cores.
package compress

import (
	"fmt"
	"io"
	"strconv"

	specs "github.com/opencontainers/image-spec/specs-go/v1"
)

// version is the release of github.com/klauspost/compress. Another one may
// make other bytes, so it is part of each recipe; a test compares it with the
// module's.
const version = "1.20.3"

// Types of compression.
const (
	Gzip         = "gzip"
	Zstd         = "zstd"
	Uncompressed = "uncompressed"
)

// Method is how to compress. The zero value is gzip with its default level.
type Method struct {
	Type  string // Gzip, Zstd or Uncompressed; empty: Gzip
	Level *int   // gzip: 0 to 9, zstd: 1 to 22; nil: the default, 6 and 3
}

// Parse checks what a user asks for; name may be empty.
func Parse(name string, level *int) (Method, error) {
	m := Method{Type: name, Level: level}
	low, high := 0, 9
	switch name {
	case "", Gzip:
		m.Type = Gzip
	case Zstd:
		low, high = 1, 22
	case Uncompressed:
		if level != nil {
			return m, fmt.Errorf("compression level %d: %s has no levels", *level, name)
		}
	case "estargz":
		return m, fmt.Errorf("compression %q is not supported: use gzip, zstd or uncompressed", name)
	default:
		return m, fmt.Errorf("compression %q is not known: use gzip, zstd or uncompressed", name)
	}
	if level != nil && (*level < low || *level > high) {
		return m, fmt.Errorf("compression level %d: %s has %d to %d", *level, m.Type, low, high)
	}
	return m, nil
}

func (m Method) level() int {
	if m.Level != nil {
		return *m.Level
	}
	if m.Type == Zstd {
		return 3
	}
	// As gzip(1); beyond it time grows much faster than size shrinks.
	return 6
}

// Recipe names all that decides the bytes: compressor, version, level and block
// size. It is the key of the records of compressed layers.
func (m Method) Recipe() string {
	switch m.Type {
	case Uncompressed:
		return Uncompressed
	case Zstd:
		return zstdRecipe(m.level())
	}
	return "gzip klauspost/" + version + " level=" + strconv.Itoa(m.level()) + " block=" + strconv.Itoa(gzipBlock)
}

// MediaType is that of a layer compressed so.
func (m Method) MediaType() string {
	switch m.Type {
	case Uncompressed:
		return specs.MediaTypeImageLayer
	case Zstd:
		return specs.MediaTypeImageLayerZstd
	}
	return specs.MediaTypeImageLayerGzip
}

// Pool bounds how much is compressed at a time.
type Pool struct {
	slots chan struct{} // held while a block is compressed
	room  chan struct{} // held by a block until it is written

	memory memory
}

// NewPool returns a pool that keeps n cores busy at most, and holds some blocks
// more than that in memory.
func NewPool(n int) *Pool {
	n = max(n, 1)
	return &Pool{slots: make(chan struct{}, n), room: make(chan struct{}, n+2)}
}

// Writer compresses what is written to it into w. It must be closed, also after
// an error; Close does not close w.
func (p *Pool) Writer(w io.Writer, m Method) (io.WriteCloser, error) {
	switch m.Type {
	case Uncompressed:
		return nopCloser{w}, nil
	case Zstd:
		return p.zstd(w, m.level())
	}
	return p.gzip(w, m.level())
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
