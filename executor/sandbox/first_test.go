package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/internal/oci"
	"golang.org/x/sys/unix"
)

// TestInsideProc is about what lies in a file system that only the sandbox's first
// process can mount.
func TestInsideProc(t *testing.T) {
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	bind := func(source, target string) oci.Mount {
		return oci.Mount{Type: "bind", Source: filepath.Join(host, source), Target: target, Options: []string{"rbind"}}
	}
	tests := []struct {
		name, script string
		edit         func(*sandbox.Spec)
		want         string
	}{
		{"working directory", "pwd; cat version | cut -c 1-5", func(s *sandbox.Spec) { s.Dir = "/proc/self/.." }, "/proc\nLinux\n"},
		{"working directory that is a process", "pwd", func(s *sandbox.Spec) { s.Dir = "/proc/self" }, "/proc/1\n"},
		{"file", "cat /proc/version; cat /etc/own", func(s *sandbox.Spec) {
			s.Mounts = []oci.Mount{bind("file", "/etc/own"), bind("file", "/proc/version")}
		}, "from the host\nfrom the host\n"},
		{"by a link", "cat /made/own /link/version", func(s *sandbox.Spec) {
			s.Mounts = []oci.Mount{bind("file", "/made/own"), bind("file", "/link/version")}
		}, "from the host\nfrom the host\n"},
		{"in its place", "ls /proc; ls /made", func(s *sandbox.Spec) { s.Mounts = []oci.Mount{bind("", "/proc"), bind("", "/made")} }, "file\nfile\n"},
		{"once more", "cat /made/proc/1/comm", func(s *sandbox.Spec) {
			s.Mounts = []oci.Mount{{Type: "proc", Source: "proc", Target: "/made/proc"}}
		}, "cat\n"},
	}
	for _, kind := range []string{"stub", "again"} {
		for _, tt := range tests {
			t.Run(kind+" "+tt.name, func(t *testing.T) {
				need(t, "busybox")
				checkNothingLeft(t)
				lower := t.TempDir()
				if err := os.Symlink("proc", filepath.Join(lower, "link")); err != nil {
					t.Fatal(err)
				}
				s := newSpec(t, tt.script)
				root := newOverlay(t, lower)
				s.Root = root.mount
				tt.edit(&s)
				n := sandbox.NewNative(sandbox.NativeOptions{})
				if kind == "again" {
					n.StartAgain()
				}
				if out, _, err := run(t, n, s); out != tt.want || err != nil {
					t.Errorf("run(%q) = %q (%v), want %q", tt.script, out, err, tt.want)
				}
				if left := listing(t, root.upper); left != "" {
					t.Errorf("upper layer after run(%q) = %q, want nothing", tt.script, left)
				}
			})
		}
	}
}

// TestUnified has nothing but version 2 of cgroups.
func TestUnified(t *testing.T) {
	need(t, "busybox")
	root := "/sys/fs/cgroup/unified"
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	for _, kind := range []string{"stub", "again"} {
		t.Run(kind, func(t *testing.T) {
			checkNothingLeft(t)
			n := sandbox.NewNative(sandbox.NativeOptions{CgroupRoot: root})
			if kind == "again" {
				n.StartAgain()
			}
			s := newSpec(t, "grep ^0: /proc/self/cgroup; head -n 1 /sys/fs/cgroup/cgroup.procs; mkdir /sys/fs/cgroup/x 2>&1 | sed 's/.*: //'")
			if out, _, err := run(t, n, s); out != "0::/\n1\nRead-only file system\n" {
				t.Errorf("in its cgroup: %q (%v)", out, err)
			}
			s = newSpec(t, "true")
			s.Mounts = []oci.Mount{{Type: "tmpfs", Source: "tmpfs", Target: "/sys/fs/cgroup"}}
			if out, _, err := run(t, n, s); out != "" || err != nil {
				t.Errorf("with another mount in its place: %q (%v)", out, err)
			}
		})
	}
}

// TestDescriptors: none of ours reaches the command, nor one that somebody left open
// for all that we start.
func TestDescriptors(t *testing.T) {
	eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
		if _, ok := sb.(*sandbox.OCI); ok {
			t.Log("runc's business")
			return
		}
		fd, err := unix.Open("/", unix.O_RDONLY, 0) // without O_CLOEXEC
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if out, _, err := run(t, sb, newSpec(t, "ls /proc/self/fd")); out != "0\n1\n2\n3\n" { // 3: the directory itself
			t.Errorf("open descriptors: %q (%v)", out, err)
		}
	})
}

// TestThreadsComeHome starts much, and what fails, and looks whether this process is
// as before: its threads in its namespaces, and no descriptor left open.
func TestThreadsComeHome(t *testing.T) {
	need(t, "busybox")
	checkNothingLeft(t)
	n := sandbox.NewNative(sandbox.NativeOptions{})
	all := func() {
		var wait sync.WaitGroup
		for i := range 16 {
			s := newSpec(t, "true")
			switch i % 8 {
			case 1:
				s.Args = []string{"/no/such"}
			case 2:
				s.Mounts = []oci.Mount{{Type: "tmpfs", Target: "/made", Options: []string{"nonsense"}}}
			case 3:
				s.Mounts = []oci.Mount{{Type: "bind", Source: "/proc/version", Target: "/proc/version"}}
			case 4:
				s.NetNS = "/no/such"
			case 5:
				s.NetNS = sandbox.Host
			case 6:
				s.Root = oci.Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/no/such"}}
			case 7:
				s.Dir = "/bin/busybox"
			}
			wait.Go(func() {
				_, code, err := run(t, n, s)
				if fails := i%8 != 0 && i%8 != 3 && i%8 != 5; fails == (err == nil) {
					t.Errorf("run %d: %v, code %d", i%8, err, code)
				}
			})
		}
		wait.Wait()
		n.Warm("home", testGroup)
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	all() // what stays open for good is open then
	before := descriptors(t)
	n = sandbox.NewNative(sandbox.NativeOptions{})
	all()
	if after := descriptors(t); after != before {
		t.Errorf("descriptors after: %s\nbefore: %s", after, before)
	}
	for _, link := range []string{"ns/mnt", "ns/uts", "ns/ipc", "ns/net", "ns/pid", "ns/cgroup", "root"} {
		ours, err := os.Readlink("/proc/self/" + link)
		if err != nil {
			t.Fatal(err)
		}
		links, err := filepath.Glob("/proc/self/task/*/" + link)
		if err != nil || len(links) < 2 {
			t.Fatal(links, err)
		}
		for _, l := range links {
			if at, err := os.Readlink(l); err == nil && at != ours {
				t.Errorf("%s is %s, want %s", l, at, ours)
			}
		}
	}
}

// TestOwnProgram: a script can have its first process's program executed, by its
// path. That does nothing, and is not ours.
func TestOwnProgram(t *testing.T) {
	need(t, "busybox")
	checkNothingLeft(t)
	lower := t.TempDir()
	for name, text := range map[string]string{"own": "#!/proc/self/exe\n", "by-link": "#!/exe\n"} {
		if err := os.WriteFile(filepath.Join(lower, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/proc/self/exe", filepath.Join(lower, "exe")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/own", "/by-link"} {
		s := newSpec(t, "")
		s.Root = newOverlay(t, lower).mount
		s.Args = []string{name}
		out, code, err := run(t, sandbox.NewNative(sandbox.NativeOptions{}), s)
		if out != "" || code != 1 {
			t.Errorf("run(%s) = %q, code %d (%v), want nothing and code 1", name, out, code, err)
		}
	}
}

// descriptors lists what kinds of file this process has open.
func descriptors(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			out = append(out, e.Name()+" "+to)
		}
	}
	return strings.Join(out, ", ")
}

// TestExecErrors is about commands that the kernel does not execute, by name and by
// path, which is the same however the first process is made.
func TestExecErrors(t *testing.T) {
	need(t, "busybox")
	checkNothingLeft(t)
	lower := t.TempDir()
	for name, mode := range map[string]os.FileMode{"a/denied": 0o644, "b/denied": 0o600, "b/empty": 0o755, "b/found": 0o755, "c/script": 0o755} {
		if err := os.MkdirAll(filepath.Join(lower, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		text := ""
		if name == "c/script" || name == "b/found" {
			text = "#!/no/such\n"
		}
		if err := os.WriteFile(filepath.Join(lower, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"a/found", "a/dir", "closed/in"} {
		if err := os.MkdirAll(filepath.Join(lower, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(lower, "closed"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"nothing", "denied", "empty", "dir", "script", "found", "/a/denied", "/a/dir", "/b/empty", "/c/script", "./script", "./nothing",
		"/b/empty/x", "/closed/in/x", "/" + strings.Repeat("x", 300), "/a/dir/",
	} {
		for _, uid := range []uint32{0, 7} {
			var said []string
			for _, kind := range []string{"stub", "again"} {
				n := sandbox.NewNative(sandbox.NativeOptions{})
				if kind == "again" {
					n.StartAgain()
				}
				s := newSpec(t, "")
				s.Root = newOverlay(t, lower).mount
				s.Args, s.Env, s.Dir = []string{name}, []string{"PATH=/a:/b:/closed/in:/c:/nowhere"}, "/c"
				s.User.UID = uid
				_, err := n.Start(context.Background(), s)
				var e *sandbox.ExecError
				if !errors.As(err, &e) {
					t.Fatalf("%s: Start(%.40q) = %v, want an ExecError", kind, name, err)
				}
				said = append(said, fmt.Sprintf("%d %.80s", e.Code, e.Err))
			}
			if said[0] != said[1] {
				t.Errorf("Start(%.40q) as user %d says %q by a stub, and %q by this program", name, uid, said[0], said[1])
			}
		}
	}
}
