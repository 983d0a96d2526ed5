package source

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/861fb494/build/executor/archive"
	"github.com/861fb494/build/llb"
)

// Date is when the commit that s names was made.
func (g *Git) Date(ctx context.Context, s llb.Source) (*time.Time, error) {
	s, err := g.Pin(ctx, s)
	if err != nil {
		return nil, err
	}
	c, unlock, err := g.fetched(ctx, s)
	if err != nil {
		return nil, err
	}
	defer unlock()
	out, err := c.run(ctx, "show", "--no-patch", "--format=%ct", s.Digest.Encoded())
	if err != nil {
		return nil, err
	}
	sec, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("git %s: date of commit %s: %w", redact(s.Ref), s.Digest.Encoded(), err)
	}
	t := time.Unix(sec, 0).UTC()
	return &t, nil
}

// Date is when the file at s was last changed, as its server says; where it
// does not, the date of the newest file in it if it is an archive, else nil.
func (h *HTTP) Date(ctx context.Context, s llb.Source) (*time.Time, error) {
	s, err := h.Pin(ctx, s)
	if err != nil {
		return nil, err
	}
	c, err := h.Open(ctx, s) // verified
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(c.Dir)
	f, err := os.Open(c.Dir + "/" + s.Filename)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if t := st.ModTime().UTC(); t.Unix() != 0 {
		return &t, nil
	}
	a, err := archive.Open(f)
	if err != nil {
		return nil, nil // it is none
	}
	defer a.Close()
	t, err := a.Newest(ctx)
	if err != nil {
		return nil, nil
	}
	return t, nil
}
