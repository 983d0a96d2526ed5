package image

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/861fb494/build/internal/gunzip"
)

// maxWindow bounds the memory that a foreign zstd frame can ask for, in bytes:
// what zstd(1) accepts without --long.
const maxWindow = 128 << 20

// Decompress reads gzip, zstd, or what is neither as it is, told by the first
// bytes. Closing it closes r.
func Decompress(r io.ReadCloser) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		r.Close()
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return &decompressor{Reader: gunzip.NewReader(b), rest: b, close: r.Close}, nil
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("decompress: %w", err)
		}
		return &decompressor{Reader: z, rest: b, close: func() error { z.Close(); return r.Close() }}, nil
	}
	return &decompressor{Reader: b, rest: b, close: r.Close}, nil
}

type decompressor struct {
	io.Reader
	rest  io.Reader
	close func() error
}

// Read also reads what lies behind the compressed stream, so that a reader
// below that verifies gets to its end.
func (d *decompressor) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	if err == io.EOF {
		if _, e := io.Copy(io.Discard, d.rest); e != nil {
			return n, e
		}
	}
	return n, err
}

func (d *decompressor) Close() error { return d.close() }
