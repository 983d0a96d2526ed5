package exporter

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/internal/oci"
)

// layerOf makes a layer of entries, each "name", "name=content", "name/" for a
// directory, "name->target" for a symbolic link, "name=>target" for a hard one,
// "name|" for a fifo.
func layerOf(entries ...string) oci.Layer {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, e := range entries {
		h := &tar.Header{Name: e, Typeflag: tar.TypeReg, Mode: 0o640, ModTime: time.Unix(int64(1000+i), 0)}
		content := ""
		switch {
		case strings.Contains(e, "=>"):
			h.Typeflag = tar.TypeLink
			h.Name, h.Linkname, _ = strings.Cut(e, "=>")
		case strings.Contains(e, "->"):
			h.Typeflag = tar.TypeSymlink
			h.Name, h.Linkname, _ = strings.Cut(e, "->")
		case strings.HasSuffix(e, "/"):
			h.Typeflag, h.Mode = tar.TypeDir, 0o750
		case strings.HasSuffix(e, "|"):
			h.Typeflag, h.Name = tar.TypeFifo, strings.TrimSuffix(e, "|")
		default:
			h.Name, content, _ = strings.Cut(e, "=")
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		io.WriteString(w, content)
	}
	w.Close()
	data := b.Bytes()
	return oci.Layer{
		ID: fmt.Sprint(entries), DiffID: digest.FromBytes(data), TarSize: int64(len(data)),
		Tar: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
	}
}

// listTar lists a tar in the notation of layerOf, sorted.
func listTar(t *testing.T, r io.Reader) []string {
	t.Helper()
	var list []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			slices.Sort(list)
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		content, _ := io.ReadAll(tr)
		switch h.Typeflag {
		case tar.TypeLink:
			list = append(list, h.Name+"=>"+h.Linkname)
		case tar.TypeSymlink:
			list = append(list, h.Name+"->"+h.Linkname)
		case tar.TypeDir:
			list = append(list, h.Name)
		case tar.TypeFifo:
			list = append(list, h.Name+"|")
		default:
			list = append(list, h.Name+"="+string(content))
		}
	}
}

// listDir lists a directory likewise; hard links are files.
func listDir(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name, _ := filepath.Rel(dir, p)
		switch {
		case d.IsDir():
			list = append(list, name+"/")
		case d.Type()&os.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			list = append(list, name+"->"+to)
		case d.Type()&os.ModeNamedPipe != 0:
			list = append(list, name+"|")
		default:
			data, _ := os.ReadFile(p)
			list = append(list, name+"="+string(data))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func TestFiles(t *testing.T) {
	for _, tt := range []struct {
		name   string
		layers []oci.Layer
		tar    string // entries, apart by spaces
		dir    string // empty: the same
	}{
		{"nothing", nil, "", ""},
		{"one layer", []oci.Layer{layerOf("a/", "a/b=1", "c->a/b", "p|")}, "a/ a/b=1 c->a/b p|", ""},
		{"no parents", []oci.Layer{layerOf("a/b/c=1")}, "a/ a/b/ a/b/c=1", ""},
		{"later wins", []oci.Layer{layerOf("a=1", "b=1"), layerOf("./a=2")}, "a=2 b=1", ""},
		{"later wins in one layer", []oci.Layer{layerOf("a=1", "a=2")}, "a=2", ""},
		{"whiteout", []oci.Layer{layerOf("a/", "a/x=1", "a/y=1", "b=1"), layerOf("a/.wh.x=", ".wh.b=")}, "a/ a/y=1", ""},
		{"whiteout of a directory", []oci.Layer{layerOf("a/", "a/x=1"), layerOf(".wh.a=")}, "", ""},
		{"whiteout and anew", []oci.Layer{layerOf("a/", "a/x=1"), layerOf("a/", "a/y=2", ".wh.a=")}, "a/ a/y=2", ""},
		{"whiteout of nothing", []oci.Layer{layerOf("x/.wh.y=", "z=1")}, "z=1", ""},
		{"opaque", []oci.Layer{layerOf("a/", "a/x=1", "a/b/", "a/b/c=1"), layerOf("a/", "a/y=2", "a/.wh..wh..opq=")}, "a/ a/y=2", ""},
		{"hard links", []oci.Layer{layerOf("a=1", "b=>a", "d/", "d/c=>a")}, "a=1 b=>a d/ d/c=>a", "a=1 b=1 d/ d/c=1"},
		{"hard link outlives its file", []oci.Layer{layerOf("a=1", "b=>a"), layerOf("a=2")}, "a=2 b=1", ""},
		{"hard link to a lower file", []oci.Layer{layerOf("a=1"), layerOf("b=>a")}, "a=1 b=>a", "a=1 b=1"},
		{"file to directory", []oci.Layer{layerOf("a=1"), layerOf("a/", "a/b=2")}, "a/ a/b=2", ""},
		{"directory to file", []oci.Layer{layerOf("a/", "a/b=1"), layerOf("a=2")}, "a=2", ""},
		{"through a link", []oci.Layer{layerOf("usr/", "usr/lib/", "lib->usr/lib"), layerOf("lib/x=1")}, "lib->usr/lib usr/ usr/lib/ usr/lib/x=1", ""},
		{"through a link out", []oci.Layer{layerOf("out->../../..", "abs->/d", "d/"), layerOf("out/x=1", "abs/y=1")},
			"abs->/d d/ d/y=1 out->../../.. x=1", ""},
		{"hostile names", []oci.Layer{layerOf("../../x=1", "/y=1", "a/../../z=1")}, "x=1 y=1 z=1", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := oci.Result{Images: []oci.PlatformImage{imageOf("amd64", tt.layers...)}}
			var out bytes.Buffer
			if _, err := export(t, parse(t, "type=tar,dest=-"), Options{Stdout: &out}, r); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(listTar(t, &out), " "); got != tt.tar {
				t.Errorf("tar = %q, want %q", got, tt.tar)
			}
			dir := filepath.Join(t.TempDir(), "out")
			if _, err := export(t, parse(t, dir), Options{}, r); err != nil {
				t.Fatal(err)
			}
			want := tt.dir
			if want == "" {
				want = tt.tar
			}
			if got := strings.Join(listDir(t, dir), " "); got != want {
				t.Errorf("directory = %q, want %q", got, want)
			}
		})
	}
}

func TestDirectoryMeta(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	os.MkdirAll(filepath.Join(dir, "d"), 0o755)
	os.WriteFile(filepath.Join(dir, "mine"), []byte("kept"), 0o600)
	os.Symlink("/etc", filepath.Join(dir, "e")) // in the way of a directory
	os.Symlink("mine", filepath.Join(dir, "f")) // in the way of a file
	r := oci.Result{Images: []oci.PlatformImage{imageOf("amd64", layerOf("d/", "d/x=1", "e/", "e/y=1", "f=2"))}}
	for range 2 { // the second time over the first
		if _, err := export(t, parse(t, dir), Options{}, r); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := strings.Join(listDir(t, dir), " "), "d/ d/x=1 e/ e/y=1 f=2 mine=kept"; got != want {
		t.Errorf("directory = %q, want %q", got, want)
	}
	for name, want := range map[string]os.FileMode{"d": 0o750 | os.ModeDir, "d/x": 0o640, "mine": 0o600} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode() != want {
			t.Errorf("mode of %s = %v, %v, want %v", name, st.Mode(), err, want)
		}
	}
	if st, _ := os.Stat(filepath.Join(dir, "d")); !st.ModTime().Equal(time.Unix(1000, 0)) {
		t.Errorf("time of d = %v, want %v", st.ModTime(), time.Unix(1000, 0))
	}
}

func TestFilesOfPlatforms(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	r := oci.Result{Images: []oci.PlatformImage{imageOf("amd64", layerOf("a=1")), imageOf("arm64", layerOf("a=2"))}}
	if _, err := export(t, parse(t, dir), Options{}, r); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(listDir(t, dir), " "), "linux_amd64/ linux_amd64/a=1 linux_arm64/ linux_arm64/a=2"; got != want {
		t.Errorf("directory = %q, want %q", got, want)
	}
}

// With SOURCE_DATE_EPOCH all files have that time, as with BuildKit.
func TestFilesDated(t *testing.T) {
	at := time.Unix(1005, 0)
	img := imageOf("amd64", layerOf("a/", "a/b=1", "a/c=>a/b"))
	img.Epoch = &at
	r := oci.Result{Images: []oci.PlatformImage{img}, Index: true}
	var out bytes.Buffer
	if _, err := export(t, parse(t, "type=tar,dest=-"), Options{Stdout: &out}, r); err != nil {
		t.Fatal(err)
	}
	for tr := tar.NewReader(&out); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeLink && !h.ModTime.Equal(at) {
			t.Errorf("in a tar %s has the time %v, want %v", h.Name, h.ModTime, at)
		}
	}
	dir := filepath.Join(t.TempDir(), "out")
	if _, err := export(t, parse(t, dir), Options{}, r); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"linux_amd64", "linux_amd64/a", "linux_amd64/a/b", "linux_amd64/a/c"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || !st.ModTime().Equal(at) {
			t.Errorf("in a directory %s has the time %v, %v, want %v", name, st.ModTime(), err, at)
		}
	}
}

func TestFilesFail(t *testing.T) {
	boom := errors.New("boom")
	good := layerOf("a=1")
	broken, changed := good, good
	data, _ := good.Tar(t.Context())
	half, _ := io.ReadAll(io.LimitReader(data, 600))
	broken.Tar = func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(half), iotestErr{boom})), nil
	}
	changed.Tar = layerOf("b=1").Tar
	loop := layerOf("a->b", "b->a", "a/x=1")
	dangling := layerOf("a=>nowhere")
	for name, l := range map[string]oci.Layer{"broken": broken, "changed": changed, "loop": loop, "dangling": dangling} {
		for _, kind := range []string{"type=tar,dest=", "type=local,dest="} {
			dir := t.TempDir()
			if _, err := export(t, parse(t, kind+filepath.Join(dir, "out")), Options{}, oci.Result{Images: []oci.PlatformImage{imageOf("amd64", l)}}); err == nil {
				t.Errorf("%s, %s: no error", name, kind)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("%s, %s: left %v", name, kind, left)
			}
		}
	}
}

func FuzzFlatten(f *testing.F) {
	for _, l := range []oci.Layer{layerOf("a/", "a/b=1", ".wh.c="), layerOf("a->..", "a/a->a", "b=>a")} {
		r, _ := l.Tar(f.Context())
		data, _ := io.ReadAll(r)
		f.Add(data, data)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		layer := func(data []byte) oci.Layer {
			return oci.Layer{Tar: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}
		}
		_, _, _ = flatten(t.Context(), []oci.Layer{layer(a), layer(b)})
	})
}
