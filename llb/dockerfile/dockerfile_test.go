package dockerfile_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/llb/dockerfile"
	"github.com/861fb494/build/parser"
	"github.com/861fb494/build/parser/ignore"
)

func lower(text string, b dockerfile.Bases, o dockerfile.Options) (*dockerfile.Result, error) {
	f, err := parser.Parse("Dockerfile", []byte(text))
	if err != nil {
		return nil, err
	}
	return dockerfile.Lower(context.Background(), f, b, o)
}

func TestLowerErrors(t *testing.T) {
	tests := []struct {
		name, in string
		opts     dockerfile.Options
		want     string
	}{
		{"no such image", "FROM scratch\nFROM nosuch\n", dockerfile.Options{}, "Dockerfile:2: nosuch: docker.io/library/nosuch:latest: not found"},
		{"misspelt image", "FROM alpin\n", dockerfile.Options{}, "Dockerfile:1: alpin: docker.io/library/alpin:latest: not found (did you mean alpine?)"},
		{"misspelt --from", "FROM alpine AS build\nFROM scratch\nCOPY --from=biuld a b\n", dockerfile.Options{},
			`Dockerfile:3: no stage is named "biuld", nor is it to be had as an image: docker.io/library/biuld:latest: not found (did you mean build?)`},
		{"misspelt mount", "FROM alpine AS build\nFROM alpine\nRUN --mount=from=buil true\n", dockerfile.Options{},
			`Dockerfile:3: no stage is named "buil", nor is it to be had as an image: docker.io/library/buil:latest: not found (did you mean build?)`},
		{"misspelt target", "FROM alpine AS build\n", dockerfile.Options{Target: "biuld"}, `Dockerfile: target stage "biuld" could not be found (did you mean build?)`},
		{"a target is no index", "FROM alpine AS build\n", dockerfile.Options{Target: "0"}, `Dockerfile: target stage "0" could not be found: the stages are build`},
		{"stage names are in lower case", "FROM alpine AS Foo\nFROM Foo\n", dockerfile.Options{}, "Dockerfile:2: Foo: invalid reference format: repository name (library/Foo) must be lowercase (did you mean foo?)"},
		{"no name of an image, not needed", "ARG V\nFROM alpine AS a\nFROM alpine:$V AS u\n", dockerfile.Options{Target: "a"}, "Dockerfile:3: alpine:: invalid reference format (did you mean alpine?)"},
		{"the same of --from", "FROM alpine AS a\nFROM a AS u\nCOPY --from=Bad/Ref a b\n", dockerfile.Options{Target: "a"},
			`Dockerfile:3: no stage is named "Bad/Ref", nor is it to be had as an image: invalid reference format: repository name (Ref) must be lowercase`},
		{"the same of a mount", "FROM alpine AS a\nFROM a AS u\nRUN --mount=from=alpine@sha256:12 true\n", dockerfile.Options{Target: "a"},
			`Dockerfile:3: no stage is named "alpine@sha256:12", nor is it to be had as an image: invalid reference format: invalid checksum digest length`},
		{"the same where a context stands for it", "FROM Bad/Ref AS a\n", dockerfile.Options{Contexts: map[string]string{"a": "docker-image://alpine"}},
			"Dockerfile:1: Bad/Ref: invalid reference format: repository name (Ref) must be lowercase"},
		{"variable in --from", "FROM alpine\nCOPY --from=$X a b\n", dockerfile.Options{},
			"Dockerfile:2: variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround"},
		{"index beyond", "FROM alpine\nCOPY --from=3 a b\n", dockerfile.Options{}, "Dockerfile:2: invalid stage index 3: there are 1 stages, from 0"},
		{"from itself", "FROM alpine AS a\nCOPY --from=a x y\n", dockerfile.Options{}, "Dockerfile:2: circular dependency detected on stage: a"},
		{"in a circle", "FROM alpine AS a\nCOPY --from=b x y\nFROM a AS b\n", dockerfile.Options{}, "Dockerfile:3: circular dependency detected on stage: b"},
		{"from a later stage", "FROM alpine AS a\nCOPY --from=b x y\nFROM alpine AS b\nFROM a\n", dockerfile.Options{},
			`Dockerfile:2: cannot read from stage "b", it needs to be defined before current stage "a"`},
		{"mount from a later stage", "FROM alpine AS a\nRUN --mount=from=b,target=/x x\nFROM alpine AS b\nFROM a\n", dockerfile.Options{},
			`Dockerfile:2: cannot read from stage "b", it needs to be defined before current stage "a"`},
		{"a context of itself", "FROM alpine AS a\n", dockerfile.Options{Contexts: map[string]string{"a": "target:a"}}, "Dockerfile:1: circular dependency detected on stage: a"},
		{"a context of no stage", "FROM alpine AS build\nFROM x\n", dockerfile.Options{Contexts: map[string]string{"x": "target:biuld"}},
			`Dockerfile:2: context x: target stage "biuld" could not be found (did you mean build?)`},
		{"blank base", "ARG B\nFROM $B\n", dockerfile.Options{}, "Dockerfile:2: base name ($B) should not be blank"},
		{"empty platform", "FROM --platform=$TARGETPLATFORN alpine\n", dockerfile.Options{}, "Dockerfile:1: empty platform value from expression $TARGETPLATFORN (did you mean TARGETPLATFORM?)"},
		{"required argument", "FROM alpine\nENV a=${b:?unset}\n", dockerfile.Options{}, `Dockerfile:2: failed to process "${b:?unset}": b: unset`},
		{"mode too high", "FROM scratch\nCOPY --chmod=10000 a b\n", dockerfile.Options{}, "Dockerfile:2: invalid chmod parameter: '10000'. it should be octal string and between 0 and 07777"},
		{"directory in an inline document's name", "FROM scratch\nCOPY <</a/b /d/\nx\n/a/b\n", dockerfile.Options{},
			`Dockerfile:2: the name of an inline document has no directory: "/a/b"`},
		{"range that is none", "FROM scratch\nCOPY d/a[b-a] /o/\n", dockerfile.Options{}, `Dockerfile:2: source "d/a[b-a]": syntax error in pattern`},
		{"URL in COPY", "FROM scratch\nCOPY https://example.com/x b\n", dockerfile.Options{}, "Dockerfile:2: source can't be a URL for COPY"},
		{"repository in COPY", "FROM scratch\nCOPY git@example.com:x b\n", dockerfile.Options{}, "Dockerfile:2: source can't be a git ref for COPY"},
		{"checksum of a file", "FROM scratch\nADD --checksum=sha256:00 x b\n", dockerfile.Options{}, "Dockerfile:2: checksum requires HTTP(S) or Git sources"},
		{"bad port", "FROM scratch\nEXPOSE 99999\n", dockerfile.Options{}, `Dockerfile:2: invalid containerPort: 99999: "99999" is no port number (0 to 65535)`},
		{"bad signal", "FROM scratch\nSTOPSIGNAL SIGNOTHING\n", dockerfile.Options{}, "Dockerfile:2: invalid signal: SIGNOTHING"},
		{"mount at the root", "FROM alpine\nRUN --mount=target=/ true\n", dockerfile.Options{}, `Dockerfile:2: invalid mount target "/"`},
		{"source in an empty cache", "FROM alpine\nRUN --mount=type=cache,target=/k,source=d true\n", dockerfile.Options{},
			"Dockerfile:2: mount /k: there is no source d: a cache mount without from begins empty"},
		{"source in a tmpfs", "FROM alpine\nRUN --mount=type=tmpfs,target=/k,source=/d true\n", dockerfile.Options{},
			"Dockerfile:2: mount /k: there is no source /d: a tmpfs mount without from begins empty"},
		{"secret without a name", "FROM alpine\nRUN --mount=type=secret true\n", dockerfile.Options{}, "Dockerfile:2: invalid secret mount. one of source, target required"},
		{"nothing to run", "FROM alpine\nRUN []\n", dockerfile.Options{}, "Dockerfile:2: RUN needs a command"},
		{"front end by argument", "FROM alpine\n", dockerfile.Options{BuildArgs: map[string]string{"BUILDKIT_SYNTAX": "x/y:1"}},
			`Dockerfile: the front end "x/y:1" is not supported: the Dockerfile language (docker/dockerfile) is built in, and no other is run`},
		{"epoch in the far future", "FROM alpine\n", dockerfile.Options{BuildArgs: map[string]string{"SOURCE_DATE_EPOCH": "99999999999999"}}, "Dockerfile: invalid SOURCE_DATE_EPOCH: 99999999999999: an image cannot be of the year 3170843"},
		{"bad epoch", "FROM alpine\n", dockerfile.Options{BuildArgs: map[string]string{"SOURCE_DATE_EPOCH": "soon"}}, "Dockerfile: invalid SOURCE_DATE_EPOCH: soon"},
		{"layer upon Windows", "FROM windows AS w\nENV a=b\nFROM w\nUSER x\nCOPY a b\n", dockerfile.Options{},
			"Dockerfile:5: this adds a layer to a Windows image, which is not supported: only its configuration can be changed, or a Windows image built from scratch"},
		{"bad network", "FROM alpine\n", dockerfile.Options{Network: "container:x"}, `Dockerfile: invalid network mode "container:x": want default, none or host`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := lower(tt.in, &fakeBases{}, tt.opts)
			if err == nil || err.Error() != tt.want {
				t.Errorf("Lower(%q) = %v, want %v", tt.in, err, tt.want)
			}
			var e *parser.Error
			if !errors.As(err, &e) {
				t.Errorf("Lower(%q) = %T, want *parser.Error", tt.in, err)
			}
		})
	}
}

// What .dockerignore excludes is compared with sources as they are written.
func TestCopyIgnoredFile(t *testing.T) {
	m, err := ignore.New([]string{"*.txt", "d"})
	if err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]int{
		"b.txt": 1, "./b.txt": 1, "d/x": 1, "b.txt b.txt": 2,
		"/b.txt": 0, "../b.txt": 0, "/d/x": 0, "b.go": 0, ".": 0, "/": 0,
	} {
		r, err := lower("FROM scratch\nCOPY "+source+" /to/\n", &fakeBases{}, dockerfile.Options{Ignore: m})
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		for _, w := range r.Warnings {
			if w.Rule == "CopyIgnoredFile" {
				got++
			}
		}
		if got != want {
			t.Errorf("COPY %s: %d warnings of ignored files, want %d", source, got, want)
		}
	}
}

// Lowering again, for the same or another platform, finds the file as it was.
func TestLowerTwice(t *testing.T) {
	f, err := parser.Parse("Dockerfile", []byte("FROM alpine\nARG TARGETARCH\nWORKDIR /$TARGETARCH\nRUN --mount=type=cache,target=/c/$TARGETARCH x\nEXPOSE 1-3\n"))
	if err != nil {
		t.Fatal(err)
	}
	digest := func(arch string) oci.Digest {
		o := dockerfile.Options{Platform: oci.Platform{OS: "linux", Architecture: arch}}
		r, err := dockerfile.Lower(context.Background(), f, &fakeBases{}, o)
		if err != nil {
			t.Fatal(err)
		}
		return r.Graph.Targets[0].Digest
	}
	amd, arm := digest("amd64"), digest("arm64")
	if amd == arm {
		t.Error("two platforms have one digest")
	}
	if again := digest("amd64"); again != amd {
		t.Errorf("digest = %v the second time, want %v", again, amd)
	}
}

// Each base is asked for once, and only if the target needs it.
func TestResolveOnce(t *testing.T) {
	b := &fakeBases{}
	text := "FROM alpine AS a\nFROM alpine AS b\nFROM nosuch\nFROM b AS t\nCOPY --from=alpine x y\nCOPY --from=a x y\nRUN --mount=from=docker.io/library/alpine:latest,target=/x x\n"
	if _, err := lower(text, b, dockerfile.Options{Target: "t", BuildPlatform: oci.Platform{OS: "linux", Architecture: "amd64"}}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(b.resolved(), " "); got != "alpine:latest@linux/amd64" {
		t.Errorf("resolved %s, want alpine once", got)
	}
}

// barrier fails unless all its calls are under way at once.
type barrier struct {
	fakeBases
	left atomic.Int32
	all  chan struct{}
}

func (b *barrier) Resolve(ctx context.Context, ref string, p oci.Platform) (llb.Source, oci.Image, error) {
	if b.left.Add(-1) == 0 {
		close(b.all)
	}
	select {
	case <-b.all:
	case <-ctx.Done():
		return llb.Source{}, oci.Image{}, ctx.Err()
	}
	return b.fakeBases.Resolve(ctx, ref, p)
}

func TestResolveConcurrently(t *testing.T) {
	b := &barrier{all: make(chan struct{})}
	b.left.Store(3)
	if _, err := lower("FROM alpine AS a\nFROM node AS b\nFROM busybox\nCOPY --from=a x y\nCOPY --from=b x y\n", b, dockerfile.Options{}); err != nil {
		t.Fatal(err)
	}
}

// The failure that is told of is the one that was not brought about by another.
func TestResolveFailure(t *testing.T) {
	b := &barrier{all: make(chan struct{})}
	b.left.Store(2)
	_, err := lower("FROM alpine AS a\nFROM nosuch\nCOPY --from=a x y\n", failing{b}, dockerfile.Options{})
	if err == nil || !strings.HasPrefix(err.Error(), "Dockerfile:2: nosuch:") {
		t.Errorf("Lower() = %v, want what is wrong with nosuch", err)
	}
}

// failing fails at once for nosuch, and lets others wait for ever.
type failing struct{ *barrier }

func (f failing) Resolve(ctx context.Context, ref string, p oci.Platform) (llb.Source, oci.Image, error) {
	if strings.Contains(ref, "nosuch") {
		return llb.Source{}, oci.Image{}, errors.New("not found")
	}
	return f.barrier.Resolve(ctx, ref, p)
}

// A layer for each entry of the history that says so.
func TestHistoryMatchesLayers(t *testing.T) {
	text := "FROM alpine AS b\nRUN x\nFROM b\nWORKDIR /\nWORKDIR /w\nENV a=b\nCOPY a b\nCOPY --link a b\nADD a b\nRUN y\nLABEL a=b\nFROM ctx\nCOPY --from=1 / /\n"
	for _, o := range []dockerfile.Options{
		{Target: "b"},
		{Contexts: map[string]string{"ctx": "/dir"}},
		{Contexts: map[string]string{"ctx": "https://example.com/r.git"}},
		{Contexts: map[string]string{"ctx": "target:b"}},
	} {
		r, err := lower(text, &fakeBases{}, o)
		if err != nil {
			t.Fatalf("%v: %v", o, err)
		}
		want := len(r.Image.RootFS.DiffIDs) + ownLayers(r.Graph.Targets[0])
		got := 0
		for _, h := range r.Image.History {
			if !h.EmptyLayer {
				got++
			}
		}
		if got != want {
			t.Errorf("%v: %d entries with a layer, want %d", o, got, want)
		}
	}
}

// ownLayers counts the layers that the nodes up to n make.
func ownLayers(n *llb.Node) int {
	if _, ok := n.Op.(llb.Source); ok {
		return 0
	}
	return 1 + ownLayers(n.Inputs[0])
}

// waitingBases has no image "second", and says of others what ended their lookup.
type waitingBases struct{ asked chan struct{} }

func (b waitingBases) Resolve(ctx context.Context, ref string, _ oci.Platform) (llb.Source, oci.Image, error) {
	if strings.Contains(ref, "second") {
		<-b.asked
		return llb.Source{}, oci.Image{}, errors.New("second is not there")
	}
	close(b.asked)
	<-ctx.Done()
	return llb.Source{}, oci.Image{}, context.Cause(ctx)
}

func TestErrorOfTheBaseThatFailed(t *testing.T) {
	in := "FROM first AS a\nFROM second AS b\nFROM scratch\nCOPY --from=a x y\nCOPY --from=b x y\n"
	_, err := lower(in, waitingBases{make(chan struct{})}, dockerfile.Options{})
	if want := "Dockerfile:2: second: second is not there"; err == nil || err.Error() != want {
		t.Errorf("Lower(%q) = %v, want %v", in, err, want)
	}
}

func FuzzLower(f *testing.F) {
	f.Add("FROM alpine AS a\nARG x=1\nCOPY --from=a --chmod=${x} <<E /y\n$x\nE\n", "a", "v")
	f.Add("ARG v\nFROM --platform=$v ${v:-node}\nRUN --mount=type=cache,target=$v <<E\n#!/x\nE\nEXPOSE ${v#x}-9/udp\n", "", "linux/arm64")
	f.Add("FROM onbuild\nADD --checksum=$v git@h:p?branch=$v#x:y /\nWORKDIR $v\nHEALTHCHECK NONE\nONBUILD RUN x\n", "", "../..")
	f.Fuzz(func(t *testing.T, text, target, value string) {
		r, err := lower(text, &fakeBases{}, dockerfile.Options{
			Target: target, BuildArgs: map[string]string{"v": value},
			Contexts: map[string]string{"ctx": "/dir", "st": "target:a"},
		})
		if err != nil {
			return
		}
		// Nothing that leads out of a tree is left in the graph.
		r.Graph.Walk(func(n *llb.Node) {
			if op, ok := n.Op.(llb.File); ok {
				for _, a := range op.Actions {
					if c, ok := a.(llb.Copy); ok && strings.Contains(fmt.Sprint(append(c.Sources, c.Dest), "/"), "/../") {
						t.Errorf("Lower(%q): %+v leads out of its tree", text, c)
					}
				}
			}
			if _, ok := r.Graph.Meta[n.Digest]; !ok {
				t.Errorf("Lower(%q): %T has no Meta", text, n.Op)
			}
		})
	})
}

func TestWindowsConfig(t *testing.T) {
	for _, in := range []string{"FROM windows\nENV a=b\nCMD [\"x\"]\n", "FROM --platform=windows/amd64 scratch\nCOPY a b\n", "FROM scratch\nCOPY --from=windows /x /\n"} {
		if _, err := lower(in, &fakeBases{}, dockerfile.Options{}); err != nil {
			t.Errorf("Lower(%q) = %v", in, err)
		}
	}
}

func TestWindowsShell(t *testing.T) {
	for os, want := range map[string]string{"windows": "[cmd /S /C foo bar]", "linux": "[/bin/sh -c foo bar]"} {
		r, err := lower("FROM scratch\nCMD foo bar\nENTRYPOINT foo bar\n", &fakeBases{}, dockerfile.Options{Platform: oci.Platform{OS: os, Architecture: "amd64"}})
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(r.Image.Config.Entrypoint); got != want {
			t.Errorf("ENTRYPOINT of %s = %s, want %s", os, got, want)
		}
	}
}

// Targets of all mounts are relative to the working directory.
func TestMountTargets(t *testing.T) {
	r, err := lower("FROM alpine\nWORKDIR /w/d\n"+
		"RUN --mount=type=secret,id=s,target=rel --mount=type=secret,id=u,target=../up --mount=type=ssh,target=sock --mount=type=tmpfs,target=tmp --mount=type=cache,target=/abs/,source=. true\n",
		&fakeBases{}, dockerfile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	var socket string
	r.Graph.Walk(func(n *llb.Node) {
		if e, ok := n.Op.(llb.Exec); ok {
			for _, m := range e.Mounts {
				got = append(got, m.Type+" "+m.Target)
			}
			for _, v := range e.Env {
				if name, value, _ := strings.Cut(v, "="); name == "SSH_AUTH_SOCK" {
					socket = value
				}
			}
		}
	})
	want := []string{"cache /abs", "tmpfs /w/d/tmp", "secret /w/d/rel", "secret /w/up", "ssh /w/d/sock"}
	if !slices.Equal(got, want) || socket != "sock" {
		t.Errorf("mounts are %q, SSH_AUTH_SOCK=%s, want %q and sock", got, socket, want)
	}
}
