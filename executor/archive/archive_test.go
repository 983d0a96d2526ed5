package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/oci"
)

var stamp = time.Unix(1_600_000_000, 0)

type entry struct {
	tar.Header
	body string
}

func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag != tar.TypeXGlobalHeader {
			if h.Mode == 0 {
				h.Mode = 0o644
			}
			if h.ModTime.IsZero() {
				h.ModTime = stamp
			}
		}
		h.Size = int64(len(e.body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, e.body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, body string) entry { return entry{tar.Header{Name: name}, body} }
func dir(name string, mode int64) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}, ""}
}
func symlink(name, to string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}, ""}
}
func hardlink(name, to string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}, ""}
}

// target is a tree that has /in, the destination, /in/old and /secret.
func target(t testing.TB) (*tree.Tree, string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: archives have owners")
	}
	root := t.TempDir()
	for name, text := range map[string]string{"in/old": "old", "secret": "secret"} {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tr, err := tree.New(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr, root
}

// list is what is below /in: "name mode uid:gid content".
func list(t testing.TB, tr *tree.Tree, root string) []string {
	t.Helper()
	var out []string
	var walk func(p string)
	walk = func(p string) {
		names, err := tr.ReadDir(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			e, err := tr.Lstat(path.Join(p, n))
			if err != nil {
				t.Fatal(err)
			}
			name := strings.TrimPrefix(e.Path, "/in/")
			what := fmt.Sprintf("%s %o %d:%d", name, e.Perm(), e.UID, e.GID)
			switch e.Type() {
			case unix.S_IFDIR:
				out = append(out, strings.Replace(what, name, name+"/", 1))
				walk(e.Path)
				continue
			case unix.S_IFLNK:
				what = name + " -> " + e.Link
			case unix.S_IFREG:
				b, err := os.ReadFile(filepath.Join(root, e.Path))
				if err != nil {
					t.Fatal(err)
				}
				what += " " + string(b)
			default:
				what += fmt.Sprintf(" %o %d,%d", e.Type(), e.Major, e.Minor)
			}
			out = append(out, what)
		}
	}
	walk("/in")
	return out
}

func extract(ctx context.Context, data []byte, tr *tree.Tree, o Options) error {
	a, err := Open(bytes.NewReader(data))
	if err != nil {
		return err
	}
	defer a.Close()
	o.Now = stamp
	return a.Extract(ctx, tr, "/in", o)
}

func TestExtract(t *testing.T) {
	tests := []struct {
		name string
		in   []entry
		want []string // beside "old 600 0:0 old", unless it has "old" itself
		err  string
	}{
		{"file", []entry{file("a", "1")}, []string{"a 644 0:0 1"}, ""},
		{"directory", []entry{dir("d/", 0o700), file("d/a", "1")}, []string{"d/ 700 0:0", "d/a 644 0:0 1"}, ""},
		{"parents that are not listed", []entry{file("x/y/a", "1")}, []string{"x/ 755 0:0", "x/y/ 755 0:0", "x/y/a 644 0:0 1"}, ""},
		{"parents inherit the setgid bit", []entry{dir("g/", 0o2770), file("g/x/a", "1")}, []string{"g/ 2770 0:0", "g/x/ 2755 0:0", "g/x/a 644 0:0 1"}, ""},
		{"owner and mode", []entry{{tar.Header{Name: "a", Uid: 5, Gid: 6, Mode: 0o4755}, "1"}}, []string{"a 4755 5:6 1"}, ""},
		{"above the root", []entry{file("../../a", "1")}, []string{"a 644 0:0 1"}, ""},
		{"absolute", []entry{file("/a", "1")}, []string{"a 644 0:0 1"}, ""},
		{"in the middle", []entry{file("x/../../secret", "1")}, []string{"secret 644 0:0 1"}, ""},
		{"through a link out", []entry{symlink("l", "/.."), file("l/secret", "1")}, []string{"l -> /..", "secret 644 0:0 1"}, ""},
		{"through a relative link out", []entry{symlink("l", "../.."), file("l/secret", "1")}, []string{"l -> ../..", "secret 644 0:0 1"}, ""},
		{"through a link to a directory", []entry{dir("d/", 0o755), symlink("l", "d"), file("l/a", "1")},
			[]string{"d/ 755 0:0", "d/a 644 0:0 1", "l -> d"}, ""},
		{"onto a link out", []entry{symlink("l", "/secret"), file("l", "1")}, []string{"l 644 0:0 1"}, ""},
		{"hard link out", []entry{hardlink("h", "../secret")}, nil, "h: link"},
		{"hard link out, absolute", []entry{hardlink("h", "/secret")}, nil, "h: link"},
		{"hard link through a link out", []entry{symlink("l", ".."), hardlink("h", "l/secret")}, nil, "h: link"},
		{"hard link", []entry{file("a", "1"), hardlink("h", "a")}, []string{"a 644 0:0 1", "h 644 0:0 1"}, ""},
		{"hard link that says another mode and owner", []entry{file("a", "1"), {tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "a", Mode: 0o600, Uid: 7}, ""}},
			[]string{"a 600 7:0 1", "h 600 7:0 1"}, ""},
		{"hard link to what was there", []entry{hardlink("h", "old")}, []string{"h 644 0:0 old", "old 644 0:0 old"}, ""},
		{"hard link to itself", []entry{file("a", "1"), hardlink("a", "a")}, nil, "a: link"},
		{"hard link to a directory", []entry{dir("d/", 0o755), hardlink("h", "d")}, nil, "operation not permitted"},
		{"twice", []entry{file("a", "1"), file("a", "22")}, []string{"a 644 0:0 22"}, ""},
		{"a file, then a directory", []entry{file("a", "1"), dir("a", 0o755), file("a/b", "2")}, []string{"a/ 755 0:0", "a/b 644 0:0 2"}, ""},
		{"a directory, then a file", []entry{dir("d", 0o755), file("d/b", "2"), file("d", "1")}, []string{"d 644 0:0 1"}, ""},
		{"a directory twice", []entry{dir("d", 0o755), file("d/b", "2"), dir("d", 0o700)}, []string{"d/ 700 0:0", "d/b 644 0:0 2"}, ""},
		{"in place of what was there", []entry{file("old", "new")}, []string{"old 644 0:0 new"}, ""},
		{"below a file", []entry{file("old/x", "1")}, nil, "not a directory"},
		{"device", []entry{{tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, ""}},
			[]string{"null 666 0:0 20000 1,3"}, ""},
		{"a whiteout's device", []entry{{tar.Header{Name: "w", Typeflag: tar.TypeChar}, ""}}, nil, "character device 0:0"},
		{"fifo", []entry{{tar.Header{Name: "p", Typeflag: tar.TypeFifo}, ""}}, []string{"p 644 0:0 10000 0,0"}, ""},
		{"the root itself", []entry{dir("./", 0o700), file("./a", "1")}, []string{"a 644 0:0 1"}, ""},
		{"a link for a root", []entry{symlink("/", "x")}, nil, "it would replace the destination"},
		{"global header", []entry{{tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}, ""}, file("a", "1")},
			[]string{"a 644 0:0 1"}, ""},
		{"long name", []entry{file(strings.Repeat("n/", 100)+"a", "1")}, nil, ""},
		{"a name too long", []entry{file(strings.Repeat("n", 300), "1")}, nil, "file name too long"},
		{"odd bytes", []entry{file("a\nb\xff", "1")}, []string{"a\nb\xff 644 0:0 1"}, ""},
		{"far times", []entry{{tar.Header{Name: "a", ModTime: time.Unix(-1<<40, 0)}, "1"}, {tar.Header{Name: "b", ModTime: time.Unix(1<<40, 0)}, "1"}},
			[]string{"a 644 0:0 1", "b 644 0:0 1"}, ""},
		{"capability, and what no layer has", []entry{{tar.Header{Name: "a", PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
			"SCHILY.xattr.user.x":              "y", "SCHILY.xattr.trusted.overlay.opaque": "y",
		}}, "1"}}, []string{"a 644 0:0 1"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr, root := target(t)
			digests := &tree.Digests{}
			err := extract(t.Context(), pack(t, tt.in...), tr, Options{Digests: digests})
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("Extract = %v, want %q", err, tt.err)
			}
			if b, err := os.ReadFile(filepath.Join(root, "secret")); string(b) != "secret" {
				t.Errorf("the file outside holds %q, %v", b, err)
			}
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(root, "secret"), &st); err != nil || st.Nlink != 1 || st.Mode&0o777 != 0o600 {
				t.Errorf("the file outside has mode %o and %d names", st.Mode, st.Nlink)
			}
			if tt.want != nil {
				want := tt.want
				if !slices.ContainsFunc(want, func(s string) bool { return strings.HasPrefix(s, "old ") }) {
					want = append([]string{"old 600 0:0 old"}, want...)
				}
				slices.Sort(want)
				got := list(t, tr, root)
				slices.Sort(got)
				if !slices.Equal(got, want) {
					t.Errorf("extracted\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
				}
			}
			if err == nil {
				checkDigests(t, root, digests)
			}
		})
	}
}

// Times that a count of nanoseconds cannot have are the epoch, as with BuildKit.
func TestExtractTimes(t *testing.T) {
	last := time.Unix(0, math.MaxInt64)
	tests := []struct {
		name     string
		in, want time.Time
	}{
		{"common", stamp, stamp},
		{"epoch", time.Unix(0, 0), time.Unix(0, 0)},
		{"before the epoch", time.Unix(-1, 0), time.Unix(0, 0)},
		{"last", last.Truncate(time.Second), last.Truncate(time.Second)},
		{"after the last", last.Truncate(time.Second).Add(time.Second), time.Unix(0, 0)},
	}
	for _, tt := range tests {
		tr, _ := target(t)
		in := []entry{file("f", "1"), dir("d", 0o755), symlink("l", "f")}
		for i := range in {
			in[i].ModTime = tt.in
		}
		if err := extract(t.Context(), pack(t, in...), tr, Options{}); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"/in/f", "/in/d", "/in/l"} {
			if e, err := tr.Quick(p); err != nil || !e.ModTime.Equal(tt.want) {
				t.Errorf("%s: %s has the time %v, %v, want %v", tt.name, p, e.ModTime, err, tt.want)
			}
		}
	}
}

// checkDigests compares what Extract said of files with the files.
func checkDigests(t testing.TB, root string, digests *tree.Digests) {
	t.Helper()
	digests.All(func(p string, d oci.Digest) {
		st, err := os.Lstat(filepath.Join(root, p))
		if err != nil || !st.Mode().IsRegular() {
			return // of no use, and of no harm: see cache.Draft
		}
		b, err := os.ReadFile(filepath.Join(root, p))
		if err != nil {
			t.Fatal(err)
		}
		sum := blake3.Sum256(b)
		if want := "blake3:" + hex.EncodeToString(sum[:]); string(d) != want {
			t.Errorf("digest of %s is %s, want %s", p, d, want)
		}
	})
}

func TestExtractXattrs(t *testing.T) {
	tr, root := target(t)
	err := extract(t.Context(), pack(t, entry{tar.Header{Name: "a", PAXRecords: map[string]string{
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"SCHILY.xattr.user.x":              "y",
	}}, "1"}), tr, Options{Owner: &Owner{3, 4}})
	if err != nil {
		t.Fatal(err)
	}
	e, err := tr.Lstat("/in/a")
	if err != nil || len(e.Xattrs) != 1 || e.Xattrs["security.capability"] == "" || e.UID != 3 || e.GID != 4 {
		t.Errorf("entry %+v, %v, want the capability alone, though it was given away, of %s", e, err, root)
	}
}

func TestOpen(t *testing.T) {
	plain := pack(t, file("a", "1"))
	with := func(f func(io.Writer) io.WriteCloser) []byte {
		var b bytes.Buffer
		w := f(&b)
		w.Write(plain)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	gz := with(func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) })
	xzed := with(func(w io.Writer) io.WriteCloser {
		x, err := xz.NewWriter(w)
		if err != nil {
			t.Fatal(err)
		}
		return x
	})
	zst := with(func(w io.Writer) io.WriteCloser {
		z, err := zstd.NewWriter(w)
		if err != nil {
			t.Fatal(err)
		}
		return z
	})
	bz, err := compressBzip2(plain)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		data []byte
		ok   bool
	}{
		{"tar", plain, true},
		{"gzip", gz, true},
		{"bzip2", bz, true},
		{"xz", xzed, true},
		{"zstd", zst, true},
		{"zstd after a frame to be skipped", append([]byte{0x5d, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 'p', 'z'}, zst...), true},
		{"nothing", nil, false},
		{"text", []byte("hello"), false},
		{"zeros", make([]byte, 2048), false},
		{"a gzip of text", with(func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) })[:5], false},
		{"gzip's first bytes", []byte{0x1f, 0x8b, 0x08}, false},
		{"bzip2's", []byte("BZh91AY"), false},
		{"xz's", xzed[:8], false},
		{"zstd's", zst[:4], false},
		{"a tar cut in its header", plain[:300], false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := Open(bytes.NewReader(tt.data))
			if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrNone) {
				t.Fatalf("Open = %v, want it to succeed: %v", err, tt.ok)
			}
			if err != nil {
				return
			}
			tr, root := target(t)
			if err := errors.Join(a.Extract(t.Context(), tr, "/in", Options{}), a.Close()); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(filepath.Join(root, "in/a")); string(b) != "1" {
				t.Errorf("extracted %q, %v", b, err)
			}
		})
	}
}

// compressBzip2 runs a program: the library only reads.
func compressBzip2(data []byte) ([]byte, error) {
	for _, name := range []string{"bzip2", "busybox"} {
		p, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		args := []string{"-c"}
		if name == "busybox" {
			args = []string{"bzip2", "-c"}
		}
		cmd := exec.Command(p, args...)
		cmd.Stdin = bytes.NewReader(data)
		return cmd.Output()
	}
	return nil, errors.New("neither bzip2 nor busybox is installed")
}

// What may be an archive and cannot be read is not taken for a file.
func TestOpenXZFilters(t *testing.T) {
	// As xz --x86 --lzma2 begins: a stream's header, a block's size and its flags.
	data := append([]byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46\x02\x01\x04\x00\x21\x01"), make([]byte, 64)...)
	if _, err := Open(bytes.NewReader(data)); !errors.Is(err, errFilters) || errors.Is(err, ErrNone) {
		t.Errorf("Open of xz data with filters = %v, want %v", err, errFilters)
	}
}

func TestExtractCut(t *testing.T) {
	data := pack(t, file("a", "1"), file("b", strings.Repeat("x", 5000)))
	for _, n := range []int{1500, len(data) - 3000} {
		tr, _ := target(t)
		if err := extract(t.Context(), data[:n], tr, Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Extract of %d bytes of %d = %v, want io.ErrUnexpectedEOF", n, len(data), err)
		}
	}
}

// endless is a reader that ends its context after its first bytes.
type endless struct {
	r    io.Reader
	stop func()
	n    int
}

func (e *endless) Read(p []byte) (int, error) {
	if e.n++; e.n > 3 {
		e.stop()
	}
	n, err := e.r.Read(p)
	if err == io.EOF {
		clear(p)
		return len(p), nil
	}
	return n, err
}

func TestExtractIsStopped(t *testing.T) {
	tr, _ := target(t)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "big", Size: 1 << 50, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	stopped := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	a, err := Open(&endless{r: &b, stop: func() { cancel(stopped) }})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Extract(ctx, tr, "/in", Options{}); !errors.Is(err, stopped) {
		t.Errorf("Extract = %v, want the context's cause", err)
	}
}

func FuzzExtract(f *testing.F) {
	for _, in := range [][]entry{
		{file("../a", "1"), symlink("l", "/"), file("l/secret", "2"), hardlink("h", "l/secret")},
		{dir("d", 0), symlink("d", ".."), file("d/../secret", "")},
	} {
		f.Add(pack(f, in...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := Open(bytes.NewReader(data))
		if err != nil {
			return
		}
		defer a.Close()
		tr, root := target(t)
		a.tar = tar.NewReader(io.LimitReader(bytes.NewReader(data), 1<<20))
		if a.first, err = a.tar.Next(); err != nil {
			return // it was compressed
		}
		digests := &tree.Digests{}
		if err := a.Extract(t.Context(), tr, "/in", Options{Digests: digests}); err == nil {
			checkDigests(t, root, digests)
		}
		names, err := os.ReadDir(root)
		if err != nil || len(names) != 2 {
			t.Errorf("outside of the destination there are %v, %v", names, err)
		}
		if b, err := os.ReadFile(filepath.Join(root, "secret")); string(b) != "secret" {
			t.Errorf("the file outside holds %q, %v", b, err)
		}
	})
}
