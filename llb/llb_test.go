package llb

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/861fb494/build/internal/oci"
)

// samples has an operation of each kind with every field set.
func samples() []Op {
	return []Op{
		Source{
			Scheme: Registry, Ref: "docker.io/library/node:latest", Digest: "sha256:1", Platform: oci.Platform{
				OS: "linux", Architecture: "arm", Variant: "v7", OSVersion: "1", OSFeatures: []string{"f"},
			},
			Select:   Select{Paths: []string{"/a", "/b"}, Wildcards: true, Excludes: []string{"*.o"}, Parents: true},
			Filename: "f", Mode: 0o644, UID: 1, GID: 2, Checksum: "sha256:2",
			Git: GitOptions{Ref: "main", Subdir: "sub", KeepDir: true, SkipSubmodules: true, Checksum: "abc"},
		},
		Exec{
			Args: []string{"sh", "-c", "true"}, Env: []string{"A=1"}, Dir: "/w", User: "u", Hostname: "h",
			Network: NetworkNone, Security: SecurityInsecure,
			Mounts: []Mount{{
				Type: MountCache, Target: "/t", Input: 1, Source: "/s", ReadOnly: true, CacheID: "c", Sharing: "locked",
				ID: "i", Env: "E", Required: true, UID: 1, GID: 2, Mode: 0o700, ModeSet: true, Size: 5,
			}},
			Hosts: []Host{{"a", "1.2.3.4"}}, Devices: []Device{{"d", true}}, Ulimits: []Ulimit{{"nofile", 1, 2}},
			ShmSize: 1, CgroupParent: "p", Stdin: []byte("in"), TTL: 3,
		},
		File{Actions: []Action{
			Copy{
				Input: 1, Sources: []string{"/a"}, Dest: "/b", Owner: "u:g", Keep: true, Mode: "0644", Wildcards: true,
				Parents: true, Excludes: []string{"x"}, Unpack: true,
			},
			Mkfile{Path: "/f", Data: []byte("d"), Mode: "0600", Owner: "1"},
			Mkdir{Path: "/d", Mode: 0o700, Owner: "2"},
		}},
		Merge{},
	}
}

// variants calls f with the digest of op with each of its fields, however deep,
// changed to another value and to the zero value.
func variants(op Op, f func(path string, d oci.Digest)) {
	boxed := reflect.New(reflect.TypeFor[Op]()).Elem()
	boxed.Set(reflect.ValueOf(op))
	var vary func(path string, v reflect.Value, with func(reflect.Value))
	vary = func(path string, v reflect.Value, with func(reflect.Value)) {
		with(reflect.Zero(v.Type()))
		changed := reflect.New(v.Type()).Elem()
		changed.Set(v)
		switch v.Kind() {
		case reflect.String:
			changed.SetString(v.String() + "x")
			with(changed)
		case reflect.Bool: // the zero value is the other one
		case reflect.Int, reflect.Int64:
			changed.SetInt(v.Int() + 1)
			with(changed)
		case reflect.Uint8, reflect.Uint32:
			changed.SetUint(v.Uint() + 1)
			with(changed)
		case reflect.Slice:
			with(reflect.AppendSlice(v.Slice3(0, v.Len(), v.Len()), v)) // everything twice
			for i := range v.Len() {
				vary(fmt.Sprintf("%s[%d]", path, i), v.Index(i), func(e reflect.Value) {
					if e.Kind() == reflect.Interface && e.IsNil() {
						return
					}
					list := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
					reflect.Copy(list, v)
					list.Index(i).Set(e)
					with(list)
				})
			}
		case reflect.Interface:
			vary(path, v.Elem(), with)
		case reflect.Struct:
			for i := range v.NumField() {
				vary(path+"."+v.Type().Field(i).Name, v.Field(i), func(e reflect.Value) {
					s := reflect.New(v.Type()).Elem()
					s.Set(v)
					s.Field(i).Set(e)
					with(s)
				})
			}
		default:
			panic("no variant of a " + v.Kind().String())
		}
	}
	path := ""
	value := boxed.Elem()
	for i := range value.NumField() {
		path = value.Type().Name() + "." + value.Type().Field(i).Name
		vary(path, value.Field(i), func(e reflect.Value) {
			s := reflect.New(value.Type()).Elem()
			s.Set(value)
			s.Field(i).Set(e)
			f(path, New(s.Interface().(Op)).Digest)
		})
	}
}

func TestDigestIsOfEachField(t *testing.T) {
	for _, op := range samples() {
		was := New(op).Digest
		if again := New(op).Digest; again != was {
			t.Errorf("New(%T): digests %s and %s for the same", op, was, again)
		}
		n := 0
		variants(op, func(path string, d oci.Digest) {
			n++
			if d == was {
				t.Errorf("%s changed, and the digest did not", path)
			}
		})
		if n == 0 && reflect.TypeOf(op).NumField() > 0 {
			t.Errorf("%T has no variants", op)
		}
	}
}

func TestDigestTellsApart(t *testing.T) {
	scratch := New(Source{Scheme: Scratch})
	other := New(Source{Scheme: Scratch, Ref: "x"})
	nodes := map[string]*Node{
		"exec":              New(Exec{Args: []string{"a", "b"}}, scratch),
		"words joined":      New(Exec{Args: []string{"ab"}}, scratch),
		"words cut":         New(Exec{Args: []string{"a", "", "b"}}, scratch),
		"word in the env":   New(Exec{Args: []string{"a"}, Env: []string{"b"}}, scratch),
		"another input":     New(Exec{Args: []string{"a", "b"}}, other),
		"two inputs":        New(Exec{Args: []string{"a", "b"}}, scratch, other),
		"two, swapped":      New(Exec{Args: []string{"a", "b"}}, other, scratch),
		"not UTF-8":         New(Exec{Args: []string{"\xff"}}, scratch),
		"otherwise not":     New(Exec{Args: []string{"\xfe"}}, scratch),
		"merge":             New(Merge{}, scratch),
		"no input":          New(Merge{}),
		"file":              New(File{}, scratch),
		"mkdir":             New(File{Actions: []Action{Mkdir{Path: "/a"}}}, scratch),
		"mkfile":            New(File{Actions: []Action{Mkfile{Path: "/a"}}}, scratch),
		"mode of a mount":   New(Exec{Mounts: []Mount{{ModeSet: true}}}, scratch),
		"secret by one env": New(Exec{Mounts: []Mount{{Type: MountSecret, ID: "s", Env: "A"}}}, scratch),
		"by another":        New(Exec{Mounts: []Mount{{Type: MountSecret, ID: "s", Env: "B"}}}, scratch),
	}
	by := map[oci.Digest]string{}
	for name, n := range nodes {
		if was, ok := by[n.Digest]; ok {
			t.Errorf("%q and %q have the same digest", was, name)
		}
		by[n.Digest] = name
	}
}

func TestDigestIsOfWhatIsMeant(t *testing.T) {
	tests := []struct {
		name string
		a, b Op
	}{
		{"no list and an empty one", Exec{Args: []string{"a"}}, Exec{Args: []string{"a"}, Env: []string{}, Stdin: []byte{}, Mounts: []Mount{}}},
		{"in a struct", Source{Ref: "a"}, Source{Ref: "a", Platform: oci.Platform{OSFeatures: []string{}}, Select: Select{Excludes: []string{}}}},
		{"how a pinned context was selected",
			Source{Scheme: Local, Ref: "c", Digest: "blake3:1", Select: Select{Paths: []string{"/a"}, Excludes: []string{"x"}}},
			Source{Scheme: Local, Ref: "c", Digest: "blake3:1", Select: Select{Paths: []string{"/a"}, Parents: true}}},
	}
	for _, tt := range tests {
		if a, b := New(tt.a).Digest, New(tt.b).Digest; a != b {
			t.Errorf("%s: %s and %s, want equal digests", tt.name, a, b)
		}
	}
}

// Another encoding makes every record of every state directory useless. Where
// that is meant, these are to be changed, and "llb1" with them.
func TestDigestGolden(t *testing.T) {
	scratch := New(Source{Scheme: Scratch})
	tests := []struct {
		name string
		node *Node
		want oci.Digest
	}{
		{"scratch", scratch, "blake3:431acfcfed969903c39f28a58faf6df30818dff3369104c82dc5c2b34739a588"},
		{"source", New(samples()[0]), "blake3:e18c9a10bee69f2e87a41be2dd4c78a593a6970cef59b99ed0ffd0aac8b9c06f"},
		{"exec", New(samples()[1], scratch, scratch), "blake3:cb37409b38f1dec5485f7e5995e6975d149743d962a6ae4472789ace8c59a32a"},
		{"file", New(samples()[2], scratch, scratch), "blake3:923a025ec5fcff36dcfd6c038c013b8f7a87a8b6df11a7fd9905915b29d60d6b"},
		{"merge", New(Merge{}, scratch, scratch), "blake3:3ef755112be2e7eed2b681a8e81b140fc1ac9a822fe7bfb36694d469225bddb0"},
	}
	for _, tt := range tests {
		if got := tt.node.Digest; got != tt.want {
			t.Errorf("%s: digest %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestNewRefusesNil(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("New with a nil input does not panic")
		}
	}()
	New(Merge{}, nil)
}

func exec(name string, in ...*Node) *Node { return New(Exec{Args: []string{name}}, in...) }

func nameOf(n *Node) string {
	switch op := n.Op.(type) {
	case Exec:
		return op.Args[0]
	case Source:
		return op.Ref
	}
	return fmt.Sprintf("%T", n.Op)
}

// diamond is top upon left and right, both upon base; and alone.
func diamond() Graph {
	base := New(Source{Scheme: Registry, Ref: "base"})
	g := Graph{Targets: []*Node{
		exec("top", exec("left", base), exec("right", New(Source{Scheme: Registry, Ref: "base"}))),
		exec("alone"),
	}}
	g.Join(base.Digest, Meta{Name: "FROM base", Positions: []Position{{"Dockerfile", 1, 1}}})
	return g
}

func TestWalk(t *testing.T) {
	var got []string
	diamond().Walk(func(n *Node) { got = append(got, nameOf(n)) })
	if want := []string{"base", "left", "right", "top", "alone"}; !slices.Equal(got, want) {
		t.Errorf("Walk visits %q, want %q", got, want)
	}
}

func TestWalkDeep(t *testing.T) {
	n := exec("0")
	for i := range 20_000 {
		n = exec(fmt.Sprint(i), n)
	}
	visits := 0
	Graph{Targets: []*Node{n, n}}.Walk(func(*Node) { visits++ })
	if visits != 20_001 {
		t.Errorf("%d visits, want 20001", visits)
	}
}

func TestRewrite(t *testing.T) {
	g := diamond()
	calls := 0
	pinned, err := g.Rewrite(func(n *Node) (Op, error) {
		calls++
		if s, ok := n.Op.(Source); ok {
			s.Digest = "sha256:1"
			return s, nil
		}
		return n.Op, nil
	})
	if err != nil || calls != 5 {
		t.Fatalf("Rewrite: %v after %d calls, want 5", err, calls)
	}
	base := New(Source{Scheme: Registry, Ref: "base", Digest: "sha256:1"})
	want := exec("top", exec("left", base), exec("right", base))
	if got := pinned.Targets[0].Digest; got != want.Digest {
		t.Errorf("the target has digest %s, want %s", got, want.Digest)
	}
	if pinned.Targets[1].Digest != g.Targets[1].Digest {
		t.Error("what is not upon the source has another digest")
	}
	if l, r := pinned.Targets[0].Inputs[0].Inputs[0], pinned.Targets[0].Inputs[1].Inputs[0]; l != r {
		t.Error("equal nodes are not one")
	}
	if got := pinned.Meta[base.Digest].Name; got != "FROM base" || len(pinned.Meta) != 1 {
		t.Errorf("Meta = %v, want that of the source", pinned.Meta)
	}
	if _, ok := g.Meta[base.Digest]; ok || g.Targets[0].Digest == want.Digest {
		t.Error("the graph itself was changed")
	}
}

func TestRewriteJoinsWhatBecomesEqual(t *testing.T) {
	a, b := New(Source{Scheme: Local, Ref: "c", Select: Select{Excludes: []string{"x"}}}), New(Source{Scheme: Local, Ref: "c"})
	g := Graph{Targets: []*Node{exec("t", a, b)}}
	g.Join(a.Digest, Meta{Positions: []Position{{"f", 1, 1}}})
	g.Join(b.Digest, Meta{Positions: []Position{{"f", 2, 2}}, NoCache: true})
	out, err := g.Rewrite(func(n *Node) (Op, error) {
		if s, ok := n.Op.(Source); ok {
			s.Digest = "blake3:1"
			return s, nil
		}
		return n.Op, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	in := out.Targets[0].Inputs
	m := out.Meta[in[0].Digest]
	if in[0].Digest != in[1].Digest || len(m.Positions) != 2 || !m.NoCache {
		t.Errorf("inputs %s and %s, Meta %+v: want one digest, both positions, NoCache", in[0].Digest, in[1].Digest, m)
	}
}

func TestRewriteFails(t *testing.T) {
	bad := errors.New("no such branch")
	calls := 0
	got, err := diamond().Rewrite(func(n *Node) (Op, error) {
		calls++
		if nameOf(n) == "left" {
			return nil, bad
		}
		return n.Op, nil
	})
	if !errors.Is(err, bad) || got.Targets != nil || calls != 2 {
		t.Errorf("Rewrite = %v, %v after %d calls, want the error after 2", got, err, calls)
	}
}

func TestJoin(t *testing.T) {
	p := func(lines ...int) (out []Position) {
		for _, l := range lines {
			out = append(out, Position{"Dockerfile", l, l})
		}
		return out
	}
	tests := []struct {
		name string
		in   []Meta
		want Meta
	}{
		{"one", []Meta{{Name: "a", Positions: p(1)}}, Meta{Name: "a", Positions: p(1)}},
		{"the first name counts", []Meta{{Name: "a"}, {Name: "b"}}, Meta{Name: "a"}},
		{"positions once each", []Meta{{Positions: p(1, 2)}, {Positions: p(2, 3)}, {Positions: p(1)}}, Meta{Positions: p(1, 2, 3)}},
		{"no cache for any", []Meta{{}, {NoCache: true}, {}}, Meta{NoCache: true}},
		{"internal to all", []Meta{{Internal: true}, {Internal: true}}, Meta{Internal: true}},
		{"shown to one", []Meta{{Internal: true}, {}}, Meta{}},
	}
	for _, tt := range tests {
		var g Graph
		for _, m := range tt.in {
			g.Join("blake3:1", m)
		}
		if got := g.Meta["blake3:1"]; !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: Join(%+v) = %+v, want %+v", tt.name, tt.in, got, tt.want)
		}
	}
}

// Graphs of several platforms are joined from the same Meta values.
func TestJoinLeavesItsArgumentAlone(t *testing.T) {
	backing := []Position{{"f", 1, 1}, {"f", 9, 9}}
	m := Meta{Positions: backing[:1]}
	var g Graph
	g.Join("blake3:1", m)
	g.Join("blake3:1", Meta{Positions: []Position{{"f", 2, 2}}})
	if backing[1].Line != 9 {
		t.Errorf("Join wrote %v into the positions of another Meta", backing[1])
	}
}

func TestPositionString(t *testing.T) {
	if got := (Position{File: "Dockerfile", Line: 7, Until: 9}).String(); got != "Dockerfile:7" {
		t.Errorf("String() = %q, want Dockerfile:7", got)
	}
}
