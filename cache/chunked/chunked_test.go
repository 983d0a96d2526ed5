package chunked

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// odd makes a directory of all that can be in one; what cannot be made here is
// not.
func odd(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	at := func(p string) string { return filepath.Join(dir, p) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write(t, at("small"), []byte("x"))
	write(t, at("empty"), nil)
	write(t, at("large"), noise(1, 3<<20))
	write(t, at("copy of large"), noise(1, 3<<20))
	write(t, at("zeros"), make([]byte, 200_000))
	write(t, at("d/e/f"), noise(2, 5000))
	write(t, at("d.e"), []byte("sorts between d and d/e where names are not taken apart"))
	write(t, at(".wh.not a whiteout"), []byte("1"))
	write(t, at(".wh..wh..opq"), nil)
	write(t, at("new\nline"), []byte("2"))
	write(t, at("not utf-8 \xff\xfe"), []byte("3"))
	write(t, at(strings.Repeat("n", 255)), []byte("4"))
	write(t, at("setuid"), []byte("5"))
	must(os.Mkdir(at("sticky"), 0o777))
	must(os.Mkdir(at("closed"), 0o700))
	write(t, at("closed/inside"), []byte("6"))
	must(os.Link(at("small"), at("d/another name")))
	must(os.Link(at("large"), at("zz")))
	must(os.Symlink("/does/not/exist", at("dangling")))
	must(os.Symlink("../../..", at("d/up")))
	must(os.Link(at("dangling"), at("d/dangling too")))
	sparse, err := os.Create(at("sparse"))
	must(err)
	must(sparse.Truncate(64 << 20))
	_, err = sparse.WriteAt(noise(3, 10_000), 8<<20)
	must(err)
	_, err = sparse.WriteAt([]byte("end"), 64<<20-3)
	must(err)
	must(sparse.Close())
	must(os.Truncate(at("d.e"), 1<<20)) // ends in a hole
	onlyHole, err := os.Create(at("only a hole"))
	must(err)
	must(onlyHole.Truncate(1 << 40))
	must(onlyHole.Close())
	deep(t, dir)
	if os.Getuid() == 0 {
		must(os.Lchown(at("d/e/f"), 12345, 54321))
		must(os.Lchown(at("dangling"), 7, 8))
		must(os.Chown(at("sticky"), 1<<31, 1000))
		must(unix.Setxattr(at("d"), "trusted.x", []byte("1"), 0))
	}
	if unlessUnsupported(t, unix.Setxattr(at("small"), "user.a", []byte("va\x00lue"), 0)) {
		must(unix.Setxattr(at("small"), "user.empty", nil, 0))
	}
	must(unix.Chmod(at("setuid"), 0o6755)) // after chown
	must(unix.Chmod(at("sticky"), 0o1777))
	must(unix.Chmod(at("closed/inside"), 0))
	must(unix.Chmod(at("closed"), 0))
	must(unix.Chmod(dir, 0o2750))
	for p, when := range map[string]time.Time{
		"small": time.Unix(1, 2), "dangling": time.Unix(-5, 999_999_999), "d/e": time.Unix(1e9, 5), ".": time.Unix(3, 4), "large": time.Unix(1<<32, 0),
	} {
		ts, err := unix.TimeToTimespec(when)
		must(err)
		must(unix.UtimesNanoAt(unix.AT_FDCWD, at(p), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
	return dir
}

// deep makes a path that is longer than a system call takes.
func deep(t *testing.T, dir string) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("d", 250)
	for range 20 {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	defer unix.Close(fd)
	f, err := unix.Openat(fd, "file", unix.O_WRONLY|unix.O_CREAT, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(f)
	if _, err := unix.Write(f, noise(9, 9000)); err != nil {
		t.Fatal(err)
	}
}

// hole is where TestThereAndBack has a file too large to be read whole.
const hole = "/only a hole"

func TestThereAndBack(t *testing.T) {
	needRoot(t) // which reads files that nobody may
	dir := odd(t)
	st := func(dir string) unix.Stat_t {
		var st unix.Stat_t
		if err := unix.Stat(dir+hole, &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	before := st(dir)
	p := pack(t, dir, nil)
	if len(p.omitted) > 0 {
		t.Errorf("left out: %v", p.omitted)
	}
	if p.Size() > 9<<20 || p.sent > 4<<20 {
		t.Errorf("%d bytes of content, %d bytes of chunks, want holes not to count and what is there twice to count once", p.Size(), p.sent)
	}
	back := p.restore(t)
	if after := st(back); after.Size != before.Size || after.Blocks > 16 {
		t.Errorf("a file of a hole of %d bytes came back as one of %d bytes in %d blocks", before.Size, after.Size, after.Blocks)
	}
	var sparse unix.Stat_t
	if err := unix.Stat(back+"/sparse", &sparse); err != nil || sparse.Blocks*512 > 1<<20 {
		t.Errorf("a sparse file takes %d bytes, %v, want few", sparse.Blocks*512, err)
	}
	for _, d := range []string{dir, back} {
		// Its directory gets its time back: that is compared too.
		if err := os.Remove(d + hole); err != nil {
			t.Fatal(err)
		}
		ts := unix.Timespec{Sec: 3, Nsec: 4}
		if err := unix.UtimesNano(d, []unix.Timespec{ts, ts}); err != nil {
			t.Fatal(err)
		}
	}
	want, got := tell(t, dir), tell(t, back)
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			t.Errorf("came back as\n%.300s, want\n%.300s", g[i], w[i])
		}
	}
	if len(w) != len(g) {
		t.Errorf("%d files came back, want %d", len(g), len(w))
	}
	again := pack(t, back, nil)
	if d, err := Decode(again.data); err != nil || len(d.Entries) != len(p.Entries)-1 {
		t.Errorf("what came back is a list of %d files, %v, want %d", len(d.Entries), err, len(p.Entries)-1)
	}
}

func TestSpecialFilesAreLeftOut(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/file", []byte("1"))
	for name, mode := range map[string]uint32{"pipe": unix.S_IFIFO, "socket": unix.S_IFSOCK} {
		if err := unix.Mknod(filepath.Join(dir, name), mode|0o600, 0); err != nil {
			t.Fatal(err)
		}
	}
	p := pack(t, dir, nil)
	want := []Omission{{"/pipe", "it is a named pipe"}, {"/socket", "it is a socket"}}
	if !slices.Equal(p.omitted, want) {
		t.Errorf("left out: %v, want %v", p.omitted, want)
	}
	if len(p.Entries) != 2 {
		t.Errorf("%d files, want the root and the one file", len(p.Entries))
	}
}

func TestMountsThatAreEmpty(t *testing.T) {
	p := pack(t, t.TempDir(), nil)
	if len(p.Packs) != 0 || p.Size() != 0 {
		t.Errorf("an empty directory has %d packs and %d bytes, want none", len(p.Packs), p.Size())
	}
	if got := strings.Count(tell(t, p.restore(t)), "\n"); got != 1 {
		t.Errorf("%d files came back, want the root", got)
	}
}

// What has not changed is not read again, what has changed is.
func TestMemory(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		write(t, fmt.Sprintf("%s/%d", dir, i), noise(uint64(i), 50_000))
	}
	time.Sleep(2 * grain) // or it is too fresh to be remembered
	m := NewMemory(nil)
	first := pack(t, dir, m)
	has := func(Sum) bool { return true }
	read := func(want int) {
		t.Helper()
		m = NewMemory(m.Bytes())
		// A chunk that is asked about once is remembered; read ones are asked
		// about as well. Of 20 files one has about 1/20 of the chunks.
		opened := 0
		s, err := Scan(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		o := ReadOptions{Alone: true, Memory: m, Has: has, Limit: 1 << 30}
		if err := s.Read(t.Context(), o, nil); err != nil {
			t.Fatal(err)
		}
		for i := range s.files {
			f := &s.files[i]
			if _, known := m.old[f.stamp]; hasContent(&f.Change) && !known {
				opened++
			}
		}
		if opened != want {
			t.Errorf("%d files were read, want %d", opened, want)
		}
	}
	read(0)
	st, err := os.Stat(dir + "/3")
	if err != nil {
		t.Fatal(err)
	}
	// The same size and modification time: the change time tells.
	write(t, dir+"/3", noise(99, 50_000))
	if err := os.Chtimes(dir+"/3", st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * grain)
	read(1)
	read(0)
	equalBytes(t, "/3", fileOf(t, pack(t, dir, m).restore(t)+"/3"), noise(99, 50_000))
	if first.sent != 20*50_000 {
		t.Errorf("%d bytes were packed, want 1000000", first.sent)
	}
	// Chunks that are wanted are read although the file is known.
	if p := pack(t, dir, m); p.sent != 20*50_000 {
		t.Errorf("%d bytes were packed for a place that has nothing, want 1000000", p.sent)
	}
	for _, data := range [][]byte{nil, []byte("x"), m.Bytes()[:100]} {
		if n := len(NewMemory(data).old); n != 0 {
			t.Errorf("NewMemory of %d bytes knows %d files, want none", len(data), n)
		}
	}
}

// A file that was written just now can be written again without its times telling.
func TestSettled(t *testing.T) {
	now := time.Unix(1000, 500_000_000)
	for _, tt := range []struct {
		mtime, ctime time.Duration // before now
		want         bool
	}{
		{0, 0, false}, {time.Hour, time.Millisecond, false}, {time.Millisecond, time.Hour + 1, false}, {time.Hour, grain + 1, true},
		{-time.Hour, time.Hour + 1, false},                                                                                                  // changed in the future
		{time.Hour, 500 * time.Millisecond, false}, {time.Hour, 1500 * time.Millisecond, false}, {time.Hour, 3500 * time.Millisecond, true}, // whole seconds
	} {
		s := stamp{mtime: now.Add(-tt.mtime).UnixNano(), ctime: now.Add(-tt.ctime).UnixNano()}
		if got := s.settled(now); got != tt.want {
			t.Errorf("settled of mtime %v, ctime %v ago = %v, want %v", tt.mtime, tt.ctime, got, tt.want)
		}
	}
}

func fileOf(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRestoredFilesAreRemembered(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a", noise(1, 100_000))
	write(t, dir+"/b", noise(2, 100))
	p := pack(t, dir, nil)
	back := t.TempDir()
	var last int64
	m, err := p.Restore(t.Context(), back, RestoreOptions{Open: p.open, Progress: func(n int64) { last = n }})
	if err != nil {
		t.Fatal(err)
	}
	if last != p.Size() || last != 100_100 {
		t.Errorf("Progress ended at %d, want %d", last, p.Size())
	}
	write(t, back+"/b", noise(3, 100)) // at once: it has another time
	s, err := Scan(t.Context(), back)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	known := NewMemory(m.Bytes()).old
	for i := range s.files {
		f := &s.files[i]
		if _, ok := known[f.stamp]; hasContent(&f.Change) && ok != (f.Path == "/a") {
			t.Errorf("%s is known: %v, want only that which was not changed to be", f.Path, ok)
		}
	}
}

// Somebody writes while the directory is read.
func TestFilesThatChange(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		write(t, dir+"/"+name, noise(uint64(name[0]), 100_000))
	}
	if err := os.Link(dir+"/e", dir+"/x"); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(dir+"/f", dir+"/y"); err != nil {
		t.Fatal(err)
	}
	open, err := os.OpenFile(dir+"/b", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	mapped, err := os.OpenFile(dir+"/g", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	page, err := unix.Mmap(int(mapped.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	mapped.Close()
	time.Sleep(2 * grain)
	s, err := Scan(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	n, times := 0, 0
	reading := false
	have := map[Sum][]byte{}
	rename := func(to string) {
		write(t, dir+"/tmp", noise(77, 100_000))
		if err := os.Rename(dir+"/tmp", dir+"/"+to); err != nil {
			t.Fatal(err)
		}
	}
	err = s.Read(t.Context(), ReadOptions{Memory: NewMemory(nil), Has: func(Sum) bool { return false }, Limit: 1 << 30}, func(c Chunk, data []byte) error {
		have[c.Sum] = slices.Clone(data)
		if n++; n == 1 { // in the middle of /a
			write(t, dir+"/a", noise(50, 90_000)) // once: it is read again
			if err := os.Remove(dir + "/d"); err != nil {
				return err
			}
			rename("e") // whose other name is another file now
			reading = true
		}
		if c.Sum == sumOf(cuts(t, newTestSplitter(t), noise('c', 100_000))[0]) && times < 1 {
			times++
			write(t, dir+"/c", noise('c', 100_000)) // the same again, with another time
		}
		return nil
	})
	if err != nil || !reading {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for i := range s.files {
		f := &s.files[i]
		if f.gone || !hasContent(&f.Change) {
			continue
		}
		got[f.Path] = true
		var b []byte
		for _, p := range f.pieces {
			b = append(b, have[p.sum]...)
		}
		equalBytes(t, f.Path, b, fileOf(t, dir+f.Path))
	}
	for name, want := range map[string]bool{"/a": true, "/b": false, "/c": true, "/d": false, "/e": true, "/f": true, "/g": false} {
		if got[name] != want {
			t.Errorf("%s is there: %v, want %v", name, got[name], want)
		}
	}
	why := map[string]string{}
	left, _ := s.Left()
	for _, o := range left {
		why[o.Path] = o.Why
	}
	if !strings.Contains(why["/b"], "open for writing") || !strings.Contains(why["/g"], "open for writing") || !strings.Contains(why["/x"], "another name of /e") || len(why) != 3 {
		t.Errorf("left out: %v, want /b, /g and /x", why)
	}
}

func TestFileThatNeverStops(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/log", noise(1, 100_000))
	s, err := Scan(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.Read(t.Context(), ReadOptions{Alone: true, Has: func(Sum) bool { return false }, Limit: 1 << 30}, func(Chunk, []byte) error {
		f, err := os.OpenFile(dir+"/log", os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString("more")
		return err
	})
	if left, n := s.Left(); err != nil || n != 1 || left[0] != (Omission{"/log", "it kept changing while it was read"}) || s.Len() != 1 {
		t.Errorf("left out: %v, %v, want the log", left, err)
	}
}

func TestLimit(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a", noise(1, 1000))
	write(t, dir+"/b", noise(1, 1000)) // stored once, and yet restored twice
	for limit, want := range map[int64]error{1999: ErrTooLarge, 2000: nil} {
		s, err := Scan(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		if s.Estimate != 2000 {
			t.Errorf("Estimate = %d, want 2000", s.Estimate)
		}
		err = s.Read(t.Context(), ReadOptions{Alone: true, Has: func(Sum) bool { return true }, Limit: limit}, nil)
		if !errors.Is(err, want) {
			t.Errorf("Read with limit %d = %v, want %v", limit, err, want)
		}
		s.Close()
	}
}

func TestCancelled(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a", noise(1, 100_000))
	p := pack(t, dir, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Scan(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("Scan = %v, want that it was cancelled", err)
	}
	s, err := Scan(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Read(ctx, ReadOptions{Has: func(Sum) bool { return false }}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Read = %v, want that it was cancelled", err)
	}
	if _, err := p.Restore(ctx, t.TempDir(), RestoreOptions{Open: p.open}); !errors.Is(err, context.Canceled) {
		t.Errorf("Restore = %v, want that it was cancelled", err)
	}
}

// Chunks can be had again from the files, if they are still what they were.
func TestAgain(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a", noise(1, 300_000))
	write(t, dir+"/b", noise(2, 300_000))
	s, err := Scan(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Read(t.Context(), ReadOptions{Alone: true, Has: func(Sum) bool { return true }, Limit: 1 << 30}, nil); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/b", noise(3, 300_000))
	want := map[Sum]bool{}
	s.Sums(func(c Chunk) { want[c.Sum] = true })
	total := 0
	err = s.Again(t.Context(), func(s Sum) bool { return want[s] }, func(c Chunk, data []byte) error {
		if sumOf(data) != c.Sum {
			t.Error("a chunk is not what its digest says")
		}
		delete(want, c.Sum)
		total += len(data)
		return nil
	})
	if err != nil || total != 300_000 || len(want) == 0 {
		t.Errorf("%d bytes were read again, %v, want those of /a", total, err)
	}
}

func TestPacksAreBounded(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a", noise(1, PackSize+PackSize/2))
	p := pack(t, dir, nil)
	if len(p.Packs) != 2 || len(p.files) != 2 {
		t.Fatalf("%d packs, want 2", len(p.Packs))
	}
	for i, f := range p.files {
		st, err := os.Stat(f)
		if err != nil || st.Size() > maxPack+4096 {
			t.Errorf("pack %d has %d bytes, %v, want at most %d", i, st.Size(), err, maxPack)
		}
	}
	if got := tell(t, p.restore(t)); got != tell(t, dir) {
		t.Errorf("came back as %s", got)
	}
}

// A pack that is not what the list says is not restored.
func TestBadPacks(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a", noise(1, 100_000))
	good := pack(t, dir, nil)
	data := fileOf(t, good.files[0])
	other := pack(t, func() string { d := t.TempDir(); write(t, d+"/a", noise(2, 100_000)); return d }(), nil)
	longer := pack(t, func() string {
		d := t.TempDir()
		write(t, d+"/a", append(noise(1, 100_000), noise(2, 90_000)...))
		return d
	}(), nil)
	for name, bad := range map[string][]byte{
		"empty": nil, "cut off": data[:len(data)/2], "not zstd": []byte("hello, world, this is no pack"),
		"another": fileOf(t, other.files[0]), "longer": fileOf(t, longer.files[0]),
	} {
		good.files[0] = filepath.Join(t.TempDir(), "pack")
		write(t, good.files[0], bad)
		if _, err := good.Restore(t.Context(), t.TempDir(), RestoreOptions{Open: good.open}); err == nil {
			t.Errorf("a pack that is %s is taken", name)
		}
	}
	boom := errors.New("boom")
	open := func(context.Context, int) (io.ReadCloser, error) { return nil, boom }
	if _, err := good.Restore(t.Context(), t.TempDir(), RestoreOptions{Open: open}); !errors.Is(err, boom) {
		t.Errorf("Restore = %v, want the error of Open", err)
	}
}
