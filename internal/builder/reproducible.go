package builder

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/861fb494/build/executor"
	"github.com/861fb494/build/exporter"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
)

// An image is bounded if no file of a layer that was built here is later than
// SOURCE_DATE_EPOCH. Layers keep the times that they were built with: the bound
// is put on the tar as it is made, so that cached steps serve both kinds of
// image. Layers of base images stay as they are, bounded or not; they are told
// by their diff IDs, which those of this build's steps do not have yet.

// bounds reports whether o gets bounded images.
func (j *job) bounds(o exporter.Output) bool { return j.Reproducible || o.RewriteTimestamp() }

// epoch is the bound for platform i; the zero time where there is none.
func (j *job) epoch(i int) time.Time {
	if e := j.lowered[i].Epoch; e != nil {
		return *e
	}
	return time.Time{}
}

// epochs is the bound for the layers of each step.
func (j *job) epochs() map[oci.Digest]time.Time {
	of := map[oci.Digest]time.Time{}
	for i, target := range j.graph.Targets {
		llb.Graph{Targets: []*llb.Node{target}}.Walk(func(n *llb.Node) {
			if _, ok := of[n.Digest]; !ok {
				of[n.Digest] = j.epoch(i)
			}
		})
	}
	return of
}

// warnUnbounded tells of an output that cannot have what it asks for.
func (j *job) warnUnbounded(o exporter.Output) {
	for i := range j.lowered {
		if o.RewriteTimestamp() && j.epoch(i).IsZero() {
			j.Sink.Emit(progress.Warning{
				Message: "rewrite-timestamp=true has no effect without SOURCE_DATE_EPOCH",
				Detail:  "set it by --build-arg or in the environment, or use --reproducible",
			})
			return
		}
	}
}

// bounded is layers with the bound on those that were built here. Imported ones
// whose tars have another bound are left alone.
func (j *job) bounded(layers []oci.Layer, epoch time.Time) []oci.Layer {
	if epoch.IsZero() {
		return layers
	}
	out := slices.Clone(layers)
	for i := range out {
		l := &out[i]
		if id := j.rewritten[rewriteKey(*l, epoch)]; l.Imported && id != "" {
			*l = oci.Layer{ID: id, Content: l.Content, Created: l.Created} // as one that was built here
		}
		if l.Blob == nil && l.DiffID == "" {
			l.Epoch = epoch
		}
		if l.Created.After(epoch) {
			l.Created = epoch // it may get into a history or a cache's index
		}
	}
	return out
}

// ofBase reports whether an imported layer is of a base image: one that was
// built where the cache comes from travels in it.
func ofBase(l oci.Layer) bool { return l.Content == l.DiffID }

func rewriteKey(l oci.Layer, epoch time.Time) string {
	return l.ID + "@" + strconv.FormatInt(epoch.Unix(), 10)
}

// rewrite is bounded for an image: an imported layer whose tar has a later bound
// or none is fetched, to be written anew.
func (j *job) rewrite(ctx context.Context, w *executor.Worker, layers []oci.Layer, epoch time.Time) ([]oci.Layer, error) {
	if epoch.IsZero() {
		return layers, nil
	}
	for i, l := range layers {
		if !l.Imported || ofBase(l) || l.Epoch.Equal(epoch) {
			continue
		}
		here, err := w.Fetch(ctx, layers[:i+1])
		if err != nil {
			return nil, err
		}
		if j.rewritten == nil {
			j.rewritten = map[string]string{}
		}
		j.rewritten[rewriteKey(l, epoch)] = here[i].ID
	}
	return j.bounded(layers, epoch), nil
}

// tooOld says why a step's result is of no use to the build: in an imported layer
// times may end before the bound, and what they would be here nobody knows.
func (j *job) tooOld(layers []oci.Layer, epoch time.Time) error {
	if epoch.IsZero() || !j.Reproducible && !slices.ContainsFunc(j.Outputs, j.bounds) {
		return nil
	}
	for _, l := range layers {
		if l.Imported && !ofBase(l) && !l.Epoch.IsZero() && l.Epoch.Before(epoch) {
			return fmt.Errorf("it was imported from a build with SOURCE_DATE_EPOCH=%d, and this one has %d", l.Epoch.Unix(), epoch.Unix())
		}
	}
	return nil
}
