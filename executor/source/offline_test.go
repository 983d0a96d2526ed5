package source

import (
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// wantOffline fails unless err says that something is not here.
func wantOffline(t *testing.T, what string, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), "(offline)") {
		t.Errorf("%s = %v, want %q … (offline)", what, err, text)
	}
}

func TestGitOffline(t *testing.T) {
	r := newRepo(t, "sha1")
	first := r.commit("f", "1")
	r.git("tag", "-a", "-m", "x", "v1")
	base := serveGit(t, r, "")
	remote := base + "/" + filepath.Base(r.dir)
	dir := filepath.Join(t.TempDir(), "git")
	offline := NewGit(dir, GitOptions{Offline: true})
	branch := llb.Source{Ref: remote, Git: llb.GitOptions{Ref: "main"}}
	_, err := offline.Pin(t.Context(), branch)
	wantOffline(t, "Pin of an unknown branch", err, "what main is at")
	_, _, err = openGit(t, offline, llb.Source{Ref: remote, Git: llb.GitOptions{Ref: first}})
	wantOffline(t, "Open of an unknown commit", err, "commit "+first+" is not here")

	tag := llb.Source{Ref: remote, Git: llb.GitOptions{Ref: "v1", KeepDir: true, Checksum: r.git("rev-parse", "v1")}}
	for _, s := range []llb.Source{branch, tag} {
		if _, _, err := openGit(t, NewGit(dir, GitOptions{}), s); err != nil {
			t.Fatal(err)
		}
	}
	r.commit("f", "2")
	for _, s := range []llb.Source{branch, tag} {
		files, s, err := openGit(t, NewGit(dir, GitOptions{Offline: true}), s)
		if err != nil || s.Digest != oci.Digest("sha1:"+first) || !slices.Contains(files, "f=1") {
			t.Errorf("Open of %s = %q, %v, want what it was when the remote was asked", s.Git.Ref, files, err)
		}
	}
	again := NewGit(dir, GitOptions{Offline: true})
	s, err := again.Pin(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	c, err := again.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(c.Dir)
	if got := (&repo{t, c.Dir}).git("describe"); got != "v1" {
		t.Errorf("git describe = %q, want v1", got)
	}
	if list, _ := filepath.Glob(filepath.Join(dir, "tmp-*")); len(list) > 0 {
		t.Errorf("left behind: %q", list)
	}
	if err := os.WriteFile(offline.refPath(remote, "main"), []byte(`{"ref":"main","commit":"x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = NewGit(dir, GitOptions{Offline: true}).Pin(t.Context(), branch)
	wantOffline(t, "Pin by a damaged record", err, "what main is at")
}

func TestGitSubmodulesOffline(t *testing.T) {
	sub := newRepo(t, "sha1")
	sub.commit("in", "1")
	base := serveGit(t, sub, "")
	r := newRepo(t, "sha1")
	r.git("submodule", "--quiet", "add", base+"/"+filepath.Base(sub.dir), "sub")
	r.commit()
	dir := t.TempDir()
	src := llb.Source{Ref: r.url()}
	if files, _, err := openGit(t, NewGit(dir, GitOptions{}), src); err != nil || !slices.Contains(files, "sub/in=1") {
		t.Fatalf("Open = %q, %v, want its submodule", files, err)
	}
	_, _, err := openGit(t, NewGit(dir, GitOptions{Offline: true}), src)
	wantOffline(t, "Open with submodules", err, "its submodules are not kept here")
	src.Git.SkipSubmodules = true
	if files, _, err := openGit(t, NewGit(dir, GitOptions{Offline: true}), src); err != nil {
		t.Errorf("Open without submodules = %q, %v", files, err)
	}
}

func TestHTTPOffline(t *testing.T) {
	p := &page{body: "one"}
	s := httptest.NewServer(p)
	defer s.Close()
	dir := filepath.Join(t.TempDir(), "http")
	src := llb.Source{Scheme: llb.HTTP, Ref: s.URL + "/file"}
	offline := func() *HTTP {
		h := NewHTTP(dir, nil)
		h.Offline = true
		return h
	}
	_, err := offline().Pin(t.Context(), src)
	wantOffline(t, "Pin of an unknown URL", err, s.URL+"/file: it is not here")
	_, err = offline().Open(t.Context(), llb.Source{Ref: src.Ref, Digest: digest.FromString("one"), Filename: "file"})
	wantOffline(t, "Open of an unknown file", err, "it is not here")

	if _, err := NewHTTP(dir, nil).Pin(t.Context(), src); err != nil {
		t.Fatal(err)
	}
	p.body = "two"
	h := offline()
	got, err := h.Pin(t.Context(), src)
	if err != nil || got.Digest != digest.FromString("one") || got.Filename != "file" {
		t.Errorf("Pin = %v, %v, want what the URL was last", got, err)
	}
	c, err := h.Open(t.Context(), got)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(c.Dir)
	if n := p.sent.Load(); n != 1 {
		t.Errorf("the server has sent the file %d times, want 1", n)
	}
	if err := os.Remove(h.dataPath(src.Ref, got.Digest)); err != nil {
		t.Fatal(err)
	}
	_, err = offline().Pin(t.Context(), src)
	wantOffline(t, "Pin after the download is gone", err, "it is not here")
}

func TestHTTPMismatch(t *testing.T) {
	url := newPage(t, &page{body: "one"})
	want := digest.FromString("two")
	_, err := NewHTTP(t.TempDir(), nil).Open(t.Context(), llb.Source{Ref: url, Digest: want})
	var m *MismatchError
	if !errors.As(err, &m) || m.Got != digest.FromString("one") || m.Want != want {
		t.Errorf("Open of another file = %v, want a MismatchError", err)
	}
}

func TestImagesOffline(t *testing.T) {
	srv := newServer(t)
	p := newPusher(t, srv.host+"/app:v1")
	d := p.image(amd64, newLayer(t, "text", "gzip"))
	store := newStore(t)
	src := llb.Source{Ref: p.ref.String(), Digest: d.Digest, Platform: amd64}
	asked := func() int {
		return srv.count("HEAD manifests") + srv.count("GET manifests") + srv.count("HEAD blobs") + srv.count("GET blobs")
	}
	before := asked()
	_, err := newImages(store, ImageOptions{Offline: true}).Image(t.Context(), src)
	wantOffline(t, "Image by digest", err, "not found here")
	if !errors.Is(err, image.ErrNotFound) {
		t.Errorf("Image by digest = %v, want an image.ErrNotFound", err)
	}
	if n := asked() - before; n != 0 {
		t.Errorf("the registry was asked %d times", n)
	}
	if _, err := newImages(store, ImageOptions{}).Image(t.Context(), src); err != nil {
		t.Fatal(err)
	}
	before = asked()
	m := newImages(store, ImageOptions{Offline: true, Pull: true})
	c, err := m.Open(t.Context(), src)
	if err != nil || len(c.Layers) != 1 {
		t.Fatalf("Open = %v, %v, want one layer", c.Layers, err)
	}
	_, err = readAll(t, c.Layers[0].Compressed)
	wantOffline(t, "reading a layer that is not here", err, "layer")
	if n := asked() - before; n != 0 {
		t.Errorf("the registry was asked %d times", n)
	}
}
