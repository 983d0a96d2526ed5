package executor

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// What is kept of a place are the misses for files of the context, and no others.
func TestMisses(t *testing.T) {
	r := newRig(t)
	r.write("src/a", "0")
	r.write("src/b", "0")
	at := func(n *llb.Node) *llb.Node {
		r.meta = map[oci.Digest]llb.Meta{n.Digest: {Ordinal: 1, Stage: "app"}}
		return n
	}
	cp := func(dest string) *llb.Node { return copyOf(scratch, llb.Copy{Sources: []string{"/src"}, Dest: dest}) }
	w := func() *Worker { return New(Host{Store: r.store}, Session{Meta: r.meta}) }
	n := cp("/")
	steps := []struct {
		name string
		do   func()
		n    *llb.Node
		want string // of the last build, after those before; "-": none
	}{
		{"first build", func() {}, n, "-"},
		{"the same", func() {}, n, "-"},
		{"a file", func() { r.write("src/a", "1") }, n, "/src/a"},
		{"two files, one of them new", func() { r.write("src/a", "2"); r.write("src/c", "1") }, n, "/src/a /src/c"},
		{"a hit", func() { r.write("src/a", "1"); r.remove("src/c") }, n, "-"},
		{"the instruction", func() {}, cp("/x"), "-"},
		{"the instruction and a file", func() { r.write("src/a", "3") }, cp("/y"), "-"},
		{"what it builds on and a file", func() { r.write("src/a", "4") }, copyOf(filesOf(scratch, "/f 1"), llb.Copy{Sources: []string{"/src"}, Dest: "/y"}), "-"},
		{"a directory of many", func() {
			for i := range 20 {
				r.write(fmt.Sprintf("src/deep/%d", i), "1")
			}
		}, copyOf(filesOf(scratch, "/f 1"), llb.Copy{Sources: []string{"/src"}, Dest: "/y"}), "/src/deep /src/deep/"},
	}
	var want []string
	for _, s := range steps {
		s.do()
		r.mustBuild(at(s.n))
		if s.want != "-" {
			want = append(want, s.want)
		}
		misses, _ := w().Misses(s.n)
		var got []string
		for _, m := range misses {
			got = append(got, strings.Join(m.Files, " "))
		}
		if !slices.Equal(got, want) {
			t.Fatalf("after %s: misses %q, want %q", s.name, got, want)
		}
	}

	// They are bounded, and go on after the user was told.
	told := time.Now().Truncate(time.Second)
	last := steps[len(steps)-1].n
	w().SetHint(last, cache.Hint{At: told, Text: "told"})
	for i := range 2 * maxMisses {
		r.write("src/a", fmt.Sprint("x", i))
		r.mustBuild(at(last))
	}
	if misses, h := w().Misses(last); len(misses) != maxMisses || !h.At.Equal(told) || h.Text != "told" {
		t.Errorf("%d misses, told %+v; want %d, at %v", len(misses), h, maxMisses, told)
	}
}

// Files of a stage are nobody's to exclude; those of a mount are.
func TestMissesOfMounts(t *testing.T) {
	r := newRig(t)
	bind := llb.Mount{Type: llb.MountBind, Target: "/m", Input: 1, Source: "/src", ReadOnly: true}
	for name, tt := range map[string]struct {
		of   func(text string) *llb.Node
		want int
	}{
		"of the context": {func(text string) *llb.Node {
			r.write("src/a", text)
			return run(scratch, llb.Exec{Mounts: []llb.Mount{bind}}, contextOf(llb.Copy{Sources: []string{"/src"}}))
		}, 1},
		"of a stage": {func(text string) *llb.Node {
			return run(scratch, llb.Exec{Args: []string{"y"}, Mounts: []llb.Mount{bind}}, filesOf(scratch, "/src/", "/src/a "+text))
		}, 0},
	} {
		var n *llb.Node
		for _, text := range []string{"1", "2"} {
			n = tt.of(text)
			r.meta = map[oci.Digest]llb.Meta{n.Digest: {Ordinal: 1, Stage: name}}
			r.mustBuild(n)
		}
		if misses, _ := New(Host{Store: r.store}, Session{Meta: r.meta}).Misses(n); len(misses) != tt.want {
			t.Errorf("%s: misses %+v, want %d", name, misses, tt.want)
		}
	}
}

func TestGather(t *testing.T) {
	many := func(format string, n int) []string {
		var out []string
		for i := range n {
			out = append(out, fmt.Sprintf(format, i))
		}
		return out
	}
	tests := []struct {
		name string
		in   []string
		want string
	}{
		{"none", nil, ""},
		{"each once", []string{"/b", "/a", "/b"}, "/a /b"},
		{"deep ones first", append(many("/.git/objects/%02x/f", 20), "/.git/index"), "/.git/index /.git/objects/"},
		{"many directories", many("/d%d/f", 20), "/"},
		{"many in the context", many("/f%d", 20), "/"},
		{"a long path", []string{"/a/" + strings.Repeat("x", maxMissPath)}, "/a/"},
		{"a deep path", []string{strings.Repeat("/x", 200)}, strings.Repeat("/x", 127) + "/"},
	}
	for _, tt := range tests {
		if got := strings.Join(gather(tt.in), " "); got != tt.want {
			t.Errorf("%s: gather = %q, want %q", tt.name, got, tt.want)
		}
	}
}
