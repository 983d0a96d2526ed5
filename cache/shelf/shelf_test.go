package shelf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func newShelf(t *testing.T) *Shelf {
	t.Helper()
	s, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func begin(t *testing.T, s *Shelf, id string) string {
	t.Helper()
	dir, err := s.Begin(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "made", "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestPut(t *testing.T) {
	a := newShelf(t)
	b, err := New(a.dir)
	if err != nil {
		t.Fatal(err)
	}
	one, two := begin(t, a, "x"), begin(t, b, "x")
	if one == two {
		t.Fatalf("two makers of one layer both have %s", one)
	}
	for _, c := range []struct {
		s   *Shelf
		dir string
	}{{a, one}, {b, two}} {
		if err := c.s.Put("x", filepath.Join(c.dir, "made")); err != nil {
			t.Errorf("Put(x) = %v, want nil", err)
		}
		if exists(c.dir) || !exists(a.Layer("x")+"/d") {
			t.Errorf("after Put: %s is there: %v, layer: %v, want only the layer", c.dir, exists(c.dir), exists(a.Layer("x")))
		}
	}
	if ids, err := a.List(); err != nil || len(ids) != 1 || ids[0] != "x" {
		t.Errorf("List() = %v, %v, want [x]", ids, err)
	}
	if err := a.Remove("x"); err != nil || exists(a.Layer("x")) {
		t.Errorf("Remove(x) = %v, there: %v", err, exists(a.Layer("x")))
	}
}

func TestSweep(t *testing.T) {
	s := newShelf(t)
	live := begin(t, s, "live")
	for _, name := range []string{"dead", "live~DEAD"} {
		if err := os.MkdirAll(filepath.Join(s.dir, "work", name, "made"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Join(s.dir, "work"))
	if err != nil || len(left) != 1 || !exists(live) {
		t.Errorf("after Sweep: %v, %v, want only the live one", left, err)
	}
	if err := s.Drop("live"); err != nil || exists(live) {
		t.Errorf("Drop(live) = %v, there: %v", err, exists(live))
	}
	if _, err := s.Work("live"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Work(live) after Drop = %v, want ErrNotExist", err)
	}
}

func TestRename(t *testing.T) {
	dir := t.TempDir()
	for _, p := range []string{"from", "to"} {
		if err := os.Mkdir(filepath.Join(dir, p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// rename(2) itself would replace an empty directory.
	if err := Rename(dir+"/from", dir+"/to"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Rename onto a directory = %v, want ErrExist", err)
	}
	if err := Rename(dir+"/from", dir+"/new"); err != nil {
		t.Errorf("Rename = %v, want nil", err)
	}
}

const inNamespace = "BUILD_SHELF_TEST_DIR"

// TestRemoveMounted removes a layer in which something is mounted still: it
// must be unmounted, not emptied.
func TestRemoveMounted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	if dir := os.Getenv(inNamespace); dir != "" {
		removeMounted(t, dir)
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestRemoveMounted$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
		t.Errorf("in a mount namespace: %v\n%s", err, out)
	}
}

func removeMounted(t *testing.T, dir string) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(dir, "precious")
	if err := os.MkdirAll(precious+"/file", 0o755); err != nil {
		t.Fatal(err)
	}
	// By way of a symbolic link, which mountinfo does not show.
	if err := os.Symlink(dir, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	s, err := New(dir + "/link/shelf")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "ab"} {
		at := begin(t, s, id)
		if err := s.Put(id, at+"/made"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := unix.Mount(precious, s.Layer(id)+"/d", "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Remove("a"); err != nil {
		t.Errorf("Remove of a layer with mounts in it = %v, want nil", err)
	}
	if exists(s.Layer("a")) || !exists(precious+"/file") || !exists(s.Layer("ab")+"/d/file") {
		t.Error(fmt.Sprint("layer there: ", exists(s.Layer("a")), ", what was mounted: ", exists(precious+"/file"),
			", the other layer's mount: ", exists(s.Layer("ab")+"/d/file"), "; want false, true, true"))
	}
}

// Directories of layers are made in places first where the filesystem spreads them; a
// second maker, and one while another process deletes what it takes for dead, get
// theirs all the same.
func TestSpread(t *testing.T) {
	s := newShelf(t)
	s.spread.Do(func() { s.spreadable = true }) // whatever the filesystem
	other, err := New(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = empty(other.bin())
				other.sweepPlaces()
			}
		}
	}()
	for i := range 200 {
		id := fmt.Sprintf("sha256-%d", i)
		if i%2 == 1 {
			s.Warm()
		}
		dir := begin(t, s, id)
		if _, err := other.Begin(id); err != nil {
			t.Fatalf("Begin(%q) of a second maker = %v, want nil", id, err)
		}
		if !exists(filepath.Join(dir, "made", "d")) {
			t.Fatalf("Begin(%q): %s is not there", id, dir)
		}
	}
	close(stop)
	<-stopped
	s.Wait()
	other.Wait()
	for _, dir := range []string{s.bin(), s.placesDir()} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s has %v, %v, want nothing", dir, left, err)
		}
	}
}

// A place that a killed process has left is deleted, one of a living process is not.
func TestPlaces(t *testing.T) {
	s := newShelf(t)
	s.spread.Do(func() { s.spreadable = true }) // whatever the filesystem
	var near []string
	for i := range 2*perPlace + 1 {
		at, err := s.aside()
		if err != nil {
			t.Fatal(err)
		}
		if dir := filepath.Dir(at); !slices.Contains(near, dir) {
			near = append(near, dir)
		}
		if i%2 == 0 {
			os.Remove(at)
		}
	}
	if len(near) != 3 {
		t.Errorf("%d directories are in %d places, want 3", 2*perPlace+1, len(near))
	}
	dead := filepath.Join(s.placesDir(), "dead")
	if err := os.MkdirAll(filepath.Join(dead, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := New(s.dir); err != nil {
		t.Fatal(err)
	}
	if exists(dead) || !exists(near[0]) || !exists(near[2]) {
		t.Error(fmt.Sprint("a dead process's place there: ", exists(dead), ", those of a living one: ", exists(near[0]), exists(near[2]), "; want false, true, true"))
	}
	s.Wait()
	if _, err := New(s.dir); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(s.placesDir()); err != nil || len(left) > 0 {
		t.Errorf("after the end there are %v, %v, want nothing", left, err)
	}
}

// What Warm has made is the next layer's, however often it was asked, and what
// nobody used is gone after Wait.
func TestWarm(t *testing.T) {
	s := newShelf(t)
	s.spread.Do(func() { s.spreadable = true }) // whatever the filesystem
	ahead := func() []string {
		t.Helper()
		s.erasing.Wait()
		all, err := filepath.Glob(filepath.Join(s.placesDir(), "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	for _, id := range []string{"a", "b"} {
		s.Warm()
		s.Warm()
		made := ahead()
		if len(made) != 1 {
			t.Fatalf("%v made ahead, want one directory", made)
		}
		was, err := os.Stat(made[0])
		if err != nil {
			t.Fatal(err)
		}
		dir := begin(t, s, id)
		if is, err := os.Stat(dir); err != nil || !os.SameFile(was, is) {
			t.Errorf("Begin(%q): %s is not what was made ahead: %v", id, dir, err)
		}
		if left := ahead(); len(left) > 0 {
			t.Errorf("Begin(%q) leaves %v", id, left)
		}
	}
	s.Warm()
	s.Wait()
	if left, err := os.ReadDir(s.placesDir()); err != nil || len(left) > 0 {
		t.Errorf("Wait leaves %v, %v", left, err)
	}
}
