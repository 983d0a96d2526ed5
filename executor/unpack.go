package executor

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/executor/archive"
	"github.com/861fb494/build/executor/pick"
	"github.com/861fb494/build/internal/blake"
)

// unpack extracts m at the destination if it is an archive, known by its
// content, and reports whether it was one.
func (c *copier) unpack(ctx context.Context, m pick.Match, filter pick.Filter) (bool, error) {
	t, err := c.from.Quick(m.Real)
	if err != nil || t.Type() != unix.S_IFREG {
		return false, err
	}
	f, err := c.from.Open(m.Real)
	if err != nil {
		return false, err
	}
	defer f.Close()
	h := blake.Get()
	defer blake.Put(h)
	whole := io.TeeReader(f, h)
	a, err := archive.Open(whole)
	if errors.Is(err, archive.ErrNone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer a.Close()
	at, err := c.to.Resolve(c.dest, true)
	if err != nil {
		return true, err
	}
	o := archive.Options{Digests: &c.known, Now: c.now}
	var who *owner
	if c.chowned {
		who = c.who
		o.Owner = &archive.Owner{UID: who.uid, GID: who.gid}
	}
	if err := c.mkdirAll(at, 0o755, who); err != nil {
		return true, err
	}
	if err := a.Extract(ctx, c.to, at, o); err != nil {
		return true, err
	}
	// What follows the archive's end was pinned with it.
	if _, err := io.Copy(io.Discard, whole); err != nil {
		return true, err
	}
	return true, pick.Walk(ctx, c.from, m, filter, func(it pick.Item) error {
		return c.lane.Add(act{kind: actItem, item: it, digest: blake.Digest(h)})
	})
}
