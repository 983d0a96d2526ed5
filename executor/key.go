package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/pick"
	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/solver"
)

// Key is the step's key by the content of its inputs: what the operation says,
// what the tree it changes holds, and of other inputs what it can take.
func (w *Worker) Key(ctx context.Context, n *llb.Node, in []Result) (solver.Key, error) {
	k := solver.Key{Place: w.place(n), Parts: w.describe(n)}
	part := func(name, value string) { k.Parts = append(k.Parts, solver.Part{Name: name, Value: value}) }
	switch op := n.Op.(type) {
	case llb.Source:
		part("source", op.Ref)
		part("digest", op.Digest.String())
		k.Digest = n.Digest
		return k, nil
	case llb.Merge:
		for i, r := range in {
			part("input "+strconv.Itoa(i), r.Content().String())
		}
	case llb.File:
		part(partOperation, llb.New(op).Digest.String())
		part(partBase, in[0].Content().String())
		for i, a := range op.Actions {
			c, ok := a.(llb.Copy)
			if !ok {
				continue
			}
			d, err := w.selected(ctx, n, in[c.Input], copySelection(c))
			if err != nil {
				return k, err
			}
			part(partFiles+strconv.Itoa(i), d.String())
		}
	case llb.Exec:
		part(partOperation, llb.New(op).Digest.String())
		part(partBase, in[0].Content().String())
		for _, m := range op.Mounts {
			if m.Input == 0 {
				continue
			}
			d, err := w.selected(ctx, n, in[m.Input], pick.Selection{Sources: []string{mountSource(m)}, Owners: true, Xattrs: true})
			if err != nil {
				return k, fmt.Errorf("mount %s: %w", m.Target, err)
			}
			part(partMount+m.Target, d.String())
		}
	}
	k.Digest = partsDigest(k.Parts)
	return k, nil
}

func mountSource(m llb.Mount) string {
	if m.Source == "" {
		return "/"
	}
	return m.Source
}

func copySelection(c llb.Copy) pick.Selection {
	return pick.Selection{Sources: c.Sources, Wildcards: c.Wildcards, Parents: c.Parents, Excludes: c.Excludes, Owners: c.Keep && c.Owner == ""}
}

// place names the step in a way that the next build's equals; "" for one that no
// instruction asks for by itself.
func (w *Worker) place(n *llb.Node) string {
	m := w.Meta[n.Digest]
	if m.Ordinal == 0 {
		return ""
	}
	file := ""
	if len(m.Positions) > 0 {
		file = m.Positions[0].File
	}
	what := fmt.Sprintf("%T", n.Op)
	if m.Internal {
		what += " inside" // the inline document of a COPY is no COPY
	}
	return fmt.Sprintf("%s\x00%s\x00%s\x00%d\x00%s\x00%s", w.Project, file, m.Stage, m.Ordinal, what, m.Platform)
}

// Known reports whether a step was recorded at n's place.
func (w *Worker) Known(n *llb.Node) bool {
	place := w.place(n)
	if place == "" {
		return false
	}
	_, err := w.Store.Last(place)
	return err == nil
}

func partsDigest(parts []solver.Part) oci.Digest {
	h := blake.Get()
	defer blake.Put(h)
	for _, p := range parts {
		if p.Info {
			continue
		}
		fmt.Fprintf(h, "%d:%s%d:%s", len(p.Name), p.Name, len(p.Value), p.Value)
	}
	return blake.Digest(h)
}

// selected is the digest of what s selects of r.
func (w *Worker) selected(ctx context.Context, n *llb.Node, r Result, s pick.Selection) (oci.Digest, error) {
	if r.Local != nil {
		// Pinned with the selection of the very step that asks.
		if !w.Store.HasListing(r.Local.Digest) {
			if list, err := w.Local.Listing(ctx, r.Local.Digest); err == nil {
				w.list(r.Local.Digest, list)
			}
		}
		return r.Local.Digest, nil
	}
	if len(s.Sources) == 1 && s.Sources[0] == "/" && len(s.Excludes) == 0 && !s.Parents {
		return r.Content(), nil
	}
	t, err := w.keyed(ctx, r)
	if err != nil {
		return "", err
	}
	defer t.Close()
	list := new(cache.ListingWriter)
	s.List = func(e *tree.Entry, sum pick.Sum) {
		list.Add(cache.Listed{Path: e.Path, Sum: sum, ModTime: e.ModTime})
	}
	d, err := pick.Digest(ctx, t, s, t.digest)
	if errors.Is(err, context.Canceled) {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return "", err
	}
	w.list(d, list)
	return d, nil
}

// list keeps what a digest was made of, for the day when it is another one.
// That it cannot be kept is no reason for a build to fail.
func (w *Worker) list(d oci.Digest, files *cache.ListingWriter) {
	_ = w.Store.PutListing(d, files)
}

// chainView is a chain to be read, with the digests that its layers recorded.
type chainView struct {
	*tree.Tree
	store  *cache.Store
	layers []oci.Layer

	load    sync.Once
	digests map[string]oci.Digest
	err     error
}

// view opens r, which is no context, with all its layers fetched.
func (w *Worker) view(ctx context.Context, n *llb.Node, r Result) (*chainView, error) {
	layers, err := w.Fetch(ctx, r.Layers)
	if err != nil {
		return nil, err
	}
	s, err := w.Store.View(ctx, layers)
	if err != nil {
		return nil, err
	}
	return &chainView{Tree: s.Tree, store: w.Store, layers: layers}, nil
}

// digest is the content digest of the regular file e: as recorded with the layer
// that has it, else of what is read.
func (v *chainView) digest(_ context.Context, e tree.Entry) (oci.Digest, error) {
	d, err := v.recorded(e.Path)
	if err != nil || d != "" {
		return d, err
	}
	f, err := v.Open(e.Path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return copyHashed(io.Discard, f)
}

// recorded is the digest that the layer which has the file p recorded; "" where
// it did not.
func (v *chainView) recorded(p string) (oci.Digest, error) {
	v.load.Do(func() { v.err = v.read() })
	return v.digests[p], v.err
}

func (v *chainView) read() error {
	v.digests = map[string]oci.Digest{}
	for _, l := range v.layers { // upper layers overwrite lower ones
		for c, err := range v.store.Entries(l.ID) {
			if err != nil {
				return fmt.Errorf("read the entries of layer %s: %w", l.ID, err)
			}
			switch {
			case c.Removed:
			case c.Digest == "" && c.HardLink != "": // which comes before it
				v.digests[c.Path] = v.digests[c.HardLink]
			default:
				v.digests[c.Path] = c.Digest
			}
		}
	}
	return nil
}
