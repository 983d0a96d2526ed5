package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
)

// member is one file of a test's archive, in order.
type member struct {
	name, data string
	header     tar.Header // Typeflag and Linkname, where it is no regular file
}

// sample is an OCI layout with one image, which tests then spoil.
type sample struct {
	config, manifest, layer string // bytes
	diffID                  oci.Digest
}

func newSample() sample {
	var s sample
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: 5, Mode: 0o644})
	io.WriteString(w, "hello")
	w.Close()
	s.diffID = digest.FromBytes(plain.Bytes())
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(plain.Bytes())
	z.Close()
	s.layer = packed.String()
	return s.withDiffID(s.diffID)
}

// withDiffID makes configuration and manifest say d.
func (s sample) withDiffID(d oci.Digest) sample {
	s.config = `{"os":"linux","architecture":"amd64","unknown":"kept","rootfs":{"type":"layers","diff_ids":["` + d.String() + `"]}}`
	m := oci.Manifest{MediaType: specs.MediaTypeImageManifest,
		Config: describe(specs.MediaTypeImageConfig, s.config),
		Layers: []oci.Descriptor{describe(specs.MediaTypeImageLayerGzip, s.layer)}}
	m.SchemaVersion = 2
	s.manifest = encode(m)
	return s
}

func describe(mediaType, data string) oci.Descriptor {
	return oci.Descriptor{MediaType: mediaType, Digest: digest.FromString(data), Size: int64(len(data))}
}

func encode(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(data)
}

func blobOf(data string) member {
	return member{name: "blobs/sha256/" + digest.FromString(data).Encoded(), data: data}
}

// index is an index.json with the sample under a name.
func (s sample) index(annotations map[string]string) string {
	d := describe(specs.MediaTypeImageManifest, s.manifest)
	d.Annotations = annotations
	idx := oci.Index{Manifests: []oci.Descriptor{d}}
	idx.SchemaVersion = 2
	return encode(idx)
}

func (s sample) layout(annotations map[string]string) []member {
	return []member{
		blobOf(s.layer), blobOf(s.config), blobOf(s.manifest),
		{name: "oci-layout", data: `{"imageLayoutVersion":"1.0.0"}`},
		{name: "index.json", data: s.index(annotations)},
	}
}

func tarOf(list []member) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range list {
		h := m.header
		h.Name, h.Mode = m.name, 0o644
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(m.data))
		}
		w.WriteHeader(&h)
		io.WriteString(w, m.data)
	}
	w.Close()
	return b.Bytes()
}

func newStore(t *testing.T) *image.Store {
	t.Helper()
	s, err := image.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, err := range s.Check(context.Background()) {
			t.Error(err)
		}
	})
	return s
}

func load(t *testing.T, s *image.Store, data []byte) ([]image.Named, error) {
	t.Helper()
	return Load(t.Context(), s, "-", Options{Stdin: bytes.NewReader(data), Temp: t.TempDir()})
}

func named(full string) map[string]string {
	return map[string]string{image.AnnotationContainerName: full, image.AnnotationRefName: "latest"}
}

func TestLoad(t *testing.T) {
	s := newSample()
	id := digest.FromString(s.config)
	idx := oci.Index{MediaType: specs.MediaTypeImageIndex, Manifests: []oci.Descriptor{
		describe(specs.MediaTypeImageManifest, s.manifest), describe(specs.MediaTypeImageManifest, "of another platform, not saved"),
	}}
	idx.SchemaVersion = 2
	top := oci.Index{Manifests: []oci.Descriptor{describe(specs.MediaTypeImageIndex, encode(idx))}}
	top.SchemaVersion = 2
	manifestJSON := func(layer string) string {
		return encode([]dockerEntry{{Config: id.Encoded() + ".json", RepoTags: []string{"x:1", "y:2"}, Layers: []string{layer}}})
	}
	tests := []struct {
		name  string
		files []member
		names string
	}{
		{"layout", s.layout(named("docker.io/library/x:latest")), "docker.io/library/x:latest"},
		{"name in ref.name", s.layout(map[string]string{specs.AnnotationRefName: "localhost:5000/x"}), "localhost:5000/x:latest"},
		{"tag alone", s.layout(map[string]string{specs.AnnotationRefName: "v1"}), ""},
		{"no name", s.layout(nil), ""},
		{"names of manifest.json", append(s.layout(nil), member{name: "manifest.json", data: manifestJSON("x")}), "docker.io/library/x:1 docker.io/library/y:2"},
		{"index", append(s.layout(nil)[:4], blobOf(encode(idx)), member{name: "index.json", data: encode(top)}), ""},
		{"dots in front", func() []member {
			list := s.layout(nil)
			for i := range list {
				list[i].name = "./" + list[i].name
			}
			return list
		}(), ""},
		{"docker, links", []member{
			{name: id.Encoded() + ".json", data: s.config},
			{name: "a/layer.tar", data: s.layer},
			{name: "b/layer.tar", header: tar.Header{Typeflag: tar.TypeSymlink, Linkname: "../a/layer.tar"}},
			{name: "manifest.json", data: manifestJSON("b/layer.tar")},
		}, "docker.io/library/x:1 docker.io/library/y:2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			store := newStore(t)
			list, err := load(t, store, tarOf(tt.files))
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, n := range list {
				if n.HasName() {
					names = append(names, n.Ref.String())
				}
			}
			if got := strings.Join(names, " "); got != tt.names {
				t.Errorf("Load = %q, want %q", got, tt.names)
			}
			f, err := store.Lookup(id.String())
			if err != nil {
				t.Fatal(err)
			}
			m, err := store.Main(f.Desc)
			if err != nil {
				t.Fatal(err)
			}
			if man, err := store.Manifest(m.Digest); err != nil || !store.Has(man.Layers[0].Digest) {
				t.Errorf("the layer is not in the store: %v, %v", man.Layers, err)
			}
		})
	}
}

// The same archive in its other shapes.
func TestShapes(t *testing.T) {
	s := newSample()
	data := tarOf(s.layout(named("docker.io/library/x:latest")))
	dir := t.TempDir()
	plain, packed, layout := filepath.Join(dir, "x.tar"), filepath.Join(dir, "x.tar.gz"), filepath.Join(dir, "layout")
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(data)
	w.Close()
	for name, b := range map[string][]byte{plain: data, packed: z.Bytes()} {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range s.layout(named("docker.io/library/x:latest")) {
		p := filepath.Join(layout, m.name)
		os.MkdirAll(filepath.Dir(p), 0o755)
		if err := os.WriteFile(p, []byte(m.data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{plain, packed, layout} {
		store := newStore(t)
		list, err := Load(t.Context(), store, path, Options{Temp: t.TempDir()})
		if err != nil || len(list) != 1 || list[0].Ref.Path != "library/x" {
			t.Errorf("Load(%s) = %v, %v, want x", filepath.Base(path), list, err)
		}
	}
}

func TestHostile(t *testing.T) {
	s := newSample()
	good := s.layout(named("docker.io/library/x:latest"))
	with := func(i int, m member) []member {
		list := append([]member{}, good...)
		list[i] = m
		return list
	}
	wrong := s.withDiffID(digest.FromString("another"))
	fifo := append([]member{{name: "p", header: tar.Header{Typeflag: tar.TypeFifo}}}, good...)
	deep := member{}
	deep.name, deep.data = "index.json", encode(oci.Index{Manifests: []oci.Descriptor{{MediaType: specs.MediaTypeImageIndex, Digest: "sha256:../../../etc/passwd", Size: 1}}})
	tests := []struct {
		name  string
		files []member
		err   string
	}{
		{"empty", nil, "neither an OCI layout"},
		{"layer changed", with(0, member{name: good[0].name, data: s.layer + "x"}), "layer sha256:"},
		{"layer missing", good[1:], "layer sha256:"},
		{"config changed", with(1, member{name: good[1].name, data: s.config + " "}), "its digest is"},
		{"manifest changed", with(2, member{name: good[2].name, data: s.manifest + " "}), "its digest is"},
		{"diff ID wrong", wrong.layout(nil), "has the diff ID"},
		{"path leads out", append([]member{{name: "../../etc/cron.d/x", data: "x"}}, good...), "leads out"},
		{"absolute path", append([]member{{name: "/etc/cron.d/x", data: "x"}}, good...), "leads out"},
		{"fifo", fifo, "has type"},
		{"digest is a path", with(4, deep), "digest \"sha256:../"},
		{"index.json is no JSON", with(4, member{name: "index.json", data: "{"}), "index.json"},
		{"bad name", s.layout(named("UPPER")), "UPPER"},
		{"link out", []member{
			{name: "manifest.json", data: encode([]dockerEntry{{Config: "c", Layers: []string{"l"}}})},
			{name: "c", header: tar.Header{Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}},
		}, "not in the archive"},
		{"link loop", []member{
			{name: "manifest.json", header: tar.Header{Typeflag: tar.TypeSymlink, Linkname: "manifest.json"}},
		}, "neither an OCI layout"},
		{"docker layer count", []member{
			{name: "manifest.json", data: encode([]dockerEntry{{Config: "c.json"}})}, {name: "c.json", data: s.config},
		}, "0 layers, but its configuration has 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			store := newStore(t)
			_, err := load(t, store, tarOf(tt.files))
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Load = %v, want %q", err, tt.err)
			}
			if list, _ := store.List(); len(list) != 0 {
				t.Errorf("it was given names: %v", list)
			}
		})
	}
	// Cut off before the padding of its last file, it is refused.
	data := tarOf(good)
	for n := 0; n < len(data)-1024-512; n += 700 {
		store := newStore(t)
		if _, err := load(t, store, data[:n]); err == nil {
			t.Errorf("the first %d of %d bytes were loaded", n, len(data))
		}
	}
}

func TestStops(t *testing.T) {
	s := newSample()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Load(ctx, newStore(t), "-", Options{Stdin: bytes.NewReader(tarOf(s.layout(nil))), Temp: t.TempDir()})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Load = %v, want %v", err, context.Canceled)
	}
}

// What skopeo writes can be read.
func TestSkopeo(t *testing.T) {
	if _, err := exec.LookPath("skopeo"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("needs skopeo")
	}
	s := newSample()
	dir := t.TempDir()
	in := filepath.Join(dir, "in.tar")
	if err := os.WriteFile(in, tarOf(s.layout(named("docker.io/library/x:latest"))), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"docker-archive:%:x:1", "oci-archive:%:localhost/x:1", "oci:%:localhost/x:1"} {
		path := filepath.Join(t.TempDir(), "out")
		to = strings.ReplaceAll(to, "%", path)
		if out, err := exec.Command("skopeo", "copy", "-q", "--insecure-policy", "oci-archive:"+in, to).CombinedOutput(); err != nil {
			t.Fatalf("skopeo copy to %s: %v\n%s", to, err, out)
		}
		list, err := Load(t.Context(), newStore(t), path, Options{Temp: t.TempDir()})
		if err != nil || len(list) != 1 || list[0].Ref.Tag != "1" {
			t.Errorf("Load of what skopeo wrote to %s = %v, %v, want one image with the tag 1", to, list, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	s := newSample()
	f.Add(tarOf(s.layout(named("docker.io/library/x:latest"))))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		store, err := image.Open(filepath.Join(t.TempDir(), "images"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = Load(t.Context(), store, "-", Options{Stdin: bytes.NewReader(data), Temp: t.TempDir()})
		if bad := store.Check(t.Context()); len(bad) != 0 {
			t.Errorf("the store is damaged: %v", bad)
		}
	})
}
