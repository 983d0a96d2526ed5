package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// TestMain lets the test binary stand for the command.
func TestMain(m *testing.M) {
	if os.Getenv("DOCKERFUZZ_COMMAND") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// The cases in testdata were findings once; a few generated ones go with them.
func TestCases(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes devices and foreign owners, and runs chroot")
	}
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("files in testdata: %v, %v", files, err)
	}
	binary := filepath.Join(t.TempDir(), "build")
	build := exec.Command("go", "build", "-o", binary, "../../cmd/build")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for name, args := range map[string][]string{
		"kept":      files,
		"generated": {"-seed", "1", "-n", "8"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], append([]string{"-build", binary, "-dir", t.TempDir(), "-peers", "none", "-shrink", "0"}, args...)...)
			cmd.Env = append(os.Environ(), "DOCKERFUZZ_COMMAND=1")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("dockerfuzz: %v\n%s", err, out)
			}
		})
	}
}

func TestGenerateIsReproducible(t *testing.T) {
	for seed := range uint64(50) {
		a, b := Generate(seed), Generate(seed)
		if x, y := string(a.text("")), string(b.text("")); x != y {
			t.Fatalf("Generate(%d) gives\n%s\nand then\n%s", seed, x, y)
		}
		c, err := parseCase(a.text("a comment\n"))
		if err != nil {
			t.Fatal(err)
		}
		x, _ := json.Marshal(a)
		if y, _ := json.Marshal(c); string(x) != string(y) {
			t.Fatalf("seed %d: %s is read back as %s", seed, x, y)
		}
		if !a.sound() {
			t.Errorf("Generate(%d) is not sound", seed)
		}
	}
}

// Each part can be taken off, and then there is one part less.
func TestWithout(t *testing.T) {
	c := Generate(3)
	parts := 0
	for _, ok := c.without(parts); ok; _, ok = c.without(parts) {
		parts++
	}
	if parts < 10 {
		t.Errorf("a case has %d parts, want more", parts)
	}
	before := string(c.text(""))
	for i := range parts {
		if n, _ := c.without(i); n != nil && string(n.text("")) == before {
			t.Errorf("without part %d the case is the same", i)
		}
	}
	if after := string(c.text("")); after != before {
		t.Errorf("taking parts off changed the case itself")
	}
}

// A context that is changed is as one that is written anew.
func TestRewrite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes devices and foreign owners")
	}
	changed := 0
	for seed := range uint64(60) {
		c := Generate(seed)
		e := c.edited()
		a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
		for dir, entries := range map[string][]Entry{a: c.Context, b: e.Context} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := writeContext(dir, entries); err != nil {
				t.Fatal(err)
			}
		}
		if err := rewrite(a, c.Context, e.Context); err != nil {
			t.Fatalf("seed %d: rewrite: %v", seed, err)
		}
		got, err := readTree(a)
		if err != nil {
			t.Fatal(err)
		}
		want, err := readTree(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := differences(got, want, exact); len(d) > 0 {
			t.Errorf("seed %d: rewritten against written: %s", seed, clip(d))
		}
		if string(e.text("")) != string(c.text("")) {
			changed++
		}
	}
	if changed < 40 {
		t.Errorf("of 60 cases %d are changed, want most", changed)
	}
}

func TestIgnored(t *testing.T) {
	for _, tt := range []struct {
		patterns []string
		path     string
		want     bool
	}{
		{[]string{"a"}, "a", true},
		{[]string{"a"}, "a/b", true},
		{[]string{"a"}, "b/a", false},
		{[]string{"**/a"}, "b/c/a", true},
		{[]string{"*.go", "!x.go"}, "x.go", false},
		{[]string{"*", "!d"}, "d/f", false},
		{[]string{"d/f", "!**/d"}, "d/f", true},
		{[]string{"/a/../b/"}, "b", true},
		{[]string{""}, "a", false},
	} {
		if got := ignored(tt.patterns, tt.path); got != tt.want {
			t.Errorf("ignored(%q, %q) = %v, want %v", tt.patterns, tt.path, got, tt.want)
		}
	}
}

func TestResolve(t *testing.T) {
	root := t.TempDir()
	for link, target := range map[string]string{"abs": "/d", "up": "../../../d", "loop": "loop", "none": "missing/x"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		path string
		last bool
		want string
	}{
		{"/abs/x", true, "/d/x"},
		{"/up", true, "/d"},
		{"/up", false, "/up"},
		{"/none/y", true, "/missing/x/y"},
		{"/../../abs/..", true, "/"},
	} {
		if got, err := resolve(root, tt.path, tt.last); err != nil || got != tt.want {
			t.Errorf("resolve(%q, %v) = %q, %v, want %q", tt.path, tt.last, got, err, tt.want)
		}
	}
	if _, err := resolve(root, "/loop/x", true); err == nil {
		t.Error("a loop of links is resolved")
	}
}

func TestChmod(t *testing.T) {
	for _, tt := range []struct {
		mode     string
		st, want uint32
	}{
		{"", 0o100640, 0o100640},
		{"a+x", 0o100640, 0o100751},
		{"u=rwX,go=rX", 0o102640, 0o100644},
		{"u=rwX,go=rX", 0o041700, 0o041755},
		{"go-rwx", 0o100777, 0o100700},
		{"u+s,g+w", 0o100644, 0o104664},
		{"+t", 0o040755, 0o041755},
	} {
		if got := chmod(tt.mode, tt.st); got != tt.want {
			t.Errorf("chmod(%q, %o) = %o, want %o", tt.mode, tt.st, got, tt.want)
		}
	}
}

func TestAbove(t *testing.T) {
	for path, want := range map[string][]string{"a": nil, "a/b/c": {"a", "a/b"}, "/a/b": {"/a"}} {
		if got := above(path); !slices.Equal(got, want) {
			t.Errorf("above(%q) = %q, want %q", path, got, want)
		}
	}
}
