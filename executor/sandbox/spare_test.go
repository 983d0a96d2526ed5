package sandbox_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/executor/sandbox"
)

// waitSpares waits until the cgroups of places that wait for a sandbox are those.
func waitSpares(t *testing.T, want ...string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		got := []string{}
		for _, pattern := range []string{"/sys/fs/cgroup/%s/*-next-*", "/sys/fs/cgroup/unified/%s/*-next-*"} {
			dirs, err := filepath.Glob(fmt.Sprintf(pattern, testGroup))
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range dirs {
				got = append(got, filepath.Base(d))
			}
		}
		if strings.Join(got, " ") == strings.Join(want, " ") {
			return
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("%q wait, want %q", got, want)
		}
	}
}

func TestWarm(t *testing.T) {
	need(t, "busybox")
	checkNothingLeft(t)
	n := sandbox.NewNative(sandbox.NativeOptions{})
	s := newSpec(t, "echo ran")
	check := func(what string) {
		t.Helper()
		if out, code, err := run(t, n, s); out != "ran\n" || code != 0 || err != nil {
			t.Errorf("%s: %q, %d, %v", what, out, code, err)
		}
	}

	// It becomes the place of the next sandbox, and of no other parent's.
	n.Warm("a", testGroup)
	n.Warm("b", testGroup)
	waitSpares(t, "a-next-1")
	s.CgroupParent = "build-elsewhere"
	check("another parent")
	waitSpares(t, "a-next-1")
	s.CgroupParent = testGroup
	p, err := n.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.Pid()))
	if !strings.Contains(string(groups), "/a-next-1\n") {
		t.Errorf("the process is in %s (%v), want a-next-1", groups, err)
	}
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	waitSpares(t)

	// It does not wait for long, and not at all after Close.
	n.Warm("d", testGroup)
	waitSpares(t, "d-next-2")
	waitSpares(t)
	n.Warm("e", testGroup)
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	n.Warm("f", testGroup)
	waitSpares(t)
	check("after Close")
}
