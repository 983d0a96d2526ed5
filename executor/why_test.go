package executor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// Each reason that a step can have for not being cached.
func TestWhy(t *testing.T) {
	arg := func(name, value string) llb.Variable { return llb.Variable{Name: name, Value: value, Arg: true} }
	env := func(name, value string) llb.Variable { return llb.Variable{Name: name, Value: value} }
	sh := func(mounts ...llb.Mount) llb.Exec { return llb.Exec{Args: []string{"sh"}, Mounts: mounts} }
	src := contextOf(llb.Copy{Sources: []string{"/src"}})
	image := func(digest string) *llb.Node {
		return llb.New(llb.Source{Scheme: llb.Registry, Ref: "docker.io/library/node:alpine@" + digest, Digest: oci.Digest(digest)})
	}
	cp := func(dest string) *llb.Node { return copyOf(scratch, llb.Copy{Sources: []string{"/src"}, Dest: dest}) }
	// vars is n with variables in it; a RUN has them in its environment too.
	type built struct {
		n    *llb.Node
		meta llb.Meta
	}
	vars := func(n *llb.Node, list ...llb.Variable) built { return built{n, llb.Meta{Variables: list}} }
	ran := func(list ...llb.Variable) built {
		op := sh()
		for _, v := range list {
			op.Env = append(op.Env, v.Name+"="+v.Value)
		}
		return vars(run(scratch, op), list...)
	}
	cached := llb.Mount{Type: llb.MountCache, Target: "/c", CacheID: "c"}
	locked := cached
	locked.Sharing = "locked"
	bind := llb.Mount{Type: llb.MountBind, Target: "/m", Input: 1, Source: "/src", ReadOnly: true}

	tests := []struct {
		name        string
		before, now built
		change      func(r *rig)
		want        string // "*" stands for anything
	}{
		{"never built", built{}, vars(cp("/")), nil, "never built here"},
		{"content", vars(cp("/")), vars(cp("/")), func(r *rig) { r.write("src/a", "2") }, "src/a changed (was *)"},
		{"mode", vars(cp("/")), vars(cp("/")), func(r *rig) { r.put("src/a", "1", 0o755) }, "src/a changed (was *)"},
		{"new file", vars(cp("/")), vars(cp("/")), func(r *rig) { r.write("src/c", "1") }, "src/c is new"},
		{"file gone", vars(cp("/")), vars(cp("/")), func(r *rig) { r.remove("src/b") }, "src/b is gone"},
		{"two files", vars(cp("/")), vars(cp("/")), func(r *rig) { r.write("src/a", "2"); r.write("src/b", "2") }, "src/a changed (was *) and 1 more"},
		{"instruction", vars(cp("/")), vars(cp("/x")), nil, "the instruction changed"},
		{"command", ran(), vars(run(scratch, llb.Exec{Args: []string{"ls"}})), nil, "the command changed"},
		{"ARG", ran(arg("SHA", "1")), ran(arg("SHA", "2")), nil, "ARG SHA changed"},
		{"ARG given", ran(), ran(arg("SHA", "1")), nil, "ARG SHA changed (was not set)"},
		{"ARG not given", ran(arg("SHA", "1")), ran(), nil, "ARG SHA changed (is not set)"},
		{"ARG in the words", vars(cp("/1"), arg("V", "1")), vars(cp("/2"), arg("V", "2")), nil, "ARG V changed"},
		{"ENV", ran(env("MODE", "a"), env("X", "1")), ran(env("MODE", "b"), env("X", "1")), nil, "ENV MODE changed"},
		{"ARG that became ENV", ran(arg("V", "1"), arg("W", "1")), ran(env("V", "1"), arg("W", "2")), nil, "ARG W changed"},
		{"ENV and ARG", ran(env("A", "1"), arg("B", "1")), ran(env("A", "2"), arg("B", "2")), nil, "ENV A changed, ARG B changed"},
		{"base moved", vars(run(image("sha256:"+strings.Repeat("a", 64)), sh())), vars(run(image("sha256:"+strings.Repeat("b", 64)), sh())),
			func(r *rig) { r.images = serve(r.t, []string{"version=2"}) },
			"base node:alpine moved from sha256:aaaaaaaaaaaa… to sha256:bbbbbbbbbbbb…"},
		{"step below", vars(run(filesOf(scratch, "/a 1"), sh())), vars(run(filesOf(scratch, "/a 2"), sh())), nil, "what it builds on changed"},
		{"mount's options", vars(run(scratch, sh(cached))), vars(run(scratch, sh(locked))), nil, "mount /c differs"},
		{"mount's files", vars(run(scratch, sh(bind), src)), vars(run(scratch, sh(bind), src)), func(r *rig) { r.write("src/a", "2") }, "src/a changed (was *)"},
		{"user", ran(), vars(run(scratch, llb.Exec{Args: []string{"sh"}, User: "7:8"})), nil, "the user changed"},
		{"no user", vars(run(scratch, llb.Exec{Args: []string{"sh"}, User: "7:8"})), ran(), nil, "the user changed"},
		{"directory", vars(run(scratch, llb.Exec{Args: []string{"sh"}, Dir: "/a"})), vars(run(scratch, llb.Exec{Args: []string{"sh"}, Dir: "/b"})), nil, "the working directory changed"},
		{"limits", ran(), vars(run(scratch, llb.Exec{Args: []string{"sh"}, Ulimits: []llb.Ulimit{{Name: "nofile", Soft: 9, Hard: 9}}, ShmSize: 1 << 20})), nil, "the list of ulimits changed, the size of /dev/shm changed"},
		{"network", vars(llb.New(llb.Exec{Args: []string{"sh"}, Network: llb.NetworkHost}, scratch)), vars(llb.New(llb.Exec{Args: []string{"sh"}, Network: llb.NetworkNone}, scratch)), nil, "the network changed"},
		{"no cache", ran(), built{run(scratch, sh()), llb.Meta{NoCache: true}}, nil, "the cache is not used for this step"},
		{"another platform", built{run(scratch, sh()), llb.Meta{Platform: "linux/amd64"}},
			built{run(scratch, llb.Exec{Args: []string{"arm"}}), llb.Meta{Platform: "linux/arm64"}}, nil,
			"never built here for linux/arm64, only for linux/amd64"},
		{"collected", vars(cp("/")), vars(cp("/")), (*rig).collect, "its result of * is gone: collected, or damaged"},
		{"damaged record", vars(cp("/")), vars(cp("/")), func(r *rig) { r.damage("steps/*/*") }, "*is damaged: checksum differs"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.images = serve(t, []string{"version=1"})
			r.write("src/a", "1")
			r.write("src/b", "1")
			build := func(b built) []string {
				m := b.meta
				m.Ordinal, m.Stage, m.Positions = 1, "app", []llb.Position{{File: "Dockerfile", Line: 2}}
				r.meta = map[oci.Digest]llb.Meta{b.n.Digest: m}
				_, w := r.mustBuild(b.n)
				return w.why
			}
			if tt.before.n != nil {
				build(tt.before)
			}
			if tt.change != nil {
				tt.change(r)
			}
			why := build(tt.now)
			if n := len(why); n == 0 || !matches(tt.want, why[n-1]) {
				t.Errorf("what ran says %q, want %q of the last", why, tt.want)
			}
			if again := build(tt.now); len(again) > 0 && tt.name != "no cache" {
				t.Errorf("the same again runs, and says %q", again)
			}
		})
	}
}

// matches compares with a text in which "*" stands for anything.
func matches(pattern, s string) bool {
	head, tail, wild := strings.Cut(pattern, "*")
	if !wild {
		return s == pattern
	}
	return len(s) >= len(head)+len(tail) && strings.HasPrefix(s, head) && strings.HasSuffix(s, tail)
}

func (r *rig) remove(name string) {
	r.t.Helper()
	if err := os.Remove(filepath.Join(r.dir, name)); err != nil {
		r.t.Fatal(err)
	}
}

// collect takes all layers away, as a prune does after this process's time.
func (r *rig) collect() {
	r.t.Helper()
	layers, err := filepath.Glob(filepath.Join(r.store.Dir(), "layers", "*"))
	if err != nil || len(layers) == 0 {
		r.t.Fatalf("layers %v, %v", layers, err)
	}
	for _, l := range layers {
		if err := r.store.RemoveLayer(r.t.Context(), filepath.Base(l)); err != nil {
			r.t.Fatal(err)
		}
	}
}

// damage flips a bit in each file that matches.
func (r *rig) damage(pattern string) {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.store.Dir(), pattern))
	if err != nil || len(files) == 0 {
		r.t.Fatalf("%s: %v, %v", pattern, files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil {
			b[len(b)/2] ^= 1
			err = os.WriteFile(f, b, 0o600)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// A variable's value cannot be read off what is kept of it.
func TestVariablesAreNotKept(t *testing.T) {
	r := newRig(t)
	n := run(scratch, llb.Exec{Args: []string{"sh"}, Env: []string{"TOKEN=hush-hush"}})
	r.meta = map[oci.Digest]llb.Meta{n.Digest: {Ordinal: 1, Variables: []llb.Variable{{Name: "TOKEN", Value: "hush-hush", Arg: true}}}}
	r.mustBuild(n)
	last, err := r.store.Last((&Worker{Session: Session{Meta: r.meta}}).place(n))
	if err != nil || partValue(last.Parts, "ARG TOKEN") == "" {
		t.Errorf("the record %+v, %v has no part for the variable", last, err)
	}
	r.noneHolds("hush-hush")
}
