package drivertest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
)

// each runs f for each driver, in a store of its own.
func each(t *testing.T, f func(t *testing.T, d driver, again func() driver)) {
	for _, dr := range drivers {
		t.Run(dr.name, func(t *testing.T) {
			if os.Getuid() != 0 {
				t.Skip("mounts, owners and devices need root")
			}
			dir := t.TempDir()
			able(t, dr.name, dir)
			again := func() driver {
				d, err := dr.open(dir)
				if err != nil {
					t.Fatal(err)
				}
				return d
			}
			f(t, again(), again)
		})
	}
}

// tarOf is a tar of names: "d/" a directory, "l>x" a symbolic link, "l=x" a hard
// link, others files that hold their names.
func tarOf(t testing.TB, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		h := tar.Header{Name: n, Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(n)), ModTime: time.Unix(1_500_000_000, 0)}
		if from, to, ok := strings.Cut(n, ">"); ok {
			h.Name, h.Linkname, h.Typeflag, h.Size = from, to, tar.TypeSymlink, 0
		} else if from, to, ok := strings.Cut(n, "="); ok {
			h.Name, h.Linkname, h.Typeflag, h.Size = from, to, tar.TypeLink, 0
		} else if strings.HasSuffix(n, "/") {
			h.Typeflag, h.Size, h.Mode = tar.TypeDir, 0, 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			w.Write([]byte(n))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// apply makes layer id upon chain of a tar.
func apply(t testing.TB, d driver, id string, chain []string, text []byte, alone bool) {
	t.Helper()
	s, err := d.Prepare(t.Context(), id, chain)
	if err != nil {
		t.Fatal(err)
	}
	_, err = layer.Apply(t.Context(), bytes.NewReader(text), s.Tree, layer.ApplyOptions{Complete: !alone})
	if cerr := s.Tree.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = d.Commit(t.Context(), id)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func paths(cs []tree.Change) (out []string) {
	for _, c := range cs {
		if c.Path == "/" {
			continue
		}
		s := c.Path
		switch {
		case c.Removed:
			s = "-" + s
		case c.HardLink != "":
			s += "=" + c.HardLink
		case c.Link != "":
			s += ">" + c.Link
		case c.IsDir():
			s += "/"
		}
		out = append(out, s)
	}
	return out
}

// TestTars applies layers as others make them, alone and upon the chain.
func TestTars(t *testing.T) {
	below := []string{"d/", "d/a", "d/sub/", "d/sub/x", "d/sub/y", "e/", "e/f", "g", "l>d"}
	for i, c := range []struct {
		name string
		in   []string
		want []string
	}{
		{"whiteouts", []string{"d/", "d/.wh.a", ".wh.e"}, []string{"/d/", "/d/sub/", "/d/sub/x", "/d/sub/y", "/g", "/l>d"}},
		{"opaque", []string{"d/", "d/.wh..wh..opq", "d/new"}, []string{"/d/", "/d/new", "/e/", "/e/f", "/g", "/l>d"}},
		{"opaque at the end", []string{"d/", "d/sub/", "d/sub/new", "d/.wh..wh..opq"}, []string{"/d/", "/d/sub/", "/d/sub/new", "/e/", "/e/f", "/g", "/l>d"}},
		{"opaque and whiteouts in it", []string{"d/", "d/.wh.a", "d/.wh..wh..opq", "d/.wh.sub", "d/new"}, []string{"/d/", "/d/new", "/e/", "/e/f", "/g", "/l>d"}},
		{"opaque root", []string{".wh..wh..opq", "new"}, []string{"/new"}},
		{"whiteout, then the same again", []string{".wh.d", "d/", "d/new"}, []string{"/d/", "/d/new", "/e/", "/e/f", "/g", "/l>d"}},
		{"the same, then its whiteout", []string{"d/", "d/sub/", "d/sub/x", ".wh.d"}, []string{"/d/", "/d/sub/", "/d/sub/x", "/e/", "/e/f", "/g", "/l>d"}},
		{"a file for a directory", []string{"d"}, []string{"/d", "/e/", "/e/f", "/g", "/l>d"}},
		{"a directory for a file", []string{"g/", "g/x"}, []string{"/d/", "/d/a", "/d/sub/", "/d/sub/x", "/d/sub/y", "/e/", "/e/f", "/g/", "/g/x", "/l>d"}},
		{"a directory for a symlink", []string{"l/", "l/x"}, []string{"/d/", "/d/a", "/d/sub/", "/d/sub/x", "/d/sub/y", "/e/", "/e/f", "/g", "/l/", "/l/x"}},
		{"hard links", []string{"z", "d/", "d/b=z"}, []string{"/d/", "/d/a", "/d/b", "/d/sub/", "/d/sub/x", "/d/sub/y", "/e/", "/e/f", "/g", "/l>d", "/z=/d/b"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			each(t, func(t *testing.T, d driver, _ func() driver) {
				apply(t, d, "below", nil, tarOf(t, below...), true)
				for _, alone := range []bool{true, false} {
					id, upon := fmt.Sprintf("t%d-%v", i, alone), []string{"below"}
					if alone {
						upon = nil
					}
					apply(t, d, id, upon, tarOf(t, c.in...), alone)
					got := paths(list(t, d, []string{"below", id}))
					if !reflect.DeepEqual(got, c.want) {
						t.Errorf("the tar (alone: %v) makes %q, want %q", alone, got, c.want)
					}
				}
			})
		})
	}
}

// TestShared puts layers into chains that they were not made upon.
func TestShared(t *testing.T) {
	each(t, func(t *testing.T, d driver, _ func() driver) {
		commit(t, d, "a", nil, []op{{Do: "mkdir", Path: "/x", Mode: 0o755}, {Do: "write", Path: "/x/a", Mode: 0o644}, {Do: "write", Path: "/x/z", Mode: 0o644}})
		commit(t, d, "b", []string{"a"}, []op{{Do: "write", Path: "/x/b", Mode: 0o644}, {Do: "remove", Path: "/x/z"}})
		commit(t, d, "c", nil, []op{{Do: "mkdir", Path: "/x", Mode: 0o700}, {Do: "write", Path: "/x/z", Mode: 0o644}})
		for _, c := range []struct {
			chain, want []string
		}{
			{nil, nil},
			{[]string{"a"}, []string{"/x/", "/x/a", "/x/z"}},
			{[]string{"a", "b"}, []string{"/x/", "/x/a", "/x/b"}},
			{[]string{"c", "b"}, []string{"/x/", "/x/b"}},
			{[]string{"b", "c"}, []string{"/x/", "/x/b", "/x/z"}},
			{[]string{"a", "b", "c"}, []string{"/x/", "/x/a", "/x/b", "/x/z"}},
			{[]string{"a", "b", "a"}, []string{"/x/", "/x/a", "/x/b", "/x/z"}},
		} {
			if got := paths(list(t, d, c.chain)); !reflect.DeepEqual(got, c.want) {
				t.Errorf("View(%v) has %q, want %q", c.chain, got, c.want)
			}
		}
	})
}

func TestLongChain(t *testing.T) {
	each(t, func(t *testing.T, d driver, _ func() driver) {
		var chain []string
		for i := range 130 {
			id := fmt.Sprintf("sha256-%064d", i)
			apply(t, d, id, nil, tarOf(t, fmt.Sprintf("f%03d", i)), true)
			chain = append(chain, id)
		}
		if got := paths(list(t, d, chain)); len(got) != 130 {
			t.Errorf("%d files in a chain of 130 layers, want 130", len(got))
		}
		got := commit(t, d, "top", chain, []op{{Do: "remove", Path: "/f000"}, {Do: "write", Path: "/f129", Mode: 0o644}})
		if want := []string{"-/f000", "/f129"}; !reflect.DeepEqual(paths(got), want) {
			t.Errorf("Changes = %q, want %q", paths(got), want)
		}
	})
}

// TestProcesses has two stores in one directory, as two processes have.
func TestProcesses(t *testing.T) {
	each(t, func(t *testing.T, a driver, again func() driver) {
		b := again()
		// Both unpack the same layer.
		prepare := func(d driver, id string) {
			t.Helper()
			s, err := d.Prepare(t.Context(), id, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := layer.Apply(t.Context(), bytes.NewReader(tarOf(t, "f")), s.Tree, layer.ApplyOptions{}); err != nil {
				t.Fatal(err)
			}
			if err := s.Tree.Close(); err != nil {
				t.Fatal(err)
			}
		}
		prepare(a, "sha256-1")
		prepare(b, "sha256-1")
		if _, err := a.Prepare(t.Context(), "sha256-1", nil); !errors.Is(err, fs.ErrExist) {
			t.Errorf("Prepare of what this process has prepared = %v, want ErrExist", err)
		}
		for _, d := range []driver{a, b} {
			if err := d.Commit(t.Context(), "sha256-1"); err != nil {
				t.Errorf("Commit of the same layer by two = %v, want no error", err)
			}
		}
		if got := paths(list(t, b, []string{"sha256-1"})); !reflect.DeepEqual(got, []string{"/f"}) {
			t.Errorf("the layer has %q, want /f", got)
		}
		// One gives up after the other has committed.
		prepare(b, "sha256-2")
		prepare(a, "sha256-2")
		if err := b.Commit(t.Context(), "sha256-2"); err != nil {
			t.Fatal(err)
		}
		if err := a.Remove(t.Context(), "sha256-2"); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(a.Dir("sha256-2")); err != nil {
			t.Errorf("the committed layer was removed with the prepared one: %v", err)
		}
		// A third process commits what the second has prepared and left.
		prepare(b, "left")
		if err := again().Commit(t.Context(), "left"); err != nil {
			t.Errorf("Commit of another process's layer = %v", err)
		}
	})
}

// TestKilled leaves a prepared layer behind as a killed process does.
func TestKilled(t *testing.T) {
	each(t, func(t *testing.T, d driver, again func() driver) {
		apply(t, d, "below", nil, tarOf(t, "d/", "d/f"), true)
		work := filepath.Join(filepath.Dir(filepath.Dir(d.Dir("x"))), "work", "x")
		if err := os.MkdirAll(work+"/upper/half", 0o700); err != nil {
			t.Fatal(err)
		}
		got := commit(t, d, "x", []string{"below"}, []op{{Do: "write", Path: "/new", Mode: 0o644}})
		if want := []string{"/new"}; !reflect.DeepEqual(paths(got), want) {
			t.Errorf("Changes after another process was killed = %q, want %q", paths(got), want)
		}
		if err := os.MkdirAll(work+"/upper/half", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := again().Remove(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{work, d.Dir("x")} {
			if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after Remove %s is there: %v", p, err)
			}
		}
		if err := d.Remove(t.Context(), "x"); err != nil {
			t.Errorf("Remove of what is not there = %v, want no error", err)
		}
		if _, err := d.View(t.Context(), []string{"below", "x"}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("View of a removed layer = %v, want ErrNotExist", err)
		}
		if _, err := d.Prepare(t.Context(), "y", []string{"x"}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Prepare upon a removed layer = %v, want ErrNotExist", err)
		}
		if err := d.Commit(t.Context(), "y"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Commit of what is not prepared = %v, want ErrNotExist", err)
		}
		for _, id := range []string{"", "..", "a/b", "a.b", "a~b", "ä"} {
			if s, err := d.Prepare(t.Context(), id, nil); err == nil {
				s.Tree.Close()
				t.Errorf("Prepare(%q) = nil error, want one", id)
			}
		}
	})
}

// TestRemoveOdd removes layers that resist.
func TestRemoveOdd(t *testing.T) {
	each(t, func(t *testing.T, d driver, _ func() driver) {
		apply(t, d, "odd", nil, tarOf(t, "d/", "d/e/", "d/e/f", "d/i", "d/a"), true)
		dir := d.Dir("odd")
		if err := os.Chmod(dir+"/d/e", 0); err != nil {
			t.Fatal(err)
		}
		for p, flag := range map[string]int{"/d/i": 0x10, "/d": 0x20} { // immutable, append only
			f, err := os.Open(dir + p)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flag); err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP) {
				t.Fatal(err)
			}
			f.Close()
		}
		if err := d.Remove(t.Context(), "odd"); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(filepath.Join(filepath.Dir(filepath.Dir(dir)), "trash")); err != nil || len(left) > 0 {
			t.Errorf("the trash has %v, %v, want nothing", left, err)
		}
	})
}

// onOverlay has the test binary's temporary directory on overlayfs, where
// neither overlayfs can be mounted upon nor whiteouts be made.
const onOverlay = "BUILD_DRIVERTEST_ON_OVERLAY"

func TestPlainOnOverlayfs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	if os.Getenv(onOverlay) != "" {
		t.Skip("is on overlayfs already")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^(TestDrivers|TestTars|TestShared|TestProcesses|TestKilled)$/", "-test.v=false")
	cmd.Env = append(os.Environ(), onOverlay+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
		t.Errorf("the suite on overlayfs: %v\n%s", err, out)
	}
}

// moveToOverlay mounts an overlay in dir and makes it the temporary directory.
func moveToOverlay(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for _, sub := range []string{"lower", "upper", "work", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	drivers = drivers[1:]
	tmp := filepath.Join(dir, "tmp")
	if err := os.Setenv("TMPDIR", tmp); err != nil {
		return err
	}
	return unix.Mount("overlay", tmp, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir))
}

func BenchmarkChanges(b *testing.B) {
	var names []string
	for i := range 100 {
		names = append(names, fmt.Sprintf("d%d/", i))
		for k := range 100 {
			names = append(names, fmt.Sprintf("d%d/f%d", i, k))
		}
	}
	for _, dr := range drivers {
		for _, part := range []string{"all new", "all as they were"} {
			b.Run(dr.name+"/"+part, func(b *testing.B) {
				d := open(b, dr.name)
				apply(b, d, "below", nil, tarOf(b, names...), true)
				chain, ops := []string{"below"}, []op(nil)
				if part == "all new" {
					chain = nil
				}
				s, err := d.Prepare(b.Context(), "top", chain)
				if err != nil {
					b.Fatal(err)
				}
				if chain == nil {
					if _, err := layer.Apply(b.Context(), bytes.NewReader(tarOf(b, names...)), s.Tree, layer.ApplyOptions{}); err != nil {
						b.Fatal(err)
					}
				} else {
					for i := range 100 {
						ops = append(ops, op{Do: "rename", Path: fmt.Sprintf("/d%d", i), To: "/t"}, op{Do: "rename", Path: "/t", To: fmt.Sprintf("/d%d", i)})
					}
				}
				s.Tree.Close()
				inMount(b, task{Root: s.Root, Ops: ops})
				for b.Loop() {
					if _, err := layer.Collect(d.Changes(b.Context(), "top")); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
