package sandbox_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/861fb494/build/executor/sandbox"
)

// spares are the processes that wait to be a sandbox's first, children of this one.
func spares(t *testing.T) []int {
	t.Helper()
	var out []int
	lists, _ := filepath.Glob("/proc/self/task/*/children") // the only error is one of the pattern
	for _, l := range lists {
		data, _ := os.ReadFile(l) // gone with its thread
		for _, f := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			args, _ := os.ReadFile(filepath.Join("/proc", f, "cmdline"))
			if strings.HasPrefix(string(args), "build-sandbox\x00") {
				out = append(out, pid)
			}
		}
	}
	return out
}

// waitSpares waits until there are n of them.
func waitSpares(t *testing.T, n int) []int {
	t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		got := spares(t)
		if len(got) == n {
			return got
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("%d processes wait, want %d", len(got), n)
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

	// It becomes the first process of the next sandbox, and of no other parent's.
	n.Warm("a", testGroup)
	n.Warm("b", testGroup)
	pid := waitSpares(t, 1)[0]
	s.CgroupParent = "build-elsewhere"
	check("another parent")
	if got := spares(t); len(got) != 1 || got[0] != pid {
		t.Errorf("%v wait, want %d", got, pid)
	}
	s.CgroupParent = testGroup
	p, err := n.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if p.Pid() != pid {
		t.Errorf("the process is %d, want %d, which was there", p.Pid(), pid)
	}
	if err := p.Wait(); err != nil {
		t.Error(err)
	}

	// One that was killed is no reason to fail.
	n.Warm("c", testGroup)
	if err := syscall.Kill(waitSpares(t, 1)[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	check("after a kill")

	// It does not wait for long, and not at all after Close.
	n.Warm("d", testGroup)
	waitSpares(t, 1)
	waitSpares(t, 0)
	n.Warm("e", testGroup)
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	n.Warm("f", testGroup)
	if got := spares(t); len(got) != 0 {
		t.Errorf("%v wait after Close", got)
	}
	check("after Close")
}
