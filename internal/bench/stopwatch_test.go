package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestOrder looks at what a stopwatch tells, not at how long things take.
func TestOrder(t *testing.T) {
	log := func(name string) string { return filepath.Join(t.TempDir(), name) }
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	one := log("one")
	got := order{Timeout: time.Minute, Builds: []command{
		{Steps: [][]string{sh("echo $WHO"), sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")}, Env: []string{"WHO=first"}, Log: one},
		{Steps: [][]string{sh("true")}, Log: log("two")},
	}}.run(t.Context())
	if got.Error != "" || got.Wall <= 0 || got.CPU <= 0 || got.Memory < 500<<10 {
		t.Errorf("two builds: %+v, want no error, and time and memory", got)
	}
	if text, err := os.ReadFile(one); err != nil || string(text) != "first\n" {
		t.Errorf("the log is %q, %v, want what the environment says", text, err)
	}
	got = order{Builds: []command{{Steps: [][]string{sh("echo no luck >&2; exit 3"), sh("exit 0")}, Log: log("three")}}}.run(t.Context())
	if !strings.Contains(got.Error, "exit status 3") || !strings.Contains(got.Error, "no luck") {
		t.Errorf("a failing build: %q, want its exit status and what it printed", got.Error)
	}
	late, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	got = order{Builds: []command{{Steps: [][]string{{"/bin/sleep", "60"}}, Log: log("four")}}}.run(late)
	if !strings.Contains(got.Error, context.DeadlineExceeded.Error()) {
		t.Errorf("a build that takes too long: %q, want that its time is over", got.Error)
	}
}
