package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
)

// sample is a list with one of everything, and the directory of its files.
func sample(t testing.TB) ([]tree.Change, string) {
	t.Helper()
	d := t.TempDir()
	at := time.Unix(1_700_000_000, 123456789)
	long := "/" + strings.Repeat("d", 120) + "/" + strings.Repeat("n", 200)
	for _, p := range []string{"/a/one", long, "/\xff\xfe"} {
		if err := os.MkdirAll(filepath.Dir(d+p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d+p, []byte("hello"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	reg := func(p string) tree.Entry {
		return tree.Entry{Path: p, Mode: unix.S_IFREG | 0o644, Size: 5, ModTime: at, Ino: 1 << 40, Nlink: 1, Digest: sumOf("hello")}
	}
	one := reg("/a/one")
	one.Nlink, one.Xattrs = 2, map[string]string{"user.b": "\x00", "user.a": "x", "security.selinux": "label", "user.c=d": "e"}
	two := one
	two.Path = "/a/two"
	long1 := reg(long)
	long1.UID, long1.GID, long1.Mode = 1<<31, 70000, unix.S_IFREG|0o6755
	return []tree.Change{
		{Entry: tree.Entry{Path: "/", Mode: unix.S_IFDIR | 0o700, ModTime: at}},
		{Entry: tree.Entry{Path: "/a", Mode: unix.S_IFDIR | 0o1755, ModTime: at}, Opaque: true},
		{Entry: tree.Entry{Path: "/a/gone"}, Removed: true},
		{Entry: one},
		{Entry: two, HardLink: "/a/one"},
		{Entry: tree.Entry{Path: filepath.Dir(long), Mode: unix.S_IFDIR | 0o755, ModTime: at}},
		{Entry: long1},
		{Entry: tree.Entry{Path: "/dev", Mode: unix.S_IFCHR | 0o666, Major: 5, Minor: 1, ModTime: time.Unix(-5, 0)}},
		{Entry: tree.Entry{Path: "/sock", Mode: unix.S_IFSOCK | 0o666, ModTime: at}},
		{Entry: tree.Entry{Path: "/sym", Mode: unix.S_IFLNK | 0o777, Link: "a/\xff", ModTime: at}},
		{Entry: reg("/\xff\xfe")},
	}, d
}

func TestWrite(t *testing.T) {
	changes, d := sample(t)
	var notes []string
	var b bytes.Buffer
	n, err := Write(t.Context(), &b, All(changes), d, Options{Notice: func(s string) { notes = append(notes, s) }})
	if err != nil || n != int64(b.Len()) {
		t.Fatalf("Write = %d, %v, want %d bytes", n, err, b.Len())
	}
	if len(notes) != 3 { // the name with "=", twice, and the socket
		t.Errorf("notices %q, want 3", notes)
	}
	// The bytes of a layer are promised for ever: this digest must not change.
	if got, want := fmt.Sprintf("%x", sha256.Sum256(b.Bytes())), "255c0471aac48ba47e4de681b2b223ee31c8c65587035d033d23dedb3c6a64eb"; got != want {
		t.Errorf("sha256 of the tar = %s, want %s", got, want)
	}
	var got []string
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(h.Name) > 30 {
			h.Name = fmt.Sprint(len(h.Name), " bytes")
		}
		body, _ := io.ReadAll(r)
		got = append(got, fmt.Sprintf("%c %q %q %o %d:%d %d:%d %d %q %v", h.Typeflag, h.Name, h.Linkname, h.Mode, h.Uid, h.Gid, h.Devmajor, h.Devminor, h.ModTime.Unix(), body, h.Format))
		if x := h.PAXRecords["SCHILY.xattr.user.b"]; h.Name == "a/one" && (x != "\x00" || len(h.PAXRecords) != 2) {
			t.Errorf("xattrs of a/one: %q", h.PAXRecords)
		}
	}
	want := []string{
		`5 "./" "" 700 0:0 0:0 1700000000 "" USTAR`,
		`5 "a/" "" 1755 0:0 0:0 1700000000 "" USTAR`,
		`0 "a/.wh..wh..opq" "" 0 0:0 0:0 0 "" USTAR`,
		`0 "a/.wh.gone" "" 0 0:0 0:0 0 "" USTAR`,
		`0 "a/one" "" 644 0:0 0:0 1700000000 "hello" PAX`,
		`1 "a/two" "a/one" 644 0:0 0:0 1700000000 "" PAX`,
		`5 "121 bytes" "" 755 0:0 0:0 1700000000 "" PAX`,
		`0 "321 bytes" "" 6755 2147483648:70000 0:0 1700000000 "hello" PAX`,
		`3 "dev" "" 666 0:0 5:1 -5 "" PAX`,
		`2 "sym" "a/\xff" 777 0:0 0:0 1700000000 "" PAX`,
		`0 "\xff\xfe" "" 644 0:0 0:0 1700000000 "hello" PAX`,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Write wrote\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestWriteRefuses(t *testing.T) {
	d := t.TempDir()
	for p, text := range map[string]string{"f": "four", ".wh.f": ""} {
		if err := os.WriteFile(filepath.Join(d, p), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc", d+"/out"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		size       int64
		err        string
		is         error
	}{
		{"as it is", "/f", 4, "", nil},
		{"grown", "/f", 3, "it has 4 bytes, not 3", nil},
		{"shrunk", "/f", 5, "it has 4 bytes, not 5", nil},
		{"name of a whiteout", "/.wh.f", 0, "/.wh.f: names that begin", nil},
		{"below the name of a whiteout", "/.wh.d/x", 0, "/.wh.d/x: names that begin", nil},
		{"through a symbolic link", "/out/hostname", 1, "", unix.ELOOP},
		{"gone", "/g", 1, "", os.ErrNotExist},
	} {
		change := tree.Change{Entry: tree.Entry{Path: c.path, Mode: unix.S_IFREG | 0o644, Size: c.size}}
		_, err := Write(t.Context(), io.Discard, All([]tree.Change{change}), d, Options{})
		switch {
		case c.err == "" && c.is == nil:
			if err != nil {
				t.Errorf("%s: Write = %v, want no error", c.name, err)
			}
		case err == nil || !strings.Contains(err.Error(), c.err) || c.is != nil && !errors.Is(err, c.is):
			t.Errorf("%s: Write = %v, want an error with %q, is %v", c.name, err, c.err, c.is)
		}
	}
}

func TestWriteEpoch(t *testing.T) {
	at := func(s int64) tree.Change {
		return tree.Change{Entry: tree.Entry{Path: "/d", Mode: unix.S_IFDIR | 0o755, ModTime: time.Unix(s, 0)}}
	}
	for _, c := range []struct{ epoch, in, want int64 }{{0, 5, 0}, {5, 4, 4}, {5, 6, 5}} {
		var b bytes.Buffer
		if _, err := Write(t.Context(), &b, All([]tree.Change{at(c.in)}), t.TempDir(), Options{Epoch: time.Unix(c.epoch, 0)}); err != nil {
			t.Fatal(err)
		}
		h, err := tar.NewReader(&b).Next()
		if err != nil || h.ModTime.Unix() != c.want {
			t.Errorf("with epoch %d, time %d is written as %d, want %d (%v)", c.epoch, c.in, h.ModTime.Unix(), c.want, err)
		}
	}
}

func TestEntries(t *testing.T) {
	changes, _ := sample(t)
	odd := tree.Entry{Path: "/zz", Mode: math.MaxUint32, UID: math.MaxUint32, Size: math.MaxInt64, ModTime: time.Unix(math.MinInt32, 999_999_999),
		Ino: math.MaxUint64, Major: math.MaxUint32, Minor: 1, Digest: "sha256:odd", Nlink: 1, Link: "\x00"}
	for _, in := range [][]tree.Change{nil, changes, append(changes, tree.Change{Entry: odd})} {
		var b bytes.Buffer
		if err := WriteEntries(&b, in); err != nil {
			t.Fatal(err)
		}
		got, err := Collect(ReadEntries(bytes.NewReader(b.Bytes())))
		if err != nil || !reflect.DeepEqual(got, in) {
			t.Errorf("ReadEntries = %+v, %v, want %+v", got, err, in)
		}
		for i := range b.Len() {
			bad := bytes.Clone(b.Bytes())
			bad[i] ^= 0x40
			for _, text := range [][]byte{bad, b.Bytes()[:i]} {
				if got, err := Collect(ReadEntries(bytes.NewReader(text))); !errors.Is(err, ErrDamaged) {
					t.Fatalf("ReadEntries of a list damaged at byte %d = %d entries, %v, want ErrDamaged", i, len(got), err)
				}
			}
		}
	}
}

func TestDigest(t *testing.T) {
	changes, d := sample(t)
	base := Digest(changes)
	for _, c := range []struct {
		name   string
		change func(c []tree.Change)
		same   bool
	}{
		{"times", func(c []tree.Change) { c[3].ModTime = time.Now() }, true},
		{"inodes", func(c []tree.Change) { c[3].Ino, c[3].Nlink = 1, 9 }, true},
		{"labels of the host", func(c []tree.Change) { c[1].Xattrs = map[string]string{"security.selinux": "other"} }, true},
		{"path", func(c []tree.Change) { c[3].Path += "x" }, false},
		{"mode", func(c []tree.Change) { c[3].Mode ^= 0o100 }, false},
		{"type", func(c []tree.Change) { c[0].Mode = unix.S_IFIFO | 0o700 }, false},
		{"owner", func(c []tree.Change) { c[3].UID++ }, false},
		{"group", func(c []tree.Change) { c[3].GID++ }, false},
		{"device", func(c []tree.Change) { c[7].Minor++ }, false},
		{"link", func(c []tree.Change) { c[9].Link += "x" }, false},
		{"content", func(c []tree.Change) { c[3].Digest = sumOf("other") }, false},
		{"hard link", func(c []tree.Change) { c[4].HardLink = "" }, false},
		{"xattr", func(c []tree.Change) { c[5].Xattrs = map[string]string{"user.x": ""} }, false},
		{"opaque", func(c []tree.Change) { c[1].Opaque = false }, false},
		{"removed", func(c []tree.Change) { c[10].Removed = true }, false},
		{"order", func(c []tree.Change) { c[0], c[1] = c[1], c[0] }, false},
	} {
		other := append([]tree.Change(nil), changes...)
		c.change(other)
		if got := Digest(other); (got == base) != c.same {
			t.Errorf("Digest with another %s equal: %v, want %v", c.name, got == base, c.same)
		}
	}
	bare := append([]tree.Change(nil), changes...)
	for i := range bare {
		bare[i].Digest = ""
	}
	if got := Digest(bare); got != "" {
		t.Errorf("Digest without digests of files = %q, want none", got)
	}
	if err := Hash(t.Context(), bare, d, 2); err != nil {
		t.Fatal(err)
	}
	if got := Digest(bare); got != base {
		t.Errorf("Digest after Hash = %q, want %q", got, base)
	}
}

func FuzzReadEntries(f *testing.F) {
	changes, _ := sample(f)
	var b bytes.Buffer
	if err := WriteEntries(&b, changes); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes()[len(entriesMagic) : b.Len()-sumSize])
	f.Fuzz(func(t *testing.T, body []byte) {
		// Past the checksum, which a fuzzer does not find.
		got, err := Collect(ReadEntries(bytes.NewReader(sealed(body))))
		seen := Intact(bytes.NewReader(sealed(body)), t.TempDir())
		if err != nil {
			if seen == nil {
				t.Errorf("Intact of a list that ReadEntries refuses (%v) succeeds", err)
			}
			return
		}
		if errors.Is(seen, ErrDamaged) {
			t.Errorf("Intact of a list that ReadEntries reads = %v", seen)
		}
		var again bytes.Buffer
		if err := WriteEntries(&again, got); err != nil {
			t.Fatal(err)
		}
		back, err := Collect(ReadEntries(bytes.NewReader(again.Bytes())))
		if err != nil || !reflect.DeepEqual(back, got) {
			t.Errorf("read back %+v, %v, want %+v", back, err, got)
		}
	})
}

func BenchmarkReadEntries(b *testing.B) {
	var changes []tree.Change
	for i := range 100_000 {
		changes = append(changes, tree.Change{Entry: tree.Entry{
			Path: fmt.Sprintf("/usr/share/some/dir%03d/file%05d", i/300, i), Mode: unix.S_IFREG | 0o644, Size: 1000,
			ModTime: time.Unix(1_700_000_000, 5), Ino: uint64(i), Nlink: 1, Digest: sumOf(fmt.Sprint(i)),
		}})
	}
	var buf bytes.Buffer
	if err := WriteEntries(&buf, changes); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(buf.Len()))
	for b.Loop() {
		n := 0
		for _, err := range ReadEntries(bytes.NewReader(buf.Bytes())) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != len(changes) {
			b.Fatalf("%d entries, want %d", n, len(changes))
		}
	}
}

func BenchmarkApply(b *testing.B) {
	needRoot(b)
	var in []packed
	for d := range 100 {
		in = append(in, dir(fmt.Sprintf("d%d", d)))
		for f := range 100 {
			in = append(in, file(fmt.Sprintf("d%d/f%d", d, f), strings.Repeat("x", 1000)))
		}
	}
	text := pack(b, in...)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		up, err := os.MkdirTemp(b.TempDir(), "")
		if err != nil {
			b.Fatal(err)
		}
		tr, err := tree.New(up, nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Apply(b.Context(), bytes.NewReader(text), tr, ApplyOptions{}); err != nil {
			b.Fatal(err)
		}
		tr.Close()
		b.StopTimer()
		os.RemoveAll(up)
		b.StartTimer()
	}
}

// sealed is body with version word and checksum.
func sealed(body []byte) []byte {
	data := append([]byte(entriesMagic), body...)
	return append(data, sum(data)...)
}
