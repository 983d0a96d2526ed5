// Package executor runs one op of a graph: it finds the inputs' files, calls
// the source, the sandbox or the file copy, and commits what came of it.
package executor

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/executor/cdi"
	"github.com/861fb494/build/executor/network"
	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/executor/source"
	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
)

// Result is what a step yields: a handle, not a path. It stays valid as long
// as the state directory keeps the layers, whether or not their bytes have been
// fetched.
type Result struct {
	Layers []oci.Layer // lowest first; none is an empty tree
	// Local is a pinned context, read where it lies; Layers is empty.
	Local *llb.Source
	// Expires is when the step is to be run anew; zero: never. It is the step's
	// own, and not of those that build on it: what it yields then decides.
	Expires time.Time
	// Torn: a file of a context was changed between pinning and copying, so
	// that the result is not what its step's digest says.
	Torn bool
}

// Inexact implements solver.Inexact.
func (r Result) Inexact() bool { return r.Torn }

// Content is the digest of the tree, by that of each layer, or that of the
// context. It leaves out modification times.
func (r Result) Content() oci.Digest {
	if r.Local != nil {
		return r.Local.Digest
	}
	h := blake.Get()
	defer blake.Put(h)
	for _, l := range r.Layers {
		h.WriteString(string(l.Content))
		h.WriteString("\n")
	}
	return blake.Digest(h)
}

// Fetcher opens the bytes of pulled layers.
type Fetcher interface {
	// OpenLayer opens the uncompressed tar of a layer with a Blob and an
	// Origin, whose diff ID is verified at the end, or with a Source. step is who
	// waits for it.
	OpenLayer(ctx context.Context, l oci.Layer, step progress.Step) (io.ReadCloser, error)
}

// Host is what the executor works with: the same for all builds of a process.
type Host struct {
	Store    *cache.Store
	Sandbox  sandbox.Sandbox
	Networks *network.Networks
}

// Session is what a build brings with it.
type Session struct {
	Sources map[string]source.Source // by llb.Source.Scheme
	Local   *source.Local
	Fetcher Fetcher
	Secret  func(ctx context.Context, id string) ([]byte, error) // fs.ErrNotExist for one that was not given
	SSH     func(id string) (socket string, err error)           // path of an agent's socket; fs.ErrNotExist as above
	Devices func() *cdi.Registry                                 // called for a step that asks for one
	Meta    map[oci.Digest]llb.Meta
	// Project tells this build's steps from those of others in the same state
	// directory, to compare each with its like: the context's path, say.
	Project  string
	Progress progress.Sink
	Memory   int64 // bytes a step; 0: no limit
	CPUs     float64
	// NoNewPrivileges keeps set-user-ID programs, sudo for one, from giving a
	// step's processes more rights.
	NoNewPrivileges bool
	// Execs is how many steps that run a process the build has at most: while one
	// may be to come, the next sandbox is prepared. 0: none is.
	Execs int
	// RestoreMount gives the cache mount id, which is new or empty here, what it
	// had elsewhere: see cache.MountInit. It may be nil.
	RestoreMount func(ctx context.Context, id string, m llb.Mount, dir string) (notes map[string][]byte, err error)
	// MountUsed is told of the cache mounts that steps run with. It may be nil.
	MountUsed func(id string, m llb.Mount, dir string)
}

// Worker runs the steps of one build.
type Worker struct {
	Host
	Session

	mu    sync.Mutex
	pulls map[string]*pull

	execs  atomic.Int64 // steps that have run a process, or do
	starts turns        // of sandboxes
}

// New makes the worker of one build.
func New(h Host, s Session) *Worker {
	return &Worker{Host: h, Session: s, pulls: map[string]*pull{}, starts: turns{free: runtime.GOMAXPROCS(0)}}
}

// Run does the step n.
func (w *Worker) Run(ctx context.Context, n *llb.Node, in []Result) (Result, error) {
	r, err := w.run(ctx, n, in)
	r.Expires = time.Time{}
	if op, ok := n.Op.(llb.Exec); ok && op.TTL > 0 {
		r.Expires = time.Now().Add(time.Duration(op.TTL) * time.Second)
	}
	for _, i := range in {
		r.Torn = r.Torn || i.Torn
	}
	return r, err
}

func (w *Worker) run(ctx context.Context, n *llb.Node, in []Result) (Result, error) {
	switch op := n.Op.(type) {
	case llb.Source:
		return w.source(ctx, n, op)
	case llb.Merge:
		var r Result
		for _, i := range in {
			r.Layers = append(r.Layers, i.Layers...)
		}
		return r, nil
	case llb.File:
		return w.file(ctx, n, op, in)
	case llb.Exec:
		return w.exec(ctx, n, op, in)
	}
	return Result{}, fmt.Errorf("operation %T is not known", n.Op)
}

func (w *Worker) source(ctx context.Context, n *llb.Node, s llb.Source) (Result, error) {
	switch s.Scheme {
	case llb.Scratch:
		return Result{}, nil
	case llb.Local:
		return Result{Local: &s}, nil
	}
	from, ok := w.Sources[s.Scheme]
	if !ok {
		return Result{}, fmt.Errorf("sources of kind %q are not available", s.Scheme)
	}
	c, err := from.Open(ctx, s)
	if err != nil {
		return Result{}, err
	}
	if c.Dir == "" {
		return Result{Layers: c.Layers}, nil
	}
	return w.adopt(ctx, c.Dir)
}

// with is the chain of r with l on top.
func (r Result) with(l oci.Layer) Result {
	return Result{Layers: append(r.Layers[:len(r.Layers):len(r.Layers)], l), Torn: r.Torn}
}
