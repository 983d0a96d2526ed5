package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/861fb494/build/internal/container"
)

// parseRun is what `build run` makes of its arguments.
func parseRun(args ...string) (container.Options, error) {
	var o runOptions
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	o.declare(f)
	if err := f.Parse(args); err != nil {
		return container.Options{}, err
	}
	return o.container(f.Args()[1:])
}

func TestRunFlags(t *testing.T) {
	t.Setenv("HERE", "from here")
	dir := t.TempDir()
	t.Chdir(dir)
	envFile := "# a comment\n\n  A=1\nB=\"quoted\" \nHERE\nNOT_HERE_AT_ALL\nC=a=b\n"
	if err := os.WriteFile("env", []byte(envFile), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args string
		get  func(container.Options) any
		want string
	}{
		{"x", func(o container.Options) any { return fmt.Sprint(len(o.Process.Args), o.Network.Mode) }, "0bridge"},
		{"x sh -c -i", func(o container.Options) any { return o.Process.Args }, "[sh -c -i]"},
		{"-it --init -w /w -u u x", func(o container.Options) any {
			p := o.Process
			return []any{p.Dir, p.User, p.Terminal, p.Stdin, p.Init}
		}, "[/w u true true true]"},
		{"--entrypoint sh x", func(o container.Options) any { return o.Process.Entrypoint }, "[sh]"},
		{"--entrypoint= x", func(o container.Options) any { return len(o.Process.Entrypoint) }, "1"},
		{"x --entrypoint sh", func(o container.Options) any { return o.Process.Entrypoint == nil }, "true"},
		{"-e A=1 -e HERE -e NOT_HERE_AT_ALL -e B= x", func(o container.Options) any { return fmt.Sprintf("%q", o.Process.Env) }, `["A=1" "HERE=from here" "B="]`},
		{"--env-file env -e A=2 x", func(o container.Options) any { return fmt.Sprintf("%q", o.Process.Env) },
			`["A=1" "B=\"quoted\" " "HERE=from here" "C=a=b" "A=2"]`},
		{"-v /tmp:/x:ro -v ./d:/y/ x", func(o container.Options) any {
			var list []any
			for _, m := range o.Mounts {
				list = append(list, m.Source, m.Target, m.Options)
			}
			return list
		}, "[/tmp /x [rbind ro] " + filepath.Join(dir, "d") + " /y [rbind]]"},
		{"-p 80 -p 127.0.0.1:8080-8081:80-81/udp x", func(o container.Options) any { return o.Network.Ports },
			"[0.0.0.0:0->80/tcp 127.0.0.1:8080->80/udp 127.0.0.1:8081->81/udp]"},
		{"--network host -h box --add-host db:192.0.2.1 x", func(o container.Options) any { return o.Network }, "{host [] box [{db 192.0.2.1}]}"},
		{"-m 1g --cpus 1.5 x", func(o container.Options) any { return o.Resources }, "{1073741824 1.5 0}"},
		{"--stop-timeout 3 x", func(o container.Options) any { return *o.StopTimeout }, "3s"},
		{"--stop-timeout=-1 x", func(o container.Options) any { return *o.StopTimeout > time.Hour }, "true"},
		{"x", func(o container.Options) any { return o.StopTimeout }, "<nil>"},
	}
	for _, tt := range tests {
		o, err := parseRun(strings.Fields(tt.args)...)
		if err != nil {
			t.Errorf("run %s: %v", tt.args, err)
		} else if got := fmt.Sprint(tt.get(o)); got != tt.want {
			t.Errorf("run %s = %s, want %s", tt.args, got, tt.want)
		}
	}
	if fi, err := os.Stat("d"); err != nil || !fi.IsDir() {
		t.Errorf("the missing host path of -v was not made: %v", err)
	}
}

func TestBadRunFlags(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("env", []byte("A=1\nA B=2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ args, want string }{
		{"-v data:/x x", "named volume"},
		{"-v /x x", "two or three parts"},
		{"-v /x:/ x", "below the container's root"},
		{"-v /x:y x", "no absolute path"},
		{"-v /x:/y:what x", `unknown option "what"`},
		{"-p x:80 x", `"x" is no port`},
		{"-p 80 --network none x", "--publish needs a network"},
		{"--network mine x", "want bridge, host or none"},
		{"--pull sometimes x", "want always, missing or never"},
		{"-e =x x", "no name"},
		{"--env-file env x", `env:2: "A B=2"`},
		{"--env-file nowhere x", "no such file"},
		{"-m lots x", "want a size"},
		{"--cpus -1 x", "--cpus"},
		{"--stop-timeout soon x", "want a number of seconds"},
		{"--add-host x x", "want NAME:ADDRESS"},
	}
	for _, tt := range tests {
		if _, err := parseRun(strings.Fields(tt.args)...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("run %s: %v, want %q", tt.args, err, tt.want)
		}
	}
}

func TestPsRow(t *testing.T) {
	now := time.Now()
	id := strings.Repeat("0123456789abcdef", 4)
	config := container.Config{ID: id, Name: "box", Args: []string{"sh", "-c", "a very long command"}, Created: now.Add(-time.Hour)}
	tests := []struct {
		name  string
		state container.State
		whole bool
		want  []string
	}{
		{"running", container.State{Status: container.Running, Started: now.Add(-5 * time.Minute)}, false,
			[]string{"0123456789ab", `"sh -c a very long c…"`, "Up 5 minutes"}},
		{"exited", container.State{Status: container.Exited, ExitCode: 3, Finished: now.Add(-2 * time.Hour)}, true,
			[]string{id, `"sh -c a very long command"`, "Exited (3) 2 hours ago"}},
		{"lost", container.State{Status: container.Exited, Lost: true}, true, []string{id, `"sh -c a very long command"`, "Exited (unknown)"}},
		{"created", container.State{Status: container.Created}, true, []string{id, `"sh -c a very long command"`, "Created"}},
	}
	for _, tt := range tests {
		r := newPsRow(container.Info{Config: config, State: tt.state}, tt.whole)
		if got := []string{r.ID, r.Command, r.Status}; !slices.Equal(got, tt.want) {
			t.Errorf("%s: newPsRow = %q, want %q", tt.name, got, tt.want)
		}
	}
}
