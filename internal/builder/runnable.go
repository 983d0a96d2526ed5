package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/executor"
	"github.com/861fb494/build/executor/source"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
)

// Runnable is an image that a container can be started from: its layers are
// here as snapshots.
type Runnable struct {
	Name   string     // as a user knows it
	ID     oci.Digest // of the configuration; empty for a result that nothing named
	Image  oci.Image
	Layers []oci.Layer // lowest first
}

// Runnable finds an image by what a user writes — a name, an ID or the
// beginning of one, what a build without a name printed — and unpacks it. A
// name that is not here is pulled, and is here then; with pull, any name is.
func (b *Builder) Runnable(ctx context.Context, name string, p oci.Platform, pull bool, sink progress.Sink) (Runnable, error) {
	r, err := b.newRemote(source.ImageOptions{Pull: pull}, sink)
	if err != nil {
		return Runnable{}, err
	}
	run := Runnable{Name: name}
	found, err := b.Images.Lookup(name)
	here := err == nil && (!pull || found.Ref == oci.Reference{})
	switch {
	case here:
		run, err = b.stored(ctx, r, name, found, p)
	case errors.Is(err, image.ErrNotFound) && b.kept(name, &run):
		err = nil
	case err == nil || errors.Is(err, image.ErrNotFound):
		run, err = b.pulled(ctx, r, name, p)
	}
	if err != nil {
		return run, err
	}
	w := executor.New(b.host, executor.Session{Fetcher: r, Progress: sink})
	if run.Layers, err = w.Fetch(ctx, run.Layers); err != nil {
		if here && ctx.Err() == nil {
			err = fmt.Errorf("%w: %s is an image of the local store, of which a layer was removed from the cache or found damaged: build the image again if it was built here, with --no-cache if its steps are cached", err, name)
		}
		return run, err
	}
	if b.glance(ctx, run.Layers) == nil {
		return run, nil
	}
	// What was pulled is pulled again.
	if run.Layers, err = w.Fetch(ctx, run.Layers); err != nil {
		return run, fmt.Errorf("%w: build the image again", err)
	}
	return run, nil
}

// stored is an image of the image store.
func (b *Builder) stored(ctx context.Context, r *remoteImages, name string, found image.Found, p oci.Platform) (Runnable, error) {
	ref := found.Ref
	if (ref == oci.Reference{}) {
		// Found by its ID: the source needs some name to go with the digest.
		ref = oci.Reference{Domain: "docker.io", Path: "library/image"}
	}
	return b.runnable(ctx, r, llb.Source{Scheme: llb.Registry, Ref: ref.WithDigest(found.Desc.Digest).String(), Digest: found.Desc.Digest, Platform: p}, name)
}

// pulled is an image that a registry is asked for; it gets its name here.
func (b *Builder) pulled(ctx context.Context, r *remoteImages, name string, p oci.Platform) (Runnable, error) {
	ref, err := oci.ParseReference(name)
	if err != nil {
		return Runnable{}, err
	}
	src, err := r.Pin(ctx, llb.Source{Scheme: llb.Registry, Ref: ref.String(), Platform: p})
	if err != nil {
		return Runnable{}, err
	}
	run, err := b.runnable(ctx, r, src, name)
	if err != nil {
		return run, err
	}
	img, err := r.Images.Image(ctx, src)
	if err != nil || ref.Digest != "" {
		return run, err
	}
	return run, b.Images.Set(ref, img.Desc)
}

func (b *Builder) runnable(ctx context.Context, r *remoteImages, src llb.Source, name string) (Runnable, error) {
	img, err := r.Images.Image(ctx, src)
	if err != nil {
		return Runnable{}, err
	}
	c, err := r.Open(ctx, src)
	if err != nil {
		return Runnable{}, err
	}
	return Runnable{Name: name, ID: img.Manifest.Config.Digest, Image: img.Config, Layers: c.Layers}, nil
}

// kept finds the result of a build that nothing had named.
func (b *Builder) kept(id string, run *Runnable) bool {
	data, err := b.Store.Result(id)
	if err != nil {
		return false
	}
	var list []kept
	if json.Unmarshal(data, &list) != nil || len(list) == 0 {
		return false
	}
	run.Image, run.Layers = list[0].Image, list[0].Layers
	return true
}

// Chain is the IDs of the layers, as a cache.Driver takes them.
func (r Runnable) Chain() []string {
	out := make([]string, len(r.Layers))
	for i, l := range r.Layers {
		out[i] = l.ID
	}
	return out
}
