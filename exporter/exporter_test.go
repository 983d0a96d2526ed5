package exporter

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/exporter/compress"
	"github.com/861fb494/build/internal/oci"
)

// tarOf is a layer's tar with one file of size bytes.
func tarOf(name string, size int) []byte {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	data := bytes.Repeat([]byte(name+" "), size/(len(name)+1)+1)[:size]
	t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(size), ModTime: time.Unix(1, 0)})
	t.Write(data)
	t.Close()
	return b.Bytes()
}

// built is a layer as one built here, and a count of how often its tar is read.
func built(name string, size int) (oci.Layer, *atomic.Int32) {
	data, opened := tarOf(name, size), new(atomic.Int32)
	return oci.Layer{
		ID: name, DiffID: digest.FromBytes(data), TarSize: int64(len(data)),
		Tar: func(context.Context) (io.ReadCloser, error) {
			opened.Add(1)
			return io.NopCloser(bytes.NewReader(data)), nil
		},
	}, opened
}

// pulled is a layer that came compressed from repository.
func pulled(t *testing.T, name, repository string) oci.Layer {
	t.Helper()
	l, _ := built(name, 3000)
	var b bytes.Buffer
	w, err := compress.NewPool(1).Writer(&b, compress.Method{Type: compress.Gzip, Level: new(int)}) // level 0: not what this makes
	if err != nil {
		t.Fatal(err)
	}
	r, _ := l.Tar(t.Context())
	io.Copy(w, r)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data := b.Bytes()
	l.Blob = &oci.Descriptor{MediaType: dockerLayerGzip, Digest: digest.FromBytes(data), Size: int64(len(data))}
	l.Origin = repository
	l.Compressed = func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	return l
}

func resultOf(names []string, images ...oci.PlatformImage) oci.Result {
	r := oci.Result{Images: images}
	for _, n := range names {
		ref, err := oci.ParseReference(n)
		if err != nil {
			panic(err)
		}
		r.Names = append(r.Names, ref)
	}
	return r
}

func imageOf(arch string, layers ...oci.Layer) oci.PlatformImage {
	p := oci.Platform{OS: "linux", Architecture: arch}
	created := time.Unix(1700000000, 0).UTC()
	img := oci.Image{}
	img.Platform, img.Created = p, &created
	img.Config.Cmd = []string{"/x", "<&>"}
	img.Config.Labels = map[string]string{"b": "2", "a": "1"}
	img.RootFS.Type = "layers"
	img.RootFS.DiffIDs = []oci.Digest{}
	for _, l := range layers {
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, l.DiffID)
		img.History = append(img.History, oci.History{CreatedBy: "RUN " + l.ID, Created: &created})
	}
	return oci.PlatformImage{Platform: p, Image: img, Layers: layers}
}

func parse(t *testing.T, s string) Output {
	t.Helper()
	out, err := ParseOutput(s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// export runs one export and demands that no temporary file stays.
func export(t *testing.T, out Output, o Options, r oci.Result) (oci.Descriptor, error) {
	t.Helper()
	o.Temp = t.TempDir()
	e, err := New(out, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range r.Images {
		for _, l := range img.Layers {
			if err := e.Layer(t.Context(), l); err != nil {
				t.Fatal(err)
			}
		}
	}
	d, err := e.Export(t.Context(), r)
	if cerr := e.Close(); cerr != nil {
		t.Error(cerr)
	}
	if left, _ := os.ReadDir(o.Temp); len(left) != 0 {
		t.Errorf("%d temporary files left", len(left))
	}
	return d, err
}

func store(t *testing.T) *image.Store {
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

func needs(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("needs " + tool)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestOCIDirectory(t *testing.T) {
	a, _ := built("a", 10)
	b, _ := built("b", 3<<20)
	p := pulled(t, "p", "docker.io/library/base:1")
	for _, tt := range []struct {
		name   string
		attrs  string
		images []oci.PlatformImage
		types  string // of the layers, in short
		annot  string // in the manifest
	}{
		{"gzip", "", []oci.PlatformImage{imageOf("amd64", p, a, b)}, "gzip gzip gzip", ""},
		{"zstd", ",compression=zstd,compression-level=7", []oci.PlatformImage{imageOf("amd64", p, a)}, "gzip zstd", ""},
		{"zstd forced", ",compression=zstd,force-compression=true", []oci.PlatformImage{imageOf("amd64", p, a)}, "zstd zstd", ""},
		{"uncompressed", ",compression=uncompressed", []oci.PlatformImage{imageOf("amd64", a, b)}, "tar tar", ""},
		{"no layers", "", []oci.PlatformImage{imageOf("amd64")}, "", ""},
		{"same layer twice", "", []oci.PlatformImage{imageOf("amd64", a, a)}, "gzip gzip", ""},
		{"annotated", ",annotation.org.x.y=z", []oci.PlatformImage{imageOf("amd64", a)}, "gzip", `"org.x.y":"z"`},
		{"platforms", "", []oci.PlatformImage{imageOf("amd64", p, a), imageOf("arm64", b)}, "gzip gzip", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "out")
			d, err := export(t, parse(t, "type=oci,tar=false,dest="+dir+tt.attrs), Options{}, resultOf([]string{"x", "y:2"}, tt.images...))
			if err != nil {
				t.Fatal(err)
			}
			idx, err := layout.ImageIndexFromPath(dir)
			if err != nil {
				t.Fatal(err)
			}
			// The validator knows no layers but gzip's; skopeo reads the others
			// in another test.
			if err := validate.Index(idx); err != nil && strings.ReplaceAll(strings.ReplaceAll(tt.types, "gzip", ""), " ", "") == "" {
				t.Error(err)
			}
			data, err := os.ReadFile(filepath.Join(dir, blobPath(d.Digest)))
			if err != nil {
				t.Fatal(err)
			}
			if len(tt.images) > 1 {
				var idx oci.Index
				if err := json.Unmarshal(data, &idx); err != nil || len(idx.Manifests) != len(tt.images) {
					t.Fatalf("index = %s, want %d manifests", data, len(tt.images))
				}
				if p := idx.Manifests[1].Platform; p == nil || p.Architecture != "arm64" {
					t.Errorf("platform of the second manifest = %v, want arm64", p)
				}
				data, _ = os.ReadFile(filepath.Join(dir, blobPath(idx.Manifests[0].Digest)))
			}
			var m oci.Manifest
			if err := json.Unmarshal(data, &m); err != nil {
				t.Fatal(err)
			}
			var types []string
			for _, l := range m.Layers {
				types = append(types, l.MediaType[strings.LastIndexAny(l.MediaType, ".+")+1:])
			}
			if got := strings.Join(types, " "); got != tt.types {
				t.Errorf("layer types = %q, want %q", got, tt.types)
			}
			if !strings.Contains(string(data), tt.annot) {
				t.Errorf("manifest = %s, want %s in it", data, tt.annot)
			}
		})
	}
}

// Two exports into one directory: both images are there, a name moves.
func TestOCIDirectoryMerge(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	a, _ := built("a", 10)
	b, _ := built("b", 10)
	out := parse(t, "type=oci,tar=false,dest="+dir)
	for _, r := range []oci.Result{
		resultOf([]string{"x:1", "x:2"}, imageOf("amd64", a)), resultOf([]string{"x:2"}, imageOf("amd64", b)),
	} {
		if _, err := export(t, out, Options{}, r); err != nil {
			t.Fatal(err)
		}
	}
	var idx oci.Index
	data, _ := os.ReadFile(filepath.Join(dir, "index.json"))
	if err := json.Unmarshal(data, &idx); err != nil {
		t.Fatal(err)
	}
	if len(idx.Manifests) != 2 || idx.Manifests[0].Digest == idx.Manifests[1].Digest {
		t.Errorf("index.json = %s, want x:1 and x:2 of two images", data)
	}

	// What a killed export left is no obstacle.
	cut := t.TempDir()
	os.WriteFile(filepath.Join(cut, "oci-layout"), nil, 0o644)
	if _, err := export(t, parse(t, "type=oci,tar=false,dest="+cut), Options{}, resultOf(nil, imageOf("amd64", a))); err != nil {
		t.Errorf("export over half a layout: %v", err)
	}
	other := t.TempDir()
	os.WriteFile(filepath.Join(other, "precious"), nil, 0o644)
	_, err := export(t, parse(t, "type=oci,tar=false,dest="+other), Options{}, resultOf(nil, imageOf("amd64", a)))
	if err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("export into a directory of other things = %v, want an error", err)
	}
}

func TestTarIsDeterministic(t *testing.T) {
	a, _ := built("a", 2<<20)
	p := pulled(t, "p", "docker.io/library/base:1")
	for _, kind := range []string{"oci", "docker"} {
		var sums []string
		for range 2 {
			f := filepath.Join(t.TempDir(), "x.tar")
			if _, err := export(t, parse(t, "type="+kind+",dest="+f), Options{}, resultOf([]string{"x"}, imageOf("amd64", p, a))); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			sums = append(sums, fmt.Sprintf("%x", sha256.Sum256(data)))
		}
		var stdout bytes.Buffer
		if _, err := export(t, parse(t, "type="+kind+",dest=-"), Options{Stdout: &stdout}, resultOf([]string{"x"}, imageOf("amd64", p, a))); err != nil {
			t.Fatal(err)
		}
		sums = append(sums, fmt.Sprintf("%x", sha256.Sum256(stdout.Bytes())))
		if sums[0] != sums[1] || sums[0] != sums[2] {
			t.Errorf("type=%s: sums %v, want them equal", kind, sums)
		}
	}
}

// One layer's files may be in an image with two epochs: those are two tars.
func TestLayerAtTwoEpochs(t *testing.T) {
	plain, _ := built("same", 3000)
	bounded, _ := built("same, at another time", 3000)
	bounded.ID, bounded.Epoch = plain.ID, time.Unix(0, 0)
	dir := filepath.Join(t.TempDir(), "out")
	if _, err := export(t, parse(t, "type=oci,tar=false,dest="+dir), Options{}, resultOf(nil, imageOf("amd64", plain, bounded))); err != nil {
		t.Fatal(err)
	}
	blobs, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
	if err != nil || len(blobs) != 4 {
		t.Errorf("%d blobs, %v, want two layers, a configuration, a manifest", len(blobs), err)
	}
}

func TestDockerArchive(t *testing.T) {
	needs(t, "skopeo")
	a, _ := built("a", 20)
	p := pulled(t, "p", "docker.io/library/base:1")
	f := filepath.Join(t.TempDir(), "x.tar")
	r := resultOf([]string{"x", "localhost:5000/y:1"}, imageOf("amd64", p, a))
	if _, err := export(t, parse(t, "type=docker,dest="+f), Options{}, r); err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	out := t.TempDir()
	run(t, "skopeo", "copy", "-q", "--insecure-policy", "docker-archive:"+f+":localhost:5000/y:1", "oci:"+out+":got")
	run(t, "skopeo", "copy", "-q", "--insecure-policy", "oci-archive:"+f+":latest", "oci:"+out+":also")

	_, err = export(t, parse(t, "type=docker,dest="+f+"2"), Options{}, resultOf(nil, imageOf("amd64", a), imageOf("arm64", a)))
	if err == nil || !strings.Contains(err.Error(), "one platform") {
		t.Errorf("two platforms = %v, want an error", err)
	}
}

func TestSkopeoReadsOCI(t *testing.T) {
	needs(t, "skopeo")
	a, _ := built("a", 2<<20)
	b, _ := built("b", 20)
	for _, attrs := range []string{"", ",compression=zstd", ",compression=uncompressed"} {
		f := filepath.Join(t.TempDir(), "x.tar")
		if _, err := export(t, parse(t, "type=oci,dest="+f+attrs), Options{}, resultOf([]string{"x:v1"}, imageOf("amd64", a, b))); err != nil {
			t.Fatal(err)
		}
		out := t.TempDir()
		run(t, "skopeo", "copy", "-q", "--insecure-policy", "oci-archive:"+f+":v1", "oci:"+out+":got")
		if got := run(t, "skopeo", "inspect", "--config", "oci:"+out+":got"); !strings.Contains(got, a.DiffID.String()) {
			t.Errorf("%s: config %s, want %s in it", attrs, got, a.DiffID)
		}
	}
}

func TestLocal(t *testing.T) {
	s := store(t)
	a, opened := built("a", 20)
	p := pulled(t, "p", "docker.io/library/base:1")
	unnamed := pulled(t, "q", "")
	out := Output{Type: TypeImage}
	d, err := export(t, out, Options{Store: s}, resultOf([]string{"x", "y"}, imageOf("amd64", p, unnamed, a)))
	if err != nil {
		t.Fatal(err)
	}
	if n := opened.Load(); n != 0 {
		t.Errorf("the layer's tar was read %d times, want 0", n)
	}
	m, err := s.Manifest(d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if l := m.Layers[2]; l.MediaType != specs.MediaTypeImageLayer || l.Digest != a.DiffID || l.Size != a.TarSize || s.Has(l.Digest) {
		t.Errorf("layer built here = %v, want its tar, absent", l)
	}
	if l := m.Layers[0]; l.MediaType != specs.MediaTypeImageLayerGzip || l.Digest != p.Blob.Digest || s.Has(l.Digest) {
		t.Errorf("pulled layer = %v, want its blob, absent", l)
	}
	if !s.Has(m.Layers[1].Digest) {
		t.Error("the blob of a layer that no registry has was not kept")
	}
	for _, name := range []string{"x", "y"} {
		if f, err := s.Lookup(name); err != nil || f.Desc.Digest != d.Digest {
			t.Errorf("Lookup(%q) = %v, %v, want %s", name, f, err, d.Digest)
		}
	}
	// Unknown sizes are found by reading the tar.
	b, _ := built("b", 20)
	bare := b
	bare.TarSize = 0
	d, err = export(t, out, Options{Store: s}, resultOf(nil, imageOf("amd64", bare)))
	if err != nil {
		t.Fatal(err)
	}
	if m, err := s.Manifest(d.Digest); err != nil || m.Layers[0].Size != b.TarSize {
		t.Errorf("layer = %v, %v, want size %d", m.Layers, err, b.TarSize)
	}
	if list, _ := s.List(); len(list) != 3 || list[2].HasName() {
		t.Errorf("List = %v, want the third without a name", list)
	}
}

// What was compressed once for a registry or a file is not forgotten, and a
// record that lies is found out.
func TestRecords(t *testing.T) {
	s := store(t)
	a, _ := built("a", 2<<20)
	r := resultOf([]string{"x"}, imageOf("amd64", a))
	f := filepath.Join(t.TempDir(), "x.tar")
	d, err := export(t, parse(t, "type=oci,dest="+f), Options{Store: s}, r)
	if err != nil {
		t.Fatal(err)
	}
	recipe := compress.Method{}.Recipe()
	rec, ok := s.Compressed(a.DiffID, recipe)
	if !ok || rec.Size == 0 {
		t.Fatalf("no record of the compressed layer")
	}
	if err := s.SetCompressed(a.DiffID, recipe, oci.Descriptor{Digest: digest.FromString("lie"), Size: 3}); err != nil {
		t.Fatal(err)
	}
	again, err := export(t, parse(t, "type=oci,dest="+f), Options{Store: s}, r)
	if err != nil || again.Digest != d.Digest {
		t.Errorf("export after a wrong record = %s, %v, want %s", again.Digest, err, d.Digest)
	}
}
