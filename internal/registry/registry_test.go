package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/internal/oci"
)

// newServer starts an in-memory registry behind wrap, which may be nil, and
// returns its HOST:PORT.
func newServer(t *testing.T, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		h = wrap(h)
	}
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// newClient is a client that does not wait long.
func newClient(o Options) *Client {
	c := New(o)
	c.pause = time.Millisecond
	return c
}

func ref(t *testing.T, s string) oci.Reference {
	t.Helper()
	r, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// noise is n bytes that are the same in each run.
func noise(n int) []byte {
	data := make([]byte, n)
	src := rand.NewChaCha8([32]byte{1})
	src.Read(data)
	return data
}

func describe(mediaType string, data []byte) oci.Descriptor {
	return oci.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func opener(data []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

// push puts an image with one layer at ref and returns manifest and layer.
func push(t *testing.T, c *Client, r oci.Reference, layer []byte) (manifest []byte, desc oci.Descriptor) {
	t.Helper()
	desc = describe(specs.MediaTypeImageLayer, layer)
	if err := c.PushBlob(t.Context(), r, desc, opener(layer), ""); err != nil {
		t.Fatal(err)
	}
	conf := []byte(`{"os":"linux"}`)
	if err := c.PushBlob(t.Context(), r, describe(specs.MediaTypeImageConfig, conf), opener(conf), ""); err != nil {
		t.Fatal(err)
	}
	manifest = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		specs.MediaTypeImageManifest, specs.MediaTypeImageConfig, digest.FromBytes(conf), len(conf), desc.MediaType, desc.Digest, desc.Size)
	if _, err := c.PushManifest(t.Context(), r, specs.MediaTypeImageManifest, manifest); err != nil {
		t.Fatal(err)
	}
	return manifest, desc
}

func readBlob(c *Client, r oci.Reference, d oci.Descriptor) ([]byte, error) {
	rc, err := c.Blob(context.Background(), r, d)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

// roundTrip pushes an image and reads all of it back.
func roundTrip(t *testing.T, c *Client, host string) {
	t.Helper()
	r := ref(t, host+"/some/app:v1")
	layer := noise(300_000)
	manifest, desc := push(t, c, r, layer)

	got, err := c.Resolve(t.Context(), r)
	want := describe(specs.MediaTypeImageManifest, manifest)
	if err != nil || got.Digest != want.Digest || got.Size != want.Size || got.MediaType != want.MediaType {
		t.Errorf("Resolve(%s) = %v, %v, want %v", r, got, err, want)
	}
	for _, r := range []oci.Reference{r, r.WithDigest(want.Digest)} {
		data, got, err := c.Manifest(t.Context(), r)
		if err != nil || !bytes.Equal(data, manifest) || got.Digest != want.Digest {
			t.Errorf("Manifest(%s) = %q, %v, %v, want %q", r, data, got, err, manifest)
		}
	}
	if data, err := readBlob(c, r, desc); err != nil || !bytes.Equal(data, layer) {
		t.Errorf("Blob(%s) = %d bytes, %v, want %d bytes", desc.Digest, len(data), err, len(layer))
	}
	if ok, err := c.HasBlob(t.Context(), r, desc.Digest); !ok || err != nil {
		t.Errorf("HasBlob(%s) = %v, %v, want true", desc.Digest, ok, err)
	}
	if ok, err := c.HasBlob(t.Context(), r, digest.FromString("no")); ok || err != nil {
		t.Errorf("HasBlob of nothing = %v, %v, want false", ok, err)
	}
}

func TestRoundTrip(t *testing.T) {
	roundTrip(t, newClient(Options{}), newServer(t, nil))
}

func TestPushBlobSendsOnce(t *testing.T) {
	var puts, mounts atomic.Int32
	host := newServer(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/") {
				puts.Add(1)
			}
			if r.URL.Query().Get("mount") != "" && r.URL.Query().Get("from") == "some/app" {
				mounts.Add(1)
			}
			h.ServeHTTP(w, r)
		})
	})
	c := newClient(Options{})
	data := noise(1000)
	desc := describe(specs.MediaTypeImageLayer, data)
	a := ref(t, host+"/some/app")
	for range 2 {
		if err := c.PushBlob(t.Context(), a, desc, opener(data), ""); err != nil {
			t.Fatal(err)
		}
	}
	if n := puts.Load(); n != 1 {
		t.Errorf("a blob pushed twice was sent %d times, want once", n)
	}
	// The in-memory registry shares blobs among repositories, so HEAD finds it;
	// another digest has to be mounted, in vain, and is sent then.
	other := noise(2000)
	if err := c.PushBlob(t.Context(), ref(t, host+"/other"), describe("", other), opener(other), "some/app"); err != nil {
		t.Fatal(err)
	}
	if n := mounts.Load(); n != 1 {
		t.Errorf("mounts asked for = %d, want 1", n)
	}
}

// flaky lets two of three requests through; the rest it spoils in turn.
type flaky struct {
	h http.Handler
	n atomic.Int32
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := int(f.n.Add(1))
	if n%3 != 1 {
		f.h.ServeHTTP(w, r)
		return
	}
	switch n / 3 % 4 {
	case 0:
		w.WriteHeader(http.StatusServiceUnavailable)
	case 1:
		w.WriteHeader(http.StatusTooManyRequests)
	case 2:
		w.WriteHeader(http.StatusBadGateway)
	case 3:
		panic(http.ErrAbortHandler) // the connection breaks
	}
}

func TestRetry(t *testing.T) {
	host := newServer(t, func(h http.Handler) http.Handler { return &flaky{h: h} })
	roundTrip(t, newClient(Options{}), host)
}

// dripping breaks the connection after some bytes of each blob.
func dripping(h http.Handler, bytes int, ranges bool) http.Handler {
	proxy := func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			h.ServeHTTP(w, r)
			return
		}
		from := 0
		if !ranges {
			// Each connection goes further than the last, from the start.
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
			r.Header.Del("Range")
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		body := rec.Body.Bytes()
		if len(body) > from+bytes {
			w.Write(body[:from+bytes])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		w.Write(body)
	}
	return http.HandlerFunc(proxy)
}

func TestBlobResumes(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		t.Run(fmt.Sprintf("ranges=%v", ranges), func(t *testing.T) {
			host := newServer(t, func(h http.Handler) http.Handler { return dripping(h, 30_000, ranges) })
			roundTrip(t, newClient(Options{}), host)
		})
	}
}

func TestBlobGivesUp(t *testing.T) {
	var gets atomic.Int32
	host := newServer(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			gets.Add(1)
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		})
	})
	_, err := readBlob(newClient(Options{}), ref(t, host+"/a"), oci.Descriptor{Digest: digest.FromString("x"), Size: 100})
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Blob of a server that never sends anything: %v, want %v", err, io.ErrUnexpectedEOF)
	}
	if n := gets.Load(); n > 10 {
		t.Errorf("%d requests were made", n)
	}
}

func TestBlobStalls(t *testing.T) {
	var once sync.Once
	host := newServer(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				stalled := false
				once.Do(func() { stalled = true })
				if stalled {
					w.Header().Set("Content-Length", "300000")
					w.Write(noise(300_000)[:10_000])
					w.(http.Flusher).Flush()
					<-r.Context().Done()
					return
				}
			}
			h.ServeHTTP(w, r)
		})
	})
	c := newClient(Options{})
	c.stall = 200 * time.Millisecond
	roundTrip(t, c, host)
}

func TestWrongContent(t *testing.T) {
	tests := []struct {
		name string
		size int64  // asked for
		send string // for the digest of "right"
		want string
	}{
		{"other bytes", 5, "wrong", "instead of " + digest.FromString("right").String()},
		{"unknown size", 0, "wrong!", "instead of " + digest.FromString("right").String()},
		{"too much", 5, "right and more", "more than its 5 bytes"},
		{"too little", 5, "rig", "only 3 of its 5 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			host := newServer(t, func(http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					http.ServeContent(w, r, "", time.Time{}, strings.NewReader(tt.send))
				})
			})
			d := oci.Descriptor{Digest: digest.FromString("right"), Size: tt.size}
			_, err := readBlob(newClient(Options{}), ref(t, host+"/a"), d)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Blob of %q = %v, want an error with %q", tt.send, err, tt.want)
			}
		})
	}
}

func TestManifestVerified(t *testing.T) {
	var send []byte
	host := newServer(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", specs.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", digest.FromString("right").String())
			w.Write(send)
		})
	})
	tests := []struct {
		name, ref string
		send      []byte
		want      string
	}{
		{"digest", "/a@" + digest.FromString("right").String(), []byte("wrong"), "wrong content: digest sha256:"},
		{"tag", "/a:1", []byte("wrong"), "wrong content: digest sha256:"},
		{"huge", "/a:1", make([]byte, maxManifest+1), "larger than 8388608 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			send = tt.send
			_, _, err := newClient(Options{}).Manifest(t.Context(), ref(t, host+tt.ref))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Manifest(%s) = %v, want an error with %q", tt.ref, err, tt.want)
			}
		})
	}
}

func TestResolveWithoutHead(t *testing.T) {
	host := newServer(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/manifests/") {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	roundTrip(t, newClient(Options{}), host)
}

func TestMirrors(t *testing.T) {
	mirror, own := newServer(t, nil), newServer(t, nil)
	direct := newClient(Options{})
	_, inMirror := push(t, direct, ref(t, mirror+"/proxy/library/node:alpine"), noise(100))
	push(t, direct, ref(t, own+"/app:1"), noise(200))
	dead := closedPort(t)

	tests := []struct {
		name    string
		mirrors []string
		ref     string
		want    error  // kind
		text    string // in the error
	}{
		{"mirror with a path", []string{mirror + "/proxy"}, "node:alpine", nil, ""},
		{"scheme in front", []string{"http://" + mirror + "/proxy/"}, "node:alpine", nil, ""},
		{"dead mirror first", []string{dead, mirror + "/proxy"}, "node:alpine", nil, ""},
		{"mirror lacks it", []string{mirror}, own + "/app:1", nil, ""},
		{"all lack it", []string{dead, mirror}, own + "/app:2", ErrNotFound, "mirror " + mirror + ": not found in "},
		{"dead mirror is named", []string{dead}, own + "/app:2", ErrNotFound, "mirror " + dead + ": " + dead + " cannot be reached"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := ref(t, tt.ref)
			var conf Config
			if err := conf.add(r.Domain, Registry{Mirrors: tt.mirrors}); err != nil {
				t.Fatal(err)
			}
			c := newClient(Options{Config: conf})
			_, _, err := c.Manifest(t.Context(), r)
			if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Manifest(%s) by %v = %v, want %v %q", tt.ref, tt.mirrors, err, tt.want, tt.text)
			}
			if err == nil && r.Domain == DockerHub {
				if _, err := readBlob(c, r, inMirror); err != nil {
					t.Errorf("Blob by %v: %v", tt.mirrors, err)
				}
			}
		})
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestErrors(t *testing.T) {
	status := func(code int, body string) func(http.Handler) http.Handler {
		return func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Retry-After", "3600")
				w.WriteHeader(code)
				io.WriteString(w, body)
			})
		}
	}
	tests := []struct {
		name string
		host string
		keys Keychain
		kind error
		want string // HOST stands for the host
	}{
		{"unreachable", closedPort(t), nil, ErrUnreachable, "pull HOST/a:1: HOST cannot be reached: dial tcp HOST: connect: connection refused"},
		{"unknown", newServer(t, nil), nil, ErrNotFound, "pull HOST/a:1: not found in HOST"},
		{"anonymous", newServer(t, status(401, "")), nil, ErrUnauthorized, `pull HOST/a:1: HOST denies access: 401 Unauthorized; the image may not exist, or needs a login ("build login HOST")`},
		{"rate", newServer(t, status(429, `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\ndown"}]}`)), nil, ErrRateLimited, `pull HOST/a:1: HOST wants fewer requests for now (rate limit): toomanyrequests: slow down ("build login HOST" may raise the limit)`},
		{"broken", newServer(t, status(503, "")), nil, nil, "pull HOST/a:1: HOST answered: 503 Service Unavailable"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newClient(Options{Keychain: tt.keys})
			_, _, err := c.Manifest(t.Context(), ref(t, tt.host+"/a:1"))
			want := strings.ReplaceAll(tt.want, "HOST", tt.host)
			if err == nil || err.Error() != want || tt.kind != nil && !errors.Is(err, tt.kind) {
				t.Errorf("Manifest = %v\nwant %s", err, want)
			}
		})
	}
}

func TestPushBlobLocalError(t *testing.T) {
	host := newServer(t, nil)
	opened := 0
	broken := errors.New("disk fell out")
	desc := describe("", noise(10))
	tests := []struct {
		name string
		open func() (io.ReadCloser, error)
		want string
	}{
		{"cannot open", func() (io.ReadCloser, error) { opened++; return nil, broken }, "disk fell out"},
		{"too short", func() (io.ReadCloser, error) { opened++; return io.NopCloser(strings.NewReader("x")), nil }, "1 bytes to send instead of 10"},
	}
	for _, tt := range tests {
		opened = 0
		err := newClient(Options{}).PushBlob(t.Context(), ref(t, host+"/a"), desc, tt.open, "")
		if err == nil || !strings.Contains(err.Error(), tt.want) || opened != 1 {
			t.Errorf("%s: PushBlob = %v after %d tries, want %q after one", tt.name, err, opened, tt.want)
		}
	}
}

func TestCancel(t *testing.T) {
	host := newServer(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
		})
	})
	c := New(Options{})
	c.pause = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := c.Manifest(ctx, ref(t, host+"/a:1")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Manifest of a cancelled context = %v, want %v", err, context.DeadlineExceeded)
	}
}

// TestRedirectKeepsCredentials: a registry that sends clients to a storage
// service must not have its credentials sent along.
func TestRedirectKeepsCredentials(t *testing.T) {
	data := noise(100)
	var leaked atomic.Bool
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Store(true)
		}
		w.Write(data)
	}))
	t.Cleanup(storage.Close)
	host := newServer(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, _, ok := r.BasicAuth(); !ok {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			http.Redirect(w, r, storage.URL+"/blob", http.StatusTemporaryRedirect)
		})
	})
	c := newClient(Options{Keychain: fixed{Username: "u", Password: "p"}})
	got, err := readBlob(c, ref(t, host+"/a"), describe("", data))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("Blob by a redirect = %d bytes, %v", len(got), err)
	}
	if leaked.Load() {
		t.Error("credentials were sent to the redirect's target")
	}
}

func TestForeignLayer(t *testing.T) {
	data := noise(100)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(data) }))
	t.Cleanup(elsewhere.Close)
	desc := describe("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", data)
	desc.URLs = []string{elsewhere.URL + "/layer"}
	got, err := readBlob(newClient(Options{}), ref(t, newServer(t, nil)+"/a"), desc)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("Blob of a foreign layer = %d bytes, %v", len(got), err)
	}
}

func TestProxy(t *testing.T) {
	// net/http never asks a proxy for loopback hosts, so the registry has a name
	// that only the proxy knows.
	backend := &url.URL{Scheme: "http", Host: newServer(t, nil)}
	var asked atomic.Int32
	proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		asked.Add(1)
		r.SetURL(backend)
	}})
	t.Cleanup(proxy.Close)
	conf, err := Config{}.WithInsecure("registry.test:5000")
	if err != nil {
		t.Fatal(err)
	}
	conf.set("registry.test:5000", func(r *Registry) { r.Insecure = nil })
	c := newClient(Options{Config: conf})
	h, err := c.host("registry.test:5000")
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(proxy.URL)
	h.client.Transport.(userAgent).RoundTripper.(*http.Transport).Proxy = http.ProxyURL(u)
	roundTrip(t, c, "registry.test:5000")
	if asked.Load() == 0 {
		t.Error("the proxy was not asked")
	}
}

type keys map[string]authn.AuthConfig

func (k keys) Get(_ context.Context, repository string) (authn.AuthConfig, error) {
	return k[repository], nil
}
