package source

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/executor/pick"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/parser/ignore"
)

// lay writes a directory of "name text" lines; text can be "-> target".
func lay(t testing.TB, lines ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, l := range lines {
		name, text, _ := strings.Cut(l, " ")
		p := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		switch {
		case err != nil:
		case strings.HasPrefix(text, "-> "):
			err = os.Symlink(text[3:], p)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(p, 0o755)
		default:
			err = os.WriteFile(p, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func openContext(t testing.TB, dir, ignored string, s Stats) *Context {
	t.Helper()
	var m *ignore.Matcher
	if ignored != "" {
		var err error
		if m, err = ignore.Parse(strings.NewReader(ignored)); err != nil {
			t.Fatal(err)
		}
	}
	c, err := OpenContext(dir, m, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func pinOf(t testing.TB, c *Context, paths ...string) (oci.Digest, error) {
	t.Helper()
	l := NewLocal(map[string]*Context{"context": c})
	s, err := l.Pin(t.Context(), llb.Source{Scheme: llb.Local, Ref: "context", Select: llb.Select{Paths: paths, Wildcards: true}})
	return s.Digest, err
}

func TestContextIgnores(t *testing.T) {
	dir := lay(t, "a 1", "d/x 2", "d/y 3", "e/x 4", "f/g/x 5", "l -> a", "out -> ../../etc/passwd", "dirlink -> d")
	tests := []struct {
		ignore, path string
		want         bool // it can be copied
	}{
		{"", "/a", true},
		{"a", "/a", false},
		{"a", "/l", false},
		{"l", "/l", false}, // though what it leads to is there
		{"l", "/a", true},
		{"dirlink", "/dirlink/x", false},
		{"", "/dirlink/x", true},
		{"d", "/dirlink/x", false},
		{"d", "/d", false},
		{"d", "/d/x", false},
		{"d\n!d/x", "/d/x", true},
		{"d\n!d/x", "/d/y", false},
		{"d\n!d/x", "/d", true},
		{"f\n!f/g/x", "/f", true},
		{"f\n!f/g/y", "/f", false},
		{"*\n!e", "/e/x", true},
		{"*\n!e", "/a", false},
		{"", "/out", false},
		{"x", "/out", false},
		{"", "/missing", false},
		{"", "/a/b", false},
		{"z", "/a/b", false},
	}
	for _, tt := range tests {
		_, err := pinOf(t, openContext(t, dir, tt.ignore, nil), tt.path)
		var missing *pick.NotFoundError
		if tt.want && err != nil || !tt.want && !errors.As(err, &missing) {
			t.Errorf("with %q ignored, Pin(%s) = %v, want it to be found: %v", tt.ignore, tt.path, err, tt.want)
		}
	}
	c := openContext(t, dir, "d/y\n*/g", nil)
	for path, want := range map[string]string{"/": "a d dirlink e f l out", "/d": "x", "/f": ""} {
		names, err := c.ReadDir(path)
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("ReadDir(%s) = %q, %v, want %q", path, got, err, want)
		}
	}
	if _, err := c.Lstat("/d/y"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Lstat of what is excluded = %v", err)
	}
}

func TestContextLoops(t *testing.T) {
	for _, ignored := range []string{"", "z"} {
		_, err := pinOf(t, openContext(t, lay(t, "a -> b", "b -> a"), ignored, nil), "/a")
		if !errors.Is(err, unix.ELOOP) {
			t.Errorf("Pin of a loop = %v, want ELOOP", err)
		}
	}
}

// memory is Stats that counts.
type memory struct {
	m    map[string]cache.Hashed // by path
	hits int
}

func (m *memory) Get(dir, name string, s Stamp) (cache.Sum, bool) {
	h, ok := m.m[dir+name]
	if !ok || h.Stamp != s {
		return cache.Sum{}, false
	}
	m.hits++
	return h.Sum, true
}

// keep remembers what c has read, and says of how many files.
func (m *memory) keep(c *Context) int {
	n := 0
	for dir, files := range c.Hashed() {
		for h := range files {
			m.m[dir+h.Name] = h
			n++
		}
	}
	return n
}

func TestStats(t *testing.T) {
	dir := lay(t, "a 1")
	file := filepath.Join(dir, "a")
	stats := &memory{m: map[string]cache.Hashed{}}
	// The file is so new that another write need not change its stamp.
	c := openContext(t, dir, "", stats)
	first, err := pinOf(t, c, "/a")
	if err != nil {
		t.Fatal(err)
	}
	if stats.keep(c) > 0 && !settledFile(t, file) {
		t.Error("the digest of a file that was just written is remembered")
	}
	time.Sleep(30 * time.Millisecond)
	clear(stats.m)
	c = openContext(t, dir, "", stats)
	if d, err := pinOf(t, c, "/a"); err != nil || d != first || stats.keep(c) != 1 {
		t.Errorf("Pin of the same = %s, %v, want %s, and remembered", d, err, first)
	}
	if !pinned(t, c, "/a") {
		t.Error("what was pinned is not known to be so")
	}
	again := openContext(t, dir, "", stats)
	if d, err := pinOf(t, again, "/a"); err != nil || d != first || stats.hits == 0 || stats.keep(again) != 0 {
		t.Errorf("Pin of what is remembered = %s, %v with %d hits", d, err, stats.hits)
	}
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("2"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	if pinned(t, again, "/a") {
		t.Error("what was changed since it was pinned is taken for the same")
	}
	if d, err := pinOf(t, openContext(t, dir, "", stats), "/a"); err != nil || d == first {
		t.Errorf("Pin of other bytes of the same size and mtime = %s, %v, the same as before", d, err)
	}
}

func pinned(t *testing.T, c *Context, p string) bool {
	t.Helper()
	r, err := c.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(r.FD)
	if !r.Unchanged() {
		t.Errorf("%s has changed since it was opened", p)
	}
	return r.Known != ""
}

func settledFile(t *testing.T, file string) bool {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		t.Fatal(err)
	}
	return time.Since(time.Unix(st.Ctim.Unix())) > 20*time.Millisecond
}

func TestSettled(t *testing.T) {
	now := time.Unix(1000, 500_000_000)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	tests := []struct {
		name         string
		mtime, ctime time.Time
		want         bool
	}{
		{"long ago", ago(time.Hour), ago(time.Hour), true},
		{"just now", now, now, false},
		{"within the clock's grain", ago(19 * time.Millisecond), ago(19 * time.Millisecond), false},
		{"after it", ago(21 * time.Millisecond), ago(21 * time.Millisecond), true},
		{"old, and changed just now", ago(time.Hour), ago(time.Millisecond), false},
		{"of the future", now.Add(time.Hour), ago(time.Hour), false},
		{"a coarse filesystem, a second ago", time.Unix(999, 0), time.Unix(999, 0), false},
		{"and three", time.Unix(997, 0), time.Unix(997, 0), true},
	}
	for _, tt := range tests {
		if got := settled(Stamp{Mtime: tt.mtime.UnixNano(), Ctime: tt.ctime.UnixNano()}, now); got != tt.want {
			t.Errorf("%s: settled = %v, want %v", tt.name, got, tt.want)
		}
	}
}

// The owner of a context's files is root, whoever it is here; links are links
// within one filesystem only.
func TestContextEntries(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: gives files away")
	}
	dir := lay(t, "a 1", "d/")
	if err := os.Chown(filepath.Join(dir, "a"), 5, 6); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	c := openContext(t, dir, "", nil)
	e, err := c.Lstat("/a")
	if err != nil || e.UID != 0 || e.GID != 0 || e.Nlink != 2 {
		t.Errorf("Lstat = %+v, %v, want it owned by root, with two names", e, err)
	}
	c.dev++ // as if the file were on a filesystem that is mounted in the context
	if e, err := c.Quick("/a"); err != nil || e.Nlink != 1 {
		t.Errorf("Quick of a file of another filesystem = %+v, %v, want one name", e, err)
	}
}

func TestLocalUnknown(t *testing.T) {
	l := NewLocal(nil)
	if _, err := l.Pin(t.Context(), llb.Source{Ref: "x"}); err == nil || !strings.Contains(err.Error(), `no context "x"`) {
		t.Errorf("Pin = %v", err)
	}
	if _, err := l.Open(t.Context(), llb.Source{Ref: "x"}); err == nil {
		t.Error("Open of no context succeeds")
	}
	if _, err := OpenContext(filepath.Join(t.TempDir(), "missing"), nil, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenContext = %v, want fs.ErrNotExist", err)
	}
}
