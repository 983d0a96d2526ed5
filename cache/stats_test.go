package cache

import (
	"bytes"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/zeebo/blake3"
)

func TestStats(t *testing.T) {
	s := open(t, t.TempDir())
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	const at = 1_700_000_000_123_456_789
	stamp := Stamp{Size: 5, Mtime: at, Ctime: at + 1, Ino: 1<<64 - 1, Dev: 7}
	odd := path("new\nline \xff \"quoted\" ☃")
	for _, p := range []string{path("a"), odd} {
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	st := s.Stats(dir)
	if _, ok := st.Get(dir+"/", "a", stamp); ok {
		t.Error("Get of nothing finds something")
	}
	var files []Hashed
	for i, p := range []string{path("a"), odd, path("gone")} {
		files = append(files, Hashed{filepath.Base(p), stamp, sumOf(string(rune('a' + i)))})
	}
	save(t, st, dir, files...)
	st = s.Stats(dir)
	if d, ok := st.Get(dir+"/", filepath.Base(odd), stamp); !ok || d != sumOf("b") {
		t.Errorf("Get(%q) = %x, %v, want %x", odd, d, ok, sumOf("b"))
	}
	tests := []struct {
		name string
		with func(*Stamp)
		want bool
	}{
		{"the same", func(*Stamp) {}, true},
		{"size", func(s *Stamp) { s.Size++ }, false},
		{"mtime", func(s *Stamp) { s.Mtime++ }, false},
		{"ctime", func(s *Stamp) { s.Ctime-- }, false},
		{"inode", func(s *Stamp) { s.Ino-- }, false},
		{"device", func(s *Stamp) { s.Dev++ }, false},
	}
	for _, tt := range tests {
		other := stamp
		tt.with(&other)
		if _, ok := st.Get(dir+"/", "a", other); ok != tt.want {
			t.Errorf("Get with another %s = %v, want %v", tt.name, ok, tt.want)
		}
	}
	// What was not asked for stays, unless its file is gone.
	st = s.Stats(dir)
	save(t, st, dir, Hashed{"b", stamp, sumOf("d")})
	st = s.Stats(dir)
	for p, want := range map[string]bool{path("a"): true, odd: true, path("b"): true, path("gone"): false} {
		if _, ok := st.Get(dir+"/", filepath.Base(p), stamp); ok != want {
			t.Errorf("Get(%q) after another Save = %v, want %v", p, ok, want)
		}
	}
	if _, ok := s.Stats(dir+"/").Get(dir+"/", "a", stamp); ok {
		t.Error("another root has the same file")
	}
}

// Saving what is unchanged writes nothing.
func TestStatsUnchanged(t *testing.T) {
	s := open(t, t.TempDir())
	if err := s.Stats("/x").Save(nil); err != nil {
		t.Fatal(err)
	}
	if exists(filepath.Join(s.dir, "stats")) {
		t.Error("Save of nothing writes a file")
	}
}

// Whatever is not a whole file of this format is no file.
func TestStatsDamaged(t *testing.T) {
	s := open(t, t.TempDir())
	stamp := Stamp{Size: 5, Mtime: 1, Ctime: 2, Ino: 3, Dev: 4}
	st := s.Stats("/x")
	save(t, st, "/x", Hashed{"a", stamp, sumOf("a")})
	good, err := os.ReadFile(st.path)
	if err != nil {
		t.Fatal(err)
	}
	text, err := openRecord(good)
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string][]byte{"empty": nil, "cut": good[:len(good)/2], "no line": sealRecord(nil), "version": sealRecord([]byte("build stats 3\n"))}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 4
		bad["flipped "+string(rune('0'+i))] = b
	}
	for n := 1; n < len(text); n++ {
		bad[fmt.Sprintf("the first %d bytes", n)] = sealRecord(bytes.Clone(text[:n]))
	}
	for _, end := range []string{"x", "\x02/x", "\x02/x\x05\x01", "\x02/x\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01a"} {
		bad["with "+end] = sealRecord(append(bytes.Clone(text), end...))
	}
	for name, data := range bad {
		if err := os.WriteFile(st.path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if d, ok := s.Stats("/x").Get("/x/", "a", stamp); ok {
			t.Errorf("%s: Get = %x", name, d)
		}
	}
	// The next save puts it right.
	st = s.Stats("/x")
	save(t, st, "/x", Hashed{"b", stamp, sumOf("b")})
	if b, err := os.ReadFile(st.path); err != nil || !strings.HasPrefix(string(b), statsFormat) {
		t.Errorf("after Save the file is %q, %v", b, err)
	}
}

// Files are found in whatever order they are asked for.
func TestStatsOrder(t *testing.T) {
	s := open(t, t.TempDir())
	names := []string{"b", "d", "f", "h"}
	dir := t.TempDir()
	st := s.Stats(dir)
	var files []Hashed
	for _, n := range names {
		files = append(files, Hashed{n, Stamp{Ino: uint64(n[0])}, sumOf(n)})
	}
	save(t, st, dir, files...)
	for _, order := range []string{"bdfh", "hfdb", "abcdefghi", "ihgfedcba", "hbhb", "bbff", "ccfcg"} {
		st := s.Stats(dir)
		for _, n := range strings.Split(order, "") {
			d, ok := st.Get(dir+"/", n, Stamp{Ino: uint64(n[0])})
			if want := slices.Contains(names, n); ok != want || ok && d != sumOf(n) {
				t.Errorf("Get of %s in %s = %x, %v, want it found: %v", n, order, d, ok, want)
			}
		}
	}
}

// Files of many directories are found, whichever is asked for next, and kept.
func TestStatsManyDirectories(t *testing.T) {
	s := open(t, t.TempDir())
	const files = 500 // more than smallStats bytes
	stampOf := func(d, f int) Stamp { return Stamp{Ino: uint64(d*files + f)} }
	all := map[string]iter.Seq[Hashed]{}
	for d := range 3 * maxLoaded {
		var list []Hashed
		for f := range files {
			list = append(list, Hashed{fmt.Sprint(f), stampOf(d, f), sumOf(fmt.Sprint(d, f))})
		}
		all[fmt.Sprintf("/x/%d/", d)] = slices.Values(list)
	}
	if err := s.Stats("/x").Save(all); err != nil {
		t.Fatal(err)
	}
	found := func(st *Stats) {
		t.Helper()
		for f := range files {
			for d := range 3 * maxLoaded {
				dir, name := fmt.Sprintf("/x/%d/", d), fmt.Sprint(f)
				if sum, ok := st.Get(dir, name, stampOf(d, f)); !ok || sum != sumOf(fmt.Sprint(d, f)) {
					t.Errorf("Get(%s, %s) = %x, %v, want it found", dir, name, sum, ok)
				}
			}
		}
	}
	st := s.Stats("/x")
	found(st)
	save(t, st, "/y", Hashed{Name: "new"})
	st.Close()
	if _, ok := st.Get("/x/1/", "1", stampOf(1, 1)); ok {
		t.Error("Get after Close finds something")
	}
	st = s.Stats("/x")
	defer st.Close()
	found(st)
}

// save saves files of dir.
func save(t *testing.T, st *Stats, dir string, files ...Hashed) {
	t.Helper()
	if err := st.Save(map[string]iter.Seq[Hashed]{dir + "/": slices.Values(files)}); err != nil {
		t.Fatal(err)
	}
}

func sumOf(s string) Sum { return blake3.Sum256([]byte(s)) }

func FuzzStats(f *testing.F) {
	f.Add([]byte(statsFormat))
	f.Add(append([]byte(statsFormat+"\x02/x\x01\x36"), appendStat(nil, "a", stat{stamp: Stamp{Size: 5}})...))
	f.Fuzz(func(t *testing.T, text []byte) {
		for dir, b := range parseStats(text) {
			if !bytes.Equal(b.data, text[b.at:][:b.size]) {
				t.Errorf("%q: its files are said to be elsewhere", dir)
			}
			for at, ok := (statCursor{rest: b.data}), true; ok; {
				var name []byte
				if name, _, at, ok = at.next(); ok {
					b.find(string(name))
				}
			}
			if at := b.cursor; at.index > len(b.data) {
				t.Errorf("%q: the cursor is at %d of %d bytes", dir, at.index, len(b.data))
			}
		}
	})
}
