package builder

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor"
	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb/dockerfile"
	"github.com/861fb494/build/solver"
)

// squash makes, of each platform's result, the layers of this build one layer
// upon the base's. What the history tells of them stays, as entries that have
// no layer; one entry more stands for the layer, as with docker build --squash.
func (j *job) squash(ctx context.Context, w *executor.Worker, results []executor.Result) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range results {
		base, chain := len(j.lowered[i].Image.RootFS.DiffIDs), results[i].Layers
		if len(chain)-base < 2 {
			continue
		}
		g.Go(func() error {
			l, err := j.squashed(ctx, w, chain, base)
			if err != nil {
				return fmt.Errorf("squash: %w", err)
			}
			results[i].Layers = append(slices.Clone(chain[:base]), l)
			squashHistory(j.lowered[i], chain[base:])
			return nil
		})
	}
	return g.Wait()
}

// squashHistory gives layers, which are the history's last, to one entry.
func squashHistory(r *dockerfile.Result, layers []oci.Layer) {
	h := slices.Clone(r.Image.History)
	for i, left := len(h)-1, len(layers); i >= 0 && left > 0; i-- {
		if h[i].EmptyLayer {
			continue
		}
		h[i].EmptyLayer = true
		left--
		if at := layers[left].Created; h[i].Created == nil && !at.IsZero() {
			h[i].Created = &at
		}
	}
	r.Image.History = append(h, oci.History{
		Created:   r.Epoch,
		CreatedBy: "build --squash",
		Comment:   fmt.Sprintf("%d layers made one", len(layers)),
	})
}

// squashed is the layers of chain from base on as one, made at most once.
func (j *job) squashed(ctx context.Context, w *executor.Worker, chain []oci.Layer, base int) (oci.Layer, error) {
	records := executor.Records{Store: j.Store}
	key := solver.Key{Digest: squashKey(chain, base)}
	if r, err := records.Get(ctx, key); err == nil {
		return r.Layers[0], nil
	}
	unlock, err := records.Lock(ctx, key)
	if err != nil {
		return oci.Layer{}, err
	}
	defer unlock()
	if r, err := records.Get(ctx, key); err == nil {
		return r.Layers[0], nil // another process has made it meanwhile
	}
	var l oci.Layer
	err = internalStep(j.Sink, "squash:"+key.Digest.Encoded(), fmt.Sprintf("squash %d layers", len(chain)-base), func(progress.Step) error {
		chain, err := w.Fetch(ctx, chain)
		if err != nil {
			return err
		}
		l, err = j.mergeLayers(ctx, chain[:base], chain[base:])
		return err
	})
	if err != nil {
		return l, err
	}
	return l, records.Put(ctx, key, executor.Result{Layers: []oci.Layer{l}})
}

// squashKey names the squashed layer by the very layers it is made of, not by
// their content digests: these leave out modification times, which its tar has.
func squashKey(chain []oci.Layer, base int) oci.Digest {
	h := blake.Get()
	defer blake.Put(h)
	fmt.Fprintf(h, "squash %d\n", base)
	for _, l := range chain {
		fmt.Fprintf(h, "%s %s\n", l.ID, l.Content)
	}
	return blake.Digest(h)
}

// mergeLayers makes one layer upon base of the layers on top of it.
func (j *job) mergeLayers(ctx context.Context, base, layers []oci.Layer) (oci.Layer, error) {
	d, err := j.Store.Prepare(ctx, base)
	if err != nil {
		return oci.Layer{}, err
	}
	defer d.Discard()
	var root *tree.Entry
	var created time.Time
	for _, l := range layers {
		changes, err := j.apply(ctx, d.Tree, l)
		if err != nil {
			return oci.Layer{}, err
		}
		if len(changes) > 0 && changes[0].Path == "/" {
			root = &changes[0].Entry
		}
		if l.Created.After(created) {
			created = l.Created
		}
	}
	// A layer lists the directories above what it changes, but not the root:
	// its time would be that of this very moment.
	if root != nil {
		if err := d.Tree.SetMeta("/", *root); err != nil {
			return oci.Layer{}, err
		}
	}
	l, err := d.Commit(ctx, nil)
	if err == nil && !created.IsZero() {
		l.Created = created // so that the image does not tell when it was squashed
	}
	return l, err
}

// apply puts what l changes into t.
func (j *job) apply(ctx context.Context, t *tree.Tree, l oci.Layer) ([]tree.Change, error) {
	tar, err := j.Store.Tar(ctx, oci.Layer{ID: l.ID})
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	return layer.Apply(ctx, tar, t, layer.ApplyOptions{Complete: true})
}
