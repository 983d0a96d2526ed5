package builder

import (
	"context"
	"io"
	"os"
)

// stoppable reads r until ctx ends, whether or not a Read returns then: one of a
// terminal or a pipe may last for ever.
func stoppable(ctx context.Context, r io.Reader) io.Reader { return &stopReader{ctx: ctx, r: r} }

type stopReader struct {
	ctx context.Context
	r   io.Reader
	buf []byte // of the Read that goes on, so that it never writes to a caller's
}

func (s *stopReader) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	if len(s.buf) < len(p) {
		s.buf = make([]byte, len(p))
	}
	var n int
	err := beforeEnd(s.ctx, func() (err error) {
		n, err = s.r.Read(s.buf[:len(p)])
		return err
	})
	if s.ctx.Err() != nil && err != nil {
		return 0, err // the Read may not have ended
	}
	return copy(p, s.buf[:n]), err
}

// openStoppable opens a file for reading, which for a FIFO lasts until somebody opens
// it for writing, until ctx ends.
func openStoppable(ctx context.Context, open func() (*os.File, error)) (*os.File, error) {
	opened := make(chan *os.File, 1)
	err := beforeEnd(ctx, func() error {
		defer close(opened)
		f, err := open()
		if err == nil {
			opened <- f
		}
		return err
	})
	if err != nil {
		go func() { // it may still be opened
			if f, ok := <-opened; ok {
				f.Close()
			}
		}()
		return nil, err
	}
	return <-opened, nil
}

// beforeEnd calls f, and returns its error or, without waiting for f any longer, that
// of ctx.
func beforeEnd(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
