package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// files makes the files of a group, as the kernel does, and returns it.
func files(t *testing.T, dir string, names ...string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLimits(t *testing.T) {
	v1 := func(controller string) func(Limits, string) error {
		return func(l Limits, dir string) error { return l.write1(controller, dir) }
	}
	tests := []struct {
		name   string
		limits Limits
		write  func(Limits, string) error
		want   map[string]string // file to content; the only files that are there
	}{
		{"none", Limits{}, Limits.write2, nil},
		{"all", Limits{Memory: 1 << 30, CPUs: 1.5, PIDs: 7}, Limits.write2, map[string]string{
			"memory.max": "1073741824", "memory.swap.max": "1073741824", "cpu.max": "150000 100000", "pids.max": "7",
		}},
		{"no swap accounting", Limits{Memory: 5000}, Limits.write2, map[string]string{"memory.max": "5000"}},
		{"hardly any CPU", Limits{CPUs: 0.001}, Limits.write2, map[string]string{"cpu.max": "1000 100000"}},
		{"version 1 memory", Limits{Memory: 4096}, v1("memory"), map[string]string{"memory.limit_in_bytes": "4096", "memory.memsw.limit_in_bytes": "8192"}},
		{"version 1 CPU", Limits{CPUs: 2}, v1("cpu"), map[string]string{"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "200000"}},
		{"version 1 processes", Limits{PIDs: 9}, v1("pids"), map[string]string{"pids.max": "9"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name := range tt.want {
				files(t, dir, name)
			}
			if err := tt.write(tt.limits, dir); err != nil {
				t.Fatal(err)
			}
			for name, want := range tt.want {
				if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != want || err != nil {
					t.Errorf("%s = %q (%v), want %q", name, got, err, want)
				}
			}
		})
	}
}

func TestDelegate(t *testing.T) {
	root := t.TempDir()
	files(t, root, "cgroup.subtree_control")
	files(t, filepath.Join(root, "build"), "cgroup.subtree_control")
	files(t, filepath.Join(root, "build/steps"), "cgroup.subtree_control")
	if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("cpu memory pids\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree := &Tree{v2: root, pure: true}
	if err := tree.delegate("/build/steps", []string{"memory", "pids"}); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"cgroup.subtree_control":             "cpu memory pids\n", // has them already
		"build/cgroup.subtree_control":       "+memory +pids",
		"build/steps/cgroup.subtree_control": "+memory +pids",
	} {
		if got, err := os.ReadFile(filepath.Join(root, file)); string(got) != want || err != nil {
			t.Errorf("%s = %q (%v), want %q", file, got, err, want)
		}
	}
}

// TestReadOnly is what a container sees that may not make cgroups.
func TestReadOnly(t *testing.T) {
	for _, tree := range []*Tree{{v2: "/proc/no", pure: true}, {root: "/proc/no", v1: map[string]string{}}} {
		tree.detect.Do(func() {}) // it is as it is here
		g, err := tree.New("build", "x", Limits{Devices: true})
		if err != nil || g.DevicesErr() == nil {
			t.Errorf("New without limits = %+v, %v, want an empty group", g, err)
		}
		if fd, _, err := g.FD(); fd != -1 || err != nil || g.OOM() || len(g.Join()) > 0 {
			t.Errorf("an empty group has descriptor %d, out of memory %v, to join %v", fd, g.OOM(), g.Join())
		}
		if err := g.Remove(); err != nil {
			t.Errorf("Remove of an empty group = %v", err)
		}
		_, err = tree.New("build", "x", Limits{Memory: 1})
		if err == nil || !strings.Contains(err.Error(), "memory") || !strings.Contains(err.Error(), "cannot be held") {
			t.Errorf("New with a limit = %v, want an error that says that it cannot be held", err)
		}
	}
}

func TestOOM(t *testing.T) {
	tests := []struct {
		name, file, content string
		want                bool
	}{
		{"version 2", "memory.events", "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n", true},
		{"version 2, none killed", "memory.events", "low 0\nmax 12\noom 1\noom_kill 0\n", false},
		{"version 1", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", true},
		{"version 1, none killed", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", false},
		{"no file", "other", "", false},
	}
	for _, tt := range tests {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, tt.file), []byte(tt.content), 0o644); err != nil {
			t.Fatal(err)
		}
		g := &Group{v1: map[string]string{"memory": dir}}
		if strings.HasPrefix(tt.name, "version 2") {
			g = &Group{v2: dir, pure: true}
		}
		if got := g.OOM(); got != tt.want {
			t.Errorf("%s: OOM() = %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestVersion2 makes groups in a real hierarchy, if there is one.
func TestVersion2(t *testing.T) {
	tree := Open(DefaultRoot)
	tree.look()
	if os.Geteuid() != 0 || tree.v2 == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root and a cgroup version 2 hierarchy")
		}
		t.Skip("needs root and a cgroup version 2 hierarchy")
	}
	parent := "build-cgroup-test"
	g, err := tree.New(parent, "one", Limits{Devices: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.DevicesErr(); err != nil {
		t.Errorf("the group does not limit devices: %v", err)
	}
	fd, closeFD, err := g.FD()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		t.Errorf("descriptor %d: %v", fd, err)
	}
	closeFD()
	if err := os.Mkdir(filepath.Join(g.v2, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(tree.v2, parent)); !os.IsNotExist(err) {
		t.Errorf("%s is still there (%v)", parent, err)
	}
}
