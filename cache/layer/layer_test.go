package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/oci"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("owners, devices and trusted xattrs need root")
	}
}

func sumOf(text string) oci.Digest {
	return oci.Digest(fmt.Sprintf("blake3:%x", blake3.Sum256([]byte(text))))
}

// pack is a tar of entries. A header without a type is a file; body is its content.
type packed struct {
	tar.Header
	body string
}

func pack(t testing.TB, entries ...packed) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(e.body))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, body string) packed { return packed{tar.Header{Name: name}, body} }
func dir(name string) packed {
	return packed{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, ""}
}
func symlink(name, to string) packed {
	return packed{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}, ""}
}
func hardlink(name, to string) packed {
	return packed{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}, ""}
}

// newTree is an empty layer upon lower ("": none), and its directory.
func newTree(t testing.TB, lower string) (*tree.Tree, string) {
	t.Helper()
	up := filepath.Join(t.TempDir(), "upper")
	if err := os.Mkdir(up, 0o755); err != nil {
		t.Fatal(err)
	}
	var lowers []string
	if lower != "" {
		lowers = []string{lower}
	}
	tr, err := tree.New(up, lowers)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr, up
}

// brief is a list of changes in short: what tests compare.
func brief(changes []tree.Change) []string {
	var out []string
	for _, c := range changes {
		s := c.Path
		switch {
		case c.Removed:
			s = "-" + s
		case c.HardLink != "":
			s += " = " + c.HardLink
		case c.IsDir() && s != "/":
			s += "/"
		case c.Type() == unix.S_IFLNK:
			s += " -> " + c.Link
		case c.Type() != unix.S_IFREG && !c.IsDir():
			s += fmt.Sprintf(" %#o %d:%d", c.Type(), c.Major, c.Minor)
		}
		if c.Opaque {
			s += " opaque"
		}
		out = append(out, s)
	}
	return out
}

func TestApply(t *testing.T) {
	needRoot(t)
	lower := t.TempDir()
	for _, p := range []string{"usr/lib", "d/sub", "etc"} {
		if err := os.MkdirAll(filepath.Join(lower, p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("usr/lib", lower+"/lib"); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"d/old", "d/sub/x", "etc/passwd"} {
		if err := os.WriteFile(filepath.Join(lower, p), []byte(p), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		in    []packed
		alone bool
		want  []string
		err   string
		is    error
	}{
		{"files in any order", []packed{file("b", "2"), dir("a"), file("a/x", "1")}, true, []string{"/a/", "/a/x", "/b"}, "", nil},
		{"components order", []packed{file("a.b", ""), dir("a/"), file("a/b", "")}, true, []string{"/a/", "/a/b", "/a.b"}, "", nil},
		{"root", []packed{dir("./"), file("./a", "")}, true, []string{"/", "/a"}, "", nil},
		{"root as a file", []packed{file(".", "x")}, true, nil, "root cannot be replaced", nil},
		{"dots stay inside", []packed{file("../../../a", ""), file("/b", ""), file("x/../c", "")}, true, []string{"/a", "/b", "/c"}, "", nil},
		{"missing parents are made", []packed{file("p/q/r", "")}, false, []string{"/p/", "/p/q/", "/p/q/r"}, "", nil},
		{"missing parents, alone", []packed{file("p/q/r", "")}, true, nil, "/p, a parent directory", ErrLowerLink},
		{"symlinked parent", []packed{file("lib/a.so", "")}, false, []string{"/usr/", "/usr/lib/", "/usr/lib/a.so"}, "", nil},
		{"symlinked parent out of the root", []packed{dir("t"), symlink("up", "../../../../t"), file("up/f", "")}, true, []string{"/t/", "/t/f", "/up -> ../../../../t"}, "", nil},
		{"absolute symlinked parent", []packed{symlink("up", "/etc"), file("up/f", "")}, false, []string{"/etc/", "/etc/f", "/up -> /etc"}, "", nil},
		{"through a file", []packed{file("f", ""), file("f/g", "")}, true, nil, "not a directory", unix.ENOTDIR},
		{"symlink loop", []packed{symlink("l", "l"), file("l/f", "")}, true, nil, "", unix.ELOOP},
		{"the last of two counts", []packed{file("a", "1"), file("a", "22")}, true, []string{"/a"}, "", nil},
		{"dir replaced by file", []packed{dir("a"), file("a/b", ""), file("a", "")}, true, []string{"/a"}, "", nil},
		{"file replaced by dir", []packed{file("a", ""), dir("a"), file("a/b", "")}, true, []string{"/a/ opaque", "/a/b"}, "", nil},
		{"lower dir replaced by file", []packed{file("d", "")}, false, []string{"/d"}, "", nil},
		{"lower file replaced by dir", []packed{dir("d/old"), file("d/old/f", "")}, false, []string{"/d/", "/d/old/", "/d/old/f"}, "", nil},
		{"hard links", []packed{file("z", "1"), hardlink("a", "z"), hardlink("/m", "./z")}, true, []string{"/a", "/m = /a", "/z = /a"}, "", nil},
		{"hard link to itself", []packed{file("z", "1"), hardlink("z", "z")}, true, []string{"/z"}, "", nil},
		{"hard link to a symlink", []packed{symlink("s", "x"), hardlink("t", "s")}, true, []string{"/s -> x", "/t = /s"}, "", nil},
		{"hard link to a lower file", []packed{hardlink("pw", "etc/passwd")}, false, []string{"/etc/", "/etc/passwd", "/pw = /etc/passwd"}, "", nil},
		{"hard link to a lower file, alone", []packed{hardlink("pw", "etc/passwd")}, true, nil, "not in this layer", ErrLowerLink},
		{"hard link out of the root", []packed{hardlink("pw", "../../../../etc/hostname")}, true, nil, "not in this layer", ErrLowerLink},
		{"hard link to a directory", []packed{dir("a"), hardlink("b", "a")}, true, nil, "a directory", nil},
		{"hard link to the root", []packed{hardlink("b", "..")}, true, nil, "a hard link to the root", nil},
		{"hard link over the directory of its target", []packed{dir("a"), file("a/b", ""), hardlink("a", "a/b")}, true, nil, "", fs.ErrNotExist},
		{"hard link replaced", []packed{file("a", "1"), hardlink("b", "a"), file("b", "2")}, true, []string{"/a", "/b"}, "", nil},
		{"whiteout", []packed{dir("d"), file("d/.wh.old", "")}, true, []string{"/d/", "-/d/old"}, "", nil},
		{"whiteout of what is there", []packed{file("d/.wh.old", ""), file(".wh.nothing", "")}, false, []string{"/d/", "-/d/old"}, "", nil},
		{"whiteout, alone, parent missing", []packed{file("d/.wh.old", "")}, true, nil, "", ErrLowerLink},
		{"whiteout, then a directory", []packed{file(".wh.d", ""), dir("d"), file("d/new", "")}, true, []string{"/d/ opaque", "/d/new"}, "", nil},
		{"a directory, then its whiteout", []packed{dir("d"), file("d/new", ""), file(".wh.d", "")}, true, []string{"/d/ opaque", "/d/new"}, "", nil},
		{"a file, then its whiteout", []packed{file("f", "1"), file(".wh.f", "")}, true, []string{"/f"}, "", nil},
		{"whiteout, then a file in it", []packed{file(".wh.d", ""), file("d/new", "")}, false, []string{"/d/ opaque", "/d/new"}, "", nil},
		{"opaque", []packed{dir("d"), file("d/new", ""), file("d/.wh..wh..opq", "")}, true, []string{"/d/ opaque", "/d/new"}, "", nil},
		{"opaque upon lower", []packed{file("d/new", ""), file("d/.wh..wh..opq", "")}, false, []string{"/d/ opaque", "/d/new"}, "", nil},
		{"opaque root", []packed{file("new", ""), file(".wh..wh..opq", "")}, true, []string{"/ opaque", "/new"}, "", nil},
		{"whiteout of nothing", []packed{file(".wh.", "")}, true, nil, "a whiteout of", nil},
		{"whiteout of the parent", []packed{dir("d"), file("d/.wh...", "")}, true, nil, "a whiteout of", nil},
		{"whiteout of itself", []packed{dir("d"), file("d/.wh..", "")}, true, nil, "a whiteout of", nil},
		{"whiteout as a directory", []packed{file(".wh.d/x", "")}, true, nil, "cannot be a directory", nil},
		{"AUFS's own", []packed{dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", ""), file("a", "")}, true, []string{"/a"}, "", nil},
		{"devices", []packed{
			{tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, ""},
			{tar.Header{Name: "loop", Typeflag: tar.TypeBlock, Devmajor: 7, Devminor: 300}, ""},
			{tar.Header{Name: "pipe", Typeflag: tar.TypeFifo}, ""},
			{tar.Header{Name: "zero", Typeflag: tar.TypeChar}, ""},
		}, true, []string{"/loop 060000 7:300", "/null 020000 1:3", "/pipe 010000 0:0"}, "", nil},
		{"unknown type", []packed{{tar.Header{Name: "x", Typeflag: 'Q'}, ""}}, true, nil, "not known", nil},
		{"owner out of range", []packed{{tar.Header{Name: "x", Uid: 1<<32 - 1}, ""}}, true, nil, "out of range", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			low := ""
			if !c.alone {
				low = lower
			}
			tr, up := newTree(t, low)
			got, err := Apply(t.Context(), bytes.NewReader(pack(t, c.in...)), tr, ApplyOptions{Complete: !c.alone})
			if c.err != "" || c.is != nil {
				if err == nil || !strings.Contains(err.Error(), c.err) || c.is != nil && !errors.Is(err, c.is) {
					t.Fatalf("Apply = %v, %v, want an error with %q, is %v", brief(got), err, c.err, c.is)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(brief(got), c.want) {
				t.Errorf("Apply = %q, want %q", brief(got), c.want)
			}
			if !c.alone {
				return
			}
			// The directory itself says the same, but for the root.
			raw, err := Collect(Diff(t.Context(), up, nil, DiffOptions{}))
			if err != nil {
				t.Fatal(err)
			}
			if got := brief(raw); !reflect.DeepEqual(got, c.want) && !reflect.DeepEqual(got[1:], c.want) {
				t.Errorf("the layer's directory has %q, want %q", got, c.want)
			}
		})
	}
	if b, err := os.ReadFile(lower + "/etc/passwd"); err != nil || string(b) != "etc/passwd" {
		t.Errorf("the lower layer now reads %q, %v", b, err)
	}
}

func TestApplyMetadata(t *testing.T) {
	needRoot(t)
	at, later := time.Unix(1_500_000_000, 0), time.Unix(1_600_000_000, 0)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	in := pack(t,
		packed{tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o1777, ModTime: at, Uid: 7}, ""},
		packed{tar.Header{Name: "d/suid", Mode: 0o4755, Uid: 5, Gid: 6, ModTime: at, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.x": "y\x00z", "SCHILY.xattr.trusted.overlay.redirect": "/etc",
		}}, "body"},
		packed{tar.Header{Name: "d/hole", Mode: 0o600, ModTime: at}, strings.Repeat("\x00", 1<<20)},
		packed{tar.Header{Name: "d/one", Mode: 0o600, Uid: 1, ModTime: at, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.x": "1",
		}}, "1"},
		packed{tar.Header{Name: "d/two", Typeflag: tar.TypeLink, Linkname: "d/one", Mode: 0o2755, Gid: 2, ModTime: later, PAXRecords: map[string]string{
			"SCHILY.xattr.user.y": "2",
		}}, ""},
		packed{tar.Header{Name: "d/link", Typeflag: tar.TypeSymlink, Linkname: "gone", Uid: 3, ModTime: at, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "no"}}, ""},
		packed{tar.Header{Name: "d/z", Typeflag: tar.TypeLink, Linkname: "d/link", Mode: 0o600, Uid: 4, ModTime: later, PAXRecords: map[string]string{
			"SCHILY.xattr.user.y": "no",
		}}, ""},
	)
	tr, up := newTree(t, "")
	got, err := Apply(t.Context(), bytes.NewReader(in), tr, ApplyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	both := map[string]string{"user.x": "1", "user.y": "2"}
	want := []tree.Change{
		{Entry: tree.Entry{Path: "/d", Mode: unix.S_IFDIR | 0o1777, UID: 7, ModTime: at}},
		{Entry: tree.Entry{Path: "/d/hole", Mode: unix.S_IFREG | 0o600, Size: 1 << 20, ModTime: at, Digest: sumOf(strings.Repeat("\x00", 1<<20))}},
		{Entry: tree.Entry{Path: "/d/link", Mode: unix.S_IFLNK | 0o777, UID: 4, Link: "gone", ModTime: later}},
		{Entry: tree.Entry{Path: "/d/one", Mode: unix.S_IFREG | 0o2755, GID: 2, Size: 1, ModTime: later, Digest: sumOf("1"), Xattrs: both}},
		{Entry: tree.Entry{Path: "/d/suid", Mode: unix.S_IFREG | 0o4755, UID: 5, GID: 6, Size: 4, ModTime: at, Digest: sumOf("body"),
			Xattrs: map[string]string{"security.capability": capability, "user.x": "y\x00z"}}},
		{Entry: tree.Entry{Path: "/d/two", Mode: unix.S_IFREG | 0o2755, GID: 2, Size: 1, ModTime: later, Digest: sumOf("1"), Xattrs: both}, HardLink: "/d/one"},
		{Entry: tree.Entry{Path: "/d/z", Mode: unix.S_IFLNK | 0o777, UID: 4, Link: "gone", ModTime: later}, HardLink: "/d/link"},
	}
	plain := func(cs []tree.Change) []tree.Change {
		for i := range cs {
			cs[i].Ino, cs[i].Nlink = 0, 0
		}
		return cs
	}
	if !reflect.DeepEqual(plain(got), want) {
		t.Errorf("Apply = %+v, want %+v", got, want)
	}
	raw, err := Collect(Diff(t.Context(), up, nil, DiffOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := Hash(t.Context(), raw, up, 2); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(plain(raw)[1:], want) {
		t.Errorf("the directory holds %+v, want %+v", raw[1:], want)
	}
	var st unix.Stat_t
	if err := unix.Stat(up+"/d/hole", &st); err != nil || st.Blocks != 0 {
		t.Errorf("a file of zeros takes %d blocks, %v, want none", st.Blocks, err)
	}
}

func TestApplyDamaged(t *testing.T) {
	needRoot(t)
	good := pack(t, file("a", strings.Repeat("x", 1000)), file("b", "y"))
	for _, c := range []struct {
		name string
		in   []byte
		o    ApplyOptions
		want error
	}{
		{"cut in a file", good[:700], ApplyOptions{}, io.ErrUnexpectedEOF},
		{"cut in a header", good[:1800], ApplyOptions{}, io.ErrUnexpectedEOF},
		{"no tar", bytes.Repeat([]byte("no tar "), 512), ApplyOptions{}, tar.ErrHeader},
		{"over the limit", good, ApplyOptions{Limit: 1000}, nil},
	} {
		tr, _ := newTree(t, "")
		if got, err := Apply(t.Context(), bytes.NewReader(c.in), tr, c.o); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: Apply = %v, %v, want %v", c.name, brief(got), err, c.want)
		}
	}
}

func FuzzApply(f *testing.F) {
	needRoot(f)
	f.Add(pack(f, dir("d"), file("d/x", "1"), hardlink("e", "d/x"), symlink("s", "d"), file("s/y", ""), file("d/.wh.z", "")))
	f.Add(pack(f, file("a", "1"), dir("a"), file(".wh.a", ""), file("a/.wh..wh..opq", ""), hardlink("a/b", "../a")))
	f.Fuzz(func(t *testing.T, in []byte) {
		outside := t.TempDir()
		up := filepath.Join(outside, "upper")
		if err := os.Mkdir(up, 0o755); err != nil {
			t.Fatal(err)
		}
		tr, err := tree.New(up, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		_, err = Apply(t.Context(), bytes.NewReader(in), tr, ApplyOptions{Limit: 1 << 20})
		if names, _ := os.ReadDir(outside); len(names) != 1 {
			t.Fatalf("Apply wrote outside: %v", names)
		}
		if err != nil {
			return
		}
		if _, err := Collect(Diff(t.Context(), up, nil, DiffOptions{})); err != nil {
			t.Errorf("the directory that Apply made cannot be read: %v", err)
		}
	})
}
