package builder

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb/dockerfile"
)

// member is one of a tar: "dir/", "file=content", "link->target",
// "hard=>target", "dir/.wh.gone".
type member string

// pack makes a tar; each member's time is at seconds, so that layers differ.
func pack(t *testing.T, at int64, members []member) io.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, m := range members {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: string(m), Mode: 0o644, ModTime: time.Unix(at, 0)}
		body := ""
		if name, to, ok := strings.Cut(string(m), "=>"); ok {
			h.Typeflag, h.Name, h.Linkname = tar.TypeLink, name, to
		} else if name, to, ok := strings.Cut(string(m), "->"); ok {
			h.Typeflag, h.Name, h.Linkname = tar.TypeSymlink, name, to
		} else if name, content, ok := strings.Cut(string(m), "="); ok {
			h.Name, h.Size, body = name, int64(len(content)), content
		} else if strings.HasSuffix(string(m), "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

// put makes a layer upon chain of a tar's members.
func put(t *testing.T, b *Builder, chain []oci.Layer, at int64, members []member) oci.Layer {
	t.Helper()
	d, err := b.Store.Prepare(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	if _, err := layer.Apply(t.Context(), pack(t, at, members), d.Tree, layer.ApplyOptions{Complete: true}); err != nil {
		t.Fatal(err)
	}
	l, err := d.Commit(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// list is the members of a layer's tar, with their times.
func list(t *testing.T, b *Builder, id string) []string {
	t.Helper()
	r, err := b.Store.Tar(t.Context(), oci.Layer{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var out []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		s := h.Name
		switch h.Typeflag {
		case tar.TypeLink:
			s += "=>" + h.Linkname
		case tar.TypeSymlink:
			s += "->" + h.Linkname
		case tar.TypeReg:
			if content, err := io.ReadAll(tr); err != nil {
				t.Fatal(err)
			} else if len(content) > 0 {
				s += "=" + string(content)
			}
		}
		out = append(out, fmt.Sprintf("%s %d", s, h.ModTime.Unix()))
	}
}

func openBuilder(t *testing.T, driver string) *Builder {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: layers hold whiteouts and owners")
	}
	b, err := Open(t.Context(), t.TempDir(), Options{Driver: driver})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	return b
}

func TestMergeLayers(t *testing.T) {
	base := []member{"etc/", "etc/keep=k", "etc/old=o", "lib/", "lib/a=1", "lib/b=2", "lib/sub/", "lib/sub/x=x"}
	for _, tt := range []struct {
		name   string
		layers [][]member // of the times 1, 2, …
		want   []string   // members of the merged layer
	}{
		{"files of several layers", [][]member{{"etc/", "etc/n=1"}, {"etc/", "etc/n=2", "etc/m=3"}}, []string{"etc/ 2", "etc/m=3 2", "etc/n=2 2"}},
		{"made and removed", [][]member{{"tmp/", "tmp/x=1"}, {".wh.tmp"}}, nil},
		{"a file of the base removed", [][]member{{"etc/", "etc/n=1"}, {"etc/", "etc/.wh.old"}}, []string{"etc/ 2", "etc/n=1 1", "etc/.wh.old 0"}},
		{"changed, then removed", [][]member{{"etc/", "etc/old=other"}, {"etc/", "etc/.wh.old"}}, []string{"etc/ 2", "etc/.wh.old 0"}},
		{"removed, then made", [][]member{{"etc/", "etc/.wh.old"}, {"etc/", "etc/old=new"}}, []string{"etc/ 2", "etc/old=new 2"}},
		{"as the base has it in the end", [][]member{{"etc/", "etc/.wh.old"}, {"etc/", "etc/x=1"}, {"etc/", "etc/.wh.x"}}, []string{"etc/ 3", "etc/.wh.old 0"}},
		{
			"a directory removed and made anew",
			[][]member{{".wh.lib"}, {"lib/", "lib/c=3"}},
			[]string{"lib/ 2", "lib/.wh.a 0", "lib/.wh.b 0", "lib/c=3 2", "lib/.wh.sub 0"},
		},
		{
			"an opaque directory upon changes",
			[][]member{{"lib/", "lib/n=1", "lib/sub/", "lib/sub/y=y"}, {"lib/", "lib/.wh..wh..opq", "lib/sub/", "lib/sub/z=z"}},
			[]string{"lib/ 2", "lib/.wh.a 0", "lib/.wh.b 0", "lib/sub/ 2", "lib/sub/.wh.x 0", "lib/sub/z=z 2"},
		},
		{
			"a directory in place of a file and the other way round",
			[][]member{{"etc/", "etc/old/", "etc/old/in=1"}, {".wh.lib"}, {"lib=file"}},
			[]string{"etc/ 1", "etc/old/ 1", "etc/old/in=1 1", "lib=file 3"},
		},
		{"hard links of one layer", [][]member{{"h/", "h/a=1", "h/b=>h/a"}, {"h/", "h/c=2"}}, []string{"h/ 2", "h/a=1 1", "h/b=>h/a 1", "h/c=2 2"}},
		{"a hard link cut in a later layer", [][]member{{"h/", "h/a=1", "h/b=>h/a"}, {"h/", "h/a=2"}}, []string{"h/ 2", "h/a=2 2", "h/b=1 1"}},
		{"the first name of a hard link removed", [][]member{{"h/", "h/a=1", "h/b=>h/a"}, {"h/", "h/.wh.a"}}, []string{"h/ 2", "h/b=1 1"}},
		{"symbolic links", [][]member{{"l->etc"}, {"l/through=1"}}, []string{"etc/ 0", "etc/through=1 2", "l->etc 1"}},
		{"the root itself", [][]member{{"./", "r=1"}, {"s=2"}}, []string{"r=1 1", "s=2 2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var ids []oci.Digest
			for _, driver := range []string{"overlay", "plain"} {
				b := openBuilder(t, driver)
				chain := []oci.Layer{put(t, b, nil, 0, base)}
				for i, members := range tt.layers {
					chain = append(chain, put(t, b, chain, int64(i+1), members))
				}
				j := &job{Builder: b}
				l, err := j.mergeLayers(t.Context(), chain[:1], chain[1:])
				if err != nil {
					t.Fatalf("%s: mergeLayers(%q) = %v", driver, tt.layers, err)
				}
				if got := list(t, b, l.ID); !slices.Equal(got, tt.want) {
					t.Errorf("%s: mergeLayers(%q) has\n\t%q, want\n\t%q", driver, tt.layers, got, tt.want)
				}
				if want := chain[len(chain)-1].Created; !l.Created.Equal(want) {
					t.Errorf("%s: created %v, want %v, when the last of the layers was", driver, l.Created, want)
				}
				sealed, err := b.Store.Seal(t.Context(), l)
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, sealed.DiffID)
			}
			if ids[0] != ids[1] {
				t.Errorf("diff IDs %s with overlay, %s with plain", ids[0], ids[1])
			}
		})
	}
}

func TestSquashHistory(t *testing.T) {
	at := func(s int64) *time.Time { x := time.Unix(s, 0); return &x }
	layers := []oci.Layer{{Created: *at(1)}, {Created: *at(2)}}
	r := &dockerfile.Result{Image: oci.Image{}}
	r.Image.History = []oci.History{
		{CreatedBy: "base"}, {CreatedBy: "ENV of base", EmptyLayer: true},
		{CreatedBy: "RUN a"}, {CreatedBy: "ENV", EmptyLayer: true}, {CreatedBy: "RUN b"}, {CreatedBy: "CMD", EmptyLayer: true},
	}
	squashHistory(r, layers)
	want := []string{"base true <nil>", "ENV of base false <nil>", "RUN a false 1", "ENV false <nil>", "RUN b false 2", "CMD false <nil>", "build --squash true <nil>"}
	var got []string
	for _, h := range r.Image.History {
		created := "<nil>"
		if h.Created != nil {
			created = fmt.Sprint(h.Created.Unix())
		}
		got = append(got, fmt.Sprintf("%s %v %s", h.CreatedBy, !h.EmptyLayer, created))
	}
	if !slices.Equal(got, want) {
		t.Errorf("squashHistory(2 layers) = %q (name, has a layer, time), want %q", got, want)
	}
}
