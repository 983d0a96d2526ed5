package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
)

// manyFiles is files of all kinds of sizes, zeros in some of them.
func manyFiles(n int) []packed {
	r := rand.New(rand.NewPCG(3, 4))
	all := []packed{dir("d")}
	for i := range n {
		size := r.IntN(3000)
		switch {
		case i%100 == 50:
			size = largeFile - 2 + r.IntN(5)
		case i%200 == 99:
			size = 100_000 + r.IntN(1_000_000)
		case i%7 == 0:
			size = 0
		}
		body := make([]byte, size)
		for k := range body {
			if (k/40_000)%2 == 0 || size < 10_000 {
				body[k] = byte(r.IntN(256))
			}
		}
		all = append(all, file(fmt.Sprintf("d/f%d", i), string(body)))
		if i%10 == 9 {
			all = append(all, hardlink(fmt.Sprintf("d/l%d", i), fmt.Sprintf("d/f%d", i)))
		}
		if i%50 == 49 {
			all = append(all, file(fmt.Sprintf("d/f%d", i-20), "again"))
		}
	}
	return all
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// What Apply says of the files is what is there.
func TestApplyManyFiles(t *testing.T) {
	needRoot(t)
	for _, n := range []int{1, 31, 33, 800} {
		before := openFiles(t)
		tr, up := newTree(t, "")
		got, err := Apply(t.Context(), bytes.NewReader(pack(t, manyFiles(n)...)), tr, ApplyOptions{Complete: true})
		if err != nil {
			t.Fatal(err)
		}
		tr.Close()
		raw, err := Collect(Diff(t.Context(), up, nil, DiffOptions{}))
		if err == nil {
			err = Hash(t.Context(), raw, up, 2)
		}
		if err != nil {
			t.Fatal(err)
		}
		if a, b := Digest(got), Digest(raw[1:]); a == "" || a != b {
			t.Errorf("%d files: Apply lists %s, the directory holds %s", n, a, b)
		}
		if err := Intact(bytes.NewReader(sealedList(t, got)), up); err != nil {
			t.Errorf("%d files: %v", n, err)
		}
		if after := openFiles(t); after != before {
			t.Errorf("%d files: %d are open, were %d", n, after, before)
		}
	}
}

// stopping calls stop after n bytes and goes on.
type stopping struct {
	io.Reader
	n    int
	stop func()
}

func (s *stopping) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if s.n -= n; s.n < 0 && s.stop != nil {
		s.stop()
		s.stop = nil
	}
	return n, err
}

func TestApplyStops(t *testing.T) {
	needRoot(t)
	all := pack(t, append(manyFiles(300), file("d/large", strings.Repeat("large", 1<<20)), file("d/last", "x"))...)
	bad := errors.New("bad")
	for _, at := range []int{600, 100_000, 1_000_000, len(all) - 4<<20, len(all) - 1<<20} {
		before := openFiles(t)
		for name, c := range map[string]struct {
			in   func(stop func()) io.Reader
			want error
		}{
			"cut":      {func(func()) io.Reader { return bytes.NewReader(all[:at]) }, io.ErrUnexpectedEOF},
			"error":    {func(func()) io.Reader { return io.MultiReader(bytes.NewReader(all[:at]), errReader{bad}) }, bad},
			"canceled": {func(stop func()) io.Reader { return &stopping{bytes.NewReader(all), at, stop} }, context.Canceled},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			tr, _ := newTree(t, "")
			if _, err := Apply(ctx, c.in(cancel), tr, ApplyOptions{}); !errors.Is(err, c.want) {
				t.Errorf("%s at %d: Apply = %v, want %v", name, at, err, c.want)
			}
			tr.Close()
			cancel()
		}
		if after := openFiles(t); after != before {
			t.Errorf("stopped at %d: %d files are open, were %d", at, after, before)
		}
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// A file that does not go onto the disk is named, and nothing hangs, however
// much is to come.
func TestApplyFullDisk(t *testing.T) {
	needRoot(t)
	for name, in := range map[string][]packed{
		"large": {file("large", strings.Repeat("large", 1<<20)), file("last", "x")},
		"small": manyFiles(700),
	} {
		done := make(chan error)
		go func() { done <- applyFull(t, pack(t, in...)) }()
		err := <-done
		var at *os.PathError
		if !errors.Is(err, unix.ENOSPC) || !errors.As(err, &at) || !strings.HasPrefix(at.Path, "/") {
			t.Errorf("%s: Apply = %v, want the file for which there is no room", name, err)
		}
	}
}

// applyFull applies in to a disk that is too small for it, which no other thread
// sees: the thread ends with the goroutine, and the mount with both.
func applyFull(t *testing.T, in []byte) error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		return err
	}
	up := filepath.Join(dir, "upper")
	if err := os.Mkdir(up, 0o755); err != nil {
		return err
	}
	tr, err := tree.New(up, nil)
	if err != nil {
		return err
	}
	defer tr.Close()
	_, err = Apply(t.Context(), bytes.NewReader(in), tr, ApplyOptions{})
	return err
}

// Owner, mode and time are right whatever a new file has by itself.
func TestApplyUmask(t *testing.T) {
	needRoot(t)
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	at := time.Unix(1_600_000_000, 0)
	var in []packed
	modes := []int64{0o644, 0o600, 0o777, 0o4755, 0o2755, 0o1777, 0o001}
	for i, m := range modes {
		in = append(in, packed{tar.Header{Name: fmt.Sprint(i), Mode: m, Uid: i % 2, Gid: i % 3, ModTime: at}, "body"})
	}
	tr, up := newTree(t, "")
	if _, err := Apply(t.Context(), bytes.NewReader(pack(t, in...)), tr, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	for i := range modes {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(up, fmt.Sprint(i)), &st); err != nil {
			t.Fatal(err)
		}
		if int64(st.Mode&0o7777) != modes[i] || int(st.Uid) != i%2 || int(st.Gid) != i%3 || st.Mtim.Sec != at.Unix() {
			t.Errorf("a file of mode %#o, owner %d:%d, has %#o, %d:%d, time %d", modes[i], i%2, i%3, st.Mode&0o7777, st.Uid, st.Gid, st.Mtim.Sec)
		}
	}
}

// A program is written as any file is, whatever holes it has and however its pieces
// and huge pages meet.
func TestApplyPrograms(t *testing.T) {
	needRoot(t)
	r := rand.New(rand.NewPCG(5, 6))
	for _, size := range []int{hugePage - 1, hugePage, hugePage + 1, 2*hugePage - 70_000, 3*hugePage + 12_345} {
		body := make([]byte, size)
		for i := range body {
			body[i] = byte(r.Uint32())
		}
		copy(body, "\x7fELF")
		for _, hole := range [][2]int{{}, {64 << 10, 128 << 10}, {hugePage - 192<<10, hugePage - 64<<10}, {1 << 20, size &^ (64<<10 - 1)}, {1 << 20, size}} {
			body := bytes.Clone(body)
			clear(body[hole[0]:hole[1]])
			tr, up := newTree(t, "")
			got, err := Apply(t.Context(), bytes.NewReader(pack(t, file("p", string(body)))), tr, ApplyOptions{Complete: true})
			if err != nil {
				t.Fatal(err)
			}
			if want := sumOf(string(body)); len(got) != 1 || got[0].Digest != want {
				t.Errorf("%d bytes, zeros at %v: %v, want one file %s", size, hole, got, want)
			}
			name := filepath.Join(up, "p")
			if there, err := os.ReadFile(name); err != nil || !bytes.Equal(there, body) {
				t.Errorf("%d bytes, zeros at %v: other bytes are there (%v)", size, hole, err)
			}
			var st unix.Stat_t
			if err := unix.Stat(name, &st); err != nil {
				t.Fatal(err)
			}
			if zeros := hole[1] - hole[0]; zeros > 0 && st.Blocks*512 > int64(size-zeros/2) {
				t.Errorf("%d bytes, zeros at %v: they take %d on disk", size, hole, st.Blocks*512)
			}
		}
	}
}
