package source

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// page is a server of one file whose content a test changes.
type page struct {
	body, etag string
	modified   time.Time
	ignores    bool // does not know If-None-Match
	sent       atomic.Int32
}

func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p.etag != "" {
		w.Header().Set("ETag", p.etag)
	}
	if !p.modified.IsZero() {
		w.Header().Set("Last-Modified", p.modified.UTC().Format(http.TimeFormat))
	}
	if p.etag != "" && r.Header.Get("If-None-Match") == p.etag && !p.ignores {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	p.sent.Add(1)
	io.WriteString(w, p.body)
}

func newPage(t *testing.T, h http.Handler) (url string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestHTTPPinByETag(t *testing.T) {
	for _, ignores := range []bool{false, true} {
		t.Run(fmt.Sprintf("server ignores If-None-Match=%v", ignores), func(t *testing.T) {
			p := &page{body: "one", etag: `"1"`, ignores: ignores}
			src := llb.Source{Scheme: llb.HTTP, Ref: newPage(t, p) + "/dir/file.txt?q=1"}
			dir := filepath.Join(t.TempDir(), "http")
			pin := func(want string) llb.Source {
				t.Helper()
				h := NewHTTP(dir, nil)
				var got llb.Source
				for range 2 {
					var err error
					if got, err = h.Pin(t.Context(), src); err != nil || got.Digest != digest.FromString(want) || got.Filename != "file.txt" {
						t.Errorf("Pin = %v, %v, want %q as file.txt", got, err, want)
					}
				}
				return got
			}
			old := pin("one")
			pin("one")
			if n := p.sent.Load(); n != 1 && !ignores {
				t.Errorf("the file was sent %d times, want once", n)
			}
			p.body, p.etag = "two", `W/"2"`
			pin("two")
			// A build that was pinned before still gets what it was pinned to.
			c, err := NewHTTP(dir, nil).Open(t.Context(), old)
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(c.Dir)
			if got, err := os.ReadFile(filepath.Join(c.Dir, "file.txt")); string(got) != "one" {
				t.Errorf("Open of the older = %q, %v, want %q", got, err, "one")
			}
		})
	}
}

func TestHTTPWithoutETag(t *testing.T) {
	p := &page{body: "one"}
	src := llb.Source{Ref: newPage(t, p) + "/f"}
	dir := t.TempDir()
	for _, body := range []string{"one", "two"} {
		p.body = body
		if got, err := NewHTTP(dir, nil).Pin(t.Context(), src); err != nil || got.Digest != digest.FromString(body) {
			t.Errorf("Pin = %v, %v, want %q", got.Digest, err, body)
		}
	}
}

func TestHTTPOpen(t *testing.T) {
	at := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	p := &page{body: "text", modified: at}
	url := newPage(t, p) + "/a%20b.sh"
	tests := []struct {
		name  string
		src   llb.Source
		file  string
		mode  uint32
		owner uint32
	}{
		{"defaults", llb.Source{}, "a b.sh", 0o600, 0},
		{"all said", llb.Source{Filename: "other", Mode: 0o4755, UID: 12, GID: 12}, "other", 0o4755, 12},
		{"name that leaves", llb.Source{Filename: "../../up"}, "up", 0o600, 0},
		{"sha512", llb.Source{Checksum: digest.SHA512.FromString("text")}, "a b.sh", 0o600, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.owner != 0 && os.Geteuid() != 0 {
				t.Skip("needs root to change the owner")
			}
			tt.src.Ref = url
			h := NewHTTP(filepath.Join(t.TempDir(), "new"), nil)
			pinned, err := h.Pin(t.Context(), tt.src)
			if err != nil {
				t.Fatal(err)
			}
			c, err := h.Open(t.Context(), pinned)
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(c.Dir)
			list, _ := os.ReadDir(c.Dir)
			if len(list) != 1 || list[0].Name() != tt.file {
				t.Fatalf("Open yields %v, want %q alone", list, tt.file)
			}
			st, err := os.Stat(filepath.Join(c.Dir, tt.file))
			if err != nil {
				t.Fatal(err)
			}
			sys := st.Sys().(*syscall.Stat_t)
			if sys.Mode&0o7777 != tt.mode || sys.Uid != tt.owner || sys.Gid != tt.owner || !st.ModTime().Equal(at) {
				t.Errorf("file has mode %o, owner %d:%d, time %v, want %o, %d, %v", sys.Mode&0o7777, sys.Uid, sys.Gid, st.ModTime(), tt.mode, tt.owner, at)
			}
		})
	}
}

func TestHTTPErrors(t *testing.T) {
	mux := http.NewServeMux()
	var busy atomic.Int32
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "text") })
	mux.HandleFunc("/busy", func(w http.ResponseWriter, r *http.Request) { busy.Add(1); w.WriteHeader(503) })
	mux.HandleFunc("/cut", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "text")
	})
	base := newPage(t, mux)
	withPassword := strings.Replace(base, "http://", "http://user:secret@", 1)
	tests := []struct {
		name, url string
		checksum  oci.Digest
		want      string
	}{
		{"not there", base + "/none", "", "download " + base + "/none: the server answered 404 Not Found"},
		{"busy", base + "/busy", "", "the server answered 503 Service Unavailable"},
		{"cut", base + "/cut", "", "unexpected EOF"},
		{"password", withPassword + "/none", "", "http://user:xxxxx@"},
		{"other content", base + "/ok", digest.FromString("x"), "digest mismatch: it has " + digest.FromString("text").String() + ", expected " + digest.FromString("x").String()},
		{"bad checksum", base + "/ok", "sha256:x", `checksum "sha256:x": invalid checksum digest length`},
		{"nobody", "http://127.0.0.1:1/x", "", "connection refused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			h := NewHTTP(dir, nil)
			h.pause = time.Millisecond
			s, err := h.Pin(t.Context(), llb.Source{Ref: tt.url, Checksum: tt.checksum})
			if err == nil {
				_, err = h.Open(t.Context(), s)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("error = %v, want %q", err, tt.want)
			}
			if list, _ := os.ReadDir(dir); len(list) > 0 {
				t.Errorf("left behind: %v", list)
			}
		})
	}
	if n := busy.Load(); n != 3 {
		t.Errorf("a busy server was asked %d times, want 3", n)
	}
}

func TestHTTPAuth(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(other.Close)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			// Another host: what is for this one is not sent there.
			http.Redirect(w, r, strings.Replace("http://"+r.Host+"/f", "127.0.0.1", "localhost", 1), http.StatusFound)
			return
		}
		if r.URL.Path == "/port" {
			http.Redirect(w, r, other.URL, http.StatusFound)
			return
		}
		if r.Header.Get("Authorization") != "Bearer s3cret" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(srv.Close)
	tests := []struct {
		name, path string
		secrets    map[string]string
		ok         bool
	}{
		{"none", "/f", nil, false},
		{"token", "/f", map[string]string{"HTTP_AUTH_TOKEN_127.0.0.1": "s3cret\n"}, true},
		{"header", "/f", map[string]string{"HTTP_AUTH_HEADER_127.0.0.1": "Bearer s3cret"}, true},
		{"header before token", "/f", map[string]string{"HTTP_AUTH_HEADER_127.0.0.1": "Bearer s3cret", "HTTP_AUTH_TOKEN_127.0.0.1": "x"}, true},
		{"of another host", "/f", map[string]string{"HTTP_AUTH_TOKEN_example.com": "s3cret"}, false},
		{"redirected to another port", "/port", map[string]string{"HTTP_AUTH_TOKEN_127.0.0.1": "s3cret"}, false},
		{"redirected to another host", "/away", map[string]string{"HTTP_AUTH_TOKEN_127.0.0.1": "s3cret"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := NewHTTP(t.TempDir(), nil)
			h.Secret = func(name string) ([]byte, bool) {
				v, ok := tt.secrets[name]
				return []byte(v), ok
			}
			_, err := h.Pin(t.Context(), llb.Source{Ref: srv.URL + tt.path})
			if (err == nil) != tt.ok {
				t.Errorf("Pin with %q = %v, want it to succeed: %v", tt.secrets, err, tt.ok)
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("Pin = %v: the secret is in there", err)
			}
		})
	}
}

func TestHTTPDamagedCopy(t *testing.T) {
	p := &page{body: "text", etag: `"1"`}
	dir := t.TempDir()
	h := NewHTTP(dir, nil)
	s, err := h.Pin(t.Context(), llb.Source{Ref: newPage(t, p) + "/f"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.dataPath(s.Ref, s.Digest), []byte("tex"), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := h.Open(t.Context(), s)
	if err != nil {
		t.Fatalf("Open of a damaged copy = %v, want it downloaded again", err)
	}
	defer os.RemoveAll(c.Dir)
	if got, err := os.ReadFile(filepath.Join(c.Dir, "f")); string(got) != "text" {
		t.Errorf("Open of a damaged copy yields %q, %v, want %q", got, err, "text")
	}
}

// A record that is damaged is not believed, in any of its parts.
func TestHTTPDamagedRecord(t *testing.T) {
	dir, src := t.TempDir(), llb.Source{Ref: newPage(t, &page{body: "text", etag: `"1"`}) + "/name"}
	if _, err := NewHTTP(dir, nil).Pin(t.Context(), src); err != nil {
		t.Fatal(err)
	}
	path := NewHTTP(dir, nil).key(src.Ref) + ".json"
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if got := NewHTTP(dir, nil).readRecord(src.Ref); got != (record{}) {
			t.Errorf("with byte %d damaged, the record is %+v, want none", i, got)
		}
	}
}

func TestHTTPConcurrently(t *testing.T) {
	p := &page{body: strings.Repeat("text", 10000), etag: `"1"`}
	src := llb.Source{Ref: newPage(t, p) + "/f"}
	h := NewHTTP(t.TempDir(), nil)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			s, err := h.Pin(t.Context(), src)
			if err != nil {
				t.Error(err)
				return
			}
			c, err := h.Open(t.Context(), s)
			if err != nil {
				t.Error(err)
			}
			os.RemoveAll(c.Dir)
		})
	}
	wg.Wait()
	if n := p.sent.Load(); n != 1 {
		t.Errorf("the file was sent %d times, want once", n)
	}
}

func TestHTTPSweep(t *testing.T) {
	h := NewHTTP(t.TempDir(), nil)
	young := h.dataPath("u", digest.FromString("a"))
	if err := os.WriteFile(young, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h.sweep("u", digest.FromString("b"))
	if _, err := os.Stat(young); err != nil {
		t.Errorf("sweep removed a download of just now: %v", err)
	}
}

func TestFileName(t *testing.T) {
	disposition := func(s string) http.Header { return http.Header{"Content-Disposition": {s}} }
	tests := []struct {
		url, name string
		header    http.Header
		want      string
	}{
		{"http://x/a/b.tar.gz?c=d#e", "", nil, "b.tar.gz"},
		{"http://x/a/b", "given", disposition(`attachment; filename="said"`), "given"},
		{"http://x/a/b", "", disposition(`attachment; filename="said.txt"`), "said.txt"},
		{"http://x/a/b", "", disposition(`attachment; filename="../../etc/passwd"`), "passwd"},
		{"http://x/a/b", "", disposition(`attachment; filename="dir/"`), "b"},
		{"http://x/a/b", "", disposition(`broken;;`), "b"},
		{"http://x", "", nil, "download"},
		{"http://x/", "", nil, "download"},
		{"http://x/..", "", nil, "download"},
		{"http://x/a%0Ab", "", nil, "download"},
		{"http://x/a%2Fb", "", nil, "b"},
		{"http://x/a/", "", nil, "a"},
	}
	for _, tt := range tests {
		if got := fileName(tt.url, tt.name, tt.header); got != tt.want {
			t.Errorf("fileName(%q, %q, %v) = %q, want %q", tt.url, tt.name, tt.header, got, tt.want)
		}
	}
}
