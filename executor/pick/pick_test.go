package pick

import (
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/oci"
)

// lay writes lines "name text" below a directory and opens it; text can be
// "-> target" or "= hard link to".
func lay(t testing.TB, lines ...string) (*tree.Tree, string) {
	t.Helper()
	dir := t.TempDir()
	for _, l := range lines {
		name, text, _ := strings.Cut(l, " ")
		p := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		switch {
		case err != nil:
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(p, 0o755)
		case strings.HasPrefix(text, "-> "):
			err = os.Symlink(text[3:], p)
		case strings.HasPrefix(text, "= "):
			err = os.Link(filepath.Join(dir, text[2:]), p)
		default:
			err = os.WriteFile(p, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return open(t, "", dir), dir
}

func open(t testing.TB, upper string, lowers ...string) *tree.Tree {
	t.Helper()
	tr, err := tree.New(upper, lowers)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr
}

func TestMatches(t *testing.T) {
	tr, _ := lay(t, "a.txt 1", "b.txt 2", "c.go 3", "d/a.txt 4", "d/s/a.txt 5", "e/b.txt 6", "l -> d", "bad -> nowhere",
		"up -> ../../../a.txt", "abs -> /d/s", "[x] 7", "f*g 8")
	tests := []struct {
		source string
		wild   bool
		want   string // names, with "/" behind directories and ">real" behind links
		err    error
	}{
		{"/a.txt", true, "/a.txt", nil},
		{"/d", true, "/d/", nil},
		{"/", true, "//", nil},
		{"/l", true, "/l/>/d", nil},
		{"/l/a.txt", true, "/l/a.txt>/d/a.txt", nil},
		{"/abs", false, "/abs/>/d/s", nil},
		{"/up", false, "/up>/a.txt", nil},
		{"/bad", false, "", &NotFoundError{Path: "/bad"}},
		{"/none", true, "", &NotFoundError{Path: "/none"}},
		{"/a.txt/x", true, "", &NotFoundError{Path: "/a.txt/x"}},
		{"/*.txt", true, "/a.txt /b.txt", nil},
		{"/*.txt", false, "", &NotFoundError{Path: "/*.txt"}},
		{"/*/*.txt", true, "/d/a.txt /e/b.txt", nil}, // not through the link
		{"/l/*.txt", true, "/d/a.txt", nil},
		{"/?", true, "/d/ /e/ /l/>/d", nil},
		{"/[ab].txt", true, "/a.txt /b.txt", nil},
		{"/[^a].txt", true, "/b.txt", nil},
		{"/d[/]a.txt", true, "/d/a.txt", nil}, // a class may match a slash
		{"/d[^x]?[^x]a.txt", true, "/d/s/a.txt", nil},
		{"/l/[^x]", true, "/d/s/", nil},
		{"/*[.-0]?[/]a.txt", true, "/d/s/a.txt", nil},
		{"/d[\\]/]a.txt", true, "/d/a.txt", nil},
		{"/*.zip", true, "", nil},
		{"/d/*/none", true, "", nil},
		{"/none/*", true, "", &NotFoundError{Path: "/none"}},
		{"/a.txt/*", true, "", nil},
		{"/f*g", false, "/f*g", nil},
		{"/**/a.txt", true, "/d/a.txt", nil}, // as one "*"
	}
	for _, tt := range tests {
		got, err := Matches(t.Context(), tr, tt.source, tt.wild)
		var missing *NotFoundError
		if want, ok := tt.err.(*NotFoundError); ok {
			if !errors.As(err, &missing) || missing.Path != want.Path {
				t.Errorf("Matches(%q) = %v, want %v", tt.source, err, want)
			}
			continue
		}
		if err != nil {
			t.Errorf("Matches(%q) = %v", tt.source, err)
			continue
		}
		var names []string
		for _, m := range got {
			n := m.Name
			if m.Dir {
				n += "/"
			}
			if m.Real != m.Name {
				n += ">" + m.Real
			}
			names = append(names, n)
		}
		if s := strings.Join(names, " "); s != tt.want {
			t.Errorf("Matches(%q, %v) = %q, want %q", tt.source, tt.wild, s, tt.want)
		}
	}
	if _, err := Matches(t.Context(), tr, "/[", true); err == nil {
		t.Error("a bad pattern is no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Matches(ctx, tr, "/*", true); !errors.Is(err, context.Canceled) {
		t.Errorf("Matches of a build that was stopped = %v", err)
	}
}

// walked is what s takes: "match: rel …"; a leading directory is in brackets, a
// hard link is "rel=first".
func walked(t testing.TB, tr Tree, s Selection) (string, error) {
	t.Helper()
	var out []string
	sources, err := s.Prepare()
	if err != nil {
		return "", err
	}
	for _, src := range sources {
		matches, err := src.Find(t.Context(), tr, s.Wildcards)
		if err != nil {
			return "", err
		}
		for _, m := range matches {
			err := Walk(t.Context(), tr, m, src.Filter, func(it Item) error {
				rel := it.Rel
				if rel == "" {
					rel = "."
				}
				if it.Linked {
					rel += "=" + it.HardLink
				}
				if it.Leading {
					rel = "[" + rel + "]"
				}
				out = append(out, rel)
				return nil
			})
			if err != nil {
				return "", err
			}
		}
	}
	return strings.Join(out, " "), nil
}

func TestWalk(t *testing.T) {
	tr, _ := lay(t, "a 1", "d/a 2", "d/b 3", "d/s/a 4", "d/s/b 5", "e/x/y/a 6", "e/x/b 7", "h1 8", "h2 = h1", "hd/h3 = h1", "empty/")
	tests := []struct {
		name string
		s    Selection
		want string
		err  string
	}{
		{"all", Selection{Sources: []string{"/d"}}, ". a b s s/a s/b", ""},
		{"a file", Selection{Sources: []string{"/a"}}, ".", ""},
		{"two", Selection{Sources: []string{"/a", "/d/s"}}, ". . a b", ""},
		{"an empty directory", Selection{Sources: []string{"/empty"}}, ".", ""},
		{"excluded", Selection{Sources: []string{"/d"}, Excludes: []string{"s"}}, ". a b", ""},
		{"excluded deep", Selection{Sources: []string{"/d"}, Excludes: []string{"**/a"}}, ". b s s/b", ""},
		{"but not one", Selection{Sources: []string{"/d"}, Excludes: []string{"s", "!s/b"}}, ". a b [s] s/b", ""},
		{"all but one", Selection{Sources: []string{"/d"}, Excludes: []string{"*", "!s/b"}}, ". [s] s/b", ""},
		{"excludes do not reach the match itself", Selection{Sources: []string{"/d/a"}, Excludes: []string{"a"}}, ".", ""},
		{"hard links", Selection{Sources: []string{"/"}, Excludes: []string{"a", "d", "e", "empty"}}, ". h1 h2=h1 hd hd/h3=h1", ""},
		{"links start anew for each match", Selection{Sources: []string{"/h1", "/hd"}}, ". . h3", ""},
		{"parents", Selection{Sources: []string{"/d/s/a"}, Parents: true, Wildcards: true}, ". [d] [d/s] d/s/a", ""},
		{"parents of a directory", Selection{Sources: []string{"/d/s"}, Parents: true, Wildcards: true}, ". [d] d/s d/s/a d/s/b", ""},
		{"parents with a pivot", Selection{Sources: []string{"/d/./s/a"}, Parents: true, Wildcards: true}, ". [s] s/a", ""},
		{"parents with wildcards", Selection{Sources: []string{"/e/*/b"}, Parents: true, Wildcards: true}, ". [e] [e/x] e/x/b", ""},
		{"parents at any depth", Selection{Sources: []string{"/e/./**/a"}, Parents: true, Wildcards: true}, ". [x] [x/y] x/y/a", ""},
		{"parents that match nothing", Selection{Sources: []string{"/e/./**/z"}, Parents: true, Wildcards: true}, ".", ""},
		{"parents of what is not there", Selection{Sources: []string{"/d/./z"}, Parents: true, Wildcards: true}, "", `"/d/z": not found`},
		{"parents and excludes", Selection{Sources: []string{"/./d"}, Parents: true, Wildcards: true, Excludes: []string{"d/s"}}, ". d d/a d/b", ""},
		{"nothing after the pivot", Selection{Sources: []string{"/d/./"}, Parents: true, Wildcards: true}, "", "nothing follows"},
		{"a bad exclude", Selection{Sources: []string{"/d"}, Excludes: []string{"["}}, "", "--exclude"},
	}
	for _, tt := range tests {
		got, err := walked(t, tr, tt.s)
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
			continue
		}
		if got != tt.want {
			t.Errorf("%s: Walk takes %q, want %q", tt.name, got, tt.want)
		}
	}
}

// What COPY --parents names has to be taken.
func TestRequired(t *testing.T) {
	tr, _ := lay(t, "f 1", "d/x 2", "d/lx -> x", "d/dangling -> nowhere", "d/e/z 3", "d/s/x 4", "ld -> d", "dangling -> nowhere", "lf -> d/x")
	tests := []struct {
		source   string
		excludes []string
		want     string // what is taken, or the error
	}{
		{"/", nil, `"/": not found: --parents takes no whole tree; "*" is all that is in it`},
		{"/./", nil, `"/": not found: --parents takes no whole tree; "*" is all that is in it`},
		{"/d/e", nil, ". [d] d/e d/e/z"},
		{"/d/e", []string{"**/z"}, ". [d] d/e"},
		{"/d/e", []string{"d/e"}, `"/d/e": not found: --exclude leaves nothing of it`},
		{"/d/e", []string{"d"}, `"/d/e": not found: --exclude leaves nothing of it`},
		{"/d/e", []string{"d/e", "!d/e/z"}, ". [d] [d/e] d/e/z"},
		{"/d/e", []string{"d/e", "!d/e/none"}, `"/d/e": not found: --exclude leaves nothing of it`},
		{"/d/e/z", []string{"**/z"}, `"/d/e/z": not found: --exclude leaves nothing of it`},
		{"/d/./x", []string{"x"}, `"/d/x": not found: --exclude leaves nothing of it`},
		{"/f/x", nil, `"/f/x": not found`},
		{"/f/./x", nil, `"/f/x": not found`},
		{"/ld", nil, ". ld"},
		{"/ld/x", nil, `"/ld/x": not found: /ld is a symbolic link, which --parents does not follow`},
		{"/ld/./x", nil, `"/ld/x": not found: /ld is a symbolic link, which --parents does not follow`},
		{"/ld/s/./x", nil, ". x"},
		{"/lf", nil, ". lf"},
		{"/dangling", nil, `"/dangling": not found`},
		{"/d/lx", nil, ". [d] d/lx"},
		{"/d/dangling", nil, ". [d] d/dangling"},
		{"/d/./dangling", nil, ". dangling"},
		{"/d/e/none", nil, `"/d/e/none": not found`},
		{"/d/e/n*", nil, "."}, // a pattern may match nothing
	}
	for _, tt := range tests {
		got, err := walked(t, tr, Selection{Sources: []string{tt.source}, Excludes: tt.excludes, Parents: true, Wildcards: true})
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s without %q: %s, want %s", tt.source, tt.excludes, got, tt.want)
		}
	}
}

// content hashes files of tr.
func content(tr *tree.Tree) func(context.Context, tree.Entry) (oci.Digest, error) {
	return func(_ context.Context, e tree.Entry) (oci.Digest, error) {
		f, err := tr.Open(e.Path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		b := make([]byte, 1000)
		n, _ := f.Read(b)
		sum := blake3.Sum256(b[:n])
		return oci.Digest("blake3:" + hex.EncodeToString(sum[:])), nil
	}
}

func digestOf(t testing.TB, tr *tree.Tree, s Selection) oci.Digest {
	t.Helper()
	d, err := Digest(t.Context(), tr, s, content(tr))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDigestSensitivity(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: gives files away")
	}
	all := Selection{Sources: []string{"/d"}}
	owners := Selection{Sources: []string{"/d"}, Owners: true}
	mount := Selection{Sources: []string{"/d"}, Owners: true, Xattrs: true}
	file := Selection{Sources: []string{"/d/a"}}
	tests := []struct {
		name   string
		s      Selection
		change func(dir string) error
		want   bool // another digest
	}{
		{"nothing", all, func(string) error { return nil }, false},
		{"content", all, func(d string) error { return os.WriteFile(d+"/d/a", []byte("2"), 0o644) }, true},
		{"mode", all, func(d string) error { return os.Chmod(d+"/d/a", 0o600) }, true},
		{"setuid", all, func(d string) error { return os.Chmod(d+"/d/a", 0o644|os.ModeSetuid) }, true},
		{"mode of a directory", all, func(d string) error { return os.Chmod(d+"/d/s", 0o700) }, true},
		{"mode of the match", all, func(d string) error { return os.Chmod(d+"/d", 0o700) }, true},
		{"mtime", all, func(d string) error { return os.Chtimes(d+"/d/a", time.Unix(1, 0), time.Unix(1, 0)) }, false},
		{"name", all, func(d string) error { return os.Rename(d+"/d/a", d+"/d/b") }, true},
		{"one more", all, func(d string) error { return os.WriteFile(d+"/d/b", nil, 0o644) }, true},
		{"moved", all, func(d string) error { return os.Rename(d+"/d/a", d+"/d/s/a") }, true},
		{"a file for a directory", all, func(d string) error {
			return errors.Join(os.Remove(d+"/d/s"), os.WriteFile(d+"/d/s", nil, 0o755))
		}, true},
		{"link target", all, func(d string) error { return errors.Join(os.Remove(d+"/d/l"), os.Symlink("b", d+"/d/l")) }, true},
		{"a hard link for a copy", all, func(d string) error {
			return errors.Join(os.Remove(d+"/d/c"), os.Link(d+"/d/a", d+"/d/c"))
		}, true},
		{"a link from outside", all, func(d string) error { return os.Link(d+"/d/a", d+"/other2") }, false},
		{"owner, of a context", all, func(d string) error { return os.Chown(d+"/d/a", 5, 0) }, false},
		{"owner, of a stage", owners, func(d string) error { return os.Chown(d+"/d/a", 5, 0) }, true},
		{"group, of a stage", owners, func(d string) error { return os.Chown(d+"/d/s", 0, 5) }, true},
		{"capability", all, func(d string) error {
			return unix.Setxattr(d+"/d/a", "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0)
		}, true},
		{"xattr, of a copy", owners, func(d string) error { return unix.Setxattr(d+"/d/a", "user.x", []byte("y"), 0) }, false},
		{"xattr, of a mount", mount, func(d string) error { return unix.Setxattr(d+"/d/a", "user.x", []byte("y"), 0) }, true},
		{"what is not selected", all, func(d string) error { return os.WriteFile(d+"/other", []byte("z"), 0o644) }, false},
		{"a selected file", file, func(d string) error { return os.WriteFile(d+"/d/a", []byte("2"), 0o644) }, true},
		{"another one beside it", file, func(d string) error { return os.WriteFile(d+"/d/b", []byte("2"), 0o644) }, false},
		{"a device", all, func(d string) error { return unix.Mknod(d+"/d/null", unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3))) }, true},
	}
	for _, tt := range tests {
		tr, dir := lay(t, "d/a 1", "d/s/", "d/l -> a", "d/c 1", "other 1")
		was := digestOf(t, tr, tt.s)
		if err := tt.change(dir); err != nil {
			t.Fatal(err)
		}
		if got := digestOf(t, open(t, "", dir), tt.s); (got != was) != tt.want {
			t.Errorf("%s changed: digest %s after %s, want another: %v", tt.name, got, was, tt.want)
		}
	}
	// The number of a device counts.
	seen := map[oci.Digest]bool{}
	for minor := range uint32(2) {
		tr, dir := lay(t, "d/")
		if err := unix.Mknod(dir+"/d/x", unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3+minor))); err != nil {
			t.Fatal(err)
		}
		seen[digestOf(t, tr, all)] = true
	}
	if len(seen) != 2 {
		t.Error("another device has the same digest")
	}
}

// What lies in one directory and what lies in a stack of layers is the same if
// it reads the same; a stage's files hit where a context's were.
func TestDigestOfATreeIsOfWhatItHolds(t *testing.T) {
	_, low := lay(t, "d/a 1", "d/b 2", "d/s/x 3")
	_, high := lay(t, "d/b 22", "d/z 4")
	if err := os.Remove(filepath.Join(low, "d/a")); err != nil {
		t.Fatal(err)
	}
	flat, _ := lay(t, "d/b 22", "d/s/x 3", "d/z 4")
	stack := open(t, "", high, low)
	for _, s := range []Selection{
		{Sources: []string{"/d"}}, {Sources: []string{"/"}, Owners: true}, {Sources: []string{"/d/?"}, Wildcards: true},
	} {
		if a, b := digestOf(t, stack, s), digestOf(t, flat, s); a != b {
			t.Errorf("%+v: digests %s of layers and %s of a directory", s, a, b)
		}
	}
}

// Each of these says something else to a COPY.
func TestDigestTellsSelectionsApart(t *testing.T) {
	tr, _ := lay(t, "a 1", "b 1", "d/a 1", "e/a 1", "e/b 1")
	seen := map[oci.Digest]int{}
	for i, s := range []Selection{
		{Sources: []string{"/a"}},
		{Sources: []string{"/b"}}, // another name
		{Sources: []string{"/a", "/b"}},
		{Sources: []string{"/b", "/a"}},
		{Sources: []string{"/d"}}, // a directory of the same file
		{Sources: []string{"/e"}},
		{Sources: []string{"/?"}, Wildcards: true},
		{Sources: []string{"/*.none"}, Wildcards: true},
		{Sources: []string{"/d/a"}, Parents: true},
	} {
		d := digestOf(t, tr, s)
		if was, ok := seen[d]; ok {
			t.Errorf("selections %d and %d have the same digest", was, i)
		}
		seen[d] = i
	}
	if a, b := digestOf(t, tr, Selection{Sources: []string{"/a"}}), digestOf(t, tr, Selection{Sources: []string{"/d/a"}}); a != b {
		t.Error("the directory that a file comes from counts, though it is not copied")
	}
}

// A Hasher that is fed while copying comes to the digest of the selection.
func TestHasher(t *testing.T) {
	tr, _ := lay(t, "d/a 1", "d/b = d/a", "d/s/", "d/l -> a", "x 1")
	s := Selection{Sources: []string{"/d", "/x", "/*.none"}, Wildcards: true, Excludes: []string{"s"}}
	var listed []string
	withList := s
	withList.List = func(e *tree.Entry, _ Sum) { listed = append(listed, e.Path) }
	want := digestOf(t, tr, withList)
	if want != digestOf(t, tr, s) {
		t.Error("a List makes another digest")
	}
	if w := []string{"/d", "/d/a", "/d/b", "/d/l", "/x"}; !slices.Equal(listed, w) {
		t.Errorf("listed %q, want %q", listed, w)
	}
	h := NewHasher(false)
	sources, err := s.Prepare()
	if err != nil {
		t.Fatal(err)
	}
	for _, src := range sources {
		ms, err := src.Find(t.Context(), tr, true)
		if err != nil {
			t.Fatal(err)
		}
		h.Source(len(ms))
		for _, m := range ms {
			h.Begin(m)
			err := Walk(t.Context(), tr, m, src.Filter, func(it Item) error {
				var d oci.Digest
				if it.Entry.Type() == unix.S_IFREG && !it.Linked {
					d, _ = content(tr)(t.Context(), it.Entry)
				}
				h.Item(it, d)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			h.End()
		}
	}
	if got := h.Sum(); got != want {
		t.Errorf("Sum() = %s, want %s", got, want)
	}
}

func TestDigestFails(t *testing.T) {
	tr, _ := lay(t, "a 1")
	bad := errors.New("unreadable")
	_, err := Digest(t.Context(), tr, Selection{Sources: []string{"/a"}}, func(context.Context, tree.Entry) (oci.Digest, error) { return "", bad })
	if !errors.Is(err, bad) {
		t.Errorf("Digest = %v, want the error of content", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Digest(ctx, tr, Selection{Sources: []string{"/a"}}, content(tr)); !errors.Is(err, context.Canceled) {
		t.Errorf("Digest of a build that was stopped = %v", err)
	}
}
