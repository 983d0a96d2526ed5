package tree

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stack makes three layers: base, middle (removes, replaces), upper (empty).
func stack(t *testing.T) (upper string, lowers []string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("whiteouts and overlay xattrs need root")
	}
	dir := t.TempDir()
	base, mid, up := filepath.Join(dir, "base"), filepath.Join(dir, "mid"), filepath.Join(dir, "up")
	write := func(p, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(base+"/a/one", "1")
	write(base+"/a/two", "2")
	write(base+"/gone/x", "x")
	write(base+"/op/hidden", "h")
	write(base+"/filedir/in", "i")
	write(base+"/d/deep/f", "f")
	for link, target := range map[string]string{
		"abs": "/a", "rel": "a/one", "loop1": "loop2", "loop2": "loop1", "out": "../../../../a/two", "dangling": "/no/where", "d/up": "../a",
	} {
		if err := os.Symlink(target, filepath.Join(base, link)); err != nil {
			t.Fatal(err)
		}
	}
	write(mid+"/a/two", "22")
	write(mid+"/a/three", "3")
	write(mid+"/op/seen", "s")
	write(mid+"/filedir", "file")
	if err := unix.Mknod(mid+"/gone", unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(mid+"/op", OpaqueXattr, []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(up, 0o755); err != nil {
		t.Fatal(err)
	}
	old := time.Unix(1000000000, 5)
	for _, p := range []string{base + "/d", base + "/d/deep", base + "/a", mid + "/a"} {
		if err := os.Chtimes(p, old, old); err != nil {
			t.Fatal(err)
		}
	}
	return up, []string{mid, base}
}

func open(t *testing.T, upper string, lowers []string) *Tree {
	t.Helper()
	tr, err := New(upper, lowers)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr
}

func TestRead(t *testing.T) {
	_, lowers := stack(t)
	tr := open(t, "", lowers)
	for dir, want := range map[string][]string{
		"/":   {"a", "abs", "d", "dangling", "filedir", "loop1", "loop2", "op", "out", "rel"},
		"/a":  {"one", "three", "two"},
		"/op": {"seen"},
	} {
		if got, err := tr.ReadDir(dir); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("ReadDir(%q) = %v, %v, want %v", dir, got, err, want)
		}
	}
	for p, want := range map[string]error{
		"/gone": unix.ENOENT, "/gone/x": unix.ENOENT, "/op/hidden": unix.ENOENT,
		"/filedir/in": unix.ENOTDIR, "/abs/one": unix.ENOTDIR, "/a/one": nil, "/": nil,
	} {
		if _, err := tr.Lstat(p); !errors.Is(err, want) {
			t.Errorf("Lstat(%q) = %v, want %v", p, err, want)
		}
	}
	f, err := tr.Open("/a/two")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, _ := io.ReadAll(f); string(b) != "22" {
		t.Errorf("Open(/a/two) reads %q, want %q", b, "22")
	}
	if err := tr.Mkdir("/new", 0o755); !errors.Is(err, unix.EROFS) {
		t.Errorf("Mkdir in a tree that is only read = %v, want EROFS", err)
	}
}

func TestResolve(t *testing.T) {
	_, lowers := stack(t)
	tr := open(t, "", lowers)
	for _, c := range []struct {
		path string
		last bool
		want string
		err  error
	}{
		{"/abs/one", true, "/a/one", nil},
		{"/rel", true, "/a/one", nil},
		{"/rel", false, "/rel", nil},
		{"/out", true, "/a/two", nil},
		{"/dangling/x", true, "/no/where/x", nil},
		{"/d/up/one", true, "/a/one", nil},
		{"/d/up/../d/deep", true, "/d/deep", nil},
		{"/../../a", true, "/a", nil},
		{"/a/one/x", true, "/a/one/x", nil},
		{"/loop1", true, "", unix.ELOOP},
		{"/", true, "/", nil},
	} {
		got, err := tr.Resolve(c.path, c.last)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("Resolve(%q, %v) = %q, %v, want %q, %v", c.path, c.last, got, err, c.want, c.err)
		}
	}
}

func TestWrite(t *testing.T) {
	up, lowers := stack(t)
	tr := open(t, up, lowers)
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	f, err := tr.Create("/d/deep/new")
	try(err)
	f.Close()
	try(tr.RemoveAll("/a"))
	try(tr.Mkdir("/a", 0o700))
	try(tr.Symlink("x", "/a/l"))
	try(tr.Link("/op/seen", "/op/again"))
	try(tr.RemoveAll("/filedir"))
	try(tr.Mkdir("/gone", 0o755))
	try(tr.SetMeta("/d/deep/f", Entry{Mode: 0o4755, UID: 5, GID: 6, ModTime: time.Unix(7, 8)}))
	if _, err := tr.Create("/a"); !errors.Is(err, unix.EISDIR) {
		t.Errorf("Create over a directory = %v, want EISDIR", err)
	}
	if err := tr.Mkdir("/op", 0o755); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Mkdir over a directory = %v, want ErrExist", err)
	}
	if err := tr.Mknod("/null", unix.S_IFCHR|0o666, 0, 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Mknod 0:0 = %v, want EINVAL", err)
	}
	try(tr.Whiteout("/never"))
	try(tr.Close())

	tr = open(t, up, lowers)
	got, err := tr.ReadDir("/a")
	if err != nil || !reflect.DeepEqual(got, []string{"l"}) {
		t.Errorf("ReadDir(/a) = %v, %v, want only l: the old directory shows through", got, err)
	}
	if got, _ := tr.ReadDir("/gone"); len(got) != 0 {
		t.Errorf("ReadDir(/gone) = %v, want nothing: the removed directory shows through", got)
	}
	e, err := tr.Lstat("/d/deep/f")
	if err != nil || e.Perm() != 0o4755 || e.UID != 5 || e.GID != 6 || !e.ModTime.Equal(time.Unix(7, 8)) {
		t.Errorf("Lstat(/d/deep/f) = %+v, %v", e, err)
	}
	for _, p := range []string{"/d", "/d/deep"} {
		if e, err := tr.Lstat(p); err != nil || !e.ModTime.Equal(time.Unix(1000000000, 5)) {
			t.Errorf("Lstat(%q).ModTime = %v, %v: a copied-up directory lost its time", p, e.ModTime, err)
		}
	}
	a, _ := tr.Lstat("/op/seen")
	b, _ := tr.Lstat("/op/again")
	if a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("link to a lower file: inodes %d and %d, %d names", a.Ino, b.Ino, a.Nlink)
	}
	if _, err := tr.Lstat("/filedir"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Lstat(/filedir) = %v, want it gone", err)
	}
	for _, p := range []string{"/never", "/filedir"} {
		var st unix.Stat_t
		if err := unix.Lstat(up+p, &st); err != nil || !isWhiteout(&st) {
			t.Errorf("%s in the layer: mode %o, %v, want a whiteout", p, st.Mode, err)
		}
	}
}

// A layer whose names are known is not opened for others.
func TestStackKnown(t *testing.T) {
	_, lowers := stack(t)
	gone := filepath.Join(t.TempDir(), "gone")
	known := []Lower{{Dir: gone, Names: []string{}}, {Dir: gone, Names: []string{"one", "other"}}}
	for _, dir := range lowers {
		known = append(known, Lower{Dir: dir})
	}
	tr, err := Stack("", known)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if e, err := tr.Lstat("/a/two"); err != nil || e.Size != 2 {
		t.Errorf("Lstat(/a/two) = %d bytes, %v, want 2", e.Size, err)
	}
	for _, p := range []string{"/none", "/a/none", "/gone"} {
		if _, err := tr.Quick(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Quick(%s): %v, want that it does not exist", p, err)
		}
	}
	// A layer that is gone is no layer that has nothing.
	for _, p := range []string{"/", "/one", "/other/f"} {
		if _, err := tr.Lstat(p); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Lstat(%s) of a layer that is gone: %v, want another error", p, err)
		}
	}
}
