package registry

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

const (
	// tries bounds how often a request is made that fails in passing. With
	// pauses of 0.2 to 3.2 seconds they span some six seconds.
	tries = 6
	// mirrorTries is less: there is somebody else to ask.
	mirrorTries = 2
	// longestPause bounds what a server's Retry-After is obeyed to.
	longestPause = time.Minute
)

// retry calls f up to n times, as long as it fails in passing.
func (c *Client) retry(ctx context.Context, n int, f func() error) error {
	for i := 0; ; i++ {
		err := f()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		after, ok := transient(err)
		if !ok || i+1 >= n || after > longestPause {
			return err
		}
		if dialTimeout(err) && i > 0 {
			return err // each took a quarter of a minute already
		}
		if err := c.sleep(ctx, i, after); err != nil {
			return err
		}
	}
}

// sleep pauses after the try number i, counted from 0: at least for atLeast.
func (c *Client) sleep(ctx context.Context, i int, atLeast time.Duration) error {
	pause := min(c.pause<<i, 10*time.Second)
	pause += rand.N(pause/4 + 1) // so that parallel downloads do not come back at once
	t := time.NewTimer(max(pause, atLeast))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// transient reports whether err may not happen again, and how long the server
// asked to be left alone.
func transient(err error) (after time.Duration, ok bool) {
	var local *localError
	var status *transport.Error
	var dns *net.DNSError
	var op *net.OpError
	var timeout net.Error
	switch {
	case errors.As(err, &local), errors.Is(err, context.Canceled):
		return 0, false
	case errors.As(err, &status):
		switch status.StatusCode {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return retryAfter(err), true
		}
		return 0, false
	case errors.Is(err, errStalled):
		return 0, true
	case errors.As(err, &dns):
		return 0, dns.IsTemporary && !dns.IsNotFound
	case errors.As(err, &op) && op.Op == "dial":
		return 0, op.Timeout()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNABORTED),
		errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ETIMEDOUT):
		return 0, true
	case errors.As(err, &timeout) && timeout.Timeout():
		return 0, true
	}
	// net/http has no types for these.
	s := err.Error()
	return 0, strings.Contains(s, "http2: ") || strings.Contains(s, "server closed idle connection") ||
		strings.Contains(s, "transport connection broken") || strings.Contains(s, "stream error: ")
}

// retryAfter reads RFC 9110's Retry-After: seconds or a date.
func retryAfter(err error) time.Duration {
	var e *statusError
	if !errors.As(err, &e) {
		return 0
	}
	v := e.header.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil && n > 0 {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

func dialTimeout(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" && op.Timeout()
}

// unreachable reports whether err says that nobody answered.
func unreachable(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	return errors.As(err, &op) && op.Op == "dial" || errors.As(err, &dns) || errors.Is(err, errStalled)
}
