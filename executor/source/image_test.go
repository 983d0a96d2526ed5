package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/registry"
	"github.com/861fb494/build/llb"
)

// server is an in-memory registry that counts what it is asked.
type server struct {
	host string
	http http.Handler

	mu    sync.Mutex
	asked map[string]int // "GET blobs", "HEAD manifests"
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{http: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))), asked: map[string]int{}}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	s.host = h.Listener.Addr().String()
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, kind := range []string{"blobs", "manifests"} {
		if strings.Contains(r.URL.Path, "/"+kind+"/") {
			s.mu.Lock()
			s.asked[r.Method+" "+kind]++
			s.mu.Unlock()
		}
	}
	s.http.ServeHTTP(w, r)
}

func (s *server) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[what]
}

// testLayer is a tar and its compressed form.
type testLayer struct {
	tar, blob []byte
	mediaType string
}

func newLayer(t *testing.T, text, compression string) testLayer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, text)
	w.Close()
	l := testLayer{tar: b.Bytes(), blob: b.Bytes(), mediaType: specs.MediaTypeImageLayer}
	var z bytes.Buffer
	switch compression {
	case "gzip":
		g := gzip.NewWriter(&z)
		g.Write(l.tar)
		g.Close()
		l.blob, l.mediaType = z.Bytes(), specs.MediaTypeImageLayerGzip
	case "zstd":
		e, err := zstd.NewWriter(&z)
		if err != nil {
			t.Fatal(err)
		}
		e.Write(l.tar)
		e.Close()
		l.blob, l.mediaType = z.Bytes(), specs.MediaTypeImageLayerZstd
	}
	return l
}

// pusher puts images into a registry.
type pusher struct {
	t      *testing.T
	client *registry.Client
	ref    oci.Reference
}

func newPusher(t *testing.T, name string) pusher {
	t.Helper()
	r, err := oci.ParseReference(name)
	if err != nil {
		t.Fatal(err)
	}
	return pusher{t, registry.New(registry.Options{}), r}
}

func (p pusher) blob(mediaType string, data []byte) oci.Descriptor {
	p.t.Helper()
	d := oci.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	if err := p.client.PushBlob(p.t.Context(), p.ref, d, open, ""); err != nil {
		p.t.Fatal(err)
	}
	return d
}

func (p pusher) manifest(ref oci.Reference, mediaType string, v any) oci.Descriptor {
	p.t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		p.t.Fatal(err)
	}
	d, err := p.client.PushManifest(p.t.Context(), ref, mediaType, data)
	if err != nil {
		p.t.Fatal(err)
	}
	return d
}

// image pushes an image for platform under the pusher's tag.
func (p pusher) image(platform oci.Platform, layers ...testLayer) oci.Descriptor {
	p.t.Helper()
	img := oci.Image{}
	img.Platform = platform
	img.Config.Env = []string{"FOR=" + formatPlatform(platform)}
	man := oci.Manifest{MediaType: specs.MediaTypeImageManifest}
	man.SchemaVersion = 2
	for _, l := range layers {
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, digest.FromBytes(l.tar))
		man.Layers = append(man.Layers, p.blob(l.mediaType, l.blob))
	}
	conf, err := json.Marshal(img)
	if err != nil {
		p.t.Fatal(err)
	}
	man.Config = p.blob(specs.MediaTypeImageConfig, conf)
	d := p.manifest(p.ref, man.MediaType, man)
	d.Platform = &platform
	return d
}

func (p pusher) index(list ...oci.Descriptor) oci.Descriptor {
	p.t.Helper()
	idx := oci.Index{MediaType: specs.MediaTypeImageIndex, Manifests: list}
	idx.SchemaVersion = 2
	return p.manifest(p.ref, idx.MediaType, idx)
}

func newStore(t *testing.T) *image.Store {
	t.Helper()
	s, err := image.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if errs := s.Check(context.Background()); len(errs) > 0 {
			t.Errorf("the store is damaged: %v", errs)
		}
	})
	return s
}

func newImages(s *image.Store, o ImageOptions) *Images {
	return NewImages(s, registry.New(registry.Options{}), o)
}

var (
	amd64 = oci.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = oci.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
)

func readAll(t *testing.T, open func(context.Context) (io.ReadCloser, error)) ([]byte, error) {
	t.Helper()
	r, err := open(t.Context())
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	if cerr := r.Close(); cerr != nil {
		t.Errorf("Close = %v", cerr)
	}
	return data, err
}

func TestImagesOpen(t *testing.T) {
	srv := newServer(t)
	p := newPusher(t, srv.host+"/app:v1")
	layers := []testLayer{newLayer(t, "one", "gzip"), newLayer(t, "two", "zstd"), newLayer(t, "three", "")}
	want := p.image(amd64, layers...)
	store := newStore(t)
	var progress []int64
	m := newImages(store, ImageOptions{Progress: func(_ oci.Descriptor, n int64, done bool) {
		if done {
			progress = append(progress, n)
		}
	}})
	src, img, err := m.Resolve(t.Context(), p.ref.String(), amd64)
	if err != nil {
		t.Fatal(err)
	}
	if src.Digest != want.Digest || src.Ref != p.ref.String() || len(img.Config.Env) != 1 {
		t.Errorf("Resolve = %v, %v, want digest %s", src, img, want.Digest)
	}
	c, err := m.Open(t.Context(), src)
	if err != nil || len(c.Layers) != 3 {
		t.Fatalf("Open = %v, %v, want 3 layers", c, err)
	}
	if n := srv.count("GET blobs"); n != 1 {
		t.Errorf("Open downloaded %d blobs, want the configuration only", n)
	}
	for i, l := range c.Layers {
		id := digest.FromBytes(layers[i].tar)
		if l.DiffID != id || l.Content != id || l.ID != "sha256-"+id.Encoded() || l.Blob.Digest != digest.FromBytes(layers[i].blob) {
			t.Errorf("layer %d = %+v", i, l)
		}
		for range 2 { // from the registry, then from the store
			if got, err := readAll(t, l.Tar); err != nil || !bytes.Equal(got, layers[i].tar) {
				t.Errorf("layer %d: Tar = %d bytes, %v, want %d", i, len(got), err, len(layers[i].tar))
			}
			if got, err := readAll(t, l.Compressed); err != nil || !bytes.Equal(got, layers[i].blob) {
				t.Errorf("layer %d: Compressed = %d bytes, %v, want %d", i, len(got), err, len(layers[i].blob))
			}
		}
		if progress[i] != l.Blob.Size {
			t.Errorf("layer %d: progress ended at %d, want %d", i, progress[i], l.Blob.Size)
		}
		if got := store.Origins(l.Blob.Digest); len(got) != 1 || got[0] != srv.host+"/app" {
			t.Errorf("layer %d: origins = %q", i, got)
		}
	}
	if n := srv.count("GET blobs"); n != 4 {
		t.Errorf("%d blobs were downloaded, want each of 4 once", n)
	}
}

func TestImagesPlatform(t *testing.T) {
	srv := newServer(t)
	p := newPusher(t, srv.host+"/app:v1")
	armv6 := oci.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}
	armv5 := oci.Platform{OS: "linux", Architecture: "arm", Variant: "v5"}
	windows := oci.Platform{OS: "windows", Architecture: "amd64"}
	l := newLayer(t, "x", "gzip")
	attestation := p.image(oci.Platform{OS: "unknown", Architecture: "unknown"}, l)
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	var list []oci.Descriptor
	for _, q := range []oci.Platform{windows, armv5, amd64, armv6, arm64} {
		list = append(list, p.image(q, l))
	}
	inner := p.index(list[2:]...)
	index := p.index(append(list, attestation)...)
	single := p.image(amd64, l)
	unnamed := single
	unnamed.Platform = nil

	tests := []struct {
		name string
		in   oci.Descriptor
		p    oci.Platform
		want string // of the configuration
		err  string
	}{
		{"equal", index, amd64, "linux/amd64", ""},
		{"equal variant", index, arm64, "linux/arm64", ""},
		{"no variant", index, oci.Platform{OS: "linux", Architecture: "arm64"}, "linux/arm64", ""},
		{"lower variant", index, oci.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, "linux/arm/v6", ""},
		{"arm's default is v7", index, oci.Platform{OS: "linux", Architecture: "arm"}, "linux/arm/v6", ""},
		{"none", index, oci.Platform{OS: "linux", Architecture: "s390x"}, "", "no match for platform linux/s390x in manifest, it has: linux/amd64, linux/arm/v5, linux/arm/v6, linux/arm64, windows/amd64"},
		{"no index", single, arm64, "linux/amd64", ""},
		{"index in an index", p.index(inner), arm64, "linux/arm64", ""},
		{"index without platforms", p.index(unnamed), arm64, "linux/amd64", ""},
		{"index of nothing", p.index(attestation), amd64, "", "it names no platforms"},
	}
	m := newImages(newStore(t), ImageOptions{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := llb.Source{Scheme: llb.Registry, Ref: p.ref.String(), Digest: tt.in.Digest, Platform: tt.p}
			img, err := m.Image(t.Context(), src)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("Image = %v, want error %q", err, tt.err)
				}
				return
			}
			if err != nil || img.Config.Config.Env[0] != "FOR="+tt.want {
				t.Errorf("Image = %v, %v, want %s", img.Config.Platform, err, tt.want)
			}
		})
	}
}

func TestParseDocument(t *testing.T) {
	tests := []struct{ name, in, err string }{
		{"schema 1", `{"schemaVersion":1,"name":"x","fsLayers":[]}`, registry.ErrSchema1.Error()},
		{"two kinds", `{"schemaVersion":2,"config":{"digest":"sha256:` + strings.Repeat("a", 64) + `"},"manifests":[]}`, "both an index and a manifest"},
		{"an index that says it is a manifest", `{"schemaVersion":2,"mediaType":"` + specs.MediaTypeImageManifest + `","manifests":[]}`, "both an index and a manifest"},
		{"nothing", `{}`, "neither an image manifest nor an index"},
		{"artifact", `{"schemaVersion":2,"mediaType":"application/x"}`, `media type "application/x"`},
		{"bad digest", `{"schemaVersion":2,"config":{"digest":"sha256:../../x"}}`, "configuration: invalid"},
		{"no JSON", `<html>`, "manifest: invalid character"},
		{"Docker's manifest", `{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"digest":"sha256:` + strings.Repeat("a", 64) + `"},"layers":[]}`, ""},
		{"Docker's list", `{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[]}`, ""},
	}
	for _, tt := range tests {
		_, err := parseDocument([]byte(tt.in))
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: parseDocument(%s) = %v, want %q", tt.name, tt.in, err, tt.err)
		}
	}
}

// memoryPins is Pins in a map.
type memoryPins map[string]oci.Descriptor

func (p memoryPins) Get(ref oci.Reference) (oci.Descriptor, bool) {
	d, ok := p[ref.String()]
	return d, ok
}

func (p memoryPins) Put(ref oci.Reference, d oci.Descriptor) error {
	p[ref.String()] = d
	return nil
}

func TestImagesPin(t *testing.T) {
	srv := newServer(t)
	p := newPusher(t, srv.host+"/app:v1")
	store := newStore(t)
	pins := memoryPins{}
	pin := func(name string, o ImageOptions, platform oci.Platform, want oci.Digest, heads int) {
		t.Helper()
		o.Pins = pins
		before := srv.count("HEAD manifests")
		m := newImages(store, o)
		for range 2 { // the second time from memory
			s, _, err := m.Resolve(t.Context(), p.ref.String(), platform)
			if s.Digest != want || (err == nil) != (want != "") {
				t.Errorf("%s: Resolve = %v, %v, want %s", name, s.Digest, err, want)
			}
		}
		if n := srv.count("HEAD manifests") - before; n != heads {
			t.Errorf("%s: the registry was asked %d times, want %d", name, n, heads)
		}
	}
	old := p.index(p.image(amd64, newLayer(t, "old", "gzip")), p.image(arm64, newLayer(t, "old arm", "gzip")))
	// p.image gave the tag to the image of arm64; the index has it now.
	pin("offline and nothing here", ImageOptions{Offline: true}, amd64, "", 0)
	pin("first", ImageOptions{}, amd64, old.Digest, 1)
	pin("last pin", ImageOptions{}, amd64, old.Digest, 0)
	pin("pinned, but not here for this platform", ImageOptions{}, arm64, old.Digest, 1)
	fresh := p.image(amd64, newLayer(t, "new", "gzip"))
	pin("registry moved on", ImageOptions{}, amd64, old.Digest, 0)
	pin("pull", ImageOptions{Pull: true}, amd64, fresh.Digest, 1)
	pin("pulled", ImageOptions{Offline: true}, amd64, fresh.Digest, 0)

	// A local image of that name goes before pins.
	other := newPusher(t, srv.host+"/other:v1")
	local := other.image(amd64, newLayer(t, "local", ""))
	if _, err := newImages(store, ImageOptions{}).Image(t.Context(), llb.Source{Ref: other.ref.String(), Digest: local.Digest, Platform: amd64}); err != nil {
		t.Fatal(err)
	}
	if err := store.Set(p.ref, local); err != nil {
		t.Fatal(err)
	}
	pin("local", ImageOptions{}, amd64, local.Digest, 0)
	pin("local, but pull", ImageOptions{Pull: true}, amd64, fresh.Digest, 1)
	pin("local is of another platform", ImageOptions{}, arm64, fresh.Digest, 1)

	// References by digest ask nobody.
	before := srv.count("HEAD manifests") + srv.count("GET manifests")
	s, err := newImages(store, ImageOptions{Pull: true}).Pin(t.Context(), llb.Source{Ref: p.ref.WithDigest(old.Digest).String()})
	if err != nil || s.Digest != old.Digest {
		t.Errorf("Pin by digest = %v, %v", s.Digest, err)
	}
	if n := srv.count("HEAD manifests") + srv.count("GET manifests") - before; n != 0 {
		t.Errorf("Pin by digest asked the registry %d times", n)
	}
}

func TestImagesBuiltLayer(t *testing.T) {
	srv := newServer(t)
	p := newPusher(t, srv.host+"/app:v1")
	base, same, l := newLayer(t, "base", "gzip"), newLayer(t, "made here", "gzip"), newLayer(t, "made here", "")
	chain := oci.ChainID(digest.FromBytes(base.tar), digest.FromBytes(l.tar))
	m := newImages(newStore(t), ImageOptions{Built: func(id oci.Digest) (oci.Layer, bool) {
		return oci.Layer{ID: "snapshot"}, id == chain
	}})
	pulled := oci.Digest(strings.Replace(digest.FromBytes(l.tar).String(), ":", "-", 1))
	for _, tt := range []struct {
		name   string
		layers []testLayer
		want   oci.Digest
	}{
		{"built here", []testLayer{base, l}, "snapshot"},
		{"with a blob", []testLayer{base, same}, pulled},
		{"upon nothing", []testLayer{l}, pulled},
		{"upon another chain", []testLayer{l, l}, pulled},
	} {
		d := p.image(amd64, tt.layers...)
		c, err := m.Open(t.Context(), llb.Source{Ref: p.ref.String(), Digest: d.Digest, Platform: amd64})
		if err != nil || len(c.Layers) != len(tt.layers) || c.Layers[len(c.Layers)-1].ID != string(tt.want) {
			t.Errorf("%s: Open = %v, %v, want %s on top", tt.name, c, err, tt.want)
		}
	}
}

func TestLayerVerified(t *testing.T) {
	srv := newServer(t)
	p := newPusher(t, srv.host+"/app:v1")
	good, other := newLayer(t, "good", "gzip"), newLayer(t, "other", "gzip")
	tests := []struct {
		name string
		blob []byte
		want string
	}{
		{"another tar", other.blob, "decompressed it has digest " + digest.FromBytes(other.tar).String()},
		{"cut", good.blob[:len(good.blob)-10], "unexpected EOF"},
		{"not compressed at all", []byte("hello"), "decompressed it has digest"},
		{"empty", nil, "decompressed it has digest"},
		{"garbage after it", append(bytes.Clone(good.blob), strings.Repeat("garbage", 5)...), "gzip: invalid header"},
		{"bad zstd", []byte{0x28, 0xb5, 0x2f, 0xfd, 0xff, 0xff}, "layer sha256:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := p.image(amd64, testLayer{tar: good.tar, blob: tt.blob, mediaType: specs.MediaTypeImageLayerGzip})
			c, err := newImages(newStore(t), ImageOptions{}).Open(t.Context(), llb.Source{Ref: p.ref.String(), Digest: d.Digest, Platform: amd64})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := readAll(t, c.Layers[0].Tar); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Tar = %v, want error %q", err, tt.want)
			}
		})
	}
}

// TestDamagedBlobIsFetchedAnew: a blob that went bad on the disk fails once.
func TestDamagedBlobIsFetchedAnew(t *testing.T) {
	srv := newServer(t)
	p := newPusher(t, srv.host+"/app:v1")
	l := newLayer(t, "text", "gzip")
	d := p.image(amd64, l)
	store := newStore(t)
	m := newImages(store, ImageOptions{})
	c, err := m.Open(t.Context(), llb.Source{Ref: p.ref.String(), Digest: d.Digest, Platform: amd64})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readAll(t, c.Layers[0].Tar); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(store.Dir(), "blobs", "sha256", digest.FromBytes(l.blob).Encoded())
	// The magic number, the time in gzip's header (which changes nothing in the
	// tar), and the compressed data.
	for _, at := range []int{1, 2, 5, 20} {
		bad := bytes.Clone(l.blob)
		bad[at] ^= 1
		if err := os.WriteFile(path, bad, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readAll(t, c.Layers[0].Tar); !errors.Is(err, image.ErrDamaged) {
			t.Errorf("Tar of a blob damaged at %d = %v, want %v", at, err, image.ErrDamaged)
		}
		if got, err := readAll(t, c.Layers[0].Tar); err != nil || !bytes.Equal(got, l.tar) {
			t.Errorf("Tar after a blob damaged at %d = %d bytes, %v, want it mended", at, len(got), err)
		}
	}
	// One that was cut is noticed at once.
	if err := os.Truncate(path, 7); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(t, c.Layers[0].Tar); err != nil || !bytes.Equal(got, l.tar) {
		t.Errorf("Tar after a cut blob = %d bytes, %v, want it mended", len(got), err)
	}
}

// TestLayerOfWrongBytes: what the registry sends is not what the manifest names.
func TestLayerOfWrongBytes(t *testing.T) {
	srv := newServer(t)
	p := newPusher(t, srv.host+"/app:v1")
	l := newLayer(t, "text", "gzip")
	d := p.image(amd64, l)
	inner := srv.http
	bad := digest.FromBytes(l.blob)
	srv.http = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/blobs/"+bad.String()) {
			w.Write(bytes.Repeat([]byte("x"), len(l.blob)))
			return
		}
		inner.ServeHTTP(w, r)
	})
	store := newStore(t)
	c, err := newImages(store, ImageOptions{}).Open(t.Context(), llb.Source{Ref: p.ref.String(), Digest: d.Digest, Platform: amd64})
	if err != nil {
		t.Fatal(err)
	}
	for _, open := range []func(context.Context) (io.ReadCloser, error){c.Layers[0].Compressed, c.Layers[0].Tar} {
		_, err = readAll(t, open)
		var wrong *registry.DigestError
		if !errors.As(err, &wrong) || wrong.Want != bad || wrong.Host != srv.host {
			t.Errorf("error = %v, want a DigestError of %s from %s", err, bad, srv.host)
		}
	}
	if store.Has(bad) || store.Has(digest.FromBytes(bytes.Repeat([]byte("x"), len(l.blob)))) {
		t.Error("wrong bytes were stored")
	}
}

func TestLayersConcurrently(t *testing.T) {
	srv := newServer(t)
	p := newPusher(t, srv.host+"/app:v1")
	l := newLayer(t, strings.Repeat("text", 100_000), "gzip")
	d := p.image(amd64, l)
	store := newStore(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			c, err := newImages(store, ImageOptions{}).Open(t.Context(), llb.Source{Ref: p.ref.String(), Digest: d.Digest, Platform: amd64})
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := readAll(t, c.Layers[0].Tar); err != nil || !bytes.Equal(got, l.tar) {
				t.Errorf("Tar = %d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
}

func TestLayerClosedEarly(t *testing.T) {
	srv := newServer(t)
	p := newPusher(t, srv.host+"/app:v1")
	l := newLayer(t, strings.Repeat("text", 1_000_000), "")
	d := p.image(amd64, l)
	store := newStore(t)
	c, err := newImages(store, ImageOptions{}).Open(t.Context(), llb.Source{Ref: p.ref.String(), Digest: d.Digest, Platform: amd64})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Layers[0].Tar(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if store.Has(c.Layers[0].Blob.Digest) {
		t.Error("half a blob was stored")
	}
}

// Who closes a layer does not wait for a server that sends no more.
func TestLayerClosedWhileStalled(t *testing.T) {
	srv := newServer(t)
	p := newPusher(t, srv.host+"/app:v1")
	l := newLayer(t, strings.Repeat("text", 100_000), "")
	d := p.image(amd64, l)
	inner := srv.http
	srv.http = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/blobs/"+digest.FromBytes(l.blob).String()) {
			inner.ServeHTTP(w, r)
			return
		}
		w.Write(l.blob[:len(l.blob)/2])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	c, err := newImages(newStore(t), ImageOptions{}).Open(t.Context(), llb.Source{Ref: p.ref.String(), Digest: d.Digest, Platform: amd64})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Layers[0].Tar(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error)
	go func() { closed <- r.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Close still waits after 10 seconds")
	}
}

func TestImagesSchema1(t *testing.T) {
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
		fmt.Fprint(w, `{"schemaVersion":1}`)
	}))
	t.Cleanup(h.Close)
	_, _, err := newImages(newStore(t), ImageOptions{}).Resolve(t.Context(), h.Listener.Addr().String()+"/old:1", amd64)
	if !errors.Is(err, registry.ErrSchema1) {
		t.Errorf("Resolve = %v, want %v", err, registry.ErrSchema1)
	}
}
