package builder

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/861fb494/build/executor/source"
	"github.com/861fb494/build/internal/lockfile"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

func TestKeyOf(t *testing.T) {
	image, url, git := lockfile.Image, lockfile.URL, lockfile.Git
	for _, tt := range []struct {
		source llb.Source
		want   lockfile.Key
	}{
		{llb.Source{Scheme: llb.Registry, Ref: "docker.io/library/x:1"}, lockfile.Key{Kind: image, Name: "docker.io/library/x:1"}},
		{llb.Source{Scheme: llb.HTTP, Ref: "https://h/a b?x=%2f#f"}, lockfile.Key{Kind: url, Name: "https://h/a b?x=%2f#f"}},
		{llb.Source{Scheme: llb.HTTP, Ref: "https://user:secret@h/a?b"}, lockfile.Key{Kind: url, Name: "https://h/a?b"}},
		{llb.Source{Scheme: llb.HTTP, Ref: "https://token@h/"}, lockfile.Key{Kind: url, Name: "https://h/"}},
		{llb.Source{Scheme: llb.Git, Ref: "https://token@h/x.git"}, lockfile.Key{Kind: git, Name: "https://h/x.git", Ref: "HEAD"}},
		{llb.Source{Scheme: llb.Git, Ref: "ssh://git:secret@h/x.git", Git: llb.GitOptions{Ref: "v1", Subdir: "d"}}, lockfile.Key{Kind: git, Name: "ssh://git@h/x.git", Ref: "v1"}},
		{llb.Source{Scheme: llb.Git, Ref: "git@h:x.git", Git: llb.GitOptions{Ref: "HEAD"}}, lockfile.Key{Kind: git, Name: "git@h:x.git", Ref: "HEAD"}},
		{llb.Source{Scheme: llb.Local, Ref: "context"}, lockfile.Key{}},
		{llb.Source{Scheme: llb.Scratch}, lockfile.Key{}},
	} {
		if got := keyOf(tt.source); got != tt.want {
			t.Errorf("keyOf(%+v) = %+v, want %+v", tt.source, got, tt.want)
		}
	}
}

// lockOf is a lock file with one entry.
func lockOf(e lockfile.Entry) lockedTo {
	return lockedTo{name: "Dockerfile.lock", file: lockfile.File{e.Key: e}}
}

func TestLockedGit(t *testing.T) {
	commit, tag := strings.Repeat("a", 40), strings.Repeat("b", 40)
	key := lockfile.Key{Kind: lockfile.Git, Name: "https://h/x.git", Ref: "v1"}
	git := lockedGit{source.NewGit(t.TempDir(), source.GitOptions{Offline: true}), lockOf(lockfile.Entry{Key: key, Commit: commit, Tag: tag})}
	for _, tt := range []struct {
		name string
		o    llb.GitOptions
		want string // commit
		err  string
	}{
		{"tag", llb.GitOptions{Ref: "v1"}, commit, ""},
		{"checksum", llb.GitOptions{Ref: "v1", Checksum: commit[:8]}, commit, ""},
		{"checksum of the tag's object", llb.GitOptions{Ref: "v1", Checksum: tag}, commit, ""},
		{"other checksum", llb.GitOptions{Ref: "v1", Checksum: "c"}, "", "v1 is at " + commit + ", expected checksum c"},
		{"not in it", llb.GitOptions{Ref: "v2"}, "", "https://h/x.git#v2 is not in Dockerfile.lock: run 'build lock'"},
		{"the default branch", llb.GitOptions{}, "", "https://h/x.git is not in Dockerfile.lock"},
		{"a commit need not be", llb.GitOptions{Ref: strings.ToUpper(commit)}, commit, ""},
	} {
		s, err := git.Pin(t.Context(), llb.Source{Scheme: llb.Git, Ref: "https://h/x.git", Git: tt.o})
		if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) || tt.err == "" && (err != nil || s.Digest != oci.Digest("sha1:"+tt.want)) {
			t.Errorf("%s: Pin = %v, %v, want %s %s", tt.name, s.Digest, err, tt.want, tt.err)
		}
	}
}

func TestLockedHTTP(t *testing.T) {
	want := oci.Digest("sha256:" + strings.Repeat("a", 64))
	key := lockfile.Key{Kind: lockfile.URL, Name: "https://h/x"}
	inner := source.NewHTTP(t.TempDir(), nil)
	inner.Offline = true
	web := lockedHTTP{inner, lockOf(lockfile.Entry{Key: key, Digest: want})}
	s, err := web.Pin(t.Context(), llb.Source{Scheme: llb.HTTP, Ref: "https://token@h/x", Filename: "x"})
	if err != nil || s.Digest != want || s.Checksum != "" || s.Filename != "x" {
		t.Errorf("Pin = %+v, %v, want the digest that is locked and nothing else", s, err)
	}
	if _, err := web.Pin(t.Context(), llb.Source{Scheme: llb.HTTP, Ref: "https://h/y"}); err == nil || !strings.Contains(err.Error(), "https://h/y is not in Dockerfile.lock") {
		t.Errorf("Pin of another URL = %v", err)
	}
	if s, err := web.Pin(t.Context(), llb.Source{Scheme: llb.HTTP, Ref: "https://h/y", Checksum: want}); err != nil || s.Digest != want {
		t.Errorf("Pin with a checksum of the Dockerfile's = %v, %v, want it", s.Digest, err)
	}
}

func TestLockedPlatform(t *testing.T) {
	a, b := oci.Digest("sha256:"+strings.Repeat("a", 64)), oci.Digest("sha256:"+strings.Repeat("b", 64))
	e := lockfile.Entry{Key: lockfile.Key{Kind: lockfile.Image, Name: "docker.io/library/x:1"}, Digest: a, Platforms: map[string]oci.Digest{"linux/amd64": b}}
	l := lockOf(e)
	for _, tt := range []struct {
		platform string
		manifest oci.Digest
		err      string
	}{
		{"linux/amd64", b, ""},
		{"linux/arm64", a, ""},
		{"linux/amd64", a, "Dockerfile.lock says that x:1 for linux/amd64 is " + string(b) + ", which is not so"},
	} {
		err := l.chosen(e, tt.platform, tt.manifest)
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("chosen(%s, %s) = %v, want %q", tt.platform, tt.manifest, err, tt.err)
		}
	}
}

func TestLocker(t *testing.T) {
	kept, renewed, added := lockfile.Key{Kind: lockfile.URL, Name: "https://kept"}, lockfile.Key{Kind: lockfile.URL, Name: "https://renewed"}, lockfile.Key{Kind: lockfile.URL, Name: "https://added"}
	a, b := oci.Digest("sha256:"+strings.Repeat("a", 64)), oci.Digest("sha256:"+strings.Repeat("b", 64))
	l := &locker{
		old:   lockfile.File{kept: {Key: kept, Digest: a}, renewed: {Key: renewed, Digest: a}},
		o:     LockOptions{Update: true, Names: []string{"https://renewed"}},
		found: map[lockfile.Key]*locking{},
	}
	asked := 0
	broken := errors.New("broken")
	for _, tt := range []struct {
		key   lockfile.Key
		fails error
		want  oci.Digest
		asked int
	}{
		{kept, nil, a, 0},
		{renewed, broken, "", 1},
		{renewed, nil, b, 2},
		{renewed, nil, b, 2}, // once
		{added, nil, b, 3},
		{kept, nil, a, 3},
	} {
		e, err := l.entry(tt.key, func() (lockfile.Entry, error) {
			asked++
			return lockfile.Entry{Digest: b}, tt.fails
		})
		if !errors.Is(err, tt.fails) || err == nil && (e.Digest != tt.want || e.Key != tt.key) || asked != tt.asked {
			t.Errorf("entry(%s) = %+v, %v after %d questions, want %s after %d", tt.key, e, err, asked, tt.want, tt.asked)
		}
	}
}

func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	beside := filepath.Join(dir, "Dockerfile")
	if err := os.WriteFile(beside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "real", "lock"), []byte("old"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real/lock", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	uid := os.Getuid()
	if uid == 0 {
		uid = 1234
		for _, name := range []string{beside, filepath.Join(dir, "real", "lock")} {
			if err := os.Chown(name, uid, uid); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name string
		mode os.FileMode
	}{{"new", 0o644}, {"new", 0o644}, {"link", 0o640}} {
		path := filepath.Join(dir, tt.name)
		if err := replaceFile(path, beside, []byte("text")); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		st, serr := os.Stat(path)
		if err != nil || serr != nil || string(data) != "text" || st.Mode() != tt.mode || int(st.Sys().(*syscall.Stat_t).Uid) != uid {
			t.Errorf("%s: %q, mode %v, owner %v, want text, %v, %d", tt.name, data, st.Mode(), st.Sys().(*syscall.Stat_t).Uid, tt.mode, uid)
		}
	}
	if to, err := os.Readlink(filepath.Join(dir, "link")); to != "real/lock" {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	if err := replaceFile(filepath.Join(dir, "none", "lock"), beside, nil); err == nil {
		t.Error("replaceFile in a directory that is not there succeeds")
	}
	list, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(list) > 0 {
		t.Errorf("left behind: %q, %v", list, err)
	}
}

// TestLockOfOtherFiles has what lies where a lock file would.
func TestLockOfOtherFiles(t *testing.T) {
	b := openAt(t, t.TempDir())
	dir := contextDir(t, "FROM scratch\nCOPY Dockerfile /\n")
	lock := filepath.Join(dir, "Dockerfile.lock")
	r := Request{Context: dir}
	locked := Request{Context: dir, Locked: true}
	if err := syscall.Mkfifo(lock, 0o644); err != nil {
		t.Fatal(err)
	}
	build(t, b, r) // does not wait for a writer
	for _, f := range []func() error{
		func() error { _, err := b.Build(t.Context(), locked); return err },
		func() error { _, err := b.Lock(t.Context(), r, LockOptions{}); return err },
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), "it is no regular file") {
			t.Errorf("with a pipe for a lock file: %v", err)
		}
	}
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	res, err := b.Lock(t.Context(), r, LockOptions{DryRun: true})
	if err != nil || !res.Made || !res.Written || len(res.Changes) > 0 {
		t.Errorf("Lock = %+v, %v, want it to make a file", res, err)
	}
	if _, err := os.Stat(lock); err == nil {
		t.Error("Lock with DryRun writes the file")
	}
	if res, err = b.Lock(t.Context(), r, LockOptions{}); err != nil || !res.Made {
		t.Errorf("Lock = %+v, %v", res, err)
	}
	build(t, b, locked)
	before, err := os.Stat(lock)
	if err != nil {
		t.Fatal(err)
	}
	if res, err = b.Lock(t.Context(), r, LockOptions{Update: true}); err != nil || res.Made || res.Written {
		t.Errorf("Lock again = %+v, %v, want nothing to be written", res, err)
	}
	if after, err := os.Stat(lock); err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was written again (%v)", err)
	}
	list, err := os.ReadDir(dir)
	if err != nil || !slices.ContainsFunc(list, func(e os.DirEntry) bool { return e.Name() == "Dockerfile.lock" }) || len(list) != 2 {
		t.Errorf("in the directory: %v, %v, want the Dockerfile and its lock file", list, err)
	}
}
