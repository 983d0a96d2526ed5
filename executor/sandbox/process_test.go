package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/internal/oci"
)

func TestLargeOutput(t *testing.T) {
	eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
		out, code, err := run(t, sb, newSpec(t, "head -c 10485760 /dev/zero"))
		if len(out) != 10<<20 || code != 0 {
			t.Errorf("10 MiB of output arrived as %d bytes, code %d (%v)", len(out), code, err)
		}
	})
}

// TestOutputAsItComes reads what a process has written while it runs, and stops
// it by a signal.
func TestOutputAsItComes(t *testing.T) {
	eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
		checkNothingLeft(t)
		s := newSpec(t, "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.01; done")
		r, w := io.Pipe()
		s.Stdout = w
		p, err := sb.Start(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, r, "ready\n")
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.Pid())); string(name) != "sh\n" {
			t.Errorf("process %d is %q (%v), want sh", p.Pid(), name, err)
		}
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		expect(t, r, "got\n")
		var exit *sandbox.ExitError
		if err := p.Wait(); !errors.As(err, &exit) || exit.Code != 3 {
			t.Errorf("Wait() = %v, want exit code 3", err)
		}
	})
}

// expect reads until want has come, and fails the test if something else comes.
func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q (%v), want %q", got, err, want)
	}
}

func TestBackgroundProcessesEnd(t *testing.T) {
	eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
		checkNothingLeft(t)
		start := time.Now()
		out, code, err := run(t, sb, newSpec(t, "setsid sleep 1000 & (sleep 1000 &) ; echo done"))
		if out != "done\n" || code != 0 || time.Since(start) > 5*time.Second {
			t.Errorf("run = %q, code %d (%v) after %v, want done at once", out, code, err, time.Since(start))
		}
	})
}

func TestCancel(t *testing.T) {
	eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
		checkNothingLeft(t)
		cause := errors.New("no longer wanted")
		ctx, cancel := context.WithCancelCause(t.Context())
		s := newSpec(t, "trap '' TERM INT; sleep 1000 & setsid sleep 1000 & echo ready; wait")
		r, w := io.Pipe()
		s.Stdout = w
		p, err := sb.Start(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, r, "ready\n")
		cancel(cause)
		if err := p.Wait(); !errors.Is(err, cause) {
			t.Errorf("Wait() = %v, want %v", err, cause)
		}
		if _, err := sb.Start(ctx, newSpec(t, "true")); !errors.Is(err, cause) {
			t.Errorf("Start() with a context that is done = %v, want %v", err, cause)
		}
	})
}

// TestOwnFiles gives the process files of ours, without a copier between.
func TestOwnFiles(t *testing.T) {
	eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
		in, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		fmt.Fprint(in, "from a file")
		if _, err := in.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		out, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		s := newSpec(t, "cat; echo ' err' >&2")
		s.Stdin, s.Stdout, s.Stderr = in, out, out
		if _, _, err := run(t, sb, s); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(out.Name())
		if string(got) != "from a file err\n" {
			t.Errorf("output = %q, %v", got, err)
		}
	})
}

func TestTerminal(t *testing.T) {
	for _, init := range []bool{false, true} {
		eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
			checkNothingLeft(t)
			s := newSpec(t, "test -t 0 && test -t 1 && test -t 2 && tty; test -c /dev/console && echo console; read x; echo \"got $x\"; stty size; echo t >/dev/tty; trap 'echo int; exit 9' INT; read y")
			s.Terminal, s.Init = true, init
			s.User = sandbox.User{UID: 7}
			in, feed := io.Pipe()
			var out syncBuffer
			s.Stdin, s.Stdout = in, &out
			p, err := sb.Start(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Resize(132, 43); err != nil {
				t.Error(err)
			}
			out.waitFor(t, "console\r\n")
			fmt.Fprintf(feed, "hello\n")
			out.waitFor(t, "\r\nt\r\n")
			time.Sleep(10 * time.Millisecond) // for the trap to be set
			fmt.Fprint(feed, "\x03")
			var exit *sandbox.ExitError
			if err := p.Wait(); !errors.As(err, &exit) || exit.Code != 9 {
				t.Errorf("Wait() = %v, want exit code 9", err)
			}
			want := regexp.MustCompile(`^(/dev/pts/0|/dev/console)\r\nconsole\r\nhello\r\ngot hello\r\n43 132\r\nt\r\n(\^C)?int\r\n$`)
			if got := out.String(); !want.MatchString(got) {
				t.Errorf("terminal with init %v said %q", init, got)
			}
			feed.Close()
		})
	}
}

// syncBuffer is a buffer that can be read while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *syncBuffer) waitFor(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(b.String(), text); {
		if time.Now().After(deadline) {
			t.Fatalf("output is %q after 10 s, want %q in it", b.String(), text)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestManyLayers uses paths that as options of mount(2) take more than a page.
func TestManyLayers(t *testing.T) {
	eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
		checkNothingLeft(t)
		dir := t.TempDir()
		var lowers []string
		for i := range 128 {
			l := filepath.Join(dir, strings.Repeat("long", 10)+fmt.Sprint(i))
			if err := os.Mkdir(l, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(l, fmt.Sprintf("layer-%d", i)), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			lowers = append(lowers, l)
		}
		s := newSpec(t, "ls / | grep -c layer-")
		s.Root = newOverlay(t, lowers...).mount
		if out, _, err := run(t, sb, s); out != "128\n" {
			t.Errorf("layers seen: %q (%v), want 128", out, err)
		}
	})
}

func TestLongLayerPath(t *testing.T) {
	need(t, "busybox", "go")
	checkNothingLeft(t)
	l := filepath.Join(t.TempDir(), strings.Repeat("a", 200), strings.Repeat("b", 200), `odd:name,with\x`)
	if err := os.MkdirAll(l, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l, "there"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s := newSpec(t, "ls /there")
	s.Root = newOverlay(t, strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace(l)).mount
	if out, _, err := run(t, sandbox.NewNative(sandbox.NativeOptions{}), s); out != "/there\n" {
		t.Errorf("ls /there = %q (%v)", out, err)
	}
}

func TestBindRoot(t *testing.T) {
	eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
		checkNothingLeft(t)
		dir := t.TempDir()
		if out, err := exec.Command("cp", "-a", imageDir(t)+"/bin", dir).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
		s := newSpec(t, "echo written >/file; ls /proc/self/status")
		s.Root = oci.Mount{Type: "bind", Source: dir, Options: []string{"rbind"}}
		if _, code, err := run(t, sb, s); code != 0 {
			t.Fatal(err)
		}
		entries, err := filepath.Glob(dir + "/*")
		if len(entries) != 2 || err != nil {
			t.Errorf("left in the root: %v (%v), want bin and file", entries, err)
		}
	})
}

func TestMemoryLimit(t *testing.T) {
	eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
		checkNothingLeft(t)
		s := newSpec(t, "exec dd if=/dev/zero of=/dev/null bs=200M count=1")
		s.Resources = sandbox.Resources{Memory: 32 << 20, CPUs: 1.5, PIDs: 100}
		_, _, err := run(t, sb, s)
		var exit *sandbox.ExitError
		if !errors.As(err, &exit) || exit.Code != 137 || !exit.OOM {
			t.Errorf("Wait() = %v, want killed: out of memory, 137", err)
		}
		s = newSpec(t, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true")
		s.Resources.Memory = 32 << 20
		if out, _, err := run(t, sb, s); out != "33554432\n" {
			t.Errorf("memory limit seen in the sandbox: %q (%v)", out, err)
		}
	})
}

func TestNetwork(t *testing.T) {
	eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
		need(t, "ip", "nsenter")
		checkNothingLeft(t)
		link := func(path string) string {
			l, err := os.Readlink(path)
			if err != nil {
				t.Fatal(err)
			}
			return l + "\n"
		}
		s := newSpec(t, "readlink /proc/self/ns/net; ls /sys/class/net >/dev/null")
		s.NetNS = sandbox.Host
		if out, _, err := run(t, sb, s); out != link("/proc/self/ns/net") {
			t.Errorf("network namespace with the host's network = %q (%v)", out, err)
		}
		holder := exec.Command("sleep", "60")
		holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		if err := holder.Start(); err != nil {
			t.Fatal(err)
		}
		defer holder.Wait()
		defer holder.Process.Kill()
		pid := fmt.Sprint(holder.Process.Pid)
		if out, err := exec.Command("nsenter", "-t", pid, "-n", "ip", "link", "add", "given0", "type", "veth", "peer", "name", "given1").CombinedOutput(); err != nil {
			t.Fatalf("ip link add: %v: %s", err, out)
		}
		s = newSpec(t, "ls /sys/class/net")
		s.NetNS = "/proc/" + pid + "/ns/net"
		if out, _, err := run(t, sb, s); !strings.HasPrefix(out, "given0\ngiven1\n") {
			t.Errorf("devices of the given network namespace = %q (%v)", out, err)
		}
	})
}

func TestExec(t *testing.T) {
	eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
		checkNothingLeft(t)
		s := newSpec(t, "echo ready; sleep 1000")
		s.Hostname = "shared"
		s.Mounts = []oci.Mount{{Type: "tmpfs", Source: "tmpfs", Target: "/scratch"}}
		r, w := io.Pipe()
		s.Stdout = w
		p, err := sb.Start(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, r, "ready\n")
		tests := []struct {
			script, want string
			code         int
		}{
			{"hostname; cat /proc/1/comm; echo x >/scratch/y; pwd; id", "shared\nsleep\n/scratch\nuid=3 gid=4\n", 0},
			{"grep -E '^(CapBnd|NoNew|Seccomp:)' /proc/self/status; exit 6", "CapBnd:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\n", 6},
			{"setsid sleep 1000 & echo done", "done\n", 0},
		}
		for i, tt := range tests {
			s := sandbox.Spec{Args: []string{"sh", "-c", tt.script}, Env: []string{"PATH=/bin"}, Dir: "/scratch"}
			if i == 0 {
				s.Args[2] = strings.Replace(tt.script, "echo x >/scratch/y; ", "", 1)
				s.User = sandbox.User{UID: 3, GID: 4}
			}
			if i == 2 {
				s.Args[2] = "setsid sleep 1000 >/dev/null 2>&1 & echo done"
			}
			var out bytes.Buffer
			s.Stdout, s.Stderr = &out, &out
			code := 0
			q, err := p.Exec(t.Context(), s)
			if err == nil {
				err = q.Wait()
			}
			var exit *sandbox.ExitError
			if errors.As(err, &exit) {
				code = exit.Code
			}
			if out.String() != tt.want || code != tt.code {
				t.Errorf("Exec(%q) = %q, code %d (%v), want %q, code %d", s.Args, out.String(), code, err, tt.want, tt.code)
			}
		}
		_, err = p.Exec(t.Context(), sandbox.Spec{Args: []string{"nothing"}, Env: []string{"PATH=/bin"}})
		var e *sandbox.ExecError
		if !errors.As(err, &e) || e.Code != 127 {
			t.Errorf("Exec of no command = %v, want code 127", err)
		}
		if err := p.Signal(syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		p.Wait()
	})
}
