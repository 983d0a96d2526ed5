package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
)

// Entries are read whole, wherever the parts end in which the list is read.
func TestEntriesInParts(t *testing.T) {
	tests := map[string][]int{ // lengths of paths
		"small":                    {10, 10},
		"ends with a part":         {recordsPart - 30, recordsPart},
		"as long as a part":        {recordsPart, 5, recordsPart},
		"much longer than a part":  {5 * recordsPart, 5, 3 * recordsPart, 7},
		"many, of different sizes": nil,
	}
	for i := range 3000 {
		tests["many, of different sizes"] = append(tests["many, of different sizes"], 7+i%101)
	}
	for name, sizes := range tests {
		var in []tree.Change
		for i, size := range sizes {
			in = append(in, tree.Change{Entry: tree.Entry{
				Path: fmt.Sprintf("/%05d%s", i, strings.Repeat("x", size)), Mode: unix.S_IFREG | 0o644,
				ModTime: time.Unix(int64(i), 5), Ino: uint64(i), Nlink: 1, Digest: sumOf(fmt.Sprint(i)),
			}})
		}
		var b bytes.Buffer
		b.WriteString("before") // it is read from where it stands
		if err := WriteEntries(&b, in); err != nil {
			t.Fatal(err)
		}
		r := bytes.NewReader(b.Bytes())
		if _, err := r.Seek(int64(len("before")), io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if got, err := Collect(ReadEntries(r)); err != nil || !reflect.DeepEqual(got, in) {
			t.Errorf("%s: ReadEntries = %d entries, %v, want the %d that were written", name, len(got), err, len(in))
		}
	}
	f, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Collect(ReadEntries(f)); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("ReadEntries of what cannot be read = %v, want an error of its own", err)
	}
}

// A file's other names have its digest, known or read.
func TestRecorderLinks(t *testing.T) {
	dir := t.TempDir()
	var changes []tree.Change
	for _, first := range []string{"/known", "/read"} {
		if err := os.WriteFile(filepath.Join(dir, first), []byte("of "+first), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{first, first + "-again"} {
			changes = append(changes, tree.Change{Entry: tree.Entry{Path: p, Mode: unix.S_IFREG | 0o644, Size: int64(len("of " + first)), Nlink: 2}})
		}
		changes[len(changes)-1].HardLink = first
	}
	var known tree.Digests
	known.Set("/known", sumOf("known before"))
	record := func(changes []tree.Change) ([]tree.Change, error) {
		var b bytes.Buffer
		r := NewRecorder(t.Context(), &b, dir, 2, &known)
		for _, c := range changes {
			if err := r.Add(c); err != nil {
				return nil, err
			}
		}
		if _, err := r.End(); err != nil {
			return nil, err
		}
		return Collect(ReadEntries(bytes.NewReader(b.Bytes())))
	}
	got, err := record(changes)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"known before", "known before", "of /read", "of /read"} {
		if got[i].Digest != sumOf(want) {
			t.Errorf("the digest of %s is %s, want that of %q", got[i].Path, got[i].Digest, want)
		}
	}
	stray := changes[1]
	stray.HardLink = "/nowhere"
	if _, err := record([]tree.Change{stray}); err == nil || !strings.Contains(err.Error(), "not in the layer") {
		t.Errorf("a hard link to nothing is recorded: %v", err)
	}
}

func TestFirsts(t *testing.T) {
	var f firsts
	paths := []string{"/a", "/d/a", "/d/b", "/d/e/a", "/d/z", "/\xff", "/" + strings.Repeat("d", 300) + "/" + strings.Repeat("n", 200)}
	for i, p := range paths {
		f.set(uint64(i)*uint64(i)<<20, p)
	}
	for i, want := range paths {
		if got := f.get(uint64(i) * uint64(i) << 20); got != want {
			t.Errorf("get of inode %d = %q, want %q", i, got, want)
		}
	}
	if got := f.get(7); got != "" {
		t.Errorf("get of another inode = %q", got)
	}
}
