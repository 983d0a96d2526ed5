package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/internal/oci"
)

func TestMain(m *testing.M) {
	sandbox.Reexec()
	if len(os.Args) > 2 && os.Args[1] == "hold" {
		hold(os.Args[2:])
	}
	code := m.Run()
	if image.dir != "" {
		os.RemoveAll(image.dir)
	}
	os.Exit(code)
}

// need skips what cannot be tested here; where CI is set it fails.
func need(tb testing.TB, programs ...string) {
	tb.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "root"
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing = p
		}
	}
	switch {
	case missing != "" && os.Getenv("CI") == "true":
		tb.Fatalf("needs %s", missing)
	case missing != "":
		tb.Skipf("needs %s", missing)
	}
}

// eachSandbox runs a test with all implementations.
func eachSandbox(t *testing.T, f func(t *testing.T, s sandbox.Sandbox)) {
	t.Run("native", func(t *testing.T) {
		need(t, "busybox")
		f(t, sandbox.NewNative(sandbox.NativeOptions{}))
	})
	t.Run("native, warmed", func(t *testing.T) {
		need(t, "busybox")
		w := warmed{sandbox.NewNative(sandbox.NativeOptions{})}
		f(t, w)
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("native, executed again", func(t *testing.T) {
		need(t, "busybox")
		n := sandbox.NewNative(sandbox.NativeOptions{})
		n.StartAgain()
		f(t, n)
	})
	t.Run("runc", func(t *testing.T) {
		need(t, "busybox", "runc")
		dir := t.TempDir()
		sb := sandbox.NewOCI("runc", filepath.Join(dir, "state"))
		sb.SetInit(filepath.Join(imageDir(t), "init"))
		f(t, sb)
		if left, _ := os.ReadDir(filepath.Join(dir, "state")); len(left) > 0 {
			t.Errorf("%d directories are left in the state directory", len(left))
		}
	})
}

// warmed prepares for each process that it starts.
type warmed struct{ *sandbox.Native }

func (w warmed) Start(ctx context.Context, s sandbox.Spec) (sandbox.Process, error) {
	parent := s.CgroupParent
	if parent == "" {
		parent = sandbox.DefaultCgroupParent
	}
	w.Warm("warmed", parent)
	time.Sleep(20 * time.Millisecond) // mostly it has mounted by then what all need
	return w.Native.Start(ctx, s)
}

// image is a root filesystem of busybox and the probe, the lower layer of all.
var image struct {
	once sync.Once
	dir  string
	err  error
}

func imageDir(tb testing.TB) string {
	tb.Helper()
	image.once.Do(func() { image.dir, image.err = makeImage() })
	if image.err != nil {
		tb.Fatal(image.err)
	}
	return image.dir
}

func makeImage() (string, error) {
	dir, err := os.MkdirTemp("", "build-sandbox-test-")
	if err != nil {
		return "", err
	}
	for _, d := range []string{"bin", "etc", "tmp", "var/lib/deep"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return dir, err
		}
	}
	if err := os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky); err != nil {
		return dir, err
	}
	src, err := exec.LookPath("busybox")
	if err != nil {
		return dir, err
	}
	data, err := os.ReadFile(src)
	if err != nil {
		return dir, err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), data, 0o755); err != nil {
		return dir, err
	}
	list, err := exec.Command(src, "--list").Output()
	if err != nil {
		return dir, err
	}
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
				return dir, err
			}
		}
	}
	for name, text := range map[string]string{"etc/passwd": "user:x:5:5::/:/bin/sh\n", "bin/noexec": "not executable", "bin/text": "echo text"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return dir, err
		}
	}
	if err := os.Chmod(filepath.Join(dir, "bin/text"), 0o755); err != nil {
		return dir, err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/script"), []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		return dir, err
	}
	for _, p := range []struct{ from, to string }{{"./testdata/probe", "bin/probe"}, {"./testdata/init", "init"}} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, p.to), p.from)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("go build: %w: %s", err, out)
		}
	}
	return dir, os.Chmod(filepath.Join(dir, "bin/probe"), 0o755|os.ModeSetuid)
}

// overlay is a root filesystem on an image.
type overlay struct {
	mount oci.Mount
	upper string
}

func newOverlay(tb testing.TB, lowers ...string) overlay {
	tb.Helper()
	dir := tb.TempDir()
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	lowers = append(lowers, imageDir(tb))
	upper := filepath.Join(dir, "upper")
	return overlay{
		mount: oci.Mount{Type: "overlay", Source: "overlay", Options: []string{
			"lowerdir=" + strings.Join(lowers, ":"), "upperdir=" + upper, "workdir=" + filepath.Join(dir, "work"),
		}},
		upper: upper,
	}
}

// testGroup is the cgroup parent of this run of the tests.
var testGroup = fmt.Sprintf("build-test-%d", os.Getpid())

// newSpec is a Spec that runs a shell script.
func newSpec(tb testing.TB, script string) sandbox.Spec {
	tb.Helper()
	return sandbox.Spec{
		Args:         []string{"/bin/sh", "-c", script},
		Env:          []string{"PATH=/bin"},
		Root:         newOverlay(tb).mount,
		CgroupParent: testGroup,
	}
}

// run runs a Spec to its end and returns what it wrote, and its exit code: -1
// for an error that is none.
func run(tb testing.TB, sb sandbox.Sandbox, s sandbox.Spec) (string, int, error) {
	tb.Helper()
	var out bytes.Buffer
	if s.Stdout == nil {
		s.Stdout, s.Stderr = &out, &out
	}
	p, err := sb.Start(tb.Context(), s)
	if err == nil {
		err = p.Wait()
	}
	code := 0
	if err != nil {
		code = -1
	}
	var exit *sandbox.ExitError
	if errors.As(err, &exit) {
		code = exit.Code
	}
	return out.String(), code, err
}

// checkNothingLeft fails the test if, when it ends, mounts, cgroups or processes
// are there that were not when it began.
func checkNothingLeft(t *testing.T) {
	t.Helper()
	mounts := func() string {
		data, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		// Others have mounts of their own; ours are of the image, all of them.
		var ours []string
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, image.dir) {
				ours = append(ours, line)
			}
		}
		return strings.Join(ours, "")
	}
	imageDir(t)
	before := mounts()
	t.Cleanup(func() {
		if after := mounts(); after != before {
			t.Errorf("mounts differ after the test:\n%s\nbefore:\n%s", after, before)
		}
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + testGroup)
		more, _ := filepath.Glob("/sys/fs/cgroup/" + testGroup)
		if groups = append(groups, more...); len(groups) > 0 {
			t.Errorf("cgroups are left: %v", groups)
		}
		if left := children(t, os.Getpid()); len(left) > 0 {
			t.Errorf("processes are left: %v", left)
		}
	})
}

// children lists the processes whose parent is pid.
func children(tb testing.TB, pid int) []string {
	tb.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		tb.Fatal(err)
	}
	var out []string
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // ended meanwhile
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == fmt.Sprint(pid) {
			out = append(out, string(data))
		}
	}
	return out
}
