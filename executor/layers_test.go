package executor

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/861fb494/build/executor/source"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
)

// registry serves layers from memory: a source of one image, and its Fetcher.
type registry struct {
	mu     sync.Mutex
	layers []oci.Layer
	tars   map[string][]byte // by ID
	opened map[string]int
	events []progress.Event
	fail   map[string]error // by ID, at the end of the tar
}

// serve makes an image of tars; a member is "dir/", "file=content",
// "link=>target" for a hard link, or a whiteout.
func serve(t *testing.T, layers ...[]string) *registry {
	t.Helper()
	r := &registry{tars: map[string][]byte{}, opened: map[string]int{}, fail: map[string]error{}}
	for _, members := range layers {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, m := range members {
			h := &tar.Header{Typeflag: tar.TypeReg, Name: m, Mode: 0o644}
			name, body, _ := strings.Cut(m, "=")
			if to, ok := strings.CutPrefix(body, ">"); ok {
				h.Typeflag, h.Name, h.Linkname, body = tar.TypeLink, name, to, ""
			} else if strings.HasSuffix(m, "/") {
				h.Typeflag, h.Mode = tar.TypeDir, 0o700
			} else {
				h.Name, h.Size = name, int64(len(body))
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			io.WriteString(w, body)
		}
		w.Close()
		sum := fmt.Sprintf("%x", sha256.Sum256(b.Bytes()))
		d := oci.Digest("sha256:" + sum)
		r.layers = append(r.layers, oci.Layer{ID: "sha256-" + sum, Content: d, DiffID: d, Blob: &oci.Descriptor{Digest: d}, Origin: "base"})
		r.tars["sha256-"+sum] = b.Bytes()
	}
	return r
}

func (r *registry) Pin(_ context.Context, s llb.Source) (llb.Source, error) { return s, nil }

func (r *registry) Open(context.Context, llb.Source) (source.Content, error) {
	return source.Content{Layers: r.layers}, nil
}

func (r *registry) OpenLayer(_ context.Context, l oci.Layer, _ progress.Step) (io.ReadCloser, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened[pulledID(l)]++
	in := io.Reader(bytes.NewReader(r.tars[pulledID(l)]))
	if err := r.fail[pulledID(l)]; err != nil {
		in = io.MultiReader(in, failing{err})
	}
	return io.NopCloser(in), nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func (r *registry) Emit(e progress.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *registry) worker(g *rig) *Worker {
	return New(Host{Store: g.store}, Session{Fetcher: r, Progress: r})
}

func TestFetch(t *testing.T) {
	tests := []struct {
		name   string
		layers [][]string
		want   []string
		opens  int // of the last layer: twice where it needs those below
	}{
		{"one", [][]string{{"a=1"}}, []string{"/a 0644 0:0 1"}, 1},
		{"upon another", [][]string{{"d/", "d/a=1"}, {"d/", "d/b=2"}}, []string{"/d/ 0700 0:0", "/d/a 0644 0:0 1", "/d/b 0644 0:0 2"}, 1},
		{"a whiteout", [][]string{{"a=1", "b=2"}, {".wh.a"}}, []string{"/b 0644 0:0 2"}, 1},
		{"an opaque directory", [][]string{{"d/", "d/a=1"}, {"d/", "d/.wh..wh..opq", "d/b=2"}}, []string{"/d/ 0700 0:0", "/d/b 0644 0:0 2"}, 1},
		{"a hard link to a lower file", [][]string{{"a=1"}, {"b=>a"}}, []string{"/a 0644 0:0 links 2 1", "/b 0644 0:0 links 2 1"}, 2},
		{"a file without its directories", [][]string{{"d/", "d/a=1"}, {"d/b=2"}}, []string{"/d/ 0700 0:0", "/d/a 0644 0:0 1", "/d/b 0644 0:0 2"}, 2},
		{"several that need others", [][]string{{"a=1"}, {"b=>a"}, {"c=>b"}},
			[]string{"/a 0644 0:0 links 2 1", "/b 0644 0:0 links 2 1", "/c 0644 0:0 links 2 1"}, 2},
		{"the same layer twice", [][]string{{"a=1"}, {".wh.a"}, {"a=1"}}, nil, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g, r := newRig(t), serve(t, tt.layers...)
			layers, err := r.worker(g).Fetch(t.Context(), r.layers)
			if err != nil {
				t.Fatal(err)
			}
			if tt.want != nil {
				g.check(tt.name, Result{Layers: layers}, tt.want...)
			}
			last := r.layers[len(r.layers)-1].ID
			if got := r.opened[last]; got != tt.opens {
				t.Errorf("the last layer was opened %d times, want %d", got, tt.opens)
			}
			// The next build finds them here.
			opened := r.opened[last]
			if _, err := r.worker(g).Fetch(t.Context(), r.layers); err != nil || r.opened[last] != opened {
				t.Errorf("again: %v, opened %d times more", err, r.opened[last]-opened)
			}
			for _, e := range r.events {
				if d, ok := e.(progress.Done); ok && d.Err != nil {
					t.Errorf("the step ends with %v", d.Err)
				}
			}
		})
	}
}

// The same layer upon others: what it lacks is that chain's.
func TestFetchUpon(t *testing.T) {
	g := newRig(t)
	for _, tt := range []struct {
		name   string
		layers [][]string
		want   []string
	}{
		{"a hard link", [][]string{{"a=1"}, {"b=>a"}}, []string{"/a 0644 0:0 links 2 1", "/b 0644 0:0 links 2 1"}},
		{"to another file", [][]string{{"a=9"}, {"b=>a"}}, []string{"/a 0644 0:0 links 2 9", "/b 0644 0:0 links 2 9"}},
		{"no directories", [][]string{{"d/b=2"}}, []string{"/d/ 0755 0:0", "/d/b 0644 0:0 2"}},
		{"directories below", [][]string{{"d/", "d/a=1"}, {"d/b=2"}}, []string{"/d/ 0700 0:0", "/d/a 0644 0:0 1", "/d/b 0644 0:0 2"}},
		{"nothing to remove", [][]string{{"d/", "d/.wh.a", "c=3"}}, []string{"/c 0644 0:0 3", "/d/ 0700 0:0"}},
		{"something to remove", [][]string{{"d/", "d/a=1"}, {"d/", "d/.wh.a", "c=3"}}, []string{"/c 0644 0:0 3", "/d/ 0700 0:0"}},
	} {
		r := serve(t, tt.layers...)
		layers, err := r.worker(g).Fetch(t.Context(), r.layers)
		if err != nil {
			t.Fatal(err)
		}
		g.check(tt.name, Result{Layers: layers}, tt.want...)
		for c, err := range g.store.Entries(layers[0].ID) {
			if err != nil || c.Removed {
				t.Errorf("%s: the lowest layer has %+v, %v", tt.name, c, err)
			}
		}
		again, err := r.worker(g).Fetch(t.Context(), layers)
		if err != nil || again[len(again)-1].ID != layers[len(layers)-1].ID {
			t.Errorf("%s: fetched again: %v, %v, want %v", tt.name, again, err, layers)
		}
	}
}

// What fails at its end, where its digest is verified, is no layer.
func TestFetchFails(t *testing.T) {
	bad := errors.New("digest differs")
	g, r := newRig(t), serve(t, []string{"a=1"}, []string{"b=2"})
	r.fail[r.layers[0].ID] = bad
	if _, err := r.worker(g).Fetch(t.Context(), r.layers); !errors.Is(err, bad) {
		t.Errorf("Fetch = %v, want %v", err, bad)
	}
	if l, err := g.store.Layer(r.layers[0].ID); err == nil {
		t.Errorf("the bad layer is here: %+v", l)
	}
	told := false
	for _, e := range r.events {
		if d, ok := e.(progress.Done); ok {
			told = told || errors.Is(d.Err, bad)
		}
	}
	if !told {
		t.Error("the step does not end with the error")
	}
	delete(r.fail, r.layers[0].ID)
	if _, err := r.worker(g).Fetch(t.Context(), r.layers); err != nil {
		t.Errorf("then Fetch = %v", err)
	}
	if _, err := r.worker(g).Fetch(t.Context(), []oci.Layer{{ID: "gone-1"}}); err == nil || !strings.Contains(err.Error(), "layer gone-1 is gone") {
		t.Errorf("Fetch of a layer that cannot be pulled = %v", err)
	}
}

func TestFetchTogether(t *testing.T) {
	g, r := newRig(t), serve(t, []string{"a=1"}, []string{"b=2"}, []string{"c=>a"})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := r.worker(g).Fetch(context.Background(), r.layers); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, l := range r.layers[:2] {
		if n := r.opened[l.ID]; n != 1 {
			t.Errorf("layer %s was pulled %d times", l.ID, n)
		}
	}
}

// The files of a stage are keyed by what they hold, however its layers came to
// be, and whatever else the stage has.
func TestCopyFromAStage(t *testing.T) {
	r := newRig(t)
	copyFrom := func(stage *llb.Node, c llb.Copy) *llb.Node {
		c.Input = 1
		return llb.New(llb.File{Actions: []llb.Action{c}}, scratch, stage)
	}
	c := llb.Copy{Sources: []string{"/d/f"}, Dest: "/f", Keep: true}
	made := func(op string, n *llb.Node) []string {
		_, w := r.mustBuild(n)
		return w.ran
	}
	made("first", copyFrom(filesOf(scratch, "/d/", "/d/f 1"), c))
	owned := llb.New(llb.File{Actions: []llb.Action{llb.Mkdir{Path: "/d", Mode: 0o755}, llb.Mkfile{Path: "/d/f", Data: []byte("1"), Owner: "5"}}}, scratch)
	tests := []struct {
		name string
		n    *llb.Node
		runs int // beside the stage itself
	}{
		{"another file beside it", copyFrom(filesOf(scratch, "/d/", "/d/f 1", "/d/g 2"), c), 0},
		{"in two layers", copyFrom(filesOf(filesOf(scratch, "/d/", "/d/f 0"), "/d/f 1"), c), 0},
		{"other content", copyFrom(filesOf(scratch, "/d/", "/d/f 2"), c), 1},
		{"another owner, kept", copyFrom(owned, c), 1},
		{"another place", copyFrom(filesOf(scratch, "/d/", "/d/f 1"), llb.Copy{Sources: []string{"/d/f"}, Dest: "/g", Keep: true}), 1},
	}
	for _, tt := range tests {
		stage := 0
		llb.Graph{Targets: tt.n.Inputs[1:]}.Walk(func(n *llb.Node) {
			if _, ok := n.Op.(llb.File); ok {
				if _, err := r.store.Step(n.Digest); err != nil {
					stage++
				}
			}
		})
		if got := len(made(tt.name, tt.n)); got != stage+tt.runs {
			t.Errorf("%s: %d steps run, want %d of the stage and %d more", tt.name, got, stage, tt.runs)
		}
	}
}
