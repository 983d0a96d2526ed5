package sandbox_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/internal/oci"
)

// TestContract is what both implementations do alike, seen by the process.
func TestContract(t *testing.T) {
	tests := []struct {
		name   string
		script string
		edit   func(*sandbox.Spec)
		want   string // of standard output and error
		code   int
	}{
		{name: "output", script: "echo out; echo err >&2", want: "out\nerr\n"},
		{name: "exit code", script: "exit 42", code: 42},
		{name: "signal", script: "sh -c 'kill -9 $$'; exit $?", want: "Killed\n", code: 137},
		{name: "root", script: "id", want: "uid=0 gid=0\n"},
		{
			name: "user", script: "id; touch /etc/x 2>&1", want: "uid=1000 gid=1001 groups=5,1002\ntouch: /etc/x: Permission denied\n", code: 1,
			edit: func(s *sandbox.Spec) { s.User = sandbox.User{UID: 1000, GID: 1001, Groups: []uint32{5, 1002}} },
		},
		{
			name: "user with an init", script: "id; grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status",
			want: "uid=1000 gid=1001\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\n",
			edit: func(s *sandbox.Spec) { s.User = sandbox.User{UID: 1000, GID: 1001}; s.Init = true },
		},
		{name: "environment", script: "env | grep -v -E '^(PWD|SHLVL|HOME)' | sort", want: "A=b c\nE=\nPATH=/bin\n", edit: func(s *sandbox.Spec) { s.Env = append(s.Env, "A=b c", "E=") }},
		{name: "working directory", script: "pwd", want: "/etc\n", edit: func(s *sandbox.Spec) { s.Dir = "/etc" }},
		{name: "new working directory", script: "pwd; stat -c %a /new/dir", want: "/new/dir\n755\n", edit: func(s *sandbox.Spec) { s.Dir = "/new/dir" }},
		{name: "host name", script: "hostname", want: "some-host\n", edit: func(s *sandbox.Spec) { s.Hostname = "some-host" }},
		{name: "process 1", script: "echo $$; cat /proc/1/comm; true", want: "1\nsh\n"},
		{name: "init", script: "test $$ != 1 && echo child; (sleep 0.01 &) ; sleep 0.1; ps -o stat | grep -c Z", edit: func(s *sandbox.Spec) { s.Init = true }, want: "child\n0\n", code: 1},
		{name: "init passes the exit code on", script: "exit 7", edit: func(s *sandbox.Spec) { s.Init = true }, code: 7},
		{name: "umask", script: "umask", want: "0022\n"},
		{name: "no stdin", script: "cat", want: ""},
		{name: "stdin", script: "cat", want: "from a reader", edit: func(s *sandbox.Spec) { s.Stdin = strings.NewReader("from a reader") }},
		{
			name: "capabilities", script: "grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status",
			want: "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n",
		},
		{
			name: "capabilities of a user", script: "grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status",
			edit: func(s *sandbox.Spec) { s.User = sandbox.User{UID: 5, GID: 5} },
			want: "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n",
		},
		{
			name: "set-user-ID program", script: "probe users",
			edit: func(s *sandbox.Spec) { s.User = sandbox.User{UID: 5, GID: 5} },
			want: "5 5\n",
		},
		{
			name: "set-user-ID program with new privileges", script: "probe users; grep -E '^(NoNew|Seccomp:)' /proc/self/status",
			edit: func(s *sandbox.Spec) { s.User, s.NewPrivileges = sandbox.User{UID: 5, GID: 5}, true },
			want: "5 0\nNoNewPrivs:\t0\nSeccomp:\t2\n",
		},
		{
			name: "privileged", script: "grep -E '^(CapBnd|NoNew|Seccomp:)' /proc/self/status | sed 's/CapBnd.*/caps/'; mount -t tmpfs x /tmp && echo mounted; test -b /dev/vda -o -e /dev/kmsg && echo devices; echo 1 >/proc/sys/kernel/printk_delay; echo 0 >/proc/sys/kernel/printk_delay && echo sysctl",
			edit: func(s *sandbox.Spec) { s.Privileged = true },
			want: "caps\nNoNewPrivs:\t0\nSeccomp:\t0\nmounted\ndevices\nsysctl\n",
		},
		{name: "masked", script: "cat /proc/keys /proc/timer_list; ls /proc/acpi /sys/firmware", want: "/proc/acpi:\n\n/sys/firmware:\n"},
		{name: "read-only", script: "echo 1 >/proc/sys/kernel/panic; mkdir /sys/x; true", want: "/bin/sh: can't create /proc/sys/kernel/panic: Read-only file system\nmkdir: can't create directory '/sys/x': Read-only file system\n"},
		{
			name: "devices", script: "cd /dev; echo x >null; head -c 3 zero | od -An -tx1; head -c 2 urandom | wc -c; head -c 2 random | wc -c; echo x >full; for l in fd stdin stdout stderr ptmx; do readlink $l; done; stat -c '%a %F %t:%T' null zero full random urandom tty; touch /dev/shm/x /dev/mqueue/y && echo writable",
			want: " 00 00 00\n2\n2\nsh: write error: No space left on device\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n" +
				"666 character special file 1:3\n666 character special file 1:5\n666 character special file 1:7\n666 character special file 1:8\n666 character special file 1:9\n666 character special file 5:0\nwritable\n",
		},
		{name: "a device of the host's", script: "mknod /dev/disk b 254 0 && mknod /disk b 254 0; cat /dev/disk; cat /disk; mknod /n c 1 3 && echo ok >/n", want: "cat: can't open '/dev/disk': Operation not permitted\ncat: can't open '/disk': Operation not permitted\n"},
		{name: "size of /dev/shm", script: "df -k /dev/shm | tail -1 | awk '{print $2}'", want: "1024\n", edit: func(s *sandbox.Spec) { s.ShmSize = 1 << 20 }},
		{name: "network none", script: "ls /sys/class/net; cat /proc/net/dev | tail -n +3 | cut -d: -f1; ping -c 1 -W 1 127.0.0.1 >/dev/null && echo loopback", want: "lo\n    lo\nloopback\n"},
		{name: "read-only root", script: "touch /x; echo y >/tmp/y; true", edit: func(s *sandbox.Spec) {
			s.ReadOnly = true
			s.Mounts = []oci.Mount{{Type: "tmpfs", Source: "tmpfs", Target: "/tmp"}}
		}, want: "touch: /x: Read-only file system\n"},
		{name: "resource limits", script: "ulimit -n; ulimit -H -n; ulimit -c", edit: func(s *sandbox.Spec) {
			s.Rlimits = []sandbox.Rlimit{{Name: "nofile", Soft: 100, Hard: 200}, {Name: "core", Soft: 0, Hard: 0}}
		}, want: "100\n200\n0\n"},
		// This program's own threads, more where the race detector is in it, count
		// until the command takes their place.
		{name: "pids limit", script: "for i in $(seq 20); do sleep 1 & done; true", edit: func(s *sandbox.Spec) { s.Resources.PIDs = 16 }, want: "/bin/sh: can't fork: Resource temporarily unavailable\n", code: 2},
		{name: "last PATH counts", script: "", edit: func(s *sandbox.Spec) {
			s.Args = []string{"echo", "found"}
			s.Env = []string{"PATH=/nowhere:/bin"}
		}, want: "found\n"},
	}
	eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
		checkNothingLeft(t)
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				s := newSpec(t, tt.script)
				if tt.edit != nil {
					tt.edit(&s)
				}
				out, code, err := run(t, sb, s)
				if out != tt.want || code != tt.code {
					t.Errorf("run(%q) = %q, code %d (%v), want %q, code %d", s.Args, out, code, err, tt.want, tt.code)
				}
			})
		}
	})
}

// TestCannotExecute is about commands that do not start.
func TestCannotExecute(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string
		code int
	}{
		{"not in PATH", []string{"foo"}, `exec: "foo": executable file not found in $PATH`, 127},
		{"no such file", []string{"/no/such"}, `exec: "/no/such": stat /no/such: no such file or directory`, 127},
		{"not executable", []string{"/bin/noexec"}, `exec: "/bin/noexec": permission denied`, 126},
	}
	eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
		checkNothingLeft(t)
		for _, tt := range tests {
			for _, init := range []bool{false, true} {
				t.Run(tt.name, func(t *testing.T) {
					s := newSpec(t, "")
					s.Args, s.Init = tt.args, init
					root := newOverlay(t)
					s.Root = root.mount
					out, code, err := run(t, sb, s)
					// Under an OCI runtime it is the init that says so, as output.
					if code != tt.code || !strings.Contains(fmt.Sprint(err, out), tt.want) {
						t.Errorf("run(%q) = %v, code %d, output %q, want %q, code %d", tt.args, err, code, out, tt.want, tt.code)
					}
					if left := listing(t, root.upper); left != "" {
						t.Errorf("upper layer after run(%q) = %q, want nothing", tt.args, left)
					}
				})
			}
		}
	})
}

// TestMounts mounts things in the root, and looks at what is left in the upper
// layer.
func TestMounts(t *testing.T) {
	host := t.TempDir()
	for name, text := range map[string]string{"file": "from the host\n", "dir/inner": "inner\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(host, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(host, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bind := func(source, target string, options ...string) oci.Mount {
		return oci.Mount{Type: "bind", Source: filepath.Join(host, source), Target: target, Options: append([]string{"rbind"}, options...)}
	}
	tests := []struct {
		name   string
		mounts []oci.Mount
		script string
		want   string
		left   string // what the upper layer has afterwards
	}{
		{"directory", []oci.Mount{bind("dir", "/made/here")}, "cat /made/here/inner; echo x >/made/here/new", "inner\n", ""},
		{"read-only", []oci.Mount{bind("dir", "/mnt", "ro")}, "touch /mnt/x", "touch: /mnt/x: Read-only file system\n", ""},
		{"file", []oci.Mount{bind("file", "/etc/resolv.conf", "ro")}, "cat /etc/resolv.conf; echo x >/etc/resolv.conf", "from the host\n/bin/sh: can't create /etc/resolv.conf: Read-only file system\n", ""},
		{"file deep down", []oci.Mount{bind("file", "/var/lib/deep/er/f")}, "cat /var/lib/deep/er/f", "from the host\n", ""},
		{"file, and the step writes beside it", []oci.Mount{bind("file", "/etc/hosts")}, "echo x >/etc/own", "", "etc etc/own"},
		{"directory is used by the step", []oci.Mount{bind("dir", "/a/b/c")}, "echo x >/a/b/own", "", "a a/b a/b/own"},
		{"step changes the directory above", []oci.Mount{bind("file", "/etc/hosts")}, "chmod 700 /etc", "", "etc"},
		{"tmpfs", []oci.Mount{{Type: "tmpfs", Source: "tmpfs", Target: "/scratch", Options: []string{"size=64k", "mode=1750", "uid=7"}}}, "stat -c '%a %u' /scratch; df -k /scratch | tail -1 | awk '{print $2}'", "1750 7\n64\n", ""},
		{"nested", []oci.Mount{{Type: "tmpfs", Source: "tmpfs", Target: "/run"}, bind("file", "/run/secrets/s", "ro")}, "cat /run/secrets/s", "from the host\n", ""},
		{"in /dev", []oci.Mount{{Type: "tmpfs", Source: "tmpfs", Target: "/dev/shm", Options: []string{"size=32k"}}, bind("file", "/dev/f")}, "df -k /dev/shm | tail -1 | awk '{print $2}'; cat /dev/f", "32\nfrom the host\n", ""},
		{"in memory", []oci.Mount{{Type: "file", Target: "/run/secrets/token", Data: []byte("secret"), Options: []string{"uid=3", "gid=4", "mode=0400"}}}, "cat /run/secrets/token; stat -c ' %a %u %g' /run/secrets/token", "secret 400 3 4\n", ""},
		{"part of a mount", []oci.Mount{{Type: "bind", Source: host, Sub: "/dir", Target: "/mnt", Options: []string{"bind", "ro"}}}, "ls /mnt; touch /mnt/x", "inner\nnew\ntouch: /mnt/x: Read-only file system\n", ""},
	}
	eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
		checkNothingLeft(t)
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				root := newOverlay(t)
				s := newSpec(t, tt.script)
				s.Root, s.Mounts = root.mount, tt.mounts
				out, _, err := run(t, sb, s)
				if out != tt.want {
					t.Errorf("run(%q) = %q (%v), want %q", tt.script, out, err, tt.want)
				}
				if left := listing(t, root.upper); left != tt.left {
					t.Errorf("upper layer after run(%q) = %q, want %q", tt.script, left, tt.left)
				}
			})
		}
	})
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil && path != dir {
			names = append(names, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}

// TestHostileLinks mounts where the image has links that lead out of it, or try
// to.
func TestHostileLinks(t *testing.T) {
	outside := t.TempDir()
	host := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(host, []byte("mounted\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, link, to, target, seen string }{
		{"absolute", "out", outside, "/out/f", outside + "/f"},
		{"relative", "out", "../../../../../../../.." + outside, "/out/f", outside + "/f"},
		{"dangling", "out", "/not/there", "/out/f", "/not/there/f"},
		{"dangling file", "out", "/not/there", "/out", "/not/there"},
		{"process's root", "out", "/proc/1/root/" + outside, "/out/f", ""},
		{"descriptor", "out", "/proc/self/fd/3", "/out/f", ""},
	}
	eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
		checkNothingLeft(t)
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				lower := t.TempDir()
				if err := os.Symlink(tt.to, filepath.Join(lower, tt.link)); err != nil {
					t.Fatal(err)
				}
				s := newSpec(t, "cat "+tt.seen)
				s.Root = newOverlay(t, lower).mount
				s.Mounts = []oci.Mount{{Type: "bind", Source: host, Target: tt.target, Options: []string{"bind"}}}
				out, _, err := run(t, sb, s)
				if tt.seen != "" && out != "mounted\n" {
					t.Errorf("cat %s = %q, %v, want what was mounted on %s", tt.seen, out, err, tt.target)
				}
				if left := listing(t, outside); left != "" {
					t.Errorf("outside the root there is %q now", left)
				}
			})
		}
	})
}

// TestAnyBytes: arguments and variables are bytes to a process.
func TestAnyBytes(t *testing.T) {
	need(t, "busybox")
	for _, warm := range []bool{false, true} {
		sb := sandbox.Sandbox(sandbox.NewNative(sandbox.NativeOptions{}))
		if warm {
			w := warmed{sandbox.NewNative(sandbox.NativeOptions{})}
			defer w.Close()
			sb = w
		}
		s := newSpec(t, "")
		s.Args = []string{"sh", "-c", `printf %s "$KEY$1" | od -An -tx1`, "sh", "\x80\xc3("}
		s.Env = append(s.Env, "KEY=\xff\xfe")
		out, code, err := run(t, sb, s)
		if want := " ff fe 80 c3 28\n"; out != want || code != 0 {
			t.Errorf("warmed %t: the process was given %q, code %d (%v), want %q", warm, out, code, err, want)
		}
	}
}
