package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// tokens is a token server and the guard of a registry, in one. Each token is
// good for uses requests.
type tokens struct {
	realm    string // empty: /token at the same host
	user     string // empty: anybody gets tokens
	password string
	refresh  string // the identity token that is taken
	uses     int
	scoped   bool // challenges say what is wanted
	h        http.Handler

	mu     sync.Mutex
	next   int
	good   map[string]int // requests left
	scopes map[string]bool
	asked  [][]string // scopes, by request for a token
}

func (s *tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/token" {
		s.issue(w, r)
		return
	}
	s.mu.Lock()
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	ok := s.good[token] > 0
	s.good[token]--
	s.mu.Unlock()
	if !ok {
		realm := s.realm
		if realm == "" {
			realm = "http://" + r.Host + "/token"
		}
		challenge := fmt.Sprintf(`Bearer realm="%s",service="test"`, realm)
		if name, _, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/"); ok && s.scoped {
			challenge += `,scope="repository:` + name + `:pull"`
		}
		w.Header().Set("WWW-Authenticate", challenge)
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
		return
	}
	s.h.ServeHTTP(w, r)
}

func (s *tokens) issue(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	ok := s.user == "" || user == s.user && password == s.password
	if r.Method == http.MethodPost {
		ok = s.refresh != "" && r.FormValue("refresh_token") == s.refresh
	}
	if !ok {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	scopes := append(r.Form["scope"], r.URL.Query()["scope"]...)
	for _, scope := range scopes {
		s.scopes[scope] = true
	}
	s.asked = append(s.asked, scopes)
	s.next++
	token := fmt.Sprintf("token-%d", s.next)
	s.good[token] = s.uses
	json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": 300})
}

func newTokens(t *testing.T, s *tokens) (host string) {
	t.Helper()
	s.good, s.scopes = map[string]int{}, map[string]bool{}
	return newServer(t, func(h http.Handler) http.Handler {
		s.h = h
		return s
	})
}

func TestTokens(t *testing.T) {
	tests := []struct {
		name   string
		server *tokens
		keys   func(host string) keys
		want   error
	}{
		{"anonymous", &tokens{uses: 1000}, nil, nil},
		{"expires all the time", &tokens{uses: 2}, nil, nil},
		{"password", &tokens{uses: 1000, user: "u", password: "p"}, func(h string) keys {
			return keys{h + "/some/app": {Username: "u", Password: "p"}}
		}, nil},
		{"wrong password", &tokens{uses: 1000, user: "u", password: "p"}, func(h string) keys {
			return keys{h + "/some/app": {Username: "u", Password: "q"}}
		}, ErrUnauthorized},
		{"identity token", &tokens{uses: 3, user: "u", password: "p", refresh: "r"}, func(h string) keys {
			return keys{h + "/some/app": {IdentityToken: "r"}}
		}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			host := newTokens(t, tt.server)
			o := Options{}
			if tt.keys != nil {
				o.Keychain = tt.keys(host)
			}
			c := newClient(o)
			if tt.want != nil {
				_, _, err := c.Manifest(t.Context(), ref(t, host+"/some/app:v1"))
				if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), `denies access: 401 Unauthorized for user "u" (log in anew with "build login `+host) {
					t.Errorf("Manifest = %v, want %v", err, tt.want)
				}
				return
			}
			roundTrip(t, c, host)
			for _, s := range []string{"repository:some/app:pull", "repository:some/app:pull,push"} {
				if !tt.server.scopes[s] {
					t.Errorf("no token was asked for with scope %q, only %v", s, tt.server.scopes)
				}
			}
		})
	}
}

// TestTokenScopes: what one repository was asked for is not asked for with the next
// one's, whose token might be denied for it.
func TestTokenScopes(t *testing.T) {
	s := &tokens{uses: 1000, scoped: true}
	host := newTokens(t, s)
	c := newClient(Options{})
	for _, name := range []string{"first/app", "second/app"} {
		if _, _, err := c.Manifest(t.Context(), ref(t, host+"/"+name+":v1")); !errors.Is(err, ErrNotFound) {
			t.Errorf("Manifest of %s = %v, want %v", name, err, ErrNotFound)
		}
	}
	want := [][]string{{"repository:first/app:pull"}, {"repository:second/app:pull"}}
	if !reflect.DeepEqual(s.asked, want) {
		t.Errorf("tokens were asked for with scopes %q, want %q", s.asked, want)
	}
}

// TestTokenServerElsewhere: a registry on this machine may have its token
// server on another port of it.
func TestTokenServerElsewhere(t *testing.T) {
	s := &tokens{uses: 1000}
	host := newTokens(t, s)
	other := httptest.NewServer(http.HandlerFunc(s.issue))
	t.Cleanup(other.Close)
	s.realm = other.URL + "/token"
	roundTrip(t, newClient(Options{}), host)
}

// TestTokenExpiresMidBlob: the connection breaks again and again, and by the
// next try the token is no longer good.
func TestTokenExpiresMidBlob(t *testing.T) {
	s := &tokens{uses: 2}
	s.good, s.scopes = map[string]int{}, map[string]bool{}
	host := newServer(t, func(h http.Handler) http.Handler {
		s.h = dripping(h, 20_000, true)
		return s
	})
	roundTrip(t, newClient(Options{}), host)
	if s.next < 5 {
		t.Errorf("%d tokens were asked for, want several", s.next)
	}
}

// TestLoginLater: a client that was refused takes credentials that came since.
func TestLoginLater(t *testing.T) {
	host := newTokens(t, &tokens{uses: 1000, user: "u", password: "p"})
	creds := keys{}
	c := newClient(Options{Keychain: creds})
	r := ref(t, host+"/some/app:v1")
	if _, _, err := c.Manifest(t.Context(), r); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("Manifest before the login = %v, want %v", err, ErrUnauthorized)
	}
	creds[host+"/some/app"] = authn.AuthConfig{Username: "u", Password: "p"}
	if _, _, err := c.Manifest(t.Context(), r); !errors.Is(err, ErrNotFound) {
		t.Errorf("Manifest after the login = %v, want %v", err, ErrNotFound)
	}
}

// TestConnectionsAreKept: answers that do not matter are read, or each would
// cost a new connection.
func TestConnectionsAreKept(t *testing.T) {
	s := &tokens{uses: 1}
	s.good, s.scopes = map[string]int{}, map[string]bool{}
	var conns atomic.Int32
	s.h = registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewUnstartedServer(s)
	srv.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	roundTrip(t, newClient(Options{}), srv.Listener.Addr().String())
	if n := conns.Load(); n > 3 { // a server that answers before it has read what is sent hangs up
		t.Errorf("%d connections were made, want 3 at most", n)
	}
}

func TestTokenSharedByConcurrentRequests(t *testing.T) {
	s := &tokens{uses: 1000}
	host := newTokens(t, s)
	c := newClient(Options{})
	_, desc := push(t, c, ref(t, host+"/some/app:v1"), noise(1000))
	before := s.next
	c = newClient(Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := readBlob(c, ref(t, host+"/some/app:v1"), desc); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := s.next - before; n != 1 {
		t.Errorf("8 downloads at once took %d tokens, want 1", n)
	}
}

func TestParseChallenges(t *testing.T) {
	tests := []struct {
		in   []string
		want []transport.Challenge
	}{
		{nil, nil},
		{[]string{`Basic realm="a b"`}, []transport.Challenge{{Scheme: "Basic", Parameters: map[string]string{"realm": "a b"}}}},
		{[]string{`Bearer Realm="https://x/t?a=b",service=y , scope="repository:a/b:pull,push"`}, []transport.Challenge{
			{Scheme: "Bearer", Parameters: map[string]string{"realm": "https://x/t?a=b", "service": "y", "scope": "repository:a/b:pull,push"}}}},
		{[]string{`Negotiate, Basic realm="q\"q"`, `Bearer realm=z`}, []transport.Challenge{
			{Scheme: "Negotiate", Parameters: map[string]string{}},
			{Scheme: "Basic", Parameters: map[string]string{"realm": `q"q`}},
			{Scheme: "Bearer", Parameters: map[string]string{"realm": "z"}}}},
		{[]string{`"`, `=`, ` ,, `, `Basic realm="open`}, []transport.Challenge{{Scheme: "Basic", Parameters: map[string]string{"realm": "open"}}}},
	}
	for _, tt := range tests {
		if got := parseChallenges(tt.in); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("parseChallenges(%q) = %v, want %v", tt.in, got, tt.want)
		}
	}
}

// debianRegistry starts Debian's docker-registry with the password "s3cret" of
// user "ann", and returns its HOST:PORT.
func debianRegistry(t *testing.T) string {
	t.Helper()
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("docker-registry is not installed")
		}
		t.Skip("needs docker-registry (apt-get install docker-registry)")
	}
	dir, addr := t.TempDir(), closedPort(t)
	passwords := filepath.Join(dir, "htpasswd")
	// bcrypt, the only form that it takes.
	if err := os.WriteFile(passwords, []byte("ann:$2y$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: %s\nauth:\n  htpasswd:\n    realm: test\n    path: %s\n", dir, addr, passwords)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "serve", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 200 {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return addr
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("docker-registry does not listen on %s", addr)
	return ""
}

func TestDebianRegistry(t *testing.T) {
	host := debianRegistry(t)
	r := ref(t, host+"/some/app:v1")

	_, _, err := newClient(Options{}).Manifest(t.Context(), r)
	if !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "build login "+host) {
		t.Errorf("Manifest without credentials = %v, want %v", err, ErrUnauthorized)
	}
	if err := Check(t.Context(), Options{}, host, "ann", "wrong"); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("Check of a wrong password = %v, want %v", err, ErrUnauthorized)
	}
	if err := Check(t.Context(), Options{}, host, "ann", "s3cret"); err != nil {
		t.Errorf("Check = %v", err)
	}

	creds := &Credentials{Path: filepath.Join(t.TempDir(), "new", "config.json")}
	if _, err := creds.Store(t.Context(), host, "ann", "s3cret"); err != nil {
		t.Fatal(err)
	}
	c := newClient(Options{Keychain: creds})
	roundTrip(t, c, host)

	// A blob of another repository is mounted, not sent.
	data := noise(5000)
	desc := describe("", data)
	if err := c.PushBlob(t.Context(), r, desc, opener(data), ""); err != nil {
		t.Fatal(err)
	}
	other := ref(t, host+"/other:v1")
	if err := c.PushBlob(t.Context(), other, desc, nil, "some/app"); err != nil {
		t.Errorf("PushBlob by a mount = %v", err)
	}
	if ok, err := c.HasBlob(t.Context(), other, desc.Digest); !ok || err != nil {
		t.Errorf("HasBlob after a mount = %v, %v, want true", ok, err)
	}
	// An empty blob is a blob.
	empty := describe("", nil)
	if err := c.PushBlob(t.Context(), r, empty, opener(nil), ""); err != nil {
		t.Errorf("PushBlob of nothing = %v", err)
	}
	// The bytes are not those of the descriptor.
	if err := c.PushBlob(t.Context(), r, describe("", []byte("abc")), opener([]byte("abd")), ""); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Errorf("PushBlob of other bytes = %v, want an error about the digest", err)
	}
	// A manifest whose blobs are not there.
	bad := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","size":3},"layers":[]}`)
	if _, err := c.PushManifest(t.Context(), r, "application/vnd.oci.image.manifest.v1+json", bad); err == nil || !strings.Contains(err.Error(), "unknown") {
		t.Errorf("PushManifest without blobs = %v, want an error about them", err)
	}
}

func TestKeychainFailureIsTold(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(`{"credsStore":"nosuch"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	creds := &Credentials{Path: path}
	// What is public can be had all the same.
	roundTrip(t, newClient(Options{Keychain: creds}), newTokens(t, &tokens{uses: 1000}))
	_, _, err := newClient(Options{Keychain: creds}).Manifest(t.Context(), ref(t, newTokens(t, &tokens{user: "u"})+"/a:1"))
	if err == nil || !strings.Contains(err.Error(), "credential helper nosuch") {
		t.Errorf("Manifest = %v, want an error that names the helper", err)
	}
}
