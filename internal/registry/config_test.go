package registry

import (
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
)

func TestParseConfig(t *testing.T) {
	yes, no := new(true), new(false)
	tests := []struct {
		name, in string
		want     map[string]Registry
		err      string
	}{
		{"empty", "", map[string]Registry{}, ""},
		{"of buildkitd", `
debug = true
[worker.oci]
  enabled = false
[registry."docker.io"]
  mirrors = ["127.0.0.1:5001", "core.harbor.domain/proxy.docker.io"]
[registry."r.example:5000"]
  http = true
  insecure = false
  ca = ["/a.pem"]
  tlsconfigdir = ["/d"]
  [[registry."r.example:5000".keypair]]
    key = "/k"
    cert = "/c"
`, map[string]Registry{
			"docker.io": {Mirrors: []string{"127.0.0.1:5001", "core.harbor.domain/proxy.docker.io"}},
			"r.example:5000": {HTTP: yes, Insecure: no, CA: []string{"/a.pem"}, CertDirs: []string{"/d"},
				KeyPairs: []KeyPair{{Key: "/k", Cert: "/c"}}},
		}, ""},
		{"scheme of a mirror", "[registry.\"docker.io\"]\nmirrors=[\"http://m:5\"]", map[string]Registry{
			"docker.io": {Mirrors: []string{"http://m:5"}}, "m:5": {HTTP: yes},
		}, ""},
		{"unknown setting", "\n[registry.\"docker.io\"]\nmirror=[\"m\"]", nil, `f:3: registry "docker.io" has no setting "mirror"`},
		{"wrong type", "[registry.\"docker.io\"]\nhttp=3", nil, "f:2: "},
		{"syntax", "[registry", nil, "f:1: "},
		{"bad mirror", "[registry.\"docker.io\"]\nmirrors=[\"/x\"]", nil, `f: mirror "/x" of docker.io: "" is not HOST or HOST:PORT`},
		{"bad host", "[registry.\"docker.io/library\"]\nhttp=true", nil, `f: "docker.io/library" is not HOST or HOST:PORT`},
	}
	for _, tt := range tests {
		got, err := ParseConfig("f", []byte(tt.in))
		if tt.err != "" {
			if err == nil || !strings.HasPrefix(err.Error(), tt.err) {
				t.Errorf("%s: ParseConfig(%q) = %v, want error %q", tt.name, tt.in, err, tt.err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got.Registries, tt.want) {
			t.Errorf("%s: ParseConfig(%q) = %v, %v, want %v", tt.name, tt.in, got.Registries, err, tt.want)
		}
	}
}

func TestConfigFlags(t *testing.T) {
	base, err := ParseConfig("f", []byte(`registry."docker.io".mirrors = ["a"]`))
	if err != nil {
		t.Fatal(err)
	}
	c, err := base.WithMirror("b:1")
	if err != nil {
		t.Fatal(err)
	}
	if c, err = c.WithMirror("quay.io=http://c:2/p"); err != nil {
		t.Fatal(err)
	}
	if c, err = c.WithInsecure("http://d:3/"); err != nil {
		t.Fatal(err)
	}
	want := map[string]Registry{
		"docker.io": {Mirrors: []string{"b:1", "a"}},
		"quay.io":   {Mirrors: []string{"http://c:2/p"}},
		"c:2":       {HTTP: new(true)},
		"d:3":       {HTTP: new(true), Insecure: new(true)},
	}
	if !reflect.DeepEqual(c.Registries, want) {
		t.Errorf("flags give %v, want %v", c.Registries, want)
	}
	if n := len(base.Registries["docker.io"].Mirrors); n != 1 || len(base.Registries) != 1 {
		t.Errorf("flags changed the configuration that they were put on: %v", base.Registries)
	}
	if _, err := base.WithMirror("docker.io="); err == nil {
		t.Error(`WithMirror("docker.io=") gave no error`)
	}
	if _, err := base.WithInsecure("a/b"); err == nil {
		t.Error(`WithInsecure("a/b") gave no error`)
	}
}

func TestLoadConfig(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	file := filepath.Join(dir, "build", "config.toml")
	os.MkdirAll(filepath.Dir(file), 0o755)
	if err := os.WriteFile(file, []byte("[registry.x]\nhttp = true\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := LoadConfig("")
	if err != nil || c.Registries["x"].HTTP == nil {
		t.Errorf(`LoadConfig("") = %v, %v, want what %s says`, c, err, file)
	}
	if _, err := LoadConfig(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("LoadConfig of a file that is not there = %v, want %v", err, os.ErrNotExist)
	}
}

func TestLoopback(t *testing.T) {
	tests := []struct {
		name string
		want bool
	}{
		{"localhost", true}, {"localhost:5000", true}, {"a.localhost:1", true},
		{"127.0.0.1:5000", true}, {"127.9.8.7", true}, {"[::1]:5000", true}, {"[::1]", true},
		{"localhost.example", false}, {"10.0.0.1:5000", false}, {"docker.io", false}, {"127.0.0.1.example:5000", false},
	}
	for _, tt := range tests {
		if got := loopback(tt.name); got != tt.want {
			t.Errorf("loopback(%q) = %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestParseHost(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", "docker.io"},
		{"docker.io", "docker.io"},
		{"https://index.docker.io/v1/", "docker.io"},
		{"registry.example", "registry.example"},
		{"https://registry.example:5000/", "registry.example:5000"},
		{"http://127.0.0.1:5000/v2", "127.0.0.1:5000"},
		{"registry.example/team", ""},
		{"user@registry.example", ""},
	}
	for _, tt := range tests {
		got, err := ParseHost(tt.in)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("ParseHost(%q) = %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
}

// TestTLS: what each setting makes of a server with a certificate of its own.
func TestTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	host := s.Listener.Addr().String()
	plain := newServer(t, nil)

	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	certs := t.TempDir()
	os.Mkdir(filepath.Join(certs, host), 0o755)
	if err := os.Link(ca, filepath.Join(certs, host, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, host string
		conf       Registry
		dirs       []string
		err        string
	}{
		{"loopback by default", host, Registry{}, nil, ""},
		{"plain loopback by default", plain, Registry{}, nil, ""},
		{"unknown authority", host, Registry{HTTP: new(false)}, nil, "is not trusted: x509: "},
		{"authority", host, Registry{CA: []string{ca}}, nil, ""},
		{"directory of certificates", host, Registry{}, []string{certs}, ""},
		{"insecure", host, Registry{Insecure: new(true)}, nil, ""},
		{"no TLS with an authority", plain, Registry{CA: []string{ca}}, nil, "does not speak TLS (allow plain HTTP with --insecure-registry"},
		{"HTTP only", plain, Registry{HTTP: new(true)}, nil, ""},
		{"missing authority", host, Registry{CA: []string{ca + "x"}}, nil, "no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newClient(Options{Config: Config{Registries: map[string]Registry{tt.host: tt.conf}}, CertDirs: append([]string{}, tt.dirs...)})
			if tt.err == "" {
				roundTrip(t, c, tt.host)
				return
			}
			_, _, err := c.Manifest(t.Context(), ref(t, tt.host+"/a:1"))
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Manifest = %v, want an error with %q", err, tt.err)
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	helper := `#!/bin/sh
read server
case "$1 $server" in
"get helped") echo '{"ServerURL":"helped","Username":"h","Secret":"hp"}' ;;
"get identity") echo '{"ServerURL":"identity","Username":"<token>","Secret":"id"}' ;;
"get broken") echo 'it broke'; exit 1 ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
`
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	const file = `{
 "auths": {
  "https://index.docker.io/v1/": {"auth": "aHViOmh1YnA="},
  "https://old.example/v1/": {"auth": "b2xkOm9sZHA="},
  "r.example": {"auth": "cjpwOnc="},
  "r.example/team": {"username": "t", "password": "tp"},
  "token.example": {"identitytoken": "tok"},
  "helped": {}
 },
 "credHelpers": {"helped": "test", "identity": "test", "broken": "test", "r.example": "test"}
}`
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	fallback := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(fallback, []byte(`{"auths":{"quay.io/org":{"auth":"cTpxcA=="},"r.example":{"auth":"bm86bm8="}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		repository string
		want       authn.AuthConfig // Auth left out
		err        string
	}{
		{"docker.io/library/node", authn.AuthConfig{Username: "hub", Password: "hubp"}, ""},
		{"docker.io", authn.AuthConfig{Username: "hub", Password: "hubp"}, ""},
		{"old.example/a", authn.AuthConfig{Username: "old", Password: "oldp"}, ""},
		{"r.example/a", authn.AuthConfig{Username: "r", Password: "p:w"}, ""},
		{"r.example/team/a/b", authn.AuthConfig{Username: "t", Password: "tp"}, ""},
		{"r.example/teams", authn.AuthConfig{Username: "r", Password: "p:w"}, ""},
		{"token.example/a", authn.AuthConfig{IdentityToken: "tok"}, ""},
		{"helped/a", authn.AuthConfig{Username: "h", Password: "hp"}, ""},
		{"identity/a", authn.AuthConfig{IdentityToken: "id"}, ""},
		{"broken/a", authn.AuthConfig{}, "credential helper test: it broke"},
		{"quay.io/org/app", authn.AuthConfig{Username: "q", Password: "qp"}, ""},
		{"quay.io/other/app", authn.AuthConfig{}, ""},
		{"unknown.example/a", authn.AuthConfig{}, ""},
	}
	c := &Credentials{Path: path, Fallbacks: []string{filepath.Join(bin, "none"), fallback}}
	for _, tt := range tests {
		got, err := c.Get(t.Context(), tt.repository)
		got.Auth = ""
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
			t.Errorf("Get(%q) = %v, %v, want %v, %q", tt.repository, got, err, tt.want, tt.err)
		}
	}
	c.Inline = []byte(`{"auths":{"r.example":{"auth":"aTppcA=="}}}`)
	if got, err := c.Get(t.Context(), "r.example/a"); err != nil || got.Username != "i" {
		t.Errorf("Get with DOCKER_AUTH_CONFIG = %v, %v, want its own", got, err)
	}
}

func TestStoreAndErase(t *testing.T) {
	bin, dir := t.TempDir(), t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	helper := "#!/bin/sh\ncat > " + dir + "/$1\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-rec"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	real := filepath.Join(dir, "real.json")
	link := filepath.Join(dir, "config.json")
	if err := os.WriteFile(real, []byte(`{"psFormat":"<x>","n":12345678901234567890,"auths":{"docker.io":{"auth":"x"},"k.example":{"auth":"a2s6cA==","email":"e"}},"credHelpers":{"h.example":"rec"}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real.json", link); err != nil {
		t.Fatal(err)
	}
	c := &Credentials{Path: link}
	for _, host := range []string{"docker.io", "r.example:5000"} {
		if helper, err := c.Store(t.Context(), host, "u", "p<"); helper != "" || err != nil {
			t.Fatalf("Store(%q) = %q, %v", host, helper, err)
		}
		if a, err := c.Get(t.Context(), host); err != nil || a.Username != "u" || a.Password != "p<" {
			t.Errorf("Get(%q) after Store = %v, %v", host, a, err)
		}
	}
	if helper, err := c.Store(t.Context(), "h.example", "u", "p"); helper != "rec" || err != nil {
		t.Errorf(`Store("h.example") = %q, %v, want the helper`, helper, err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "store")); string(got) != `{"ServerURL":"h.example","Username":"u","Secret":"p"}` {
		t.Errorf("the helper was given %q", got)
	}
	if st, err := os.Lstat(link); err != nil || st.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link to the file was replaced: %v", err)
	}
	if st, err := os.Stat(link); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode of the file = %v, %v, want 0600", st.Mode(), err)
	}
	data, _ := os.ReadFile(real)
	for _, keep := range []string{`"psFormat": "<x>"`, `"n": 12345678901234567890`, `"email": "e"`, hubKey} {
		if !strings.Contains(string(data), keep) {
			t.Errorf("%s is not in the file:\n%s", keep, data)
		}
	}
	if strings.Contains(string(data), `"docker.io"`) {
		t.Errorf("the older entry of docker.io stayed:\n%s", data)
	}
	for _, host := range []string{"docker.io", "r.example:5000", "h.example"} {
		if err := c.Erase(t.Context(), host); err != nil {
			t.Errorf("Erase(%q) = %v", host, err)
		}
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "erase")); string(got) != "h.example" {
		t.Errorf("the helper was told to erase %q", got)
	}
	if err := c.Erase(t.Context(), "docker.io"); !errors.Is(err, ErrNotFound) {
		t.Errorf("second Erase = %v, want %v", err, ErrNotFound)
	}
	if a, err := c.Get(t.Context(), "k.example"); err != nil || a.Username != "kk" {
		t.Errorf("another's entry = %v, %v, want it kept", a, err)
	}
}
