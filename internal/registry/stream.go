package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/861fb494/build/internal/oci"
)

// PushStream makes sure that ref's repository has a blob that is still being
// made: open's bytes are sent as they come, and desc, which waits for their end,
// then says what they were. Both may be called several times. Where the
// repository turns out to have the blob before all of it is sent, the rest is
// not. A registry that does not take a blob of unknown size (Docker sends all of
// them so) gets it as PushBlob sends it, once it is made.
func (c *Client) PushStream(ctx context.Context, ref oci.Reference, open func() (io.ReadCloser, error), desc func(context.Context) (oci.Descriptor, error)) error {
	e, err := c.endpoint(ref)
	if err != nil {
		return err
	}
	var to *url.URL
	err = c.retry(ctx, tries, func() error {
		to, _, err = e.begin(ctx, nil)
		return err
	})
	if err != nil {
		return explain(ref, e, "push", "blob", err)
	}
	var there atomic.Bool
	sending, stop := context.WithCancel(ctx)
	var looking sync.WaitGroup
	looking.Go(func() {
		if d, err := desc(sending); err == nil && e.hasSoon(sending, d) {
			there.Store(true)
			stop()
		}
	})
	err = e.stream(sending, to, open, desc)
	stop()
	looking.Wait()
	var local *localError
	switch {
	case err == nil || there.Load():
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &local):
		return explain(ref, e, "push", "blob", err)
	}
	// Whatever it was, the blob is here by then, and can be sent more than once.
	d, err := desc(ctx)
	if err != nil {
		return err
	}
	return c.PushBlob(ctx, ref, d, open, "")
}

// lookAfter is how long a blob that is made may take to be sent before it is
// worth to ask whether it is there already.
const lookAfter = 200 * time.Millisecond

// hasSoon reports whether the repository has blob d, after a pause that ctx may
// end.
func (e endpoint) hasSoon(ctx context.Context, d oci.Descriptor) bool {
	select {
	case <-time.After(lookAfter):
		return e.headBlob(ctx, d.Digest, pushScope(e)) == nil
	case <-ctx.Done():
		return false
	}
}

// stream is one try to send a blob of unknown size to the upload at to: one PATCH
// of all its bytes.
func (e endpoint) stream(ctx context.Context, to *url.URL, open func() (io.ReadCloser, error), desc func(context.Context) (oci.Descriptor, error)) error {
	resp, err := e.do(ctx, request{
		method: http.MethodPatch, url: to, scopes: pushScope(e),
		header: http.Header{"Content-Type": {"application/octet-stream"}},
		body:   open, size: unknownSize,
		ok: []int{http.StatusAccepted, http.StatusNoContent, http.StatusOK},
	})
	if err != nil {
		return err
	}
	discard(resp)
	d, err := desc(ctx)
	if err != nil {
		return err
	}
	if to, err = e.location(resp); err != nil {
		return fmt.Errorf("send a blob: %s gave no place for its end: %w", e.name, err)
	}
	return e.end(ctx, to, d, func() (io.ReadCloser, error) { return http.NoBody, nil }, 0)
}
