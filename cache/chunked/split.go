package chunked

import (
	"errors"
	"fmt"
	"io"

	chunkers "github.com/PlakarKorp/go-cdc-chunkers"
	_ "github.com/PlakarKorp/go-cdc-chunkers/chunkers/fastcdc" // registers the algorithm
)

// Sizes of chunks, in bytes. What has been put out with others is still read, but
// shares nothing with what is put out now.
const (
	minChunk = 1 << 10
	avgChunk = 4 << 10
	maxChunk = 32 << 10
)

// splitter cuts content into chunks. It is not safe for concurrent use.
type splitter struct {
	c   *chunkers.Chunker
	buf []byte
}

func newSplitter() (*splitter, error) {
	s := &splitter{buf: make([]byte, 4*maxChunk)}
	var err error
	s.c, err = chunkers.NewChunkerBuffer("fastcdc-v1.0.0", nil, &chunkers.ChunkerOpts{MinSize: minChunk, NormalSize: avgChunk, MaxSize: maxChunk}, s.buf)
	if err != nil {
		return nil, fmt.Errorf("cut content into chunks: %w", err)
	}
	return s, nil
}

// split calls each with the chunks of r, which are at most size bytes; their
// bytes are each's until it returns.
func (s *splitter) split(r io.Reader, size int64, each func([]byte) error) error {
	if size <= minChunk {
		n, err := io.ReadFull(r, s.buf[:size])
		if err != nil && err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		if n == 0 {
			return nil
		}
		return each(s.buf[:n])
	}
	s.c.Reset(r)
	for {
		data, err := s.c.Next()
		if err != nil && err != io.EOF {
			return err
		}
		if len(data) > 0 {
			if err := each(data); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}
