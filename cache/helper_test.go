package cache

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/overlay"
	"github.com/861fb494/build/cache/plain"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/oci"
)

// helperEnv makes the test binary a second process: its value is what it does.
const helperEnv = "BUILD_CACHE_HELPER"

func TestMain(m *testing.M) {
	if task := os.Getenv(helperEnv); task != "" {
		if err := help(task); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// newStore opens the state directory dir with the overlay driver.
func newStore(dir string) (*Store, error) {
	d, err := overlay.New(filepath.Join(dir, "snapshots"), overlay.Options{})
	if err != nil {
		return nil, err
	}
	return Open(context.Background(), dir, d)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: layers have owners and whiteouts")
	}
}

// open is a store at dir that is checked and closed with the test.
func open(t testing.TB, dir string) *Store {
	t.Helper()
	needRoot(t)
	s, err := newStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range s.Check(context.Background()) {
			t.Errorf("after the test: %v", p)
		}
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func openPlain(t testing.TB, dir string) *Store {
	t.Helper()
	needRoot(t)
	d, err := plain.New(filepath.Join(dir, "snapshots"), plain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), dir, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range s.Check(context.Background()) {
			t.Errorf("after the test: %v", p)
		}
		s.Close(context.Background())
	})
	return s
}

// files is a tree by path: what ends in "/" is a directory, a value that begins
// with "-> " is a symbolic link, "= " a hard link, "gone" a removal.
type files [][2]string

func (f files) write(t *tree.Tree) error {
	at := time.Unix(1_700_000_000, 0)
	for _, e := range f {
		p, text := e[0], e[1]
		entry := tree.Entry{Mode: 0o644, ModTime: at}
		var err error
		switch {
		case text == "gone":
			if err := t.RemoveAll(p); err != nil {
				return err
			}
			continue
		case strings.HasPrefix(text, "= "):
			if err := t.Link(text[2:], p); err != nil {
				return err
			}
			continue
		case strings.HasSuffix(p, "/"):
			p, entry.Mode = strings.TrimSuffix(p, "/"), 0o755
			err = t.Mkdir(p, 0o755)
		case strings.HasPrefix(text, "-> "):
			err = t.Symlink(text[3:], p)
		default:
			var w *os.File
			if w, err = t.Create(p); err == nil {
				_, err = w.WriteString(text)
				w.Close()
			}
		}
		if err == nil {
			err = t.SetMeta(p, entry)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// commit makes a layer of f upon chain.
func commit(t testing.TB, s *Store, chain []oci.Layer, f files) oci.Layer {
	t.Helper()
	d, err := s.Prepare(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	if err := f.write(d.Tree); err != nil {
		t.Fatal(err)
	}
	l, err := d.Commit(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// process is another process with the state directory open.
type process struct {
	*exec.Cmd
	t     testing.TB
	stdin io.WriteCloser
	out   *bufio.Reader
}

// start runs a task of help in a process of its own, and returns when it has
// said its first line.
func start(t testing.TB, dir, task string, args ...string) (*process, string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{dir}, args...)...)
	cmd.Env = append(os.Environ(), helperEnv+"="+task, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd, t, stdin, bufio.NewReader(out)}
	t.Cleanup(func() { p.kill() })
	return p, p.line()
}

func (p *process) line() string {
	p.t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("the other process ended: %v", err)
	}
	return strings.TrimSpace(s)
}

// kill ends it at once, as kill -9 does.
func (p *process) kill() {
	if p.ProcessState == nil {
		p.Process.Kill()
		p.Wait()
	}
}

// end lets it go on to its end.
func (p *process) end() {
	p.t.Helper()
	p.stdin.Close()
	if err := p.Wait(); err != nil {
		p.t.Errorf("the other process: %v", err)
	}
}

// help is the second process: it does its task, says a line, and waits for its
// standard input to end before it goes on.
func help(task string) error {
	ctx := context.Background()
	dir, args := os.Args[1], os.Args[2:]
	s, err := newStore(dir)
	if err != nil {
		return err
	}
	defer s.Close(ctx)
	said := func(text string) {
		fmt.Println(text)
		io.Copy(io.Discard, os.Stdin)
	}
	switch task {
	case "draft": // begins a layer, a pulled one, temporary files, a lock
		d, err := s.Prepare(ctx, nil)
		if err != nil {
			return err
		}
		defer d.Discard()
		pulled, err := s.PreparePulled(ctx, args[0], nil)
		if err != nil {
			return err
		}
		defer pulled.Discard()
		if err := (files{{"/f", "draft"}}).write(d.Tree); err != nil {
			return err
		}
		tmp, err := s.TempDir()
		if err != nil {
			return err
		}
		for _, p := range []string{filepath.Join(tmp, "x"), filepath.Join(dir, "results", tempPrefix+s.Lease()+"-1")} {
			if err := os.WriteFile(p, nil, 0o600); err != nil {
				return err
			}
		}
		unlock, err := s.Lock(ctx, "left")
		if err != nil {
			return err
		}
		defer unlock()
		defer os.Remove(filepath.Join(dir, "results", tempPrefix+s.Lease()+"-1"))
		said(d.ID)
	case "lock":
		unlock, err := s.Lock(ctx, args[0])
		if err != nil {
			return err
		}
		defer unlock()
		said("locked")
	case "mount":
		at, release, err := s.CacheMount(ctx, args[0], args[1], MountInit{Fill: func(string) error { return nil }})
		if err != nil {
			return err
		}
		defer release()
		said(filepath.Base(at))
	case "fill": // is killed while it fills
		_, release, err := s.CacheMount(ctx, args[0], Shared, MountInit{Fill: func(dir string) error {
			if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o600); err != nil {
				return err
			}
			said("filling")
			return nil
		}})
		if err != nil {
			return err
		}
		release()
	case "count": // adds one to a file, many times, under a lock
		for range 50 {
			if err := count(ctx, s, args[0]); err != nil {
				return err
			}
		}
		fmt.Println("done")
	default:
		return fmt.Errorf("no task %q", task)
	}
	return nil
}

// count adds a byte to the file, without O_APPEND: a lock is needed.
func count(ctx context.Context, s *Store, file string) error {
	unlock, err := s.Lock(ctx, "count")
	if err != nil {
		return err
	}
	defer unlock()
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, 'x'), 0o600)
}

// onSmallDisk runs the test named in a mount namespace where the directory it is
// given is a tmpfs of that many bytes.
func onSmallDisk(t *testing.T, bytes int, f func(t *testing.T, dir string)) {
	t.Helper()
	needRoot(t)
	const env = "BUILD_CACHE_SMALL_DISK"
	if dir := os.Getenv(env); dir != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0755", bytes)); err != nil {
			t.Fatal(err)
		}
		f(t, dir)
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), env+"="+t.TempDir(), "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
