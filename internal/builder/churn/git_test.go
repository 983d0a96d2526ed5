package churn

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// repo is a git repository with files: "name", or "name=content".
type repo struct {
	t   *testing.T
	dir string
}

func newRepo(t *testing.T, files ...string) *repo {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git: ", err)
	}
	r := &repo{t: t, dir: t.TempDir()}
	r.git("init", "-q")
	r.write(files...)
	return r
}

func (r *repo) write(files ...string) {
	r.t.Helper()
	for _, f := range files {
		name, text, _ := strings.Cut(f, "=")
		p := filepath.Join(r.dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			r.t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *repo) git(args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "HOME="+r.dir,
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
	out, err := cmd.Output()
	if err != nil && len(args) > 0 && args[0] != "check-ignore" {
		r.t.Fatalf("git %q: %v\n%s", args, err, out)
	}
	return string(out)
}

func (r *repo) open(sub string) (*worktree, error) {
	t, err := openWorktree(filepath.Join(r.dir, sub))
	if t != nil {
		r.t.Cleanup(func() { t.root.Close() })
	}
	return t, err
}

// What is ignored is what git says.
func TestIgnoredAsGitSays(t *testing.T) {
	tests := []struct{ name, ignore, deeper string }{
		{"names", "*.log\ntemp\n", ""},
		{"directories only", "dist/\n", ""},
		{"from the root", "/dist\n/web/a.log\n", ""},
		{"with a slash", "web/dist\nweb/*.log\n", ""},
		{"stars", "**/dist\nweb/**\n", ""},
		{"between", "web/**/a.log\n", ""},
		{"negated", "*.log\n!a.log\n", ""},
		{"negated below what is ignored", "dist/\n!dist/a.log\n", ""},
		{"a deeper file negates", "*.log\n", "!a.log\n"},
		{"a deeper file adds", "", "dist\n/a.log\n"},
		{"classes", "[!a-c].log\n?.txt\n", ""},
		{"odd lines", "# c\n\n  \ntrail \n\\#x\n\\!x\nesc\\ \n*.log\r\n", ""},
		{"everything", "*\n!web/\n!*.txt\n", ""},
	}
	files := []string{
		"a.log", "b.txt", "#x", "!x", "trail", "esc ", "temp/a", "dist/a.log", "dist/s/b", "web/a.log", "web/d.log", "web/b.txt",
		"web/dist/a.log", "web/dist/b.txt", "web/deep/dist/x", "web/deep/a.log", "web/temp",
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRepo(t, append(slices.Clone(files), ".gitignore="+tt.ignore, "web/.gitignore="+tt.deeper)...)
			for _, sub := range []string{"", "web"} {
				tree, err := r.open(sub)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range files {
					p, in := strings.CutPrefix(f, tree.prefix)
					if !in {
						continue
					}
					want := r.git("check-ignore", f) != ""
					rule, at, got := tree.ignores("/"+p, false)
					if sub != "" && want && !got && r.git("check-ignore", sub) != "" {
						continue // so is the context, which says nothing
					}
					if got != want {
						t.Errorf("ignores(%q) in %q = %v, git says %v (%+v)", p, sub, got, want, rule)
					}
					if got && at != "/"+p && !strings.HasPrefix("/"+p, at+"/") {
						t.Errorf("ignores(%q) is for %q", p, at)
					}
				}
			}
		})
	}
}

func TestIndex(t *testing.T) {
	files := []string{"a", "a.b", "a/b", "dir/deep/er/file", "dir/deep/er/file2", "z"}
	files = slices.DeleteFunc(files, func(f string) bool { return f == "a" }) // a directory
	tests := []struct {
		name  string
		setup func(*repo)
		err   bool
	}{
		{"version 2", func(r *repo) { r.git("update-index", "--index-version", "2") }, false},
		{"version 3", func(r *repo) { r.write("new"); r.git("add", "-N", "new") }, false},
		{"version 4", func(r *repo) { r.git("update-index", "--index-version", "4") }, false},
		{"with a cache of trees", func(r *repo) { r.git("commit", "-qm", "x") }, false},
		{"no checksum", func(r *repo) { r.git("config", "index.skipHash", "true"); r.write("new"); r.git("add", "new") }, false},
		{"split", func(r *repo) { r.git("update-index", "--split-index"); r.write("new"); r.git("add", "new") }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRepo(t, files...)
			r.git("add", ".")
			tt.setup(r)
			tree, err := r.open("")
			if (err != nil) != tt.err {
				t.Fatalf("open: %v, want an error: %v", err, tt.err)
			}
			if err != nil {
				return
			}
			if want := strings.Fields(r.git("ls-files")); !slices.Equal(tree.index, want) {
				t.Errorf("index %q, want %q", tree.index, want)
			}
			for name, want := range map[string]bool{"a/b": true, "a": true, "dir/deep": true, "dir/dee": false, "zz": false} {
				if got := tree.tracked(name); got != want {
					t.Errorf("tracked(%q) = %v, want %v", name, got, want)
				}
			}
		})
	}
}

func TestForeignIndex(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git: ", err)
	}
	r := &repo{t: t, dir: t.TempDir()}
	r.git("init", "-q", "--object-format=sha256")
	r.write("a", "b")
	r.git("add", ".")
	if tree, err := r.open(""); err == nil {
		t.Errorf("an index with SHA-256 reads as %q", tree.index)
	}
}

// A work tree beside its repository, and contexts that are none.
func TestOpenWorktree(t *testing.T) {
	r := newRepo(t, "a", ".gitignore=*.log\n")
	r.git("add", ".")
	r.git("commit", "-qm", "x")
	r.git("worktree", "add", "-q", "beside")
	r.write(".git/info/exclude=excluded\n")
	tree, err := r.open("beside")
	if err != nil || !tree.tracked("a") {
		t.Fatalf("a further work tree: %+v, %v", tree, err)
	}
	for _, f := range []string{"/x.log", "/excluded"} {
		if _, _, ok := tree.ignores(f, false); !ok {
			t.Errorf("a further work tree does not ignore %s", f)
		}
	}
	if tree, err := openWorktree(t.TempDir()); tree != nil || err != nil {
		t.Errorf("no work tree: %v, %v", tree, err)
	}
	for name, setup := range map[string]func(git string) error{
		"names nothing": func(git string) error { return os.WriteFile(git, []byte("x"), 0o644) },
		"damaged":       func(git string) error { return os.MkdirAll(git+"/index", 0o755) },
		"truncated index": func(git string) error {
			_ = os.Mkdir(git, 0o755)
			return os.WriteFile(git+"/index", []byte("DIRC\x00\x00\x00\x02\x00\x00\x00\x09"), 0o644)
		},
	} {
		dir := t.TempDir()
		if err := setup(filepath.Join(dir, ".git")); err != nil {
			t.Fatal(err)
		}
		if tree, err := openWorktree(dir); err == nil {
			t.Errorf("%s: %+v, want an error", name, tree)
		}
	}
}

func TestAdviseInAWorktree(t *testing.T) {
	r := newRepo(t, ".gitignore=/dist/\n*.gen\nweb/out\n", "tracked.log", "src/a.go", "web/.gitignore=cache\n")
	r.git("add", ".")
	tests := []struct {
		name, dir string
		files     []string
		b         Build
		want      string
	}{
		{"ignored directory", "", []string{"/dist/a", "/dist/b", "/dist/a"}, Build{}, "3/3: dist: dist"},
		{"ignored names", "", []string{"/a.gen", "/x/b.gen", "/a.gen"}, Build{}, "3/3: *.gen: **/*.gen"},
		{"ignored below", "", []string{"/web/cache/1", "/web/cache/2", "/web/cache/"}, Build{}, "3/3: web/cache: web/**/cache"},
		{"seen from below", "web", []string{"/out/1", "/out/2", "/out/1"}, Build{}, "3/3: out: out"},
		{"neither tracked nor ignored", "", []string{"/new.go", "/new.go", "/new.go"}, Build{}, "3/3: new.go: "},
		{"tracked", "", []string{"/src/a.go", "/src/a.go", "/src/a.go"}, Build{}, "3/3: src/a.go: "},
		{"tracked, of a name for junk", "", []string{"/tracked.log", "/tracked.log", "/tracked.log"}, Build{}, "3/3: tracked.log: "},
		{"beside a tracked one", "", []string{"/a.log", "/b.log", "/a.log"}, Build{}, "3/3: *.log: a.log b.log"},
		{"three beside a tracked one", "", []string{"/a.log /c.log", "/b.log", "/a.log"}, Build{}, "3/3: *.log: "},
		{"copied by name", "", []string{"/dist/a", "/dist/a", "/dist/a"}, Build{Sources: []string{"/", "/dist"}}, "3/3: dist: "},
		{"taken from a stage", "", []string{"/dist/a", "/dist/a", "/dist/a"}, Build{Words: Words("COPY --from=build /app/dist /html")}, "3/3: dist: "},
		{"git's own", "", []string{"/.git/index", "/.git/index", "/.git/index"}, Build{}, "3/3: .git: .git"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.b.Dir = filepath.Join(r.dir, tt.dir)
			defer tt.b.Close()
			if got := say(tt.b.Advise(missed(tt.files...), now)); got != tt.want {
				t.Errorf("Advise = %q, want %q", got, tt.want)
			}
		})
	}
}

func FuzzIndex(f *testing.F) {
	entry := strings.Repeat("\x00", fixed) + "name\x00\x00"
	for _, version := range []string{"\x02", "\x03", "\x04"} {
		f.Add([]byte("DIRC\x00\x00\x00" + version + "\x00\x00\x00\x01" + entry + strings.Repeat("\x00", 28)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		names, err := parseIndex(append(data, make([]byte, 20)...)) // without a checksum
		if err == nil && !slices.IsSorted(names) {
			t.Errorf("parseIndex(%q) = %q, want it sorted", data, names)
		}
	})
}
