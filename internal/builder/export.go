package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/861fb494/build/executor"
	"github.com/861fb494/build/executor/source"
	"github.com/861fb494/build/exporter"
	"github.com/861fb494/build/exporter/compress"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
)

// outputs are the exporters of one build.
type outputs struct {
	job  *job
	list []output
}

type output struct {
	exporter.Exporter
	name  string // "oci archive out.tar"
	local bool   // into the image store
	bound bool   // it gets bounded images
}

// outputs makes the exporters that the build asks for: names alone go to the
// image store.
func (j *job) outputs() (*outputs, error) {
	o := &outputs{job: j}
	wanted := j.Outputs
	if len(wanted) == 0 && (len(j.Tags) > 0 || j.Seal) {
		wanted = []exporter.Output{{Type: exporter.TypeImage}}
	}
	if len(wanted) == 0 {
		return o, nil
	}
	temp, err := j.Store.TempDir()
	if err != nil {
		return nil, err
	}
	for _, w := range wanted {
		if w.Type == "cacheonly" {
			continue
		}
		opts := exporter.Options{Store: j.Images, Temp: temp, Pool: j.compressors(), Sink: j.Sink, Step: exportStep, Names: j.Tags}
		if w.Pushes() {
			c, err := j.Registry()
			if err != nil {
				o.close()
				return nil, err
			}
			opts.Registry = c
		}
		e, err := exporter.New(w, opts)
		if err != nil {
			o.close()
			return nil, err
		}
		j.warnUnbounded(w)
		o.list = append(o.list, output{Exporter: e, name: outputName(w), local: !compresses(w), bound: j.bounds(w)})
	}
	return o, nil
}

const exportStep = progress.Step("export")

// compresses reports an output whose layers are worth beginning with while the
// build runs.
func compresses(o exporter.Output) bool {
	switch o.Type {
	case exporter.TypeImage:
		return o.Pushes()
	case exporter.TypeLocal, exporter.TypeTar:
		return false
	}
	return true
}

func outputName(o exporter.Output) string {
	switch {
	case o.Pushes():
		return "push to the registry"
	case o.Type == exporter.TypeImage:
		return "export to the image store"
	}
	return "export as " + o.Type + " to " + o.Dest
}

func (o *outputs) close() {
	for _, e := range o.list {
		_ = e.Close() // what it removes are temporary files, which go with the store's lease too
	}
}

// begin starts to compress and upload layers, whose bound may be epoch. What
// fails here fails again, and is told, when the image is put out.
func (o *outputs) begin(ctx context.Context, layers []oci.Layer, epoch time.Time) {
	for _, e := range o.list {
		if e.local {
			continue
		}
		list := layers
		if e.bound {
			list = o.job.bounded(layers, epoch)
		}
		for _, l := range list {
			if e.bound && l.Imported && !ofBase(l) && !l.Epoch.Equal(epoch) {
				continue // it is to be written anew
			}
			_ = e.Layer(ctx, o.job.remote.openable(o.job.sealed(l)))
		}
	}
}

// compressors is shared by all builds of the process.
func (b *Builder) compressors() *compress.Pool {
	b.poolOnce.Do(func() { b.pool = compress.NewPool(runtime.GOMAXPROCS(0)) })
	return b.pool
}

// export seals the results and puts them out.
func (j *job) export(ctx context.Context, w *executor.Worker, out *outputs, results []executor.Result) error {
	return internalStep(j.Sink, string(exportStep), "export", func(progress.Step) error {
		made := map[bool][]oci.PlatformImage{} // bounded ones, and others
		image := func(bound bool) (err error) {
			if made[bound] == nil {
				made[bound], err = j.images(ctx, w, out, results, bound)
			}
			j.result.Images = made[bound]
			return err
		}
		j.result.Sealed = true
		if len(out.list) == 0 {
			if err := image(j.Reproducible); err != nil {
				return err
			}
		}
		for _, o := range out.list {
			if err := image(o.bound); err != nil {
				return err
			}
			d, err := o.Export(ctx, oci.Result{Names: j.Tags, Images: made[o.bound], Annotations: j.Annotations, Index: j.index})
			if err != nil {
				return fmt.Errorf("%s: %w", o.name, err)
			}
			j.result.Descriptor = d
		}
		if j.index && j.result.Descriptor.Digest != "" {
			j.result.ID = j.result.Descriptor.Digest
			return nil
		}
		d, _, err := exporter.Config(j.result.Images[0])
		j.result.ID = d.Digest
		return err
	})
}

// images seals the results, and completes their configurations: diff IDs, times.
func (j *job) images(ctx context.Context, w *executor.Worker, out *outputs, results []executor.Result, bound bool) ([]oci.PlatformImage, error) {
	var images []oci.PlatformImage
	for i, r := range results {
		low, layers := j.lowered[i], r.Layers
		err := j.glance(ctx, layers)
		if err == nil && bound {
			layers, err = j.rewrite(ctx, w, layers, j.epoch(i))
		}
		if err == nil {
			layers, err = j.Builder.seal(ctx, j.remote, layers, out.sealers(bound)...)
		}
		if err != nil {
			return nil, err
		}
		images = append(images, finish(low.Image, low.Platform, low.Epoch, layers))
	}
	return images, j.inline(ctx, images, bound)
}

// sealer is an exporter that reads the tars of layers, to compress them, and so
// can tell their diff IDs.
type sealer interface {
	Layer(ctx context.Context, l oci.Layer) error
	Seal(ctx context.Context, l oci.Layer) (sealed oci.Layer, ok bool, err error)
}

// sealers are the outputs that can seal images' layers, bounded ones or others.
func (o *outputs) sealers(bound bool) []sealer {
	var all []sealer
	for _, e := range o.list {
		if s, ok := e.Exporter.(sealer); ok && !e.local && e.bound == bound {
			all = append(all, s)
		}
	}
	return all
}

// seal gives each layer its diff ID, several at once, by which an image of them
// finds them again. by are asked before a tar is made for nothing else.
func (b *Builder) seal(ctx context.Context, r *remoteImages, layers []oci.Layer, by ...sealer) ([]oci.Layer, error) {
	layers = slices.Clone(layers)
	for i := range layers {
		layers[i] = b.sealed(layers[i])
		for _, s := range by {
			_ = s.Layer(ctx, r.openable(layers[i])) // so that all have begun
		}
	}
	out := make([]oci.Layer, len(layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, l := range layers {
		if l.Blob != nil {
			out[i] = r.openable(l)
			continue
		}
		g.Go(func() error {
			sealed, err := b.sealOne(ctx, r, l, by)
			out[i] = r.openable(sealed)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return out, b.Store.NoteBuilt(out)
}

// sealed is a layer that was built here with the diff ID that it has been found to
// have, if it has.
func (b *Builder) sealed(l oci.Layer) oci.Layer {
	if l.Blob == nil && l.Source == "" {
		if known, ok, err := b.Store.Sealed(l); ok && err == nil {
			return known
		}
	}
	return l
}

func (b *Builder) sealOne(ctx context.Context, r *remoteImages, l oci.Layer, by []sealer) (oci.Layer, error) {
	if l.DiffID == "" {
		for _, s := range by {
			sealed, ok, err := s.Seal(ctx, r.openable(l))
			if err != nil {
				return l, err
			}
			if ok {
				l.DiffID, l.TarSize = sealed.DiffID, sealed.TarSize
				return l, b.Store.NoteSeal(l)
			}
		}
	}
	return b.Store.Seal(ctx, l)
}

// finish is img upon layers. The time of each layer made here is when its step
// ran, without an epoch; what makes no layer has the time of the one before. So a
// build that is all cached gives the same image again.
func finish(img oci.Image, p oci.Platform, epoch *time.Time, layers []oci.Layer) oci.PlatformImage {
	img.RootFS.Type = "layers"
	img.RootFS.DiffIDs = nil
	for _, l := range layers {
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, l.DiffID)
	}
	if img.RootFS.DiffIDs == nil {
		img.RootFS.DiffIDs = []oci.Digest{}
	}
	img.History = slices.Clone(img.History)
	var last *time.Time
	n := 0 // layers accounted for
	for i := range img.History {
		h := &img.History[i]
		if !h.EmptyLayer {
			if n < len(layers) && h.Created == nil && epoch == nil && !layers[n].Created.IsZero() {
				at := layers[n].Created
				h.Created = &at
			}
			n++
		}
		if h.Created == nil {
			h.Created = last
		}
		if h.Created != nil {
			last = h.Created
		}
	}
	// What comes before the first layer of all is as old as that.
	for i := len(img.History) - 1; i >= 0; i-- {
		if img.History[i].Created == nil && i+1 < len(img.History) {
			img.History[i].Created = img.History[i+1].Created
		}
	}
	switch {
	case epoch != nil:
		img.Created = epoch
	case last != nil:
		img.Created = last
	}
	return oci.PlatformImage{Platform: p, Image: img, Layers: layers, Epoch: epoch}
}

// kept is a result that nothing named, as it is recorded.
type kept struct {
	Platform oci.Platform `json:"platform"`
	Image    oci.Image    `json:"image"`
	Epoch    *time.Time   `json:"epoch,omitempty"`
	Layers   []oci.Layer  `json:"layers"`
}

// keep records results under an ID by which Tag finds them. Nothing is hashed
// or compressed for it.
func (j *job) keep(ctx context.Context, w *executor.Worker, results []executor.Result) (oci.Digest, error) {
	var list []kept
	for i, r := range results {
		low, layers := j.lowered[i], r.Layers
		if j.Reproducible {
			var err error
			if layers, err = j.rewrite(ctx, w, layers, j.epoch(i)); err != nil {
				return "", err
			}
		}
		list = append(list, kept{Platform: low.Platform, Image: low.Image, Epoch: low.Epoch, Layers: layers})
	}
	data, err := json.Marshal(list)
	if err != nil {
		return "", err
	}
	return j.Store.PutResult(data)
}

// Tag names the result of a build that nothing had named; id is what the build
// printed, or the beginning of it.
func (b *Builder) Tag(ctx context.Context, id string, names ...oci.Reference) error {
	data, err := b.Store.Result(id)
	if err != nil {
		return err
	}
	var list []kept
	if err := json.Unmarshal(data, &list); err != nil {
		return fmt.Errorf("result %s: %w", id, err)
	}
	r, err := b.newRemote(source.ImageOptions{}, progress.Discard)
	if err != nil {
		return err
	}
	res := oci.Result{Names: names}
	for _, k := range list {
		layers, err := b.seal(ctx, r, k.Layers)
		if err != nil {
			return fmt.Errorf("result %s: %w", id, err)
		}
		res.Images = append(res.Images, finish(k.Image, k.Platform, k.Epoch, layers))
	}
	e, err := exporter.New(exporter.Output{Type: exporter.TypeImage}, exporter.Options{Store: b.Images})
	if err != nil {
		return err
	}
	_, err = e.Export(ctx, res)
	return errors.Join(err, e.Close())
}
