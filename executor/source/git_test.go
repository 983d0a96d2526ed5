package source

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// repo is a git repository that a test commits to.
type repo struct {
	t   *testing.T
	dir string
}

func newRepo(t *testing.T, format string) *repo {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("git is not installed")
		}
		t.Skip("needs git (apt-get install git)")
	}
	r := &repo{t, filepath.Join(t.TempDir(), "repo")}
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.git("init", "--quiet", "--initial-branch=main", "--object-format="+format)
	return r
}

func (r *repo) git(args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = r.dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b",
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=protocol.file.allow", "GIT_CONFIG_VALUE_0=always",
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit writes files ("path", "content", …) and commits all.
func (r *repo) commit(files ...string) string {
	r.t.Helper()
	for i := 0; i < len(files); i += 2 {
		p := filepath.Join(r.dir, files[i])
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			r.t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(files[i+1]), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
	r.git("add", "-A")
	r.git("commit", "--quiet", "--allow-empty", "-m", "x")
	return r.git("rev-parse", "HEAD")
}

func (r *repo) url() string { return "file://" + r.dir }

// listing is the files of dir as "path=content" and "path->target".
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if err == nil && d.Name() == ".git" && p != dir {
				out = append(out, ".git/")
				return fs.SkipDir
			}
			return err
		}
		name, _ := filepath.Rel(dir, p)
		if d.Type()&fs.ModeSymlink != 0 {
			target, _ := os.Readlink(p)
			out = append(out, name+"->"+target)
			return nil
		}
		data, err := os.ReadFile(p)
		out = append(out, name+"="+string(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

func openGit(t *testing.T, g *Git, s llb.Source) ([]string, llb.Source, error) {
	t.Helper()
	s, err := g.Pin(t.Context(), s)
	if err != nil {
		return nil, s, err
	}
	c, err := g.Open(t.Context(), s)
	if err != nil {
		return nil, s, err
	}
	defer os.RemoveAll(c.Dir)
	return listing(t, c.Dir), s, nil
}

func TestGitRefs(t *testing.T) {
	r := newRepo(t, "sha1")
	first := r.commit("f", "first", "old", "x")
	r.git("tag", "light")
	os.Remove(filepath.Join(r.dir, "old"))
	second := r.commit("f", "second")
	r.git("tag", "-a", "-m", "x", "v1")
	tagObject := r.git("rev-parse", "v1")
	r.git("checkout", "--quiet", "-b", "dev")
	dev := r.commit("f", "dev")
	r.git("tag", "both", first)
	r.git("branch", "both", dev)
	r.git("checkout", "--quiet", "main")
	lost := r.commit("f", "lost")
	r.git("reset", "--quiet", "--hard", second)

	tests := []struct {
		name string
		o    llb.GitOptions
		want string // commit
		text string // of file f
		err  string
	}{
		{"default branch", llb.GitOptions{}, second, "second", ""},
		{"branch", llb.GitOptions{Ref: "dev"}, dev, "dev", ""},
		{"full branch", llb.GitOptions{Ref: "refs/heads/dev"}, dev, "dev", ""},
		{"part of a name", llb.GitOptions{Ref: "heads/dev"}, dev, "dev", ""},
		{"tag", llb.GitOptions{Ref: "light"}, first, "first", ""},
		{"annotated tag", llb.GitOptions{Ref: "v1"}, second, "second", ""},
		{"full tag", llb.GitOptions{Ref: "refs/tags/v1"}, second, "second", ""},
		{"branch before tag", llb.GitOptions{Ref: "both"}, dev, "dev", ""},
		{"commit", llb.GitOptions{Ref: first}, first, "first", ""},
		{"upper case", llb.GitOptions{Ref: strings.ToUpper(first)}, first, "first", ""},
		{"checksum", llb.GitOptions{Ref: "dev", Checksum: dev[:8]}, dev, "dev", ""},
		{"checksum of the tag's object", llb.GitOptions{Ref: "v1", Checksum: tagObject}, second, "second", ""},
		{"other checksum", llb.GitOptions{Ref: "dev", Checksum: first}, "", "", "dev is at " + dev + ", expected checksum " + first},
		{"other checksum of a commit", llb.GitOptions{Ref: second, Checksum: first}, "", "", "expected checksum " + first},
		{"no checksum", llb.GitOptions{Checksum: "main"}, "", "", `checksum "main" is not a commit's`},
		{"no such ref", llb.GitOptions{Ref: "nosuch"}, "", "", `the repository has no branch or tag "nosuch"`},
		{"end of a name", llb.GitOptions{Ref: "ev"}, "", "", `no branch or tag "ev"`},
		{"an option", llb.GitOptions{Ref: "--upload-pack=touch x"}, "", "", "cannot be a ref"},
		{"no such commit", llb.GitOptions{Ref: strings.Repeat("a", 40)}, "", "", "repository has no such commit"},
		{"a commit that no ref is at", llb.GitOptions{Ref: lost}, lost, "lost", ""},
	}
	dir := filepath.Join(t.TempDir(), "git")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// In turn, one repository on disk for all.
			files, s, err := openGit(t, NewGit(dir, GitOptions{}), llb.Source{Ref: r.url(), Git: tt.o})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error = %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil || s.Digest != oci.Digest("sha1:"+tt.want) || !slices.Contains(files, "f="+tt.text) {
				t.Errorf("Open of %s = %q, %v, want commit %s with %q", s.Digest, files, err, tt.want, tt.text)
			}
			if tt.text != "first" && slices.Contains(files, "old=x") {
				t.Error("a file of another commit is in the tree")
			}
		})
	}
	if list, _ := filepath.Glob(filepath.Join(dir, "out-*")); len(list) > 0 {
		t.Errorf("left behind: %q", list)
	}
}

func TestGitTree(t *testing.T) {
	r := newRepo(t, "sha1")
	for link, target := range map[string]string{"link": "/etc", "up": "..", "in": "sub"} {
		if err := os.Symlink(target, filepath.Join(r.dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	r.commit("f", "1", "sub/a/b", "2")
	os.Chmod(filepath.Join(r.dir, "f"), 0o755)
	r.commit()
	tests := []struct {
		name string
		o    llb.GitOptions
		want []string
		err  string
	}{
		{"all", llb.GitOptions{}, []string{"f=1", "in->sub", "link->/etc", "sub/a/b=2", "up->.."}, ""},
		{"directory", llb.GitOptions{Subdir: "/sub/../sub/a/"}, []string{"b=2"}, ""},
		{"directory has no .git", llb.GitOptions{Subdir: "sub", KeepDir: true}, []string{"a/b=2"}, ""},
		{"above", llb.GitOptions{Subdir: "../../sub"}, []string{"a/b=2"}, ""},
		{".git", llb.GitOptions{KeepDir: true}, []string{".git/", "f=1", "in->sub", "link->/etc", "sub/a/b=2", "up->.."}, ""},
		{"none", llb.GitOptions{Subdir: "sub/c"}, nil, `the repository has no directory "sub/c"`},
		{"a file", llb.GitOptions{Subdir: "f"}, nil, `"f" of the repository is not a directory`},
		{"a link out", llb.GitOptions{Subdir: "link"}, nil, `"link" of the repository is not a directory`},
		{"a link in", llb.GitOptions{Subdir: "in/a"}, nil, `"in" of the repository is not a directory`},
	}
	old := syscall.Umask(0o077) // does not matter
	defer syscall.Umask(old)
	dir := t.TempDir()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := NewGit(dir, GitOptions{})
			got, _, err := openGit(t, g, llb.Source{Ref: r.url(), Git: tt.o})
			if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) || tt.err == "" && err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("Open = %q, %v, want %q, %q", got, err, tt.want, tt.err)
			}
		})
	}
	s, err := NewGit(dir, GitOptions{}).Pin(t.Context(), llb.Source{Ref: r.url()})
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewGit(dir, GitOptions{}).Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(c.Dir)
	for name, want := range map[string]fs.FileMode{".": 0o755, "f": 0o755, "sub": 0o755, "sub/a/b": 0o644} {
		if st, err := os.Stat(filepath.Join(c.Dir, name)); err != nil || st.Mode().Perm() != want {
			t.Errorf("mode of %s = %v, %v, want %v", name, st.Mode(), err, want)
		}
	}
	if list, _ := filepath.Glob(filepath.Join(dir, "out-*")); len(list) != 1 {
		t.Errorf("left behind: %q", list)
	}
}

func TestGitKeepDir(t *testing.T) {
	r := newRepo(t, "sha1")
	r.commit("f", "1")
	commit := r.commit("f", "2")
	r.git("tag", "-a", "-m", "x", "v1")
	g := NewGit(t.TempDir(), GitOptions{})
	s, err := g.Pin(t.Context(), llb.Source{Ref: r.url(), Git: llb.GitOptions{Ref: "v1", KeepDir: true}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := g.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(c.Dir)
	clone := &repo{t, c.Dir}
	if got := clone.git("rev-parse", "HEAD"); got != commit {
		t.Errorf("HEAD = %s, want %s", got, commit)
	}
	if got := clone.git("describe"); got != "v1" {
		t.Errorf("git describe = %q, want v1", got)
	}
	if got := clone.git("remote", "get-url", "origin"); got != r.url() {
		t.Errorf("origin = %q, want %q", got, r.url())
	}
	if got := clone.git("status", "--porcelain"); got != "" {
		t.Errorf("git status = %q, want a clean tree", got)
	}
	if got := clone.git("rev-list", "--count", "HEAD"); got != "1" {
		t.Errorf("%s commits in the clone, want 1", got)
	}
}

func TestGitSHA256(t *testing.T) {
	r := newRepo(t, "sha256")
	commit := r.commit("f", "1")
	for _, keep := range []bool{false, true} {
		files, s, err := openGit(t, NewGit(t.TempDir(), GitOptions{}), llb.Source{Ref: r.url(), Git: llb.GitOptions{KeepDir: keep}})
		if err != nil || s.Digest != oci.Digest("sha256:"+commit) || !slices.Contains(files, "f=1") {
			t.Errorf("Open of a repository of SHA-256 = %v, %q, %v", s.Digest, files, err)
		}
	}
}

func TestGitEmptyTree(t *testing.T) {
	r := newRepo(t, "sha1")
	r.commit()
	if files, _, err := openGit(t, NewGit(t.TempDir(), GitOptions{}), llb.Source{Ref: r.url()}); err != nil || len(files) != 0 {
		t.Errorf("Open of an empty tree = %q, %v", files, err)
	}
}

func TestGitMovedRef(t *testing.T) {
	r := newRepo(t, "sha1")
	r.commit("f", "1")
	g := NewGit(t.TempDir(), GitOptions{})
	src := llb.Source{Ref: r.url(), Git: llb.GitOptions{Ref: "main"}}
	s, err := g.Pin(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	r.commit("f", "2") // after the build has begun
	if again, err := g.Pin(t.Context(), src); err != nil || again.Digest != s.Digest {
		t.Errorf("Pin again in one build = %v, %v, want %v", again.Digest, err, s.Digest)
	}
	if files, _, err := openGit(t, g, s); err != nil || !slices.Equal(files, []string{"f=1"}) {
		t.Errorf("Open = %q, %v, want what was pinned", files, err)
	}
	if files, _, err := openGit(t, NewGit(g.dir, GitOptions{}), src); err != nil || !slices.Equal(files, []string{"f=2"}) {
		t.Errorf("the next build gets %q, %v", files, err)
	}
}

// serveGit serves the parent of r's directory by git's smart HTTP.
func serveGit(t *testing.T, r *repo, authorization string) (base string) {
	t.Helper()
	backend := filepath.Join(r.git("--exec-path"), "git-http-backend")
	if _, err := os.Stat(backend); err != nil {
		t.Fatalf("git has no http-backend: %v", err)
	}
	h := &cgi.Handler{Path: backend, Env: []string{
		"GIT_PROJECT_ROOT=" + filepath.Dir(r.dir), "GIT_HTTP_EXPORT_ALL=1", "HOME=/dev/null",
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
	}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if authorization != "" && q.Header.Get("Authorization") != authorization {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, q)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestGitSubmodules(t *testing.T) {
	r := newRepo(t, "sha1")
	inner := &repo{t, filepath.Join(filepath.Dir(r.dir), "inner")}
	if err := os.Mkdir(inner.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	inner.git("init", "--quiet", "--initial-branch=main")
	inner.commit("i", "inner 1")
	r.commit("f", "1")
	r.git("submodule", "--quiet", "add", "../inner", "mod")
	r.commit()
	inner.commit("i", "inner 2") // the commit of the submodule is no longer the tip

	base := serveGit(t, r, "")
	src := llb.Source{Ref: base + "/repo"}
	modules := ".gitmodules=[submodule \"mod\"]\n\tpath = mod\n\turl = ../inner\n"
	dir := t.TempDir()
	for range 2 {
		files, _, err := openGit(t, NewGit(dir, GitOptions{}), src)
		if want := []string{modules, "f=1", "mod/i=inner 1"}; err != nil || !slices.Equal(files, want) {
			t.Errorf("Open = %q, %v, want %q", files, err, want)
		}
	}
	src.Git.SkipSubmodules = true
	files, _, err := openGit(t, NewGit(dir, GitOptions{}), src)
	if want := []string{modules, "f=1"}; err != nil || !slices.Equal(files, want) {
		t.Errorf("Open without submodules = %q, %v, want %q", files, err, want)
	}
	src.Git = llb.GitOptions{KeepDir: true}
	if files, _, err := openGit(t, NewGit(dir, GitOptions{}), src); err != nil || !slices.Contains(files, "mod/i=inner 1") {
		t.Errorf("Open with .git = %q, %v", files, err)
	}

	// A submodule must not take in a directory of the host.
	r.git("config", "-f", ".gitmodules", "submodule.mod.url", "file://"+inner.dir)
	r.commit()
	if files, _, err := openGit(t, NewGit(t.TempDir(), GitOptions{}), llb.Source{Ref: base + "/repo"}); err == nil || !strings.Contains(err.Error(), "'file' not allowed") {
		t.Errorf("Open with a submodule of the host = %q, %v", files, err)
	}
}

// TestGitOldServer: before protocol 2, servers give only what a ref is at.
func TestGitOldServer(t *testing.T) {
	r := newRepo(t, "sha1")
	first := r.commit("f", "1")
	r.commit("f", "2")
	r.git("branch", "dev")
	r.git("update-server-info")
	backend := serveGit(t, r, "")
	u, err := url.Parse(backend)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(u)
	old := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		q.Header.Del("Git-Protocol")
		proxy.ServeHTTP(w, q)
	}))
	t.Cleanup(old.Close)
	dir := t.TempDir()
	for _, ref := range []string{"dev", first} { // the first fetch is shallow
		files, _, err := openGit(t, NewGit(dir, GitOptions{}), llb.Source{Ref: old.URL + "/repo", Git: llb.GitOptions{Ref: ref}})
		want := "f=2"
		if ref == first {
			want = "f=1"
		}
		if err != nil || !slices.Equal(files, []string{want}) {
			t.Errorf("Open of %s = %q, %v, want %q", ref, files, err, want)
		}
	}
	// Dumb HTTP: files alone.
	files := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(r.dir))))
	t.Cleanup(files.Close)
	got, _, err := openGit(t, NewGit(t.TempDir(), GitOptions{}), llb.Source{Ref: files.URL + "/repo/.git", Git: llb.GitOptions{Ref: "dev"}})
	if err != nil || !slices.Equal(got, []string{"f=2"}) {
		t.Errorf("Open by dumb HTTP = %q, %v", got, err)
	}
}

func TestGitSecrets(t *testing.T) {
	r := newRepo(t, "sha1")
	r.commit("f", "1")
	base := serveGit(t, r, "basic eC1hY2Nlc3MtdG9rZW46czNjcmV0") // x-access-token:s3cret
	host := strings.TrimPrefix(base, "http://")
	tests := []struct {
		name    string
		secrets map[string]string
		want    bool
	}{
		{"none", nil, false},
		{"token", map[string]string{"GIT_AUTH_TOKEN": "s3cret\n"}, true},
		{"token of the host", map[string]string{"GIT_AUTH_TOKEN": "x", "GIT_AUTH_TOKEN." + host: "s3cret"}, true},
		{"header", map[string]string{"GIT_AUTH_HEADER": "basic eC1hY2Nlc3MtdG9rZW46czNjcmV0"}, true},
		{"wrong", map[string]string{"GIT_AUTH_TOKEN": "wrong"}, false},
		{"of another host", map[string]string{"GIT_AUTH_TOKEN.example.com": "s3cret"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := NewGit(t.TempDir(), GitOptions{Secret: func(name string) ([]byte, bool) {
				v, ok := tt.secrets[name]
				return []byte(v), ok
			}})
			_, _, err := openGit(t, g, llb.Source{Ref: base + "/repo"})
			if (err == nil) != tt.want {
				t.Errorf("Open = %v, want success %v", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error tells the secret: %v", err)
			}
		})
	}
	_, err := NewGit(t.TempDir(), GitOptions{}).Pin(t.Context(), llb.Source{Ref: strings.Replace(base, "http://", "http://u:hidden@", 1) + "/repo"})
	if err == nil || strings.Contains(err.Error(), "hidden") {
		t.Errorf("Pin with a wrong password = %v, want an error without it", err)
	}
}

// TestGitDamaged: what a killed process or a full disk left is made anew.
func TestGitDamaged(t *testing.T) {
	r := newRepo(t, "sha1")
	r.commit("f", "1")
	g := NewGit(t.TempDir(), GitOptions{})
	src := llb.Source{Ref: r.url()}
	if _, _, err := openGit(t, g, src); err != nil {
		t.Fatal(err)
	}
	bare := g.key(src.Ref) + ".git"
	if err := os.WriteFile(filepath.Join(bare, "config"), []byte("[broken"), 0o644); err != nil {
		t.Fatal(err)
	}
	if files, _, err := openGit(t, g, src); err != nil || !slices.Equal(files, []string{"f=1"}) {
		t.Errorf("Open with a broken repository = %q, %v", files, err)
	}
	if err := os.WriteFile(filepath.Join(bare, "shallow.lock"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r.commit("f", "2")
	if files, _, err := openGit(t, NewGit(g.dir, GitOptions{}), src); err != nil || !slices.Equal(files, []string{"f=2"}) {
		t.Errorf("Open with a stale lock = %q, %v", files, err)
	}
	left := filepath.Join(bare, "objects", "ab", "tmp_obj_x")
	if err := errors.Join(os.MkdirAll(filepath.Dir(left), 0o755), os.WriteFile(left, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openGit(t, NewGit(g.dir, GitOptions{}), src); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a killed git has left is still there: %v", err)
	}
}

// An object that is damaged, or that a fetch which was stopped did not bring, is
// fetched anew.
func TestGitObjectsDamaged(t *testing.T) {
	r := newRepo(t, "sha1")
	r.commit("d/f", "1")
	src := llb.Source{Ref: r.url()}
	harms := map[string]func(bare, object string) error{
		"gone":    func(_, object string) error { return os.Remove(object) },
		"empty":   func(_, object string) error { return os.Truncate(object, 0) },
		"flipped": func(_, object string) error { return flipLast(object) },
		"zeros": func(_, object string) error {
			b, err := os.ReadFile(object)
			return errors.Join(err, os.Chmod(object, 0o644), os.WriteFile(object, make([]byte, len(b)), 0o644))
		},
		"not fetched": func(bare, object string) error {
			return errors.Join(os.RemoveAll(filepath.Join(bare, "refs", "build")), os.Remove(object))
		},
	}
	for name, harm := range harms {
		for n := 0; ; n++ {
			g := NewGit(t.TempDir(), GitOptions{})
			if _, _, err := openGit(t, g, src); err != nil {
				t.Fatal(err)
			}
			bare := g.key(src.Ref) + ".git"
			objects, err := filepath.Glob(filepath.Join(bare, "objects", "??", "*"))
			if err != nil || len(objects) == 0 {
				t.Fatalf("objects: %q, %v", objects, err)
			}
			if n == len(objects) {
				break
			}
			if err := harm(bare, objects[n]); err != nil {
				t.Fatal(err)
			}
			if files, _, err := openGit(t, NewGit(g.dir, GitOptions{}), src); err != nil || !slices.Equal(files, []string{"d/f=1"}) {
				t.Errorf("Open with object %d %s = %q, %v", n, name, files, err)
			}
		}
	}
}

// flipLast harms the last byte of a file that may be read-only.
func flipLast(path string) error {
	b, err := os.ReadFile(path)
	if err == nil {
		b[len(b)-1] ^= 1
		err = errors.Join(os.Chmod(path, 0o644), os.WriteFile(path, b, 0o644))
	}
	return err
}

func TestGitConcurrently(t *testing.T) {
	r := newRepo(t, "sha1")
	commits := []string{r.commit("f", "0"), r.commit("f", "1"), r.commit("f", "2")}
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i, c := range commits {
		wg.Go(func() {
			files, _, err := openGit(t, NewGit(dir, GitOptions{}), llb.Source{Ref: r.url(), Git: llb.GitOptions{Ref: c}})
			if want := "f=" + string(rune('0'+i)); err != nil || !slices.Equal(files, []string{want}) {
				t.Errorf("Open of commit %d = %q, %v, want %q", i, files, err, want)
			}
		})
	}
	wg.Wait()
}

func TestGitCancel(t *testing.T) {
	r := newRepo(t, "sha1")
	r.commit("f", "1")
	g := NewGit(t.TempDir(), GitOptions{})
	s, err := g.Pin(t.Context(), llb.Source{Ref: r.url()})
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := g.lock(t.Context(), s.Ref)
	if err != nil {
		t.Fatal(err)
	}
	stopped := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stopped)
	if _, err := g.Open(ctx, s); !errors.Is(err, stopped) {
		t.Errorf("Open while another holds the lock = %v, want %v", err, stopped)
	}
	unlock()
	if _, _, err := openGit(t, g, s); err != nil {
		t.Errorf("Open afterwards = %v", err)
	}
}
