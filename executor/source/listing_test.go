package source

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache"
)

// A directory that was listed has of each file what the file system says.
func TestListedEntries(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes devices")
	}
	dir := lay(t, "d/b 12345", "d/empty ", "d/sub/x 1", "d/l -> some/where", "d/l2 -> x", "d/new\nline 1", "d/z 1")
	at := func(name string) string { return filepath.Join(dir, "d", name) }
	for _, err := range []error{
		os.Link(at("b"), at("c")),
		unix.Mkfifo(at("fifo"), 0o640),
		unix.Mknod(at("tty"), unix.S_IFCHR|0o600, int(unix.Mkdev(5, 1))),
		unix.Mknod(at("gone"), unix.S_IFCHR, 0),
		os.Chmod(at("z"), 0o755|os.ModeSetuid),
		// Times that nanoseconds since 1970 in 64 bits do not tell.
		os.Chtimes(at("empty"), time.Unix(1, 0), time.Unix(11_000_000_000, 5)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	c, plain := openContext(t, dir, "", nil), openContext(t, dir, "", nil)
	l, err := c.List("/d")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range l.Len() {
		name := l.Name(i)
		names = append(names, name)
		want, err := plain.Lstat("/d/" + name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Lstat("/d/" + name)
		if err != nil || !reflect.DeepEqual(got, want) || !reflect.DeepEqual(l.Entry(i), want) || l.IsDir(i) != want.IsDir() {
			t.Errorf("Lstat(%q) = %+v, %v, want %+v", name, got, err, want)
		}
	}
	if want := []string{"b", "c", "empty", "fifo", "l", "l2", "new\nline", "sub", "tty", "z"}; !slices.Equal(names, want) {
		t.Errorf("List has %q, want %q", names, want)
	}
	for _, name := range []string{"", "a", "bb", "gone", "zz"} {
		if _, _, ok := c.listed("/d/" + name); ok {
			t.Errorf("%q is found", name)
		}
	}
}

// What was read is told with the stamp that it had, however it was asked for, and
// not what came of an earlier build.
func TestHashed(t *testing.T) {
	dir := lay(t, "a 1", "b 1", "d/x 1", "d/y 1", "e/x 1")
	old := time.Now().Add(-time.Hour)
	time.Sleep(30 * time.Millisecond) // until the files are older than the clock is coarse
	stats := &memory{m: map[string]cache.Hashed{}}
	c := openContext(t, dir, "", stats)
	pin := func(path string) {
		t.Helper()
		if _, err := pinOf(t, c, path); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when string, names ...string) {
		t.Helper()
		stats.m = map[string]cache.Hashed{}
		stats.keep(c)
		for i, n := range names {
			names[i] = filepath.Join(dir, n)
		}
		if got := slices.Sorted(maps.Keys(stats.m)); !slices.Equal(got, names) {
			t.Errorf("%s: Hashed has %q, want %q", when, got, names)
		}
		for p, h := range stats.m {
			var st unix.Stat_t
			if err := unix.Stat(p, &st); err != nil || stampOf(&st) != h.Stamp {
				t.Errorf("%s: the stamp of %s is %+v, want that of the file, %+v, %v", when, p, h.Stamp, stampOf(&st), err)
			}
		}
	}
	want("at first")
	pin("/a")
	want("one file", "a")
	pin("/d")
	want("a directory", "a", "d/x", "d/y")
	c.Refresh()
	want("after Refresh", "a", "d/x", "d/y")
	if err := os.Chtimes(filepath.Join(dir, "d/x"), old, old); err != nil {
		t.Fatal(err)
	}
	if _, err := c.List("/d"); err != nil {
		t.Fatal(err)
	}
	want("read again", "a", "d/y")
	time.Sleep(30 * time.Millisecond)
	pin("/")
	want("everything", "a", "b", "d/x", "d/y", "e/x")
	c = openContext(t, dir, "", stats)
	pin("/")
	want("known before")
}

// BenchmarkContext says how many bytes are held for each file of a context that
// was hashed.
func BenchmarkContext(b *testing.B) {
	const dirs, files = 20, 150
	dir := b.TempDir()
	for d := range dirs {
		sub := filepath.Join(dir, fmt.Sprintf("module%04d", d))
		if err := os.Mkdir(sub, 0o755); err != nil {
			b.Fatal(err)
		}
		for f := range files {
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("component_%06d.ts", f)), []byte("1"), 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	held := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what pools hold goes with the second
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := held()
	var c *Context
	for b.Loop() {
		var err error
		if c, err = OpenContext(dir, nil, nil); err != nil {
			b.Fatal(err)
		}
		if _, err := pinOf(b, c, "/"); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
	after := held()
	b.ReportMetric(float64(after-before)/(dirs*files), "B/file")
	runtime.KeepAlive(c)
}
