package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/internal/oci"
)

func TestCommand(t *testing.T) {
	tests := []struct {
		name       string
		entry, cmd []string
		p          ProcessOptions
		want       []string
	}{
		{"command", nil, []string{"a", "b"}, ProcessOptions{}, []string{"a", "b"}},
		{"entrypoint and command", []string{"e"}, []string{"a"}, ProcessOptions{}, []string{"e", "a"}},
		{"arguments", []string{"e"}, []string{"a"}, ProcessOptions{Args: []string{"x"}}, []string{"e", "x"}},
		{"another entrypoint", []string{"e"}, []string{"a"}, ProcessOptions{Entrypoint: []string{"n"}}, []string{"n"}},
		{"another with arguments", []string{"e"}, []string{"a"}, ProcessOptions{Entrypoint: []string{"n"}, Args: []string{"x"}}, []string{"n", "x"}},
		{"none", []string{"e"}, []string{"a"}, ProcessOptions{Entrypoint: []string{""}, Args: []string{"x"}}, []string{"x"}},
		{"nothing", nil, nil, ProcessOptions{}, nil},
	}
	for _, tt := range tests {
		var img oci.Config
		img.Entrypoint, img.Cmd = tt.entry, tt.cmd
		if got := command(img, tt.p); !slices.Equal(got, tt.want) {
			t.Errorf("%s: command() = %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestApply(t *testing.T) {
	second := time.Second
	var img oci.Config
	img.Cmd = []string{"run"}
	img.Env = []string{"PATH=/app", "A=1"}
	img.WorkingDir = "app"
	img.StopSignal = "SIGINT"
	tests := []struct {
		name string
		o    Options
		get  func(*Config) any
		want string
	}{
		{"environment", Options{}, func(c *Config) any { return c.Env }, "[PATH=/app HOSTNAME=0123456789ab A=1]"},
		{"variables given", Options{Process: ProcessOptions{Env: []string{"A=2", "B="}}}, func(c *Config) any { return c.Env }, "[PATH=/app HOSTNAME=0123456789ab A=2 B=]"},
		{"working directory", Options{}, func(c *Config) any { return c.Dir }, "/app"},
		{"another", Options{Process: ProcessOptions{Dir: "/x"}}, func(c *Config) any { return c.Dir }, "/x"},
		{"stop signal", Options{}, func(c *Config) any { return c.StopSignal }, "SIGINT"},
		{"another stop signal", Options{StopSignal: "9"}, func(c *Config) any { return c.stopSignal() }, "killed"},
		{"stop timeout", Options{}, func(c *Config) any { return c.StopTimeout }, "10s"},
		{"another stop timeout", Options{StopTimeout: &second}, func(c *Config) any { return c.StopTimeout }, "1s"},
		{"network", Options{}, func(c *Config) any { return c.Network.Mode }, "bridge"},
	}
	for _, tt := range tests {
		c := Config{ID: "0123456789abcdef", Network: tt.o.Network}
		if err := c.apply(img, tt.o); err != nil {
			t.Errorf("%s: apply = %v", tt.name, err)
		} else if got := fmt.Sprint(tt.get(&c)); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	bad := []struct {
		name string
		img  oci.Config
		o    Options
		want string
	}{
		{"no command", oci.Config{}, Options{}, "names no command"},
		{"relative directory", img, Options{Process: ProcessOptions{Dir: "x"}}, "not absolute"},
		{"signal", img, Options{StopSignal: "SIGWHAT"}, `stop signal "SIGWHAT"`},
		{"host name", img, Options{Network: NetworkOptions{Hostname: strings.Repeat("x", 65)}}, "longer than 64"},
	}
	for _, tt := range bad {
		c := Config{ID: "0123456789abcdef", Network: tt.o.Network}
		if err := c.apply(tt.img, tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: apply = %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestSetUser(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{
		"passwd": "root:x:0:0::/root:\nweb:x:1000:1001::/srv:\n",
		"group":  "root:x:0:\nweb:x:1001:\nlogs:x:1002:web\n",
	}
	for name, s := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	open := func(path string) (*os.File, error) { return os.Open(filepath.Join(dir, filepath.Base(path))) }
	none := func(path string) (*os.File, error) { return nil, fs.ErrNotExist }
	tests := []struct {
		user string
		open func(string) (*os.File, error)
		want string
	}{
		{"", open, "{0 0 [0]} [HOME=/root]"},
		{"web", open, "{1000 1001 [1001 1002]} [HOME=/srv]"},
		{"web:logs", open, "{1000 1002 [1002]} [HOME=/srv]"},
		{"7:8", open, "{7 8 [8]} [HOME=/]"},
		{"", none, "{0 0 [0]} [HOME=/]"},
		{"7", none, "{7 0 [0]} [HOME=/]"},
		{"web", none, `user "web"`},
		{"nobody", open, `user "nobody"`},
	}
	for _, tt := range tests {
		var c Config
		err := c.setUser(tt.user, tt.open)
		got := fmt.Sprint(c.User, c.Env)
		if err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, tt.want) {
			t.Errorf("setUser(%q) = %s, want %s", tt.user, got, tt.want)
		}
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "a_b.c-1": true, "9": true, "": false, "-a": false, "_a": false, "a/b": false, "..": false, "a b": false, "ä": false,
	} {
		if got := validName(name); got != want {
			t.Errorf("validName(%q) = %v, want %v", name, got, want)
		}
	}
	n := 0
	name := randomName(func(string) bool { n++; return n < 20 })
	if !validName(name) || n != 20 {
		t.Errorf("randomName = %q after %d, want a valid name after 20", name, n)
	}
}

// logOf is a Containers with one container, which wrote what write writes.
func logOf(t *testing.T, write func(*logWriter)) *Containers {
	t.Helper()
	cs := &Containers{Dir: t.TempDir()}
	id := strings.Repeat("a", 64)
	dir := filepath.Join(cs.Dir, id)
	clock := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = errors.Join(
			writeJSON(filepath.Join(dir, "config.json"), Config{ID: id, Name: "box"}),
			writeJSON(filepath.Join(dir, "state.json"), State{Status: Exited}))
	}
	if err != nil {
		t.Fatal(err)
	}
	l, err := newLogWriter(dir, func() time.Time { clock = clock.Add(time.Second); return clock })
	if err != nil {
		t.Fatal(err)
	}
	write(l)
	l.f.Close()
	return cs
}

func TestLogs(t *testing.T) {
	cs := logOf(t, func(l *logWriter) {
		out, errOut := l.stream(1, nil), l.stream(2, nil)
		out.Write([]byte("one\ntwo\n"))
		errOut.Write([]byte("err\n"))
		out.Write([]byte("thr"))
		out.Write([]byte("ee\n\xff\x00\n"))
		l.f.WriteString("{\"damaged\n")
		out.Write([]byte("last"))
	})
	tests := []struct {
		name     string
		o        LogOptions
		out, err string
	}{
		{"all", LogOptions{}, "one\ntwo\nthree\n\xff\x00\nlast", "err\n"},
		{"tail", LogOptions{Lines: true, Tail: 3}, "three\n\xff\x00\nlast", ""},
		{"tail counts both streams", LogOptions{Lines: true, Tail: 4}, "three\n\xff\x00\nlast", "err\n"},
		{"tail 0", LogOptions{Lines: true}, "", ""},
		{"tail of more", LogOptions{Lines: true, Tail: 100}, "one\ntwo\nthree\n\xff\x00\nlast", "err\n"},
		{"times", LogOptions{Timestamps: true, Lines: true, Tail: 3},
			"2026-01-02T03:04:08.000000000Z three\n2026-01-02T03:04:09.000000000Z \xff\x00\n2026-01-02T03:04:10.000000000Z last", ""},
		{"since", LogOptions{Since: time.Date(2026, 1, 2, 3, 4, 9, 0, time.UTC)}, "last", ""},
		{"follow what has ended", LogOptions{Follow: true, Lines: true, Tail: 1}, "last", ""},
	}
	for _, tt := range tests {
		var out, errOut bytes.Buffer
		err := cs.Logs(context.Background(), "box", tt.o, &out, &errOut)
		if err != nil || out.String() != tt.out || errOut.String() != tt.err {
			t.Errorf("%s: Logs(%+v) = %q, %q, %v, want %q, %q", tt.name, tt.o, out.String(), errOut.String(), err, tt.out, tt.err)
		}
	}
}

func TestFind(t *testing.T) {
	cs := &Containers{Dir: t.TempDir()}
	for i, id := range []string{strings.Repeat("a", 64), "ab" + strings.Repeat("c", 62)} {
		dir := filepath.Join(cs.Dir, id)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		c := Config{ID: id, Name: fmt.Sprint("box", i), Chain: []string{"base", fmt.Sprint("top", i)}}
		if err := errors.Join(writeJSON(filepath.Join(dir, "config.json"), c),
			writeJSON(filepath.Join(dir, "state.json"), State{Status: Running})); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(cs.Dir, strings.Repeat("d", 64)), 0o700); err != nil {
		t.Fatal(err) // half made
	}
	tests := []struct{ name, want string }{
		{"box0", "box0"},
		{"aa", "box0"},
		{"ab", "box1"},
		{strings.Repeat("a", 64), "box0"},
		{"a", "begins the IDs of 2 containers"},
		{"", "no such container"},
		{"d", "no such container"},
		{strings.Repeat("d", 64), "no such container"},
	}
	for _, tt := range tests {
		i, err := cs.Find(tt.name)
		if got := fmt.Sprint(i.Name, err); !strings.Contains(got, tt.want) {
			t.Errorf("Find(%q) = %s, want %s", tt.name, got, tt.want)
		}
		if err == nil && (i.Status != Exited || !i.Lost) {
			t.Errorf("Find(%q).State = %+v, want it lost: nobody holds its lock", tt.name, i.State)
		}
	}
	if got, err := cs.Pinned(); err != nil || fmt.Sprint(got) != "[base top0 top1]" {
		t.Errorf("Pinned() = %v, %v", got, err)
	}
}
