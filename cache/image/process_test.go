package image

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/internal/oci"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("IMAGE_TEST_NAMER"); dir != "" {
		if err := nameMany(dir, os.Getenv("IMAGE_TEST_PREFIX")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// namesEach is how many names each process of TestProcesses sets.
const namesEach = 40

func nameMany(dir, prefix string) error {
	s, err := Open(dir)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make(chan error, namesEach)
	for i := range namesEach {
		wg.Go(func() {
			d, err := makeImage(s, fmt.Sprint(i%7), amd64)
			if err == nil {
				err = s.Set(oci.Reference{Domain: "d.example", Path: prefix, Tag: fmt.Sprint(i)}, d)
			}
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	for e := range errs {
		err = errors.Join(err, e)
	}
	return err
}

// Processes that name the same blobs at once lose nothing, nor does a process
// that is killed in the middle harm the others.
func TestProcesses(t *testing.T) {
	s := checked(t)
	start := func(prefix string) *exec.Cmd {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), "IMAGE_TEST_NAMER="+s.Dir(), "IMAGE_TEST_PREFIX="+prefix)
		c.Stderr = os.Stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b, victim := start("a"), start("b"), start("victim")
	time.Sleep(15 * time.Millisecond)
	victim.Process.Kill()
	victim.Wait()
	for _, c := range []*exec.Cmd{a, b} {
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	}
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, n := range list {
		got[n.Ref.Path]++
	}
	if got["a"] != namesEach || got["b"] != namesEach {
		t.Errorf("names set = %v, want %d of a and of b", got, namesEach)
	}
	// The victim may have died while a draft of its had a name.
	s.Sweep()
	if left, _ := os.ReadDir(s.draftDir()); len(left) != 0 {
		t.Errorf("%d drafts left", len(left))
	}
}

// Where a file system has no files without names, drafts of killed processes
// are removed and those of living ones are not.
func TestNamedDraft(t *testing.T) {
	dir := t.TempDir()
	dead, err := newNamedDraft(dir, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	dead.Close() // as its process's end does, without Discard
	alive, err := newNamedDraft(dir, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	sweepDrafts(dir, time.Now().Add(time.Hour))
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%d drafts left, want the living one", len(left))
	}
	final := filepath.Join(dir, "x")
	for _, d := range []*Draft{alive, draftIn(t, dir)} {
		if _, err := d.WriteString(d.Name()); err != nil {
			t.Fatal(err)
		}
		if err := d.Commit(final); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(final); err != nil || string(got) != d.Name() {
			t.Errorf("%s = %q, %v, want %q", final, got, err, d.Name())
		}
	}
	draftIn(t, dir).Discard()
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%d files, want the committed one", len(left))
	}
}

// A draft that gets a name only to replace another file is locked before: one
// without a lock is removed however young it is.
func TestLinkedDraft(t *testing.T) {
	s := checked(t)
	alive, dead := draftName(s.draftDir(), linkPrefix), draftName(s.draftDir(), linkPrefix)
	if err := os.MkdirAll(s.draftDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{alive, dead} {
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(alive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	s.Sweep()
	if left, _ := os.ReadDir(s.draftDir()); len(left) != 1 || left[0].Name() != filepath.Base(alive) {
		t.Errorf("Sweep leaves %v, want %s alone", left, filepath.Base(alive))
	}
	os.Remove(alive)
}

func draftIn(t *testing.T, dir string) *Draft {
	t.Helper()
	d, err := NewDraft(dir, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// The store is a layout that other tools read.
func TestSkopeo(t *testing.T) {
	if _, err := exec.LookPath("skopeo"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("needs skopeo")
	}
	s := checked(t)
	for _, name := range []string{"node:alpine", "localhost/app"} {
		if err := s.Set(ref(t, name), putImage(t, s, name, amd64)); err != nil {
			t.Fatal(err)
		}
	}
	for _, full := range []string{"docker.io/library/node:alpine", "localhost/app:latest"} {
		out, err := exec.Command("skopeo", "inspect", "--config", "oci:"+s.Dir()+":"+full).CombinedOutput()
		if err != nil || !strings.Contains(string(out), `"Cmd"`) {
			t.Errorf("skopeo inspect oci:DIR:%s: %v\n%s", full, err, out)
		}
	}
}
