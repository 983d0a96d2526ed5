package cache

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestStats(t *testing.T) {
	s := open(t, t.TempDir())
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	at := time.Unix(1_700_000_000, 123_456_789)
	stamp := Stamp{Size: 5, Mtime: at, Ctime: at.Add(1), Ino: 1<<64 - 1, Dev: 7}
	odd := path("new\nline \xff \"quoted\" ☃")
	for _, p := range []string{path("a"), odd} {
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	st := s.Stats(dir)
	if _, ok := st.Get(path("a"), stamp); ok {
		t.Error("Get of nothing finds something")
	}
	for i, p := range []string{path("a"), odd, path("gone")} {
		st.Put(p, stamp, key(string(rune('a'+i))))
	}
	if err := st.Save(); err != nil {
		t.Fatal(err)
	}
	st = s.Stats(dir)
	if d, ok := st.Get(odd, stamp); !ok || d != key("b") {
		t.Errorf("Get(%q) = %q, %v, want %s", odd, d, ok, key("b"))
	}
	tests := []struct {
		name string
		with func(*Stamp)
		want bool
	}{
		{"the same", func(*Stamp) {}, true},
		{"another zone", func(s *Stamp) { s.Mtime = s.Mtime.UTC() }, true},
		{"size", func(s *Stamp) { s.Size++ }, false},
		{"mtime", func(s *Stamp) { s.Mtime = s.Mtime.Add(1) }, false},
		{"ctime", func(s *Stamp) { s.Ctime = s.Ctime.Add(-1) }, false},
		{"inode", func(s *Stamp) { s.Ino-- }, false},
		{"device", func(s *Stamp) { s.Dev++ }, false},
	}
	for _, tt := range tests {
		other := stamp
		tt.with(&other)
		if _, ok := st.Get(path("a"), other); ok != tt.want {
			t.Errorf("Get with another %s = %v, want %v", tt.name, ok, tt.want)
		}
	}
	// What was not asked for stays, unless its file is gone.
	st = s.Stats(dir)
	st.Put(path("b"), stamp, key("d"))
	if err := st.Save(); err != nil {
		t.Fatal(err)
	}
	st = s.Stats(dir)
	for p, want := range map[string]bool{path("a"): true, odd: true, path("b"): true, path("gone"): false} {
		if _, ok := st.Get(p, stamp); ok != want {
			t.Errorf("Get(%q) after another Save = %v, want %v", p, ok, want)
		}
	}
	if _, ok := s.Stats(dir+"/").Get(path("a"), stamp); ok {
		t.Error("another root has the same file")
	}
}

// Saving what is unchanged writes nothing.
func TestStatsUnchanged(t *testing.T) {
	s := open(t, t.TempDir())
	if err := s.Stats("/x").Save(); err != nil {
		t.Fatal(err)
	}
	if exists(filepath.Join(s.dir, "stats")) {
		t.Error("Save of nothing writes a file")
	}
}

// Whatever is not a whole file of this format is no file.
func TestStatsDamaged(t *testing.T) {
	s := open(t, t.TempDir())
	stamp := Stamp{Size: 5, Mtime: time.Unix(1, 0), Ctime: time.Unix(2, 0), Ino: 3, Dev: 4}
	st := s.Stats("/x")
	st.Put("/x/a", stamp, key("a"))
	if err := st.Save(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(st.path)
	if err != nil {
		t.Fatal(err)
	}
	text, err := openRecord(good)
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string][]byte{"empty": nil, "cut": good[:len(good)/2], "no line": sealRecord(nil), "version": sealRecord([]byte("build stats 2"))}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 4
		bad["flipped "+string(rune('0'+i))] = b
	}
	for _, line := range []string{"x", "1 2 3", "1 1 1 1 1 aa /x/a", "? 1 1 1 1 aa \"/x/a\""} {
		bad[line] = sealRecord(append(bytes.Clone(text), "\n"+line...))
	}
	for name, data := range bad {
		if err := os.WriteFile(st.path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if d, ok := s.Stats("/x").Get("/x/a", stamp); ok {
			t.Errorf("%s: Get = %s", name, d)
		}
	}
	// The next save puts it right.
	st = s.Stats("/x")
	st.Put("/x/b", stamp, key("b"))
	if err := st.Save(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(st.path); err != nil || !strings.HasPrefix(string(b), statsFormat) {
		t.Errorf("after Save the file is %q, %v", b, err)
	}
}

func FuzzStats(f *testing.F) {
	f.Add([]byte(statsFormat + "\n5 1 2 3 4 aa \"/x\""))
	f.Add([]byte(statsFormat))
	f.Fuzz(func(t *testing.T, text []byte) {
		parseStats(text)
		for p, e := range parseStats(sealRecord(bytes.Clone(text))) {
			if !e.stamp.equal(e.stamp) {
				t.Errorf("%q has a stamp that is not itself: %+v", p, e.stamp)
			}
		}
	})
}
