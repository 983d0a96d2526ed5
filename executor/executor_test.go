package executor

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/overlay"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/network"
	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/executor/source"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/parser/ignore"
	"github.com/861fb494/build/solver"
)

// rig is a state directory, a context and a sandbox that runs nothing.
type rig struct {
	t       *testing.T
	store   *cache.Store
	dir     string // the context's
	box     *fakeSandbox
	secrets map[string]string
	agents  map[string]string
	ignore  string // .dockerignore
	meta    map[oci.Digest]llb.Meta
	images  *registry // may be nil
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: layers have owners and whiteouts")
	}
	root := t.TempDir()
	d, err := overlay.New(filepath.Join(root, "snapshots"), overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := cache.Open(t.Context(), root, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range s.Check(context.Background()) {
			t.Errorf("after the test: %v", p)
		}
		s.Close(context.Background())
	})
	return &rig{
		t: t, store: s, dir: t.TempDir(), box: &fakeSandbox{},
		secrets: map[string]string{}, agents: map[string]string{}, meta: map[oci.Digest]llb.Meta{},
	}
}

// settle waits for what the driver deletes in the background.
func (r *rig) settle() { r.store.Driver().(*overlay.Driver).Wait() }

// write puts a file of the context; old enough for its stamp to be trusted.
func (r *rig) write(name, text string) { r.put(name, text, 0o644) }

func (r *rig) put(name, text string, mode os.FileMode) {
	r.t.Helper()
	p := filepath.Join(r.dir, name)
	err := os.MkdirAll(filepath.Dir(p), 0o755)
	switch {
	case err != nil:
	case strings.HasSuffix(name, "/"):
		err = os.MkdirAll(p, 0o755)
	case strings.HasPrefix(text, "-> "):
		err = os.Symlink(text[3:], p)
	case strings.HasPrefix(text, "= "):
		err = os.Link(filepath.Join(r.dir, text[2:]), p)
	default:
		if err = os.WriteFile(p, []byte(text), mode); err == nil {
			err = os.Chmod(p, mode)
		}
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// fakeSandbox keeps what it was asked for and does what do says.
type fakeSandbox struct {
	mu    sync.Mutex
	specs []sandbox.Spec
	do    func(ctx context.Context, s sandbox.Spec) error
}

func (f *fakeSandbox) Start(ctx context.Context, s sandbox.Spec) (sandbox.Process, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.specs = append(f.specs, s)
	return &fakeProcess{f: f, ctx: ctx, spec: s}, nil
}

type fakeProcess struct {
	sandbox.Process
	f    *fakeSandbox
	ctx  context.Context
	spec sandbox.Spec
}

func (p *fakeProcess) Wait() error {
	if p.f.do == nil {
		return nil
	}
	return p.f.do(p.ctx, p.spec)
}

// option is the value of a mount's option.
func option(m oci.Mount, name string) string {
	for _, o := range m.Options {
		if v, ok := strings.CutPrefix(o, name+"="); ok {
			return v
		}
	}
	return ""
}

// upper is the directory in which a step's changes are.
func upper(m oci.Mount) string {
	if m.Type == "bind" {
		return m.Source
	}
	return option(m, "upperdir")
}

// watch counts what runs, and why.
type watch struct {
	mu  sync.Mutex
	ran []string
	why []string
}

func (w *watch) Started(*llb.Node, time.Time) {}
func (w *watch) Running(n *llb.Node, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := n.Op.(llb.Source); !ok {
		w.ran = append(w.ran, strings.TrimPrefix(fmt.Sprintf("%T", n.Op), "llb."))
		w.why = append(w.why, why)
	}
}
func (w *watch) Done(*llb.Node, bool, error, time.Time) {}

// build pins and solves a graph of one target, as a build does.
func (r *rig) build(n *llb.Node) (Result, *watch, error) {
	return r.buildWith(n, nil)
}

// buildWith is build with something done between pinning and solving.
func (r *rig) buildWith(n *llb.Node, meanwhile func()) (Result, *watch, error) {
	r.t.Helper()
	m, err := ignore.Parse(strings.NewReader(r.ignore))
	if err != nil {
		r.t.Fatal(err)
	}
	stats := r.store.Stats(r.dir)
	defer stats.Close()
	c, err := source.OpenContext(r.dir, m, stats)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	local := source.NewLocal(map[string]*source.Context{"context": c})
	g := llb.Graph{Targets: []*llb.Node{n}, Meta: r.meta}
	g, err = g.Rewrite(func(n *llb.Node) (llb.Op, error) {
		if s, ok := n.Op.(llb.Source); ok && s.Scheme == llb.Local {
			return local.Pin(r.t.Context(), s)
		}
		return n.Op, nil
	})
	if err != nil {
		return Result{}, nil, err
	}
	if meanwhile != nil {
		meanwhile()
	}
	w := New(Host{Store: r.store, Sandbox: r.box, Networks: network.New("", network.Options{})}, Session{
		Local: local, Meta: g.Meta, Progress: progress.Discard,
		Secret: func(_ context.Context, id string) ([]byte, error) { return given(r.secrets, id) },
		SSH: func(id string) (string, error) {
			b, err := given(r.agents, id)
			return string(b), err
		},
	})
	if r.images != nil {
		w.Sources, w.Fetcher = map[string]source.Source{llb.Registry: r.images}, r.images
	}
	s := solver.New[Result](Records{Store: r.store, Differences: new(Differences)}, solver.Options{})
	seen := &watch{}
	got, err := s.Solve(r.t.Context(), g, w, solver.SolveOptions{Observer: seen})
	if err != nil {
		return Result{}, seen, err
	}
	if err := stats.Save(c.Hashed()); err != nil {
		r.t.Error(err)
	}
	return got[0], seen, nil
}

func given(m map[string]string, id string) ([]byte, error) {
	v, ok := m[id]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return []byte(v), nil
}

func (r *rig) mustBuild(n *llb.Node) (Result, *watch) {
	r.t.Helper()
	got, w, err := r.build(n)
	if err != nil {
		r.t.Fatal(err)
	}
	return got, w
}

// list is what a result holds: "path mode uid:gid content".
func (r *rig) list(res Result) []string {
	r.t.Helper()
	s, err := r.store.View(r.t.Context(), res.Layers)
	if err != nil {
		r.t.Fatal(err)
	}
	defer s.Tree.Close()
	var out []string
	var walk func(p string)
	walk = func(p string) {
		e, err := s.Tree.Lstat(p)
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, line(s.Tree, e))
		if !e.IsDir() {
			return
		}
		names, err := s.Tree.ReadDir(p)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, n := range names {
			walk(path.Join(p, n))
		}
	}
	walk("/")
	return out[1:] // without the root
}

func line(t *tree.Tree, e tree.Entry) string {
	what := fmt.Sprintf("%s %04o %d:%d", e.Path, e.Perm(), e.UID, e.GID)
	switch e.Type() {
	case unix.S_IFDIR:
		return strings.Replace(what, e.Path, e.Path+"/", 1)
	case unix.S_IFLNK:
		return fmt.Sprintf("%s -> %s", e.Path, e.Link)
	case unix.S_IFREG:
		f, err := t.Open(e.Path)
		if err != nil {
			return err.Error()
		}
		defer f.Close()
		b := make([]byte, 100)
		n, _ := f.Read(b)
		if e.Nlink > 1 {
			what += fmt.Sprintf(" links %d", e.Nlink)
		}
		return what + " " + string(b[:n])
	}
	return fmt.Sprintf("%s type %o %d,%d", what, e.Type(), e.Major, e.Minor)
}

func (r *rig) check(name string, res Result, want ...string) {
	r.t.Helper()
	if got := r.list(res); !slices.Equal(got, want) {
		r.t.Errorf("%s: the tree holds\n\t%s\nwant\n\t%s", name, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

var scratch = llb.New(llb.Source{Scheme: llb.Scratch})

// context is a source of the context for paths.
func contextOf(c llb.Copy) *llb.Node {
	return llb.New(llb.Source{Scheme: llb.Local, Ref: "context", Select: llb.Select{
		Paths: c.Sources, Wildcards: c.Wildcards, Excludes: c.Excludes, Parents: c.Parents,
	}})
}

// copyOf is a COPY from the context upon base.
func copyOf(base *llb.Node, c llb.Copy) *llb.Node {
	c.Input = 1
	return llb.New(llb.File{Actions: []llb.Action{c}}, base, contextOf(c))
}

// filesOf is a tree of files made by Mkfile and Mkdir: "/dir/" or "/file text".
func filesOf(base *llb.Node, lines ...string) *llb.Node {
	var f llb.File
	for _, l := range lines {
		name, text, _ := strings.Cut(l, " ")
		if strings.HasSuffix(name, "/") {
			f.Actions = append(f.Actions, llb.Mkdir{Path: strings.TrimSuffix(name, "/"), Mode: 0o755})
		} else {
			f.Actions = append(f.Actions, llb.Mkfile{Path: name, Data: []byte(text)})
		}
	}
	return llb.New(f, base)
}

func ownerOf(fi os.FileInfo) (uid, gid uint32) {
	st := fi.Sys().(*syscall.Stat_t)
	return st.Uid, st.Gid
}
