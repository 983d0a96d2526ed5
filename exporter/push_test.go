package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/registry"
	"github.com/861fb494/build/internal/testbase"
)

// watched is the real client, and a log of what it did.
type watched struct {
	*registry.Client
	mu     sync.Mutex
	sent   []oci.Digest // blobs whose bytes were read
	mounts []string     // repositories asked to mount from
	order  []string     // blobs and manifests, as their pushes ended
}

func (w *watched) PushBlob(ctx context.Context, ref oci.Reference, d oci.Descriptor, open func() (io.ReadCloser, error), mountFrom string) error {
	err := w.Client.PushBlob(ctx, ref, d, func() (io.ReadCloser, error) {
		w.mu.Lock()
		w.sent = append(w.sent, d.Digest)
		w.mu.Unlock()
		return open()
	}, mountFrom)
	w.mu.Lock()
	defer w.mu.Unlock()
	if mountFrom != "" {
		w.mounts = append(w.mounts, mountFrom)
	}
	w.order = append(w.order, "blob")
	return err
}

func (w *watched) PushStream(ctx context.Context, ref oci.Reference, open func() (io.ReadCloser, error), desc func(context.Context) (oci.Descriptor, error)) error {
	err := w.Client.PushStream(ctx, ref, open, desc)
	d, _ := desc(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = append(w.sent, d.Digest)
	w.order = append(w.order, "blob")
	return err
}

func (w *watched) PushManifest(ctx context.Context, ref oci.Reference, mediaType string, data []byte) (oci.Descriptor, error) {
	w.mu.Lock()
	w.order = append(w.order, "manifest")
	w.mu.Unlock()
	return w.Client.PushManifest(ctx, ref, mediaType, data)
}

// startRegistry starts a registry server on loopback and a client of it.
func startRegistry(t *testing.T) (host string, client func() *watched) {
	t.Helper()
	needs(t, "docker-registry")
	r, err := testbase.StartRegistry(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r.Addr, func() *watched { return &watched{Client: registry.New(registry.Options{})} }
}

// valid demands that the registry has ref, whole.
func valid(t *testing.T, ref string) {
	t.Helper()
	n, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	d, err := remote.Get(n)
	if err != nil {
		t.Fatal(err)
	}
	if d.MediaType.IsIndex() {
		idx, err := d.ImageIndex()
		if err == nil {
			err = validate.Index(idx)
		}
		if err != nil {
			t.Errorf("%s: %v", ref, err)
		}
		return
	}
	img, err := d.Image()
	if err == nil {
		err = validate.Image(img)
	}
	if err != nil {
		t.Errorf("%s: %v", ref, err)
	}
}

func TestPush(t *testing.T) {
	host, client := startRegistry(t)
	s := store(t)
	a, opened := built("a", 2<<20)
	p := pulled(t, "p", host+"/base:1")

	// The base is there first, as if it had been pulled from there.
	base := client()
	if _, err := export(t, parse(t, "type=registry"), Options{Registry: base}, resultOf([]string{host + "/base:1"}, imageOf("amd64", p))); err != nil {
		t.Fatal(err)
	}
	c := client()
	out := parse(t, fmt.Sprintf(`type=registry,"name=%[1]s/app:1,%[1]s/app:2,%[1]s/other"`, host))
	r := resultOf(nil, imageOf("amd64", p, a))
	if _, err := export(t, out, Options{Registry: c, Store: s}, r); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"/app:1", "/app:2", "/other:latest"} {
		valid(t, host+n)
	}
	if slices.Contains(c.sent, p.Blob.Digest) || !slices.Contains(c.mounts, "base") {
		t.Errorf("sent %v, mounted from %v; want the pulled layer mounted from base", c.sent, c.mounts)
	}
	if i := slices.Index(c.order, "manifest"); slices.Contains(c.order[i:], "blob") {
		t.Errorf("order of pushes = %v, want manifests last", c.order)
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("the layer was compressed %d times, want once", n)
	}

	// The second push compresses and sends nothing; the next repository mounts.
	c = client()
	if _, err := export(t, parse(t, "type=image,push=true,name="+host+"/app:3"), Options{Registry: c, Store: s}, r); err != nil {
		t.Fatal(err)
	}
	third := client()
	if _, err := export(t, parse(t, "type=registry"), Options{Registry: third, Store: s}, resultOf([]string{host + "/third"}, r.Images...)); err != nil {
		t.Fatal(err)
	}
	valid(t, host+"/app:3")
	valid(t, host+"/third:latest")
	if _, err := s.Lookup(host + "/app:3"); err != nil {
		t.Errorf("type=image,push=true did not keep the image: %v", err)
	}
	if n := opened.Load(); n != 1 || len(c.sent) != 0 || len(third.sent) != 1 {
		t.Errorf("compressed %d times, sent %v and %v; want once, nothing, the configuration", n, c.sent, third.sent)
	}
}

// broken is a registry that breaks off the first upload of each blob when it has so
// many bytes of it.
type broken struct {
	*watched
	after int64
	then  func() // called when it has; may be nil
}

func (b *broken) PushStream(ctx context.Context, ref oci.Reference, open func() (io.ReadCloser, error), desc func(context.Context) (oci.Descriptor, error)) error {
	r, err := open()
	if err == nil {
		_, err = io.CopyN(io.Discard, r, b.after)
		r.Close()
	}
	if err != nil {
		return err
	}
	if b.then != nil {
		b.then()
	}
	return b.watched.PushStream(ctx, ref, open, desc)
}

// A layer that was sent in part, and is not kept while it is sent, is made again.
func TestPushAgain(t *testing.T) {
	host, client := startRegistry(t)
	for name, tt := range map[string]struct {
		names string // with %s for the host
		after int64
		made  int32
	}{
		"early":            {"%s/again/early", 1000, 1},
		"late":             {"%s/again/late", 3 << 20, 2},
		"two repositories": {"%s/again/two,%[1]s/again/three", 3 << 20, 1},
	} {
		l, opened := built(name, 5<<20)
		out := parse(t, fmt.Sprintf(`type=registry,compression-level=0,"name=`+tt.names+`"`, host))
		if _, err := export(t, out, Options{Registry: &broken{watched: client(), after: tt.after}, Store: store(t)}, resultOf(nil, imageOf("amd64", l))); err != nil {
			t.Fatal(err)
		}
		for n := range strings.SplitSeq(fmt.Sprintf(tt.names, host), ",") {
			valid(t, n)
		}
		if n := opened.Load(); n != tt.made {
			t.Errorf("%s: the layer was compressed %d times, want %d", name, n, tt.made)
		}
	}
}

// That it cannot be made again is an error.
func TestPushAgainFails(t *testing.T) {
	host, client := startRegistry(t)
	l, _ := built("gone", 5<<20)
	temp := t.TempDir()
	c := &broken{watched: client(), after: 3 << 20, then: func() { os.RemoveAll(temp) }}
	e, err := New(parse(t, "type=registry,compression-level=0,name="+host+"/again/fails"), Options{Registry: c, Store: store(t), Temp: temp})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close() // its file is gone
	if _, err := e.Export(t.Context(), resultOf(nil, imageOf("amd64", l))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Export = %v, want %v", err, fs.ErrNotExist)
	}
}

func TestPushVariants(t *testing.T) {
	host, client := startRegistry(t)
	a, _ := built("a", 30)
	b, _ := built("b", 30)
	p := pulled(t, "p", "")
	d, err := export(t, parse(t, "type=registry"), Options{Registry: client()},
		resultOf([]string{host + "/multi"}, imageOf("amd64", p, a), imageOf("arm64", b)))
	if err != nil {
		t.Fatal(err)
	}
	valid(t, host+"/multi@"+d.Digest.String())

	d, err = export(t, parse(t, "type=registry,oci-mediatypes=false"), Options{Registry: client()}, resultOf([]string{host + "/docker"}, imageOf("amd64", p, a)))
	if err != nil || d.MediaType != dockerManifest {
		t.Errorf("oci-mediatypes=false: %v, %v, want %s", d.MediaType, err, dockerManifest)
	}
	valid(t, host+"/docker")

	d, err = export(t, parse(t, "type=registry,push-by-digest=true"), Options{Registry: client()}, resultOf([]string{host + "/bydigest"}, imageOf("amd64", a)))
	if err != nil {
		t.Fatal(err)
	}
	valid(t, host+"/bydigest@"+d.Digest.String())
	if n, _ := name.ParseReference(host + "/bydigest:latest"); n != nil {
		if _, err := remote.Head(n); err == nil {
			t.Error("push-by-digest set a tag")
		}
	}

	if _, err := export(t, parse(t, "type=registry"), Options{Registry: client()}, resultOf(nil, imageOf("amd64", a))); err == nil || !strings.Contains(err.Error(), "no name") {
		t.Errorf("push without a name = %v, want an error", err)
	}
}

// A record that lies costs a second try and is mended.
func TestPushWrongRecord(t *testing.T) {
	host, client := startRegistry(t)
	s := store(t)
	for _, names := range []string{"attr", "result"} {
		a, _ := built("a"+names, 2<<20)
		m := maker{p: newLayers(Options{Store: s}, attributes{}), l: a}
		if err := s.SetCompressed(a.DiffID, m.p.method.Recipe(), oci.Descriptor{Digest: a.DiffID, Size: 77}); err != nil {
			t.Fatal(err)
		}
		out, r := parse(t, "type=registry"), resultOf(nil, imageOf("amd64", a))
		ref := host + "/wrong:" + names
		if names == "attr" {
			out = parse(t, "type=registry,name="+ref)
		} else {
			r = resultOf([]string{ref}, r.Images...)
		}
		if _, err := export(t, out, Options{Registry: client(), Store: s}, r); err != nil {
			t.Fatal(err)
		}
		valid(t, ref)
	}
}

func TestSave(t *testing.T) {
	host, client := startRegistry(t)
	s := store(t)
	a, _ := built("a", 2<<20)
	p := pulled(t, "p", host+"/base:1")
	base := resultOf([]string{host + "/base:1"}, imageOf("amd64", p))
	pushed, err := export(t, parse(t, "type=registry"), Options{Registry: client()}, base)
	if err != nil {
		t.Fatal(err)
	}
	local := Output{Type: TypeImage}
	kept, err := export(t, local, Options{Store: s}, base)
	if err != nil {
		t.Fatal(err)
	}
	app, err := export(t, local, Options{Store: s}, resultOf([]string{"app", "app:2"}, imageOf("amd64", p, a)))
	if err != nil {
		t.Fatal(err)
	}
	id, _ := s.ID(app)
	find := func(d oci.Digest) (oci.Layer, bool) { return a, d == oci.ChainID(p.DiffID, a.DiffID) }
	names := func(n ...string) []oci.Reference { return resultOf(n).Names }
	save := func(out string, find Find, list ...Stored) (oci.Descriptor, error) {
		t.Helper()
		return Save(t.Context(), list, find, parse(t, out), Options{Store: s, Registry: client(), Temp: t.TempDir()})
	}

	// What a registry has goes out byte for byte, though nothing of it is here.
	got, err := save("type=registry", nil, Stored{kept, names(host + "/copy")})
	if err != nil || got.Digest != kept.Digest || got.Digest != pushed.Digest {
		t.Errorf("push of a pulled image = %v, %v, want %s", got.Digest, err, pushed.Digest)
	}
	valid(t, host+"/copy")

	// What was built here is compressed and keeps its ID.
	if _, err := save("type=registry", find, Stored{app, names(host + "/app")}); err != nil {
		t.Fatal(err)
	}
	valid(t, host+"/app")
	n, _ := name.ParseReference(host + "/app")
	img, err := remote.Image(n)
	if err != nil {
		t.Fatal(err)
	}
	if c, _ := img.ConfigName(); c.String() != id.String() {
		t.Errorf("pushed configuration = %s, want %s", c, id)
	}
	dir := filepath.Join(t.TempDir(), "out")
	if _, err := save("type=oci,tar=false,dest="+dir, find, Stored{app, names("app", "app:2")}, Stored{kept, names(host + "/base:1")}); err != nil {
		t.Fatal(err)
	}
	if skopeo := run(t, "skopeo", "inspect", "--config", "oci:"+dir+":2"); !strings.Contains(skopeo, a.DiffID.String()) {
		t.Errorf("skopeo inspect = %s, want the layer %s", skopeo, a.DiffID)
	}
	// Without the layer there is nothing to be made.
	if _, err := save("type=oci,dest="+dir+".tar", nil, Stored{app, names("app")}); err == nil || !strings.Contains(err.Error(), a.DiffID.String()) {
		t.Errorf("save without the cache = %v, want an error with %s", err, a.DiffID)
	}
}
