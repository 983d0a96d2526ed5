package source

import (
	"context"
	"fmt"
	"sync"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/pick"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// Stamp is what the file system says of a file; while it stays the same, so
// does the content.
type Stamp = cache.Stamp

// Stats are content digests of files by their stamps, from earlier builds; see
// Context.Hashed for later ones.
type Stats interface {
	// Get is the digest of the file name in the host directory dir, which has a
	// slash at its end, if it was recorded with the same stamp. It is fastest for
	// the files of a directory in order.
	Get(dir, name string, s Stamp) (cache.Sum, bool)
}

// Local is the user's directories: the context and the named contexts.
type Local struct {
	contexts map[string]*Context

	mu     sync.Mutex
	pinned map[oci.Digest]llb.Source
}

// NewLocal takes the contexts by name. They stay the caller's to close.
func NewLocal(contexts map[string]*Context) *Local {
	return &Local{contexts: contexts, pinned: map[oci.Digest]llb.Source{}}
}

// Pin hashes the files that s selects.
func (l *Local) Pin(ctx context.Context, s llb.Source) (llb.Source, error) {
	c, ok := l.contexts[s.Ref]
	if !ok {
		return s, fmt.Errorf("there is no context %q", s.Ref)
	}
	d, err := pick.Digest(ctx, c, Selection(s.Select), c.Digest)
	if err != nil {
		return s, err
	}
	s.Digest = d
	l.mu.Lock()
	l.pinned[d] = s
	l.mu.Unlock()
	return s, nil
}

// Listing is the files that a pinned digest was made of.
func (l *Local) Listing(ctx context.Context, d oci.Digest) (*cache.ListingWriter, error) {
	l.mu.Lock()
	s, ok := l.pinned[d]
	l.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("nothing was pinned as %s", d)
	}
	list := new(cache.ListingWriter)
	sel := Selection(s.Select)
	sel.List = func(e *tree.Entry, sum pick.Sum) {
		list.Add(cache.Listed{Path: e.Path, Sum: sum, ModTime: e.ModTime})
	}
	c := l.contexts[s.Ref]
	_, err := pick.Digest(ctx, c, sel, c.Digest)
	return list, err
}

// Selection is s in pick's terms: what a context's files are hashed as.
func Selection(s llb.Select) pick.Selection {
	paths := s.Paths
	if len(paths) == 0 {
		paths = []string{"/"}
	}
	return pick.Selection{Sources: paths, Wildcards: s.Wildcards, Parents: s.Parents, Excludes: s.Excludes}
}

// Open is the directory itself.
func (l *Local) Open(_ context.Context, s llb.Source) (Content, error) {
	c, ok := l.contexts[s.Ref]
	if !ok {
		return Content{}, fmt.Errorf("there is no context %q", s.Ref)
	}
	return Content{Context: c}, nil
}
