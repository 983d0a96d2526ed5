package chunked

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
)

func regular(path string, size int64) tree.Change {
	return tree.Change{Entry: tree.Entry{Path: path, Mode: unix.S_IFREG | 0o644, Size: size, ModTime: time.Unix(1, 0)}}
}

func directory(path string) tree.Change {
	return tree.Change{Entry: tree.Entry{Path: path, Mode: unix.S_IFDIR | 0o755, ModTime: time.Unix(1, 0)}}
}

// sample is a list of which all is in order.
func sample() *List {
	link := tree.Change{Entry: tree.Entry{Path: "/d/l", Mode: unix.S_IFLNK | 0o777, Link: "/etc", ModTime: time.Unix(1, 0)}}
	hard := regular("/e", 30)
	hard.HardLink = "/d/f"
	return &List{
		Packs:   [][]Chunk{{{Sum{1}, 10}, {Sum{2}, 20}}, {{Sum{3}, 5}}},
		Entries: []tree.Change{directory("/"), directory("/d"), regular("/d/f", 30), link, regular("/d.x", 105), hard},
		Content: [][]Part{nil, nil, {{First: 0, Count: 2}}, nil, {{Hole: 100}, {First: 2, Count: 1}}, nil},
	}
}

func TestListThereAndBack(t *testing.T) {
	data, err := sample().Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Decode(data)
	if err != nil || l.Size() != 35 || len(l.Entries) != 6 || len(l.Packs) != 2 || l.Content[4][1].First != 2 {
		t.Fatalf("Decode = %+v, %v, want what was encoded", l, err)
	}
	again, err := l.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	equalBytes(t, "the list encoded again", again, data)
}

// Whatever is wrong with a list, it is neither written nor read.
func TestHostileLists(t *testing.T) {
	at := func(i int, f func(*tree.Change)) func(*List) { return func(l *List) { f(&l.Entries[i]) } }
	named := func(p string) func(*List) { return at(4, func(e *tree.Change) { e.Path = p }) }
	tests := map[string]func(*List){
		"nothing":                    func(l *List) { *l = List{} },
		"no root":                    func(l *List) { l.Entries, l.Content = l.Entries[1:], l.Content[1:] },
		"a root that is a file":      at(0, func(e *tree.Change) { e.Mode = unix.S_IFREG }),
		"a second root":              named("/"),
		"up":                         named("/.."),
		"up and down":                named("/d/../../etc/passwd"),
		"here":                       named("/d/."),
		"relative":                   named("d.x"),
		"empty":                      named(""),
		"two slashes":                named("/d//x"),
		"a slash at the end":         named("/dd/"),
		"a NUL":                      named("/d\x00"),
		"a name too long":            named("/d" + strings.Repeat("n", 255)),
		"a path too long":            named(strings.Repeat("/nn", maxPath/3+1)),
		"through a symbolic link":    named("/d/l/passwd"),
		"through a file":             named("/d/f/x"),
		"in a directory not listed":  named("/dx/x"),
		"twice the same":             named("/d/f"),
		"out of order":               named("/a"),
		"before, by components":      named("/d/a"),
		"a device":                   at(2, func(e *tree.Change) { e.Mode = unix.S_IFCHR; e.Size = 0 }),
		"a device number":            at(2, func(e *tree.Change) { e.Major = 1 }),
		"a pipe":                     at(2, func(e *tree.Change) { e.Mode = unix.S_IFIFO; e.Size = 0 }),
		"no type":                    at(2, func(e *tree.Change) { e.Mode = 0o644; e.Size = 0 }),
		"more mode than there is":    at(2, func(e *tree.Change) { e.Mode |= 1 << 16 }),
		"removed":                    at(2, func(e *tree.Change) { *e = tree.Change{Entry: tree.Entry{Path: "/d/f"}, Removed: true} }),
		"opaque":                     at(1, func(e *tree.Change) { e.Opaque = true }),
		"an inode number":            at(2, func(e *tree.Change) { e.Ino = 1 }),
		"a digest":                   at(2, func(e *tree.Change) { e.Digest = "blake3:" }),
		"a directory with a size":    at(1, func(e *tree.Change) { e.Size = 1 }),
		"a negative size":            at(2, func(e *tree.Change) { e.Size = -1 }),
		"a symbolic link to nothing": at(3, func(e *tree.Change) { e.Link = "" }),
		"a target too long":          at(3, func(e *tree.Change) { e.Link = strings.Repeat("x", 4096) }),
		"a target with a NUL":        at(3, func(e *tree.Change) { e.Link = "a\x00b" }),
		"a target of a file":         at(2, func(e *tree.Change) { e.Link = "x" }),
		"an owner out of range":      at(2, func(e *tree.Change) { e.UID = 1<<32 - 1 }),
		"a group out of range":       at(2, func(e *tree.Change) { e.GID = 1 << 32 }),
		"a time out of range":        at(2, func(e *tree.Change) { e.ModTime = time.Unix(1<<41, 0) }),
		"overlayfs's attribute":      at(1, func(e *tree.Change) { e.Xattrs = map[string]string{"trusted.overlay.opaque": "y"} }),
		"an attribute without name":  at(2, func(e *tree.Change) { e.Xattrs = map[string]string{"": "y"} }),
		"an attribute with a NUL":    at(2, func(e *tree.Change) { e.Xattrs = map[string]string{"user.a\x00": "y"} }),
		"attributes too large":       at(2, func(e *tree.Change) { e.Xattrs = map[string]string{"user.a": strings.Repeat("x", maxXattrs)} }),
		"a hard link outside":        at(5, func(e *tree.Change) { e.HardLink = "/../etc/passwd" }),
		"a hard link to a directory": at(5, func(e *tree.Change) { e.HardLink = "/d" }),
		"a hard link to a link":      at(5, func(e *tree.Change) { e.HardLink = "/d/l" }),
		"a hard link to itself":      at(5, func(e *tree.Change) { e.HardLink = "/e" }),
		"a directory as hard link":   at(1, func(e *tree.Change) { e.HardLink = "/d/f" }),
		"too little content":         func(l *List) { l.Content[2][0].Count = 1 },
		"too much content":           func(l *List) { l.Content[2][0].Count = 3 },
		"no content":                 func(l *List) { l.Content[2] = nil },
		"chunks that are not there":  func(l *List) { l.Content[2][0].First = 2 },
		"chunks before the first":    func(l *List) { l.Content[2][0].First = -1 },
		"a negative count":           func(l *List) { l.Content[2][0].Count = -1 },
		"a hole of nothing":          func(l *List) { l.Content[4][0].Hole = 0 },
		"a hole of less":             func(l *List) { l.Content[4][0].Hole = -100 },
		"a hole too large":           func(l *List) { l.Content[4][0].Hole = maxFile + 1; l.Entries[4].Size = maxFile + 6 },
		"holes too large together": func(l *List) {
			l.Content[4] = []Part{{Hole: maxFile}, {Hole: maxFile}}
			l.Entries[4].Size = 2 * maxFile
		},
		"an empty chunk":           func(l *List) { l.Packs[1][0].Size = 0 },
		"a chunk too large":        func(l *List) { l.Packs[1][0].Size = maxChunk + 1 },
		"a pack too large":         func(l *List) { l.Packs[1] = many(maxPack/maxChunk + 1) },
		"too many packs":           func(l *List) { l.Packs = append(l.Packs, make([][]Chunk, MaxPacks)...) },
		"too many chunks in files": func(l *List) { bomb(l) },
		"content that nobody has":  func(l *List) { l.Content = append(l.Content, []Part{{Hole: 1}}) },
	}
	for name, spoil := range tests {
		l := sample()
		spoil(l)
		if _, err := l.Encode(nil); err == nil {
			t.Errorf("%s: it is written", name)
		}
	}
}

func many(n int) []Chunk {
	out := make([]Chunk, n)
	for i := range out {
		out[i] = Chunk{Size: maxChunk}
	}
	return out
}

// bomb is a little file that comes to much.
func bomb(l *List) {
	var parts []Part
	for range maxRefs/2 + 1 {
		parts = append(parts, Part{First: 0, Count: 2})
	}
	l.Content[2] = parts
	l.Entries[2].Size = int64(len(parts)) * 30
}

// What check refuses in a value that was written here, Decode refuses in bytes:
// the same function holds both. These are bytes that are no value at all.
func TestHostileBytes(t *testing.T) {
	data, err := sample().Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	z, _ := zstd.NewReader(nil)
	defer z.Close()
	open, err := z.DecodeAll(data, nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range open {
		if _, err := parse(open[:n]); err == nil {
			t.Errorf("a list cut off after %d of %d bytes is taken", n, len(open))
		}
	}
	if _, err := parse(append(bytes.Clone(open), 0)); err == nil {
		t.Error("a list with something after it is taken")
	}
	head := []byte(listMagic)
	huge := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}
	for name, bad := range map[string][]byte{
		"of nothing": nil, "of another version": []byte("build-mount-2\n\x00\x00"),
		"of too many packs": append(head, huge...), "of too many chunks": append(append(head, 1), huge...),
		"of many chunks that are not there": append(append(head, 1), 0xff, 0xff, 0xff, 1),
		"of entries that are not there":     append(append(head, 0), huge...),
	} {
		if _, err := parse(bad); err == nil {
			t.Errorf("a list %s is taken", name)
		}
	}
	w, _ := zstd.NewWriter(nil)
	defer w.Close()
	for name, bad := range map[string][]byte{
		"that is not compressed": open, "that is cut off": data[:len(data)-5], "that is a bomb": bytes.Repeat(w.EncodeAll(make([]byte, 1<<20), nil), maxOpen>>20+1),
	} {
		if _, err := Decode(bad); err == nil {
			t.Errorf("a list %s is taken", name)
		}
	}
}

// A directory that is restored has nothing in it yet, or it is not written to.
func TestRestoreOverwritesNothing(t *testing.T) {
	from := t.TempDir()
	write(t, from+"/a", []byte("new"))
	p := pack(t, from, nil)
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	write(t, outside, []byte("old"))
	for name, prepare := range map[string]func() error{
		"a file":          func() error { return os.WriteFile(dir+"/a", []byte("old"), 0o600) },
		"a symbolic link": func() error { return os.Symlink(outside, dir+"/a") },
	} {
		if err := prepare(); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Restore(t.Context(), dir, RestoreOptions{Open: p.open}); err == nil {
			t.Errorf("%s is restored over", name)
		}
		if b := fileOf(t, outside); string(b) != "old" {
			t.Errorf("%s: what it leads to became %q", name, b)
		}
		if err := os.Remove(dir + "/a"); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	data, err := sample().Encode(nil)
	if err != nil {
		f.Fatal(err)
	}
	z, _ := zstd.NewReader(nil)
	defer z.Close()
	open, err := z.DecodeAll(data, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(open)
	f.Add([]byte(listMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := parse(data)
		if err != nil || l.check() != nil {
			return
		}
		again, err := l.Encode(nil)
		if err != nil {
			t.Fatalf("a list that was taken is not written: %v", err)
		}
		if _, err := Decode(again); err != nil {
			t.Fatalf("a list that was written is not taken: %v", err)
		}
	})
}
