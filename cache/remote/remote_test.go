package remote

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/exporter/compress"
	"github.com/861fb494/build/internal/oci"
)

func key(s string) oci.Digest {
	return oci.Digest("blake3:" + digest.FromString(s).Encoded())
}

// built is a layer with one file, as a build makes it.
func built(t *testing.T, name, body string) (oci.Layer, []tree.Change) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body)), ModTime: time.Unix(1, 0)}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	changes := []tree.Change{{Entry: tree.Entry{
		Path: "/" + name, Mode: unix.S_IFREG | 0o644, Size: int64(len(body)), ModTime: time.Unix(1, 0), Nlink: 1, Digest: key(body),
	}}}
	return oci.Layer{
		ID: "l-" + name, Content: layer.Digest(changes), DiffID: digest.FromBytes(b.Bytes()), TarSize: int64(b.Len()),
		Created: time.Unix(1700000000, 0).UTC(),
		Tar:     func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil },
	}, changes
}

// exported puts two steps upon a base image's layer out to a layout.
func exported(t *testing.T, dir string) (base oci.Layer, layers []oci.Layer, records []Record) {
	t.Helper()
	base = oci.Layer{ID: "base", Content: digest.FromString("base"), DiffID: digest.FromString("base"), Blob: &oci.Descriptor{MediaType: specs.MediaTypeImageLayerGzip, Digest: digest.FromString("blob"), Size: 10}, Origin: "docker.io/library/x@" + digest.FromString("m").String()}
	lists := map[oci.Digest][]tree.Change{}
	for i := range 2 {
		l, changes := built(t, fmt.Sprint("f", i), strings.Repeat("x", 1000*i+1))
		layers = append(layers, l)
		lists[l.DiffID] = changes
	}
	records = []Record{
		{Keys: []oci.Digest{key("own 1"), key("content 1")}, Layers: []oci.Layer{base, layers[0]}, Created: time.Unix(5, 0).UTC(), Parts: []cache.Part{{Name: "operation", Value: "blake3:x"}}},
		{Keys: []oci.Digest{key("own 2")}, Layers: []oci.Layer{base, layers[0], layers[1]}},
	}
	p, err := Spec{Type: TypeLocal, Attrs: map[string]string{"dest": dir}}.Place(true, Env{})
	if err != nil {
		t.Fatal(err)
	}
	stats, err := Export(t.Context(), p, records, Options{
		Pool: compress.NewPool(1), Temp: t.TempDir(), Parts: true,
		Entries: func(l oci.Layer) ([]tree.Change, bool) { c, ok := lists[l.DiffID]; return c, ok },
	})
	if err != nil || stats.Records != 2 || stats.Layers != 3 {
		t.Fatalf("Export = %+v, %v, want 2 records and 3 layers", stats, err)
	}
	return base, layers, records
}

// counting counts what is asked of a place.
type counting struct {
	Place
	manifests, blobs atomic.Int32
}

func (c *counting) Manifest(ctx context.Context, d oci.Digest) ([]byte, error) {
	c.manifests.Add(1)
	return c.Place.Manifest(ctx, d)
}

func (c *counting) Blob(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	c.blobs.Add(1)
	return c.Place.Blob(ctx, d)
}

func source(t *testing.T, dir string) *counting {
	t.Helper()
	p, err := Spec{Type: TypeLocal, Attrs: map[string]string{"src": dir}}.Place(false, Env{})
	if err != nil {
		t.Fatal(err)
	}
	return &counting{Place: p}
}

func TestThereAndBack(t *testing.T) {
	dir := t.TempDir()
	base, layers, records := exported(t, dir)
	p := source(t, dir)
	c, err := Open(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		for _, k := range r.Keys {
			got, ok := c.Lookup(k)
			if !ok || len(got.Layers) != len(r.Layers) || !got.Created.Equal(r.Created) || !slices.Equal(got.Parts, r.Parts) {
				t.Fatalf("Lookup(%s) = %+v, %v, want %+v", k, got, ok, r)
			}
			if l := got.Layers[0]; l.DiffID != base.DiffID || l.Blob != nil || l.Imported {
				t.Errorf("the base image's layer came back as %+v, want a diff ID and no more", l)
			}
			for i, l := range got.Layers[1:] {
				want := layers[i]
				if l.DiffID != want.DiffID || l.Content != want.Content || l.TarSize != want.TarSize || !l.Created.Equal(want.Created) || !l.Imported ||
					l.ID != "sha256-"+want.DiffID.Encoded() || l.Origin != "cache+local://"+dir {
					t.Errorf("layer %d came back as %+v, want as %+v", i, l, want)
				}
			}
		}
	}
	if _, ok := c.Lookup(key("none")); ok {
		t.Error("Lookup of a key that nobody recorded finds something")
	}
	if m, b := p.manifests.Load(), p.blobs.Load(); m != 1 || b != 1 {
		t.Errorf("%d manifests and %d blobs were read to look steps up, want 1 and 1", m, b)
	}
	changes, ok, err := c.Entries(t.Context(), layers[1].DiffID)
	if err != nil || !ok || len(changes) != 1 || changes[0].Path != "/f1" {
		t.Errorf("Entries = %v, %v, %v, want /f1", changes, ok, err)
	}
	if _, ok, _ := c.Entries(t.Context(), base.DiffID); ok {
		t.Error("Entries of a layer whose list was not known are there")
	}
	got, _ := c.Lookup(key("own 2"))
	place, err := At(got.Layers[2].Origin, Env{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := place.Blob(t.Context(), *got.Layers[2].Blob)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, Verify(r, *got.Layers[2].Blob)); err != nil {
		t.Errorf("the layer's blob: %v", err)
	}
}

func TestExportTwiceSendsOnce(t *testing.T) {
	dir := t.TempDir()
	_, _, records := exported(t, dir)
	p := source(t, dir)
	c, err := Open(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	r, _ := c.Lookup(key("own 1"))
	for i := range r.Layers {
		if r.Layers[i].Imported {
			r.Layers[i].Compressed = func(context.Context) (io.ReadCloser, error) { return nil, errors.New("not to be read") }
		}
	}
	r.Layers[0] = records[0].Layers[0]
	to, err := Spec{Type: TypeLocal, Attrs: map[string]string{"dest": dir, "tag": "second"}}.Place(true, Env{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Export(t.Context(), to, []Record{r}, Options{Pool: compress.NewPool(1), Temp: t.TempDir(), Entries: func(oci.Layer) ([]tree.Change, bool) { return nil, false }}); err != nil {
		t.Fatalf("Export of what is there: %v", err)
	}
	for _, tag := range []string{"latest", "second"} {
		p, err := Spec{Type: TypeLocal, Attrs: map[string]string{"src": dir, "tag": tag}}.Place(false, Env{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), p); err != nil {
			t.Errorf("Open of %s after both exports: %v", tag, err)
		}
	}
}

// rewrite changes the index of the cache in dir, and its manifest to fit.
func rewrite(t *testing.T, dir string, index func(*index), manifest func(*oci.Manifest)) {
	t.Helper()
	p := source(t, dir)
	data, err := p.Manifest(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	var m oci.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	if index != nil {
		data, err := readBlob(t.Context(), p, m.Config, maxIndex)
		if err != nil {
			t.Fatal(err)
		}
		x, err := parseIndex(data)
		if err != nil {
			t.Fatal(err)
		}
		index(x)
		if data, err = encode(x); err != nil {
			t.Fatal(err)
		}
		m.Config = descriptor(indexType, data)
		if err := p.Put(t.Context(), m.Config, bytesOf(data), nil); err != nil {
			t.Fatal(err)
		}
	}
	if manifest != nil {
		manifest(&m)
	}
	if data, err = encode(m); err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(t.Context(), data); err != nil {
		t.Fatal(err)
	}
}

func TestHostile(t *testing.T) {
	for _, tt := range []struct {
		name     string
		index    func(*index)
		manifest func(*oci.Manifest)
		want     string
	}{
		{"another version", func(x *index) { x.Version = 2 }, nil, "of version 2"},
		{"no version", func(x *index) { x.Version = 0 }, nil, "of version 0"},
		{"a layer that is not there", func(x *index) { x.Records[0].Layers = []int{3} }, nil, "layer 3 of 3"},
		{"a negative layer", func(x *index) { x.Records[0].Layers = []int{-1} }, nil, "layer -1 of 3"},
		{"a path for a diff ID", func(x *index) { x.Layers[1].DiffID = "sha256:../../../etc/passwd" }, nil, "is not a digest"},
		{"an upper-case digest", func(x *index) { x.Layers[1].DiffID = oci.Digest(strings.ToUpper(string(x.Layers[1].DiffID))) }, nil, "is not a digest"},
		{"a short digest", func(x *index) { x.Layers[1].Content = "blake3:00" }, nil, "is not a digest"},
		{"a blob that the manifest has not", func(x *index) { x.Layers[1].Blob = digest.FromString("none") }, nil, "the manifest has no layer"},
		{"entries that the manifest has not", func(x *index) { x.Layers[1].Entries = digest.FromString("none") }, nil, "the manifest has no entries"},
		{"entries for a layer", func(x *index) { x.Layers[1].Blob = x.Layers[1].Entries }, nil, "the manifest has no layer"},
		{"a layer for entries", func(x *index) { x.Layers[1].Entries = x.Layers[1].Blob }, nil, "the manifest has no entries"},
		{"a built layer without a blob", func(x *index) { x.Layers[1].Blob = "" }, nil, "neither a blob nor a base image's"},
		{"a negative size", func(x *index) { x.Layers[1].TarSize = -1 }, nil, "size -1"},
		{"no keys", func(x *index) { x.Records[0].Keys = nil }, nil, "0 keys"},
		{"many keys", func(x *index) { x.Records[0].Keys = slices.Repeat(x.Records[0].Keys, 9) }, nil, "18 keys"},
		{"a key that is none", func(x *index) { x.Records[0].Keys[0] = "step" }, nil, "is not a digest"},
		{"a very long chain", func(x *index) { x.Records[0].Layers = make([]int, maxChain+1) }, nil, "501 layers"},
		{"a long part", func(x *index) { x.Records[0].Parts[0].Value = strings.Repeat("x", maxText+1) }, nil, "at most 4096"},
		{"a negative blob", nil, func(m *oci.Manifest) { m.Layers[0].Size = -1 }, "is not one"},
		{"a huge index", nil, func(m *oci.Manifest) { m.Config.Size = 1 << 40 }, "at most"},
		{"an index that is shorter than said", nil, func(m *oci.Manifest) { m.Config.Size++ }, "want"},
		{"an index that is longer than said", nil, func(m *oci.Manifest) { m.Config.Size-- }, "larger than"},
		{"another index than said", nil, func(m *oci.Manifest) { m.Config.Digest = digest.FromString("none") }, "no such file"},
		{"BuildKit's", nil, func(m *oci.Manifest) { m.Config.MediaType = "application/vnd.buildkit.cacheconfig.v0" }, "BuildKit's"},
		{"an image", nil, func(m *oci.Manifest) { m.Config.MediaType = specs.MediaTypeImageConfig }, "not a build cache"},
		{"an image with an inline index of fewer layers", nil, func(m *oci.Manifest) {
			m.Annotations = map[string]string{InlineAnnotation: `{"version":1,"layers":[],"records":[]}`}
		}, "0 layers, the manifest has"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			exported(t, dir)
			rewrite(t, dir, tt.index, tt.manifest)
			if _, err := Open(t.Context(), source(t, dir)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestIndexBounds(t *testing.T) {
	l := indexLayer{DiffID: digest.FromString("x"), Content: digest.FromString("x")}
	r := indexRecord{Keys: []oci.Digest{key("x")}}
	for _, tt := range []struct {
		layers, records int
		ok              bool
	}{{maxLayers, 1, true}, {maxLayers + 1, 1, false}, {1, maxRecords, true}, {1, maxRecords + 1, false}} {
		x := index{Layers: slices.Repeat([]indexLayer{l}, tt.layers), Records: slices.Repeat([]indexRecord{r}, tt.records)}
		if err := x.check(); (err == nil) != tt.ok {
			t.Errorf("check of %d layers and %d records = %v, want ok %v", tt.layers, tt.records, err, tt.ok)
		}
	}
}

// An image with BuildKit's inline cache is refused by name, on its own and as one of
// several platforms; one without is no cache.
func TestBuildKitInline(t *testing.T) {
	for _, tt := range []struct {
		name, config string
		several      bool
		buildkit     bool
	}{
		{"inline", `{"os":"linux","moby.buildkit.cache.v0":"W10="}`, false, true},
		{"inline of several platforms", `{"os":"linux","moby.buildkit.cache.v0":"W10="}`, true, true},
		{"none", `{"os":"linux"}`, false, false},
		{"none of several platforms", `{"os":"linux"}`, true, false},
		{"no JSON", `<html>`, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := source(t, t.TempDir()).Place
			put := func(mediaType, data string) oci.Descriptor {
				t.Helper()
				d := oci.Descriptor{MediaType: mediaType, Digest: digest.FromString(data), Size: int64(len(data))}
				if err := p.Put(t.Context(), d, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(data)), nil }, nil); err != nil {
					t.Fatal(err)
				}
				return d
			}
			c := put(specs.MediaTypeImageConfig, tt.config)
			m := fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[]}`, c.MediaType, c.Digest, c.Size)
			if tt.several {
				d := put(specs.MediaTypeImageManifest, m)
				m = fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, d.MediaType, d.Digest, d.Size)
			}
			if err := p.Commit(t.Context(), []byte(m)); err != nil {
				t.Fatal(err)
			}
			_, err := Open(t.Context(), p)
			if !errors.Is(err, ErrNoCache) || strings.Contains(err.Error(), "it is BuildKit's") != tt.buildkit {
				t.Errorf("Open of an image with the configuration %s = %v, want an ErrNoCache that names BuildKit: %v", tt.config, err, tt.buildkit)
			}
		})
	}
}

func TestBuildKitLayout(t *testing.T) {
	dir := t.TempDir()
	p := source(t, dir).Place
	data := []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.buildkit.cacheconfig.v0","digest":"` + digest.FromString("x").String() + `","size":1}]}`)
	if err := p.Commit(t.Context(), data); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), p); !errors.Is(err, ErrNoCache) || !strings.Contains(err.Error(), "BuildKit") {
		t.Errorf("Open of BuildKit's cache = %v, want an ErrNoCache that names it", err)
	}
}

func TestNothingThere(t *testing.T) {
	for _, dir := range []string{t.TempDir(), "/nonexistent"} {
		if _, err := Open(t.Context(), source(t, dir)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open of %s = %v, want an fs.ErrNotExist", dir, err)
		}
	}
}

func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	_, layers, _ := exported(t, dir)
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(t.Context(), source(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		data, err := os.ReadFile(b)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.WriteFile(b, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := c.Entries(t.Context(), layers[0].DiffID); err == nil {
		t.Error("a damaged list of entries is taken")
	}
	if _, err := Open(t.Context(), source(t, dir)); err == nil {
		t.Error("a damaged manifest is taken")
	}
}

// Entries that belong to another layer could lead a key astray.
func TestForeignEntries(t *testing.T) {
	dir := t.TempDir()
	_, layers, _ := exported(t, dir)
	rewrite(t, dir, func(x *index) { x.Layers[1].Entries = x.Layers[2].Entries }, nil)
	c, err := Open(t.Context(), source(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Entries(t.Context(), layers[0].DiffID); err == nil || !strings.Contains(err.Error(), "not of the layer") {
		t.Errorf("Entries of another layer = %v, want an error", err)
	}
}

func TestInline(t *testing.T) {
	a, _ := built(t, "a", "1")
	b, _ := built(t, "b", "2")
	text, err := Inline([]oci.Layer{a, b}, []Record{
		{Keys: []oci.Digest{key("a")}, Layers: []oci.Layer{a}},
		{Keys: []oci.Digest{key("b")}, Layers: []oci.Layer{a, b}},
		{Keys: []oci.Digest{key("other stage")}, Layers: []oci.Layer{b, {DiffID: digest.FromString("c")}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := source(t, dir)
	m := oci.Manifest{MediaType: specs.MediaTypeImageManifest, Annotations: map[string]string{InlineAnnotation: text}}
	m.Config = oci.Descriptor{MediaType: specs.MediaTypeImageConfig, Digest: digest.FromString("config"), Size: 6}
	for _, l := range []string{"blob a", "blob b"} {
		m.Layers = append(m.Layers, oci.Descriptor{MediaType: specs.MediaTypeImageLayerGzip, Digest: digest.FromString(l), Size: 6})
	}
	data, err := encode(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(t.Context(), data); err != nil {
		t.Fatal(err)
	}
	c, err := Open(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	r, ok := c.Lookup(key("b"))
	if !ok || len(r.Layers) != 2 || r.Layers[1].Blob.Digest != digest.FromString("blob b") || r.Layers[1].DiffID != b.DiffID {
		t.Errorf("Lookup = %+v, %v, want both layers with the image's blobs", r, ok)
	}
	if c.Len() != 2 {
		t.Errorf("%d keys, want 2: those of steps that are all in the image", c.Len())
	}
	if p.blobs.Load() != 0 {
		t.Errorf("%d blobs were read, want none: the manifest has the index", p.blobs.Load())
	}
}

func TestSpecCheck(t *testing.T) {
	for _, tt := range []struct {
		spec   string
		export bool
		want   string // "": none
	}{
		{"registry ref=x/y", true, ""},
		{"registry ref=x/y mode=max compression=zstd compression-level=3 ignore-error=true image-manifest=true oci-mediatypes=true", true, ""},
		{"registry", false, "add ref="},
		{"registry ref=UPPER", false, "lowercase"},
		{"registry ref=x mode=max", false, `no "mode"`},
		{"registry ref=x mode=some", true, "want min or max"},
		{"registry ref=x image-manifest=false", true, "always"},
		{"registry ref=x ignore-error=perhaps", true, "true or false"},
		{"registry ref=x compression=lzma", true, "not known"},
		{"registry ref=x compression-level=fast", true, "want a number"},
		{"registry ref=x@sha256:" + strings.Repeat("0", 64), true, "digest as its name"},
		{"local dest=d", true, ""},
		{"local src=d", true, `no "src"`},
		{"local dest=d", false, `no "dest"`},
		{"local src=d digest=x", false, "digest"},
		{"inline", true, ""},
		{"inline", false, "ref=IMAGE"},
		{"s3 bucket=b region=r name=n prefix=p/ use_path_style=true", false, ""},
		{"s3", true, ""}, // the environment may have the rest
		{"s3 bucket=a/b", true, "not a name"},
		{"s3 endpoint_url=x", true, "not a URL"},
		{"s3 use_path_style=x", true, "true or false"},
		{"gha scope=x timeout=10m version=2", true, ""},
		{"gha version=1", true, "version 2"},
		{"gha timeout=soon", true, "duration"},
		{"gha scope=" + strings.Repeat("ä", 100), true, "too long"},
		{"azblob", true, "not known"},
	} {
		words := strings.Fields(tt.spec)
		s := Spec{Type: words[0], Attrs: map[string]string{}}
		for _, w := range words[1:] {
			name, value, _ := strings.Cut(w, "=")
			s.Attrs[name] = value
		}
		err := s.Check(tt.export)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("Check(%q, export=%v) = %v, want %q", tt.spec, tt.export, err, tt.want)
		}
	}
}
