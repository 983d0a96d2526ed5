package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// run is an Exec without a network, upon base.
func run(base *llb.Node, op llb.Exec, in ...*llb.Node) *llb.Node {
	if op.Args == nil {
		op.Args = []string{"x"}
	}
	op.Network = llb.NetworkHost
	return llb.New(op, append([]*llb.Node{base}, in...)...)
}

var users = filesOf(scratch,
	"/etc/passwd root:x:0:0::/root:\nme:x:7:8::/home/me:\nbare:x:9:9:::\n", "/etc/group wheel:x:10:me\nme:x:8:\n")

func TestSpec(t *testing.T) {
	tests := []struct {
		name  string
		op    llb.Exec
		check func(s sandbox.Spec) (got, want any)
	}{
		{"root's home", llb.Exec{}, func(s sandbox.Spec) (any, any) { return s.Env, []string{"HOME=/root"} }},
		{"a user's home, behind the environment", llb.Exec{User: "me", Env: []string{"A=1", "B=2"}},
			func(s sandbox.Spec) (any, any) { return s.Env, []string{"A=1", "B=2", "HOME=/home/me"} }},
		{"a home that is set", llb.Exec{User: "me", Env: []string{"HOME=/h"}}, func(s sandbox.Spec) (any, any) { return s.Env, []string{"HOME=/h"} }},
		{"groups of a name", llb.Exec{User: "me"}, func(s sandbox.Spec) (any, any) { return s.User, sandbox.User{UID: 7, GID: 8, Groups: []uint32{8, 10}} }},
		{"and of its number", llb.Exec{User: "7"}, func(s sandbox.Spec) (any, any) { return s.User, sandbox.User{UID: 7, GID: 8, Groups: []uint32{8, 10}} }},
		{"another group", llb.Exec{User: "me:wheel"}, func(s sandbox.Spec) (any, any) { return s.User, sandbox.User{UID: 7, GID: 10, Groups: []uint32{10}} }},
		{"numbers", llb.Exec{User: "7:99"}, func(s sandbox.Spec) (any, any) { return s.User, sandbox.User{UID: 7, GID: 99, Groups: []uint32{99}} }},
		{"a number that nobody has", llb.Exec{User: "1234"}, func(s sandbox.Spec) (any, any) { return s.User, sandbox.User{UID: 1234, Groups: []uint32{0}} }},
		{"its home", llb.Exec{User: "1234"}, func(s sandbox.Spec) (any, any) { return s.Env, []string{"HOME=/"} }},
		{"directory", llb.Exec{}, func(s sandbox.Spec) (any, any) { return s.Dir, "/" }},
		{"host name", llb.Exec{}, func(s sandbox.Spec) (any, any) { return s.Hostname, hostname }},
		{"its own", llb.Exec{Hostname: "h"}, func(s sandbox.Spec) (any, any) { return s.Hostname, "h" }},
		{"unlimited", llb.Exec{Ulimits: []llb.Ulimit{{Name: "nofile", Soft: 5, Hard: -1}}},
			func(s sandbox.Spec) (any, any) {
				return s.Rlimits, []sandbox.Rlimit{{Name: "nofile", Soft: 5, Hard: ^uint64(0)}}
			}},
		{"privileged", llb.Exec{Security: llb.SecurityInsecure}, func(s sandbox.Spec) (any, any) { return s.Privileged, true }},
		{"not privileged", llb.Exec{Security: llb.SecuritySandbox}, func(s sandbox.Spec) (any, any) { return s.Privileged, false }},
		{"shm", llb.Exec{ShmSize: 5}, func(s sandbox.Spec) (any, any) { return s.ShmSize, int64(5) }},
		{"no input", llb.Exec{}, func(s sandbox.Spec) (any, any) { return s.Stdin == nil, true }},
		{"input", llb.Exec{Stdin: []byte("hi")}, func(s sandbox.Spec) (any, any) {
			b, _ := io.ReadAll(s.Stdin)
			return string(b), "hi"
		}},
		{"hosts", llb.Exec{Hosts: []llb.Host{{Name: "db", Addr: "1.2.3.4"}}}, func(s sandbox.Spec) (any, any) {
			return strings.Contains(string(mountAt(s, "/etc/hosts").Data), "1.2.3.4\tdb"), true
		}},
		{"resolver", llb.Exec{}, func(s sandbox.Spec) (any, any) { return mountAt(s, "/etc/resolv.conf").Type, "file" }},
		{"tmpfs", llb.Exec{Mounts: []llb.Mount{{Type: llb.MountTmpfs, Target: "/t", Size: 7}}}, func(s sandbox.Spec) (any, any) {
			return option(mountAt(s, "/t"), "size"), "7"
		}},
		{"secret", llb.Exec{Mounts: []llb.Mount{{Type: llb.MountSecret, ID: "s", Target: "/s", UID: 5, GID: 6, Mode: 0o440, ModeSet: true}}},
			func(s sandbox.Spec) (any, any) {
				m := mountAt(s, "/s")
				return fmt.Sprint(string(m.Data), m.Options), "hush[ro nosuid nodev noexec uid=5 gid=6 mode=0440]"
			}},
		{"secret in the environment", llb.Exec{Env: []string{"S=open"}, Mounts: []llb.Mount{{Type: llb.MountSecret, ID: "s", Env: "S"}}},
			func(s sandbox.Spec) (any, any) { return s.Env, []string{"S=open", "HOME=/root", "S=hush"} }},
		{"a secret that was not given", llb.Exec{Mounts: []llb.Mount{{Type: llb.MountSecret, ID: "none", Target: "/s"}}},
			func(s sandbox.Spec) (any, any) { return mountAt(s, "/s").Type, "" }},
		{"an agent that was not given", llb.Exec{Mounts: []llb.Mount{{Type: llb.MountSSH, ID: "none", Target: "/s"}}},
			func(s sandbox.Spec) (any, any) { return mountAt(s, "/s").Type, "" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.secrets["s"] = "hush"
			r.mustBuild(run(users, tt.op))
			got, want := tt.check(r.box.specs[0])
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
}

func mountAt(s sandbox.Spec, target string) oci.Mount {
	for _, m := range s.Mounts {
		if m.Target == target {
			return m
		}
	}
	return oci.Mount{}
}

func TestExecErrors(t *testing.T) {
	tests := []struct {
		name string
		op   llb.Exec
		end  error
		want string
	}{
		{"exit code", llb.Exec{Args: []string{"make", "all"}}, &sandbox.ExitError{Code: 2}, `process "make all" did not complete successfully: exit code 2`},
		{"unknown user", llb.Exec{User: "nobody"}, nil, `user "nobody": unable to find user`},
		{"unknown group", llb.Exec{User: "me:nogroup"}, nil, `user "me:nogroup"`},
		{"secret", llb.Exec{Mounts: []llb.Mount{{Type: llb.MountSecret, ID: "k", Target: "/k", Required: true}}}, nil, "mount /k: secret \"k\" was not given: add --secret id=k"},
		{"agent", llb.Exec{Mounts: []llb.Mount{{Type: llb.MountSSH, ID: "a", Target: "/a", Required: true}}}, nil, "add --ssh a"},
		{"type", llb.Exec{Mounts: []llb.Mount{{Type: "nfs", Target: "/n"}}}, nil, `mount /n: unknown type "nfs"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.box.do = func(context.Context, sandbox.Spec) error { return tt.end }
			_, _, err := r.build(run(users, tt.op))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
			// Nothing of it is recorded.
			r.box.do = nil
			if tt.end != nil {
				if _, w := r.mustBuild(run(users, tt.op)); len(w.ran) != 1 {
					t.Errorf("then it runs %q", w.ran)
				}
			}
		})
	}
}

// What a step writes is its layer.
func TestExecCommits(t *testing.T) {
	r := newRig(t)
	r.box.do = func(_ context.Context, s sandbox.Spec) error {
		return os.WriteFile(filepath.Join(upper(s.Root), "out"), []byte(s.Args[0]), 0o644)
	}
	n := run(run(scratch, llb.Exec{Args: []string{"one"}}), llb.Exec{Args: []string{"two"}})
	got, _ := r.mustBuild(n)
	r.check("two steps", got, "/out 0644 0:0 two")
	if len(got.Layers) != 2 {
		t.Errorf("%d layers, want 2", len(got.Layers))
	}
	if again, w := r.mustBuild(n); len(w.ran) != 0 || again.Content() != got.Content() {
		t.Errorf("again it runs %q", w.ran)
	}
}

func TestTimeout(t *testing.T) {
	r := newRig(t)
	r.box.do = func(ctx context.Context, s sandbox.Spec) error {
		<-ctx.Done()
		return &sandbox.ExitError{Code: 137}
	}
	n := run(scratch, llb.Exec{})
	r.meta[n.Digest] = llb.Meta{Timeout: 10 * time.Millisecond}
	if _, _, err := r.build(n); err == nil || !strings.Contains(err.Error(), "stopped after its --timeout of 10ms") {
		t.Errorf("error %v, want that of the timeout", err)
	}
}

// Of proxies the process hears, and no record does.
func TestProxiesAreNoIngredient(t *testing.T) {
	r := newRig(t)
	n := run(scratch, llb.Exec{})
	r.meta[n.Digest] = llb.Meta{ProxyEnv: []string{"HTTP_PROXY=http://me:hush@proxy"}}
	r.mustBuild(n)
	if env := r.box.specs[0].Env; !slices.Contains(env, "HTTP_PROXY=http://me:hush@proxy") {
		t.Errorf("environment %q", env)
	}
	r.meta[n.Digest] = llb.Meta{}
	if _, w := r.mustBuild(n); len(w.ran) != 0 {
		t.Errorf("without the proxy it runs %q", w.ran)
	}
	r.noneHolds("hush")
}

// noneHolds looks through all files of the state directory for text.
func (r *rig) noneHolds(text string) {
	t := r.t
	t.Helper()
	r.settle()
	err := filepath.WalkDir(r.store.Dir(), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(b), text) {
			t.Errorf("%s holds %q", p, text)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A secret's value is no ingredient; which one it is, and where it is put, are.
func TestSecretKeys(t *testing.T) {
	r := newRig(t)
	mount := llb.Mount{Type: llb.MountSecret, ID: "s", Target: "/s"}
	build := func(m llb.Mount) int {
		_, w := r.mustBuild(run(scratch, llb.Exec{Mounts: []llb.Mount{m}}))
		return len(w.ran)
	}
	r.secrets["s"] = "hush-hush"
	if n := build(mount); n != 1 {
		t.Errorf("first %d steps run", n)
	}
	r.secrets["s"] = "another"
	if n := build(mount); n != 0 {
		t.Errorf("with another value %d steps run", n)
	}
	for name, change := range map[string]func(*llb.Mount){
		"id": func(m *llb.Mount) { m.ID = "t" }, "variable": func(m *llb.Mount) { m.Env = "S" }, "mode": func(m *llb.Mount) { m.Mode, m.ModeSet = 0o444, true },
	} {
		m := mount
		change(&m)
		if n := build(m); n != 1 {
			t.Errorf("with another %s %d steps run", name, n)
		}
	}
	r.noneHolds("hush-hush")
}

func TestBind(t *testing.T) {
	tree := filesOf(scratch, "/d/", "/d/f 1")
	tests := []struct {
		name     string
		m        llb.Mount
		sub, err string
	}{
		{"a directory", llb.Mount{Source: "/d", ReadOnly: true}, "/d", ""},
		{"all", llb.Mount{ReadOnly: true}, "", ""},
		{"a file, to be written", llb.Mount{Source: "/d/f"}, "/d/f", ""},
		{"what is not there", llb.Mount{Source: "/none", ReadOnly: true}, "", `"/none": not found`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			tt.m.Type, tt.m.Target, tt.m.Input = llb.MountBind, "/m", 1
			r.box.do = func(_ context.Context, s sandbox.Spec) error {
				m := mountAt(s, "/m")
				if m.Sub != tt.sub || slices.Contains(m.Options, "ro") != tt.m.ReadOnly {
					t.Errorf("mount %+v, want %q of it, read-only: %v", m, tt.sub, tt.m.ReadOnly)
				}
				if tt.m.ReadOnly {
					return nil
				}
				return os.WriteFile(filepath.Join(option(m, "upperdir"), "lost"), nil, 0o644)
			}
			n := run(scratch, llb.Exec{Mounts: []llb.Mount{tt.m}}, tree)
			got, _, err := r.build(n)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if err == nil {
				r.check(tt.name, got) // nothing of what was written there
			}
		})
	}
}

// A context that is mounted is a copy of what was selected, and hits as long as
// that is the same.
func TestBindOfAContext(t *testing.T) {
	r := newRig(t)
	r.ignore = "hidden\n"
	r.write("d/f", "1")
	r.write("d/hidden", "2")
	r.write("hidden", "2")
	r.write("other", "3")
	n := run(scratch, llb.Exec{Mounts: []llb.Mount{{Type: llb.MountBind, Target: "/m", Input: 1, Source: "/d", ReadOnly: true}}},
		contextOf(llb.Copy{Sources: []string{"/d"}}))
	var seen string
	r.box.do = func(_ context.Context, s sandbox.Spec) error {
		m := mountAt(s, "/m")
		for _, o := range m.Options {
			if dir, ok := strings.CutPrefix(o, "lowerdir+="); ok {
				names, _ := filepath.Glob(filepath.Join(dir, "*/*"))
				for _, p := range names {
					b, _ := os.ReadFile(p)
					seen += filepath.Base(p) + "=" + string(b) + " "
				}
			}
		}
		return nil
	}
	r.mustBuild(n)
	if seen != "f=1 hidden=2 " {
		t.Errorf("the step sees %q", seen)
	}
	r.write("other", "4")
	if _, w := r.mustBuild(n); len(w.ran) != 0 {
		t.Errorf("another file changed: it runs %q", w.ran)
	}
	r.write("d/f", "5")
	if _, w := r.mustBuild(n); len(w.ran) != 1 {
		t.Errorf("the file changed: it runs %q", w.ran)
	}
}

// A cache mount that begins with what a context has begins anew where that changed.
func TestCacheMountOfAContext(t *testing.T) {
	r := newRig(t)
	r.write("d/f", "1")
	var dirs []string
	r.box.do = func(_ context.Context, s sandbox.Spec) error {
		dirs = append(dirs, mountAt(s, "/c").Source)
		return nil
	}
	mounted := func(arg string) string {
		n := run(scratch, llb.Exec{Args: []string{arg}, Mounts: []llb.Mount{{Type: llb.MountCache, Target: "/c", CacheID: "a", Input: 1, Source: "/d"}}},
			contextOf(llb.Copy{Sources: []string{"/d"}}))
		r.mustBuild(n)
		dir := dirs[len(dirs)-1]
		b, err := os.ReadFile(filepath.Join(dir, "f"))
		if err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "f"), append(b, '+'), 0o644); err != nil {
			t.Error(err)
		}
		return string(b)
	}
	if got := mounted("first"); got != "1" {
		t.Errorf("it begins with %q, want what the context has", got)
	}
	if got := mounted("second"); got != "1+" {
		t.Errorf("another step has %q, want what the first one left", got)
	}
	r.write("d/f", "2")
	if got := mounted("third"); got != "2" {
		t.Errorf("after a change it begins with %q, want what the context has", got)
	}
}

func TestCacheMounts(t *testing.T) {
	r := newRig(t)
	from := llb.New(llb.File{Actions: []llb.Action{
		llb.Mkdir{Path: "/first", Mode: 0o750, Owner: "3:4"}, llb.Mkfile{Path: "/first/f", Data: []byte("1"), Mode: "0600", Owner: "7:8"},
	}}, scratch)
	var dirs []string
	r.box.do = func(_ context.Context, s sandbox.Spec) error {
		dirs = append(dirs, mountAt(s, "/c").Source)
		return nil
	}
	steps := []struct {
		name string
		m    llb.Mount
		same int // index of the step whose directory it has; its own: a new one
		want string
	}{
		{"plain", llb.Mount{CacheID: "a"}, 0, "755 0:0"},
		{"again", llb.Mount{CacheID: "a"}, 0, "755 0:0"},
		{"locked", llb.Mount{CacheID: "a", Sharing: "locked"}, 0, "755 0:0"},
		{"another", llb.Mount{CacheID: "b"}, 3, "755 0:0"},
		{"with an owner", llb.Mount{CacheID: "a", UID: 5, GID: 6, Mode: 0o700, ModeSet: true}, 4, "700 5:6"},
		{"with a first content", llb.Mount{CacheID: "a", Input: 1, Source: "/first"}, 5, "750 3:4 f=1"},
		{"again with it", llb.Mount{CacheID: "a", Input: 1, Source: "/first", ReadOnly: true}, 5, "750 3:4 f=1"},
		{"with a file", llb.Mount{CacheID: "a", Input: 1, Source: "/first/f"}, 7, "600 7:8 1"},
		{"again with the file", llb.Mount{CacheID: "a", Input: 1, Source: "/first/f"}, 7, "600 7:8 1"},
	}
	for i, s := range steps {
		s.m.Type, s.m.Target = llb.MountCache, "/c"
		r.mustBuild(run(scratch, llb.Exec{Args: []string{s.name}, Mounts: []llb.Mount{s.m}}, from))
		if dirs[i] != dirs[s.same] {
			t.Errorf("%s: directory %s, want that of %q", s.name, dirs[i], steps[s.same].name)
		}
		for k, d := range dirs[:i] {
			if d == dirs[i] && steps[k].same != s.same {
				t.Errorf("%s: it has the directory of %q", s.name, steps[k].name)
			}
		}
		st, err := os.Stat(dirs[i])
		if err != nil {
			t.Fatal(err)
		}
		uid, gid := ownerOf(st)
		got := fmt.Sprintf("%o %d:%d", st.Mode().Perm(), uid, gid)
		if b, err := os.ReadFile(filepath.Join(dirs[i], "f")); err == nil {
			got += " f=" + string(b)
		}
		if b, err := os.ReadFile(dirs[i]); err == nil {
			got += " " + string(b)
		}
		if got != s.want {
			t.Errorf("%s: the directory is %s, want %s", s.name, got, s.want)
		}
	}
}

// What a step has borrowed is given back however it ends.
func TestExecGivesBack(t *testing.T) {
	for name, end := range map[string]func(ctx context.Context, cancel func()) error{
		"well":    func(context.Context, func()) error { return nil },
		"failing": func(context.Context, func()) error { return &sandbox.ExitError{Code: 1} },
		"stopped": func(ctx context.Context, _ func()) error { return errors.New("killed") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			step := func(name string) {
				r.build(run(users, llb.Exec{Args: []string{name}, User: "me", Mounts: []llb.Mount{
					{Type: llb.MountCache, Target: "/c", CacheID: "c", Sharing: "locked"},
					{Type: llb.MountBind, Target: "/b", Input: 1, Source: "/etc"},
					{Type: llb.MountBind, Target: "/r", Input: 1, ReadOnly: true},
				}}, users))
			}
			step("first") // some files of locks stay open, to be used again
			r.settle()
			before := openFiles(t)
			r.box.do = func(ctx context.Context, s sandbox.Spec) error { return end(ctx, nil) }
			step("second")
			r.settle()
			if after := openFiles(t); after != before {
				t.Errorf("%d files are open, %d before", after, before)
			}
			_, release, err := r.store.CacheMount(t.Context(), "c", "locked", cache.MountInit{})
			if err != nil {
				t.Fatal(err)
			}
			release()
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}
