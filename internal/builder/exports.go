package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/remote"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/solver"
)

// exported is a step whose record can be put out.
type exported struct {
	remote.Record
	node oci.Digest
}

// exportCaches puts records and layers out to where the build was asked to. A
// failure is a warning unless the user wants it to be more.
func (j *job) exportCaches(ctx context.Context) error {
	var records []exported
	var results map[oci.Digest]executor.Result
	for _, s := range j.CacheTo {
		if s.Type == remote.TypeInline {
			continue
		}
		p, err := s.Place(true, j.cacheEnv())
		if err != nil {
			return fmt.Errorf("--cache-to: %w", err)
		}
		if records == nil {
			if records, results, err = j.records(ctx, j.Reproducible); err != nil {
				return err
			}
		}
		var ignored error // no failure: the build goes on, and says so
		err = internalStep(j.Sink, "export:"+s.Type+":"+p.String(), "export cache to "+p.String(), func(step progress.Step) error {
			stats, err := j.exportCache(ctx, s, p, records, results)
			text := mountLines(stats.Mounts) + fmt.Sprintf("%d records, %d layers, %d bytes sent\n", stats.Records, stats.Layers, stats.Sent)
			var lost *executor.LostError
			if err != nil && ctx.Err() == nil && !errors.As(err, &lost) && s.Flag("ignore-error", true) {
				ignored, err = err, nil
				text = "not put out: see the warning\n"
			}
			if err == nil {
				j.Sink.Emit(progress.Log{Step: step, Stream: 1, Data: []byte(text), Time: time.Now()})
			}
			return err
		})
		if err != nil {
			return err
		}
		if ignored != nil {
			j.Sink.Emit(progress.Warning{Message: ignored.Error(), Detail: "the image is built all the same; with ignore-error=false this fails the build"})
		}
	}
	return nil
}

func (j *job) exportCache(ctx context.Context, s remote.Spec, p remote.Place, records []exported, results map[oci.Digest]executor.Result) (remote.Stats, error) {
	method, err := s.Method()
	if err != nil {
		return remote.Stats{}, err
	}
	mounts, err := s.Mounts(true)
	if err != nil {
		return remote.Stats{}, err
	}
	temp, err := j.Store.TempDir()
	if err != nil {
		return remote.Stats{}, err
	}
	var list []remote.Record
	on := spine(j.graph.Targets)
	for _, r := range records {
		if s.Max() || on[r.node] {
			list = append(list, r.Record)
		}
	}
	return remote.Export(ctx, p, list, remote.Options{
		Method: method, Pool: j.compressors(), Images: j.Images, Temp: temp,
		Parts: s.Flag("parts", true), Mounts: j.mountOptions(ctx, mounts, results),
		Entries: func(l oci.Layer) ([]tree.Change, bool) {
			if _, err := j.Store.Layer(l.ID); err == nil {
				changes, err := layer.Collect(j.Store.Entries(l.ID))
				return changes, err == nil
			}
			return j.remote.Entries(ctx, l)
		},
	})
}

// records are those of the build's steps, whether they ran or were cached. Not
// among them is a step that nothing needed and that is cached nowhere, and one
// whose result is not what its digest says. With bound their layers are as in
// bounded images. results are of all steps of which one is known.
func (j *job) records(ctx context.Context, bound bool) ([]exported, map[oci.Digest]executor.Result, error) {
	r := &recorder{
		job: j, keys: executor.New(j.host, j.keySession()),
		results: map[oci.Digest]executor.Result{}, targets: map[oci.Digest]executor.Result{},
	}
	for i, n := range j.graph.Targets {
		r.targets[n.Digest] = j.steps[i]
	}
	var out []exported
	var err error
	j.graph.Walk(func(n *llb.Node) {
		if err != nil {
			return
		}
		if err = ctx.Err(); err != nil {
			return
		}
		if one, ok := r.record(ctx, n); ok {
			out = append(out, one)
		}
	})
	if err != nil {
		return nil, nil, err
	}
	epochs := j.epochs()
	for i := range out {
		r := &out[i]
		if epoch := epochs[r.node]; bound && !epoch.IsZero() {
			r.Layers = j.bounded(r.Layers, epoch)
			if r.Created.After(epoch) {
				r.Created = epoch
			}
		}
		if r.Layers, err = j.seal(ctx, j.remote, r.Layers); err != nil {
			return nil, nil, err
		}
	}
	return out, r.results, nil
}

// keySession is a session by which nothing is fetched.
func (j *job) keySession() executor.Session {
	s := j.session()
	s.Fetcher = onlyLists{j.remote}
	return s
}

type onlyLists struct{ *remoteImages }

func (onlyLists) OpenLayer(context.Context, oci.Layer, progress.Step) (io.ReadCloser, error) {
	return nil, errors.New("not fetched for a key")
}

// recorder collects what is known of a graph's steps, inputs first.
type recorder struct {
	*job
	keys    *executor.Worker
	results map[oci.Digest]executor.Result
	targets map[oci.Digest]executor.Result
}

func (r *recorder) record(ctx context.Context, n *llb.Node) (exported, bool) {
	if s, ok := n.Op.(llb.Source); ok {
		switch s.Scheme {
		case llb.Scratch:
			r.results[n.Digest] = executor.Result{}
			return exported{}, false
		case llb.Local:
			r.results[n.Digest] = executor.Result{Local: &s}
			return exported{}, false
		case llb.Registry:
			if c, err := r.remote.Open(ctx, s); err == nil {
				r.results[n.Digest] = executor.Result{Layers: c.Layers}
			}
			return exported{}, false
		}
	}
	var out exported
	res, ok := r.targets[n.Digest]
	if rec, err := r.Store.Step(n.Digest); err == nil && r.losses.Why(rec.Layers) == nil {
		out.Created, out.Expires = rec.Created, rec.Expires
		out.Parts = append(out.Parts, rec.Parts...)
		if !ok {
			res, ok = executor.Result{Layers: rec.Layers}, true
		}
	}
	if !ok {
		imp, err := r.remote.imports.Import(ctx, solver.Key{Digest: n.Digest})
		if err != nil {
			return out, false
		}
		res = imp
	}
	if out.Expires.IsZero() {
		out.Expires = res.Expires
	}
	r.results[n.Digest] = res
	if res.Inexact() {
		return out, false
	}
	out.node = n.Digest
	out.Keys = []oci.Digest{n.Digest}
	out.Layers = res.Layers
	if k, err := r.key(ctx, n); err == nil {
		out.Keys = append(out.Keys, k.Digest)
		out.Parts = nil
		for _, p := range k.Parts {
			out.Parts = append(out.Parts, cache.Part(p))
		}
	}
	return out, true
}

var errUnknownInput = errors.New("an input's result is not known")

// key is the step's key by the content of its inputs, where that can be told
// without fetching anything.
func (r *recorder) key(ctx context.Context, n *llb.Node) (solver.Key, error) {
	in := make([]executor.Result, len(n.Inputs))
	for i, input := range n.Inputs {
		res, ok := r.results[input.Digest]
		if !ok || res.Inexact() {
			return solver.Key{}, errUnknownInput
		}
		in[i] = res
	}
	return r.keys.Key(ctx, n, in)
}

// inline makes the records of an image's own steps its annotation. The image's
// ID stays what it is.
func (j *job) inline(ctx context.Context, images []oci.PlatformImage, bound bool) error {
	wanted := false
	for _, s := range j.CacheTo {
		wanted = wanted || s.Type == remote.TypeInline
	}
	if !wanted {
		return nil
	}
	records, _, err := j.records(ctx, bound)
	if err != nil {
		return err
	}
	for i := range images {
		on := spine(j.graph.Targets[i : i+1])
		var own []remote.Record
		for _, r := range records {
			if on[r.node] {
				own = append(own, r.Record)
			}
		}
		text, err := remote.Inline(images[i].Layers, own)
		if err != nil {
			return fmt.Errorf("inline cache: %w", err)
		}
		if text == "" {
			continue
		}
		a := map[string]string{}
		maps.Copy(a, images[i].Annotations)
		a[remote.InlineAnnotation] = text
		images[i].Annotations = a
	}
	return nil
}
