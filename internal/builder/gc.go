package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
)

// PruneResult is what a Prune removed.
type PruneResult struct {
	Items []cache.Item
	Blobs image.Pruned // of the image store: what no image refers to
	Left  int64        // bytes that the state directory takes now
}

// Bytes is the room that was freed.
func (p PruneResult) Bytes() int64 {
	n := p.Blobs.Bytes
	for _, i := range p.Items {
		n += i.Size
	}
	return n
}

// blobGrace is how long a blob of the image store may lie unnamed: a build or a
// pull writes it first and names it last.
const blobGrace = time.Hour

// Prune removes what nothing needs. pinned lists layers that containers stand
// on. o.Wanted is set here. With o.All, images go that have had no name for long.
func (b *Builder) Prune(ctx context.Context, o cache.PruneOptions, pinned []string) (r PruneResult, err error) {
	images := time.Duration(0)
	if o.All && len(o.Kinds) == 0 {
		images = max(blobGrace, o.OlderThan)
	}
	if images > 0 && o.Keep > 0 {
		used, err := b.used(ctx, pinned)
		if err != nil {
			return r, err
		}
		if used <= o.Keep {
			images = 0
		}
	}
	switch {
	case images > 0 && o.DryRun:
		r.Blobs, err = b.Images.Garbage(ctx, images)
	case images > 0:
		r.Blobs, err = b.Images.Prune(ctx, images, nil) // first: layers were for them
	}
	if err != nil {
		return r, err
	}
	if o.Wanted, err = b.wanted(pinned, images); err != nil {
		return r, err
	}
	p, err := b.Store.Prune(ctx, o)
	r.Items, r.Left = p.Items, p.Left
	return r, err
}

// used is the room that the state directory takes, in bytes.
func (b *Builder) used(ctx context.Context, pinned []string) (used int64, err error) {
	items, err := b.Usage(ctx, pinned)
	for _, i := range items {
		used += i.Size
	}
	return used, err
}

// Usage lists what takes room in the state directory; pinned as for Prune.
func (b *Builder) Usage(ctx context.Context, pinned []string) ([]cache.Item, error) {
	wanted, err := b.wanted(pinned, blobGrace)
	if err != nil {
		return nil, err
	}
	items, err := b.Store.Usage(ctx, wanted)
	if err != nil {
		return nil, err
	}
	unnamed, err := b.Images.Garbage(ctx, blobGrace)
	if err != nil {
		return nil, err
	}
	for i := range items {
		if items[i].Kind == cache.KindImage && unnamed.Blobs > 0 {
			items[i].Size -= unnamed.Bytes
			return slices.Insert(items, i, cache.Item{Kind: cache.KindImage, ID: "blobs of images without a name", Size: unnamed.Bytes}), nil
		}
	}
	return items, nil
}

// wanted tells of a layer what needs it: a container, or an image of the store,
// which has no other copy of what was built here; but for images that have had no
// name for so long as forgotten, if that is not 0.
func (b *Builder) wanted(pinned []string, forgotten time.Duration) (func(id string) []string, error) {
	need := map[string][]string{}
	for _, id := range pinned {
		need[id] = append(need[id], "a container")
	}
	list, err := b.Images.List()
	if err != nil {
		return nil, err
	}
	for _, n := range list {
		if forgotten > 0 && b.Images.Forgotten(n, forgotten) {
			continue
		}
		name := n.Desc.Digest.String()
		if n.HasName() {
			name = n.Ref.Familiar()
		}
		manifests, err := b.Images.Manifests(n.Desc)
		if err != nil {
			continue // one that cannot be read needs nothing that it could use
		}
		for _, d := range manifests {
			m, err := b.Images.Manifest(d.Digest)
			if err != nil {
				continue
			}
			img, err := b.Images.Config(m.Config.Digest)
			if err != nil {
				continue
			}
			b.need(need, m.Layers, img.RootFS.DiffIDs, name)
		}
	}
	return func(id string) []string { return need[id] }, nil
}

func (b *Builder) need(need map[string][]string, blobs []oci.Descriptor, diffIDs []oci.Digest, name string) {
	var chain oci.Digest
	for i, d := range diffIDs {
		chain = oci.ChainID(chain, d)
		if i >= len(blobs) || blobs[i].Digest != d {
			continue // has a blob of its own
		}
		if built, ok := b.Store.Built(chain); ok {
			id := cmp.Or(built.Source, built.ID)
			if by := "image " + name; !slices.Contains(need[id], by) { // it has several platforms
				need[id] = append(need[id], by)
			}
		}
	}
}

// Bounds of what AutoPrune leaves.
const (
	shareOfDisk = 5        // the state directory may take one part in so many of its file system
	leastBound  = 10 << 30 // but so many bytes in any case
	freeOfDisk  = 20       // one part in so many is to stay free
	pruneEvery  = 24 * time.Hour
	mountGrace  = 24 * time.Hour // how long no cache mount goes after its use
)

// AutoPrune is called after a build. Once a day, or whenever the disk is nearly
// full, it removes what was used longest ago until the state directory is within
// its bound: keep bytes, or for 0 a fifth of its file system and at least 10 GiB.
// Where results of steps and downloads are not enough, images without a name go
// too, and then cache mounts, of both what has been unused for a day.
func (b *Builder) AutoPrune(ctx context.Context, keep int64, pinned []string) (PruneResult, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(b.Store.Dir(), &st); err != nil {
		return PruneResult{}, fmt.Errorf("prune: %w", err)
	}
	size, free := int64(st.Blocks)*st.Bsize, int64(st.Bavail)*st.Bsize
	low := free < size/freeOfDisk
	stamp := filepath.Join(b.Store.Dir(), "pruned")
	last, err := os.Stat(stamp)
	if err == nil && time.Since(last.ModTime()) < pruneEvery && (!low || time.Since(last.ModTime()) < time.Hour) {
		return PruneResult{}, nil
	}
	fresh := errors.Is(err, os.ErrNotExist)
	if err := os.WriteFile(stamp, nil, 0o644); err != nil && !errors.Is(err, unix.ENOSPC) {
		return PruneResult{}, fmt.Errorf("prune: %w", err)
	}
	if fresh && !low && keep == 0 {
		return PruneResult{}, nil // the first build: there is nothing old yet
	}
	if keep == 0 {
		keep = max(size/shareOfDisk, leastBound)
	}
	if low {
		used, err := b.used(ctx, pinned)
		if err != nil {
			return PruneResult{}, err
		}
		keep = min(keep, max(used-(size/freeOfDisk-free), 1))
	}
	return b.pruneTo(ctx, keep, pinned)
}

// pruneTo prunes until no more than keep bytes are left, what is made anew most
// easily first.
func (b *Builder) pruneTo(ctx context.Context, keep int64, pinned []string) (PruneResult, error) {
	r, err := b.Prune(ctx, cache.PruneOptions{Keep: keep}, pinned)
	if err != nil || r.Left <= keep {
		return r, err
	}
	if r.Blobs, err = b.Images.Prune(ctx, image.Grace, nil); err != nil {
		return r, err
	}
	for _, o := range []cache.PruneOptions{
		{Keep: keep}, // what those images were made of
		{Keep: keep, Kinds: []string{cache.KindMount}, OlderThan: mountGrace},
	} {
		more, err := b.Prune(ctx, o, pinned)
		r.Items, r.Left = append(r.Items, more.Items...), more.Left
		if err != nil || r.Left <= keep {
			return r, err
		}
	}
	return r, nil
}

// Mend is Check that drops what is damaged: it is made, or fetched, anew when it
// is needed. The errors say what was dropped.
func (b *Builder) Mend(ctx context.Context) []error {
	return append(b.Store.Mend(ctx), b.Images.Mend(ctx)...)
}

// Check reads all of the state directory and returns what is wrong with it.
func (b *Builder) Check(ctx context.Context) []error {
	return append(b.Store.Check(ctx), b.Images.Check(ctx)...)
}
