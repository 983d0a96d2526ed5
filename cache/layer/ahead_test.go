package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
)

// many makes n files, with their names as content, between other changes.
func many(t *testing.T, n int) ([]tree.Change, string) {
	t.Helper()
	d := t.TempDir()
	var changes []tree.Change
	for i := range n {
		name := fmt.Sprintf("/f%06d", i)
		if err := os.WriteFile(d+name, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		changes = append(changes,
			tree.Change{Entry: tree.Entry{Path: name, Mode: unix.S_IFREG | 0o644, Size: int64(len(name)), Nlink: 1}},
			tree.Change{Entry: tree.Entry{Path: name + ".gone"}, Removed: true},
			tree.Change{Entry: tree.Entry{Path: name + ".link", Mode: unix.S_IFLNK | 0o777, Link: name[1:]}})
	}
	return changes, d
}

func TestWriteManyInOrder(t *testing.T) {
	changes, d := many(t, 4*aheadFiles+1)
	before := openFiles(t)
	var b bytes.Buffer
	if _, err := Write(t.Context(), &b, All(changes), d, Options{}); err != nil {
		t.Fatal(err)
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files are open after Write, %d before", after, before)
	}
	r := tar.NewReader(&b)
	for i, c := range changes {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		want := c.Path[1:]
		if c.Removed {
			want = whiteout + want
		}
		if h.Name != want {
			t.Fatalf("entry %d is %q, want %q", i, h.Name, want)
		}
		if content, err := io.ReadAll(r); err != nil || h.Size > 0 && string(content) != c.Path {
			t.Fatalf("%s has %q, %v", h.Name, content, err)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("after the last entry: %v", err)
	}
}

// failing takes left bytes.
type failing struct{ left int }

var errFull = errors.New("full")

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriteEndsEarly(t *testing.T) {
	changes, d := many(t, 8*aheadFiles)
	broken := errors.New("broken")
	upTo := func(n int) iter.Seq2[tree.Change, error] {
		return func(yield func(tree.Change, error) bool) {
			for _, c := range changes[:n] {
				if !yield(c, nil) {
					return
				}
			}
			yield(tree.Change{}, broken)
		}
	}
	replaced := func(i int, f func(*tree.Change)) iter.Seq2[tree.Change, error] {
		other := append([]tree.Change(nil), changes...)
		f(&other[i])
		return All(other)
	}
	for name, c := range map[string]struct {
		changes iter.Seq2[tree.Change, error]
		room    int
		want    string
	}{
		"the writer fails at once":    {All(changes), 0, "full"},
		"the writer fails later":      {All(changes), 50_000, "full"},
		"the list ends at once":       {upTo(0), 1 << 30, "broken"},
		"the list ends in a batch":    {upTo(100), 1 << 30, "broken"},
		"a file has another size":     {replaced(300, func(c *tree.Change) { c.Size++ }), 1 << 30, "/f000100"},
		"a file is missing":           {replaced(300, func(c *tree.Change) { c.Path = "/none" }), 1 << 30, "/none"},
		"a name that no layer can do": {replaced(300, func(c *tree.Change) { c.Path = "/.wh.x" }), 1 << 30, ".wh."},
	} {
		t.Run(name, func(t *testing.T) {
			before := openFiles(t)
			_, err := Write(t.Context(), &failing{c.room}, c.changes, d, Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Write = %v, want %q", err, c.want)
			}
			if after := openFiles(t); after != before {
				t.Errorf("%d files are open after Write, %d before", after, before)
			}
		})
	}
}
