package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// errStalled is the cause of a transfer's end by its watchdog.
var errStalled = errors.New("no data came for too long")

// watchdog cancels a context when it has not been fed for a while.
type watchdog struct {
	cancel context.CancelCauseFunc
	timer  *time.Timer
	after  time.Duration
}

func newWatchdog(ctx context.Context, after time.Duration) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &watchdog{
		cancel: cancel,
		timer:  time.AfterFunc(after, func() { cancel(errStalled) }),
		after:  after,
	}
}

func (w *watchdog) feed() { w.timer.Reset(w.after) }

func (w *watchdog) stop() {
	w.timer.Stop()
	w.cancel(context.Canceled)
}

// watchedBody is a response's body. The watchdog counts only while a Read
// waits: a slow reader is not a stalled server.
type watchedBody struct {
	io.ReadCloser
	ctx context.Context
	dog *watchdog
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.dog.feed()
	n, err := b.ReadCloser.Read(p)
	b.dog.timer.Stop()
	if err != nil && err != io.EOF {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (b *watchedBody) Close() error {
	err := b.ReadCloser.Close()
	b.dog.stop()
	return err
}

// localErrors opens the bodies of a request and remembers what went wrong on
// this side, which no further try would mend.
type localErrors struct {
	open func() (io.ReadCloser, error)
	size int64
	dog  *watchdog

	mu     sync.Mutex
	failed error
}

func (l *localErrors) err() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

func (l *localErrors) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil {
		l.failed = &localError{err}
	}
}

func (l *localErrors) body() (io.ReadCloser, error) {
	rc, err := l.open()
	if err != nil {
		l.fail(err)
		return nil, l.err()
	}
	return &localBody{ReadCloser: rc, l: l}, nil
}

type localBody struct {
	io.ReadCloser
	l *localErrors
	n int64
}

func (b *localBody) Read(p []byte) (int, error) {
	b.l.dog.timer.Stop() // whoever makes the bytes may take as long as it takes
	n, err := b.ReadCloser.Read(p)
	b.l.dog.feed()
	b.n += int64(n)
	switch {
	case err != nil && err != io.EOF:
		b.l.fail(err)
	case b.l.size == unknownSize:
	case b.n > b.l.size, err == io.EOF && b.n < b.l.size:
		b.l.fail(fmt.Errorf("%d bytes to send instead of %d", b.n, b.l.size))
		return n, b.l.err()
	}
	return n, err
}

// localError is a failure to read what is to be sent.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }
