package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/cache/remote"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/solver"
)

// imports are the caches that a build takes results from. Nothing is asked of
// them before something is missing here.
type imports struct {
	job  *job
	list []*imported

	once  sync.Once
	bases struct {
		sync.Mutex
		sources []*llb.Node // whose layers are not known yet
		layers  map[oci.Digest]oci.Layer
	}
}

type imported struct {
	place  remote.Place
	far    bool // it is not on this machine
	mounts remote.MountChoice
	cache  *remote.Cache // nil: it is not to be had
	told   sync.Once     // of its entries being unusable
}

func (b *Builder) cacheEnv() remote.Env {
	return remote.Env{Registry: b.Registry, Getenv: os.Getenv}
}

// openImports makes the caches ready that the build imports from.
func (j *job) openImports(context.Context) error {
	m := &imports{job: j}
	for _, s := range j.CacheFrom {
		p, err := s.Place(false, j.cacheEnv())
		if err != nil {
			return fmt.Errorf("--cache-from: %w", err)
		}
		mounts, err := s.Mounts(false)
		if err != nil {
			return fmt.Errorf("--cache-from: %w", err)
		}
		m.list = append(m.list, &imported{place: p, far: s.Type != remote.TypeLocal, mounts: mounts})
	}
	j.remote.imports = m
	return nil
}

// open reads the caches' indexes. One that is not to be had is a warning.
func (m *imports) open(ctx context.Context) {
	m.once.Do(func() {
		var g errgroup.Group
		for _, i := range m.list {
			if i.far && m.job.Offline {
				m.warn(fmt.Sprintf("the cache at %s is not asked (offline)", i.place), nil)
				continue
			}
			g.Go(func() error {
				name := "import cache from " + i.place.String()
				var err error
				_ = internalStep(m.job.Sink, "import:"+i.place.String(), name, func(progress.Step) error {
					i.cache, err = remote.Open(ctx, i.place)
					return nil // the build goes on
				})
				switch {
				case err == nil || ctx.Err() != nil:
				case errors.Is(err, fs.ErrNotExist):
					m.warn(fmt.Sprintf("there is no cache at %s yet", i.place), err)
				default:
					m.warn("the cache is not used: "+err.Error(), nil)
				}
				return nil
			})
		}
		_ = g.Wait()
	})
}

func (m *imports) warn(message string, detail error) {
	w := progress.Warning{Message: message}
	if detail != nil {
		w.Detail = detail.Error()
	}
	m.job.Sink.Emit(w)
}

var errNotImported = errors.New("no cache that is imported has it")

// Import looks for a step's result in the caches, in their order.
func (m *imports) Import(ctx context.Context, k solver.Key) (executor.Result, error) {
	if m == nil || len(m.list) == 0 || k.Digest == "" {
		return executor.Result{}, errNotImported
	}
	m.open(ctx)
	for _, i := range m.list {
		if i.cache == nil {
			continue
		}
		r, ok := i.cache.Lookup(k.Digest)
		if !ok {
			continue
		}
		layers, ok := m.complete(ctx, r.Layers)
		if !ok || m.job.losses.Why(layers) != nil {
			continue
		}
		return executor.Result{Layers: layers, Expires: r.Expires}, nil
	}
	return executor.Result{}, errNotImported
}

// complete puts the layers of base images in, as this build has them.
func (m *imports) complete(ctx context.Context, layers []oci.Layer) ([]oci.Layer, bool) {
	for n, l := range layers {
		if l.Blob != nil {
			continue
		}
		base, ok := m.base(ctx, l.DiffID)
		if !ok {
			return nil, false
		}
		layers[n] = base
	}
	return layers, true
}

// base finds a layer of the images that the build's Dockerfile names. Their
// manifests have been read as a rule.
func (m *imports) base(ctx context.Context, diffID oci.Digest) (oci.Layer, bool) {
	b := &m.bases
	b.Lock()
	defer b.Unlock()
	if b.layers == nil {
		b.layers = map[oci.Digest]oci.Layer{}
		m.job.graph.Walk(func(n *llb.Node) {
			if s, ok := n.Op.(llb.Source); ok && s.Scheme == llb.Registry {
				b.sources = append(b.sources, n)
			}
		})
	}
	for {
		if l, ok := b.layers[diffID]; ok {
			return l, true
		}
		if len(b.sources) == 0 {
			return oci.Layer{}, false
		}
		c, err := m.job.remote.Open(ctx, b.sources[0].Op.(llb.Source))
		if ctx.Err() != nil {
			return oci.Layer{}, false
		}
		b.sources = b.sources[1:]
		if err != nil {
			continue // the step that needs it says so
		}
		for _, l := range c.Layers {
			id := l.DiffID
			if _, ok := b.layers[id]; !ok {
				b.layers[id] = l
			}
		}
	}
}

// entries is what a layer changes, as a cache tells.
func (m *imports) entries(ctx context.Context, l oci.Layer) ([]tree.Change, bool) {
	if m == nil || len(m.list) == 0 {
		return nil, false
	}
	m.open(ctx)
	for _, i := range m.list {
		if i.cache == nil {
			continue
		}
		changes, ok, err := i.cache.Entries(ctx, l.DiffID)
		if err != nil {
			if ctx.Err() == nil {
				i.told.Do(func() { m.warn(err.Error(), nil) })
			}
			continue
		}
		if ok {
			return changes, true
		}
	}
	return nil, false
}

// blob opens a blob of a layer whose origin is a cache in no registry: one that
// is imported now, or one of an earlier build.
func (m *imports) blob(ctx context.Context, origin string, d oci.Descriptor) (io.ReadCloser, bool, error) {
	if m == nil {
		return nil, false, nil
	}
	for _, i := range m.list {
		if i.place.Origin("") == origin && !(i.far && m.job.Offline) {
			r, err := i.place.Blob(ctx, d)
			return r, true, err
		}
	}
	return nil, false, nil
}

// Entries implements executor.Lister.
func (r *remoteImages) Entries(ctx context.Context, l oci.Layer) ([]tree.Change, bool) {
	return r.imports.entries(ctx, l)
}

// elsewhere opens a blob that is in no registry.
func (r *remoteImages) elsewhere(ctx context.Context, origin string, d oci.Descriptor) (io.ReadCloser, error) {
	if b, ok, err := r.imports.blob(ctx, origin, d); ok {
		return b, err
	}
	if r.offline && !strings.HasPrefix(origin, "cache+"+remote.TypeLocal+":") {
		return nil, fmt.Errorf("layer %s of %s: %w here, and nobody is asked (offline)", d.Digest, origin, image.ErrNotFound)
	}
	p, err := remote.At(origin, r.builder.cacheEnv())
	if err != nil {
		return nil, err
	}
	return p.Blob(ctx, d)
}

// solveAgain solves and exports, and begins again where an imported layer turned
// out not to be had, or one that is here to be damaged: its step runs then.
func (j *job) solveAgain(ctx context.Context) error {
	for mended := 0; ; {
		j.result.Steps = 0
		err := j.solveAndExport(ctx)
		var lost *executor.LostError
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case errors.As(err, &lost) && j.losses.Add(lost):
			j.Sink.Emit(progress.Warning{Message: "a layer from the cache is not to be had, so its step is run: " + lost.Err.Error()})
		case isDamage(err) && mended < maxMended:
			mended++
			j.mend(ctx, err)
		default:
			return err
		}
	}
}

// lossy reports failures to read an imported layer as such.
func lossy(l oci.Layer) oci.Layer {
	wrap := func(open func(context.Context) (io.ReadCloser, error)) func(context.Context) (io.ReadCloser, error) {
		if open == nil {
			return nil
		}
		return func(ctx context.Context) (io.ReadCloser, error) {
			r, err := open(ctx)
			if err != nil {
				return nil, executor.Lost(ctx, l, err)
			}
			return &lossyReader{ReadCloser: r, ctx: ctx, layer: l}, nil
		}
	}
	l.Tar, l.Compressed = wrap(l.Tar), wrap(l.Compressed)
	return l
}

type lossyReader struct {
	io.ReadCloser
	ctx   context.Context // of the whole reading
	layer oci.Layer
}

func (r *lossyReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = executor.Lost(r.ctx, r.layer, err)
	}
	return n, err
}
