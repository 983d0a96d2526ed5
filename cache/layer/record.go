package layer

import (
	"cmp"
	"context"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/oci"
)

// Recorder writes the changes of a layer as they come, and adds up their digest.
// It holds some of them at a time, to hash files side by side.
type Recorder struct {
	ctx     context.Context
	dir     string
	limit   int
	entries *entryWriter
	digest  *digester
	window  []tree.Change
	known   *tree.Digests
	linked  tree.Digests // of files with several names that are not in known
}

// recorded is how many changes a Recorder holds.
const recorded = 1024

// NewRecorder writes entries to w, as WriteEntries does. Regular files that known,
// which may be nil, does not have the digest of are read under dir, limit at a time.
func NewRecorder(ctx context.Context, w io.Writer, dir string, limit int, known *tree.Digests) *Recorder {
	if known == nil {
		known = new(tree.Digests)
	}
	return &Recorder{ctx: ctx, dir: dir, limit: limit, known: known, entries: newEntryWriter(w), digest: newDigester()}
}

// Add adds a change; those of a layer come sorted.
func (r *Recorder) Add(c tree.Change) error {
	if c.HardLink == "" && !c.Removed && c.Type() == unix.S_IFREG {
		c.Digest = r.known.Get(c.Path)
	}
	r.window = append(r.window, c)
	if len(r.window) < recorded {
		return nil
	}
	return r.flush()
}

func (r *Recorder) flush() error {
	if err := hashFiles(r.ctx, r.window, r.dir, r.limit); err != nil {
		return err
	}
	for i := range r.window {
		c := &r.window[i]
		switch {
		case c.Removed || c.Type() != unix.S_IFREG:
		case c.HardLink != "":
			if c.Digest = cmp.Or(r.known.Get(c.HardLink), r.linked.Get(c.HardLink)); c.Digest == "" {
				return fmt.Errorf("hash layer: %s is a hard link to %s, which is not in the layer", c.Path, c.HardLink)
			}
		case c.Nlink > 1 && r.known.Get(c.Path) == "":
			r.linked.Set(c.Path, c.Digest)
		}
		r.entries.add(c)
		r.digest.add(c)
	}
	clear(r.window)
	r.window = r.window[:0]
	return nil
}

// End writes what is left, and is the layer's content digest: see Digest.
func (r *Recorder) End() (oci.Digest, error) {
	if err := r.flush(); err != nil {
		return "", err
	}
	return r.digest.sum(), r.entries.end()
}
