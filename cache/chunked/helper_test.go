package chunked

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// noise is n bytes that do not compress, the same for a seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// packed is a directory in packs.
type packed struct {
	*List
	data    []byte // the list's bytes
	files   []string
	sent    int // bytes of chunks
	read    int // chunks that were read from files
	omitted []Omission
}

// pack puts dir into packs, alone with it.
func pack(t testing.TB, dir string, m *Memory) packed {
	t.Helper()
	return packWith(t, dir, ReadOptions{Alone: true, Memory: m})
}

func packWith(t testing.TB, dir string, o ReadOptions) packed {
	t.Helper()
	s, err := Scan(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var out packed
	var packs [][]Chunk
	p := NewPacker(t.TempDir(), nil, func(p Pack) {
		packs = append(packs, p.Chunks)
		out.files = append(out.files, p.File)
	})
	have := map[Sum]bool{}
	asked := o.Has
	o.Has = func(s Sum) bool { out.read++; return have[s] || asked != nil && asked(s) }
	if o.Limit == 0 {
		o.Limit = 1 << 40
	}
	err = s.Read(t.Context(), o, func(c Chunk, data []byte) error {
		have[c.Sum] = true
		out.sent += len(data)
		return p.Add(c, data)
	})
	if err == nil {
		err = p.Finish()
	}
	if err != nil {
		t.Fatal(err)
	}
	out.omitted, _ = s.Left()
	if asked == nil {
		l, err := s.List(packs)
		if err == nil {
			out.data, err = l.Encode(nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		if out.List, err = Decode(out.data); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func (p packed) open(_ context.Context, i int) (io.ReadCloser, error) { return os.Open(p.files[i]) }

func (p packed) restore(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := p.Restore(t.Context(), dir, RestoreOptions{Open: p.open, Parallel: 2}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tell describes a directory, all that is to be kept of it, apart from the code
// that keeps it. Inodes are told by the first path that has them.
func tell(t testing.TB, dir string) string {
	t.Helper()
	var out strings.Builder
	first := map[uint64]string{}
	var walk func(dir *os.Root, p string)
	walk = func(dir *os.Root, p string) {
		entries, err := fs.ReadDir(dir.FS(), ".")
		if err != nil {
			t.Fatal(err)
		}
		d, err := dir.Open(".")
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		names := []string{}
		if p == "" {
			names = append(names, ".")
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		for _, name := range names {
			full := p + "/" + name
			var st unix.Stat_t
			if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&out, "%q %o %d:%d %d.%09d", full, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
			at := fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name)
			list := make([]byte, 4096)
			n, _ := unix.Llistxattr(at, list)
			for k := range strings.SplitSeq(string(list[:max(n, 0)]), "\x00") {
				if k == "" || strings.HasPrefix(k, "security.") && k != "security.capability" {
					continue
				}
				v := make([]byte, 4096)
				n, err := unix.Lgetxattr(at, k, v)
				fmt.Fprintf(&out, " %s=%q,%v", k, v[:max(n, 0)], err)
			}
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFLNK:
				to, err := dir.Readlink(name)
				fmt.Fprintf(&out, " -> %q %v", to, err)
			case unix.S_IFREG:
				b, err := dir.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&out, " %d bytes %x", len(b), sumOf(b))
			}
			if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
				if first[st.Ino] == "" {
					first[st.Ino] = full
				}
				fmt.Fprintf(&out, " is %q", first[st.Ino])
			}
			out.WriteString("\n")
			if st.Mode&unix.S_IFMT == unix.S_IFDIR && name != "." {
				sub, err := dir.OpenRoot(name)
				if err != nil {
					t.Fatal(err)
				}
				walk(sub, full)
				sub.Close()
			}
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	walk(root, "")
	return out.String()
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: owners and trusted attributes")
	}
}

// ignoring the errors of file systems that lack something.
func unlessUnsupported(t testing.TB, err error) bool {
	t.Helper()
	if errors.Is(err, unix.ENOTSUP) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

func equalBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s = %d bytes, %x, want %d bytes, %x", what, len(got), sumOf(got), len(want), sumOf(want))
	}
}
