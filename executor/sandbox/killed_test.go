package sandbox_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/executor/sandbox"
)

// hold is another process that uses this package, to be killed: it starts the
// Spec args[1] in the sandbox args[0], prints the process's id, and waits.
func hold(args []string) {
	var s sandbox.Spec
	err := json.Unmarshal([]byte(args[1]), &s)
	var sb sandbox.Sandbox = sandbox.NewNative(sandbox.NativeOptions{})
	if args[0] != "native" {
		sb = sandbox.NewOCI("runc", args[0])
	}
	var p sandbox.Process
	if err == nil {
		p, err = sb.Start(context.Background(), s)
	}
	if err == nil {
		fmt.Println(p.Pid())
		err = p.Wait()
	}
	fmt.Println(err)
	os.Exit(1)
}

// TestKilled kills a process that runs something in a sandbox, and looks for
// what is left after the next one has swept.
func TestKilled(t *testing.T) {
	need(t, "busybox", "runc", "go")
	tests := []struct {
		name, script string
		atOnce       bool // the kernel ends it with its parent
	}{
		{"process", "sleep 1000 & sleep 1000", true},
		// Taking on another user undoes prctl PR_SET_PDEATHSIG.
		{"process that became another user", "exec su user -c 'exec sleep 1000'", false},
	}
	for _, kind := range []string{"native", "runc"} {
		for _, tt := range tests {
			t.Run(kind+" "+tt.name, func(t *testing.T) {
				checkNothingLeft(t)
				state := "native"
				if kind == "runc" {
					state = filepath.Join(t.TempDir(), "state")
				}
				s := newSpec(t, tt.script)
				s.ID = "killed"
				s.Stdin, s.Stdout, s.Stderr = nil, nil, nil
				spec, err := json.Marshal(s)
				if err != nil {
					t.Fatal(err)
				}
				pid := startAndKill(t, state, string(spec))
				if tt.atOnce {
					waitGone(t, pid)
				}
				sweep(t, state)
				waitGone(t, pid)
				if left, _ := os.ReadDir(state); len(left) > 0 {
					t.Errorf("%v is left of the runtime's state", left)
				}
			})
		}
	}
}

func startAndKill(t *testing.T, state, spec string) (pid string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "hold", state, spec)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid = strings.TrimSpace(line)
	if _, err := os.Stat("/proc/" + pid); err != nil {
		t.Fatalf("no process %q", line)
	}
	time.Sleep(100 * time.Millisecond) // for the script to get where it is going
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	return pid
}

func sweep(t *testing.T, state string) {
	t.Helper()
	dead := func(id string) bool { return id != "killed" }
	if err := sandbox.Sweep(testGroup, func(string) bool { return true }); err != nil {
		t.Errorf("Sweep of nothing: %v", err)
	}
	if err := sandbox.Sweep(testGroup, dead); err != nil {
		t.Errorf("Sweep: %v", err)
	}
	if state != "native" {
		if err := sandbox.NewOCI("runc", state).Sweep(dead); err != nil {
			t.Errorf("Sweep of the runtime's state: %v", err)
		}
	}
}

func waitGone(t *testing.T, pid string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		data, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(data), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %s still runs: %s", pid, data)
		}
	}
}
