package builder

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/llb/dockerfile"
)

func TestMain(m *testing.M) {
	sandbox.Reexec()
	os.Exit(m.Run())
}

// openAt opens a state directory that is checked and closed with the test.
func openAt(t *testing.T, root string) *Builder {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: layers have owners, steps have namespaces")
	}
	b, err := Open(t.Context(), root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range append(b.Store.Check(context.Background()), b.Images.Check(context.Background())...) {
			t.Errorf("after the test: %v", p)
		}
		if err := b.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return b
}

// contextDir writes a context: "name text" lines, of which the first is the
// Dockerfile's text alone.
func contextDir(t *testing.T, dockerfile string, lines ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, l := range append([]string{"Dockerfile " + dockerfile}, lines...) {
		name, text, _ := strings.Cut(l, " ")
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// withBusybox puts a shell into the context.
func withBusybox(t *testing.T, dir string) string {
	t.Helper()
	data, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("needs busybox-static: ", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// shell is the beginning of a Dockerfile whose RUNs are busybox's.
const shell = "FROM scratch\nCOPY busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n"

func name(t *testing.T, s string) oci.Reference {
	t.Helper()
	r, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func build(t *testing.T, b *Builder, r Request) *Response {
	t.Helper()
	res, err := b.Build(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// files is what an image holds: "path content", later layers' last.
func files(t *testing.T, b *Builder, img oci.PlatformImage) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, l := range img.Layers {
		r, err := b.Store.Tar(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			out["/"+strings.TrimSuffix(h.Name, "/")] = string(body)
		}
	}
	return out
}

func TestRebuildIsTheSameImage(t *testing.T) {
	root := t.TempDir()
	b := openAt(t, root)
	dir := withBusybox(t, contextDir(t, shell+"COPY a /a\nRUN cat /a > /b\nCOPY --link b /c/\nENV X=1\n", "a 1", "b 2", "unrelated 3"))
	r := Request{Context: dir, Seal: true, Frontend: dockerfile.Options{Network: llb.NetworkNone}}
	first := build(t, b, r)
	if got := files(t, b, first.Images[0]); got["/b"] != "1" || got["/c/b"] != "2" {
		t.Errorf("the image holds /b %q and /c/b %q", got["/b"], got["/c/b"])
	}
	if first.Ran == 0 {
		t.Error("the first build runs nothing")
	}
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	steps := []struct {
		name   string
		do     func()
		b      *Builder
		same   bool
		cached bool
	}{
		{"again", func() {}, b, true, true},
		{"another process", func() {}, openAt(t, root), true, true},
		{"an unrelated file", func() { put("unrelated", "4") }, b, true, true},
		{"written again", func() { put("a", "1") }, b, true, true},
		{"another file", func() { put("a", "2") }, b, false, false},
		{"and back", func() { put("a", "1") }, b, true, true},
		{"a line that makes no layer", func() { put("Dockerfile", shell+"COPY a /a\nRUN cat /a > /b\nCOPY --link b /c/\nENV X=2\n") }, b, false, true},
	}
	for _, s := range steps {
		s.do()
		got := build(t, s.b, r)
		if (got.ID == first.ID) != s.same {
			t.Errorf("%s: image %s after %s, want the same: %v", s.name, got.ID, first.ID, s.same)
		}
		if (got.Ran == 0) != s.cached {
			t.Errorf("%s: %d steps ran, want them cached: %v", s.name, got.Ran, s.cached)
		}
	}
	r.NoCache = true
	if got := build(t, b, r); got.Ran == 0 {
		t.Error("--no-cache runs nothing")
	}
}

func TestIgnore(t *testing.T) {
	b := openAt(t, t.TempDir())
	dir := contextDir(t, "FROM scratch\nCOPY . /\n", "a 1", "b 2", "d/c 3", ".dockerignore b\nd\nDockerfile\n")
	got := files(t, b, build(t, b, Request{Context: dir, Seal: true}).Images[0])
	for p, want := range map[string]bool{"/a": true, "/b": false, "/d": false, "/d/c": false, "/Dockerfile": false, "/.dockerignore": true} {
		if _, ok := got[p]; ok != want {
			t.Errorf("%s is in the image: %v, want %v", p, ok, want)
		}
	}
	// One that belongs to the Dockerfile comes first.
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile.dockerignore"), []byte("a\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got = files(t, b, build(t, b, Request{Context: dir, Seal: true}).Images[0])
	if _, ok := got["/b"]; !ok || got["/a"] != "" {
		t.Errorf("with Dockerfile.dockerignore the image holds %v", got)
	}
}

func TestBuildErrors(t *testing.T) {
	b := openAt(t, t.TempDir())
	tests := []struct {
		name       string
		dockerfile string
		r          Request
		want       []string
		not        string
	}{
		{"a file that is not there", "FROM scratch\nCOPY none /\n", Request{}, []string{"Dockerfile:2", `"/none": not found in the build context`}, "cannot leave"},
		{"above the context", "FROM scratch\nCOPY ../none /\n", Request{}, []string{"Dockerfile:2", `"/none": not found`, `"../x" means "x"`}, ""},
		{"a file that is ignored", "FROM scratch\nCOPY ignored /\n", Request{}, []string{"Dockerfile:2", ".dockerignore excludes it"}, ""},
		{"syntax", "FROM scratch\nCOPPY a /\n", Request{}, []string{"Dockerfile:2", "COPPY"}, ""},
		{"host's network", "FROM scratch\nRUN --network=host [\"x\"]\n", Request{}, []string{"Dockerfile:2", "--allow network.host"}, ""},
		{"insecure", "FROM scratch\nRUN --security=insecure [\"x\"]\n", Request{}, []string{"--allow security.insecure"}, ""},
		{"no Dockerfile", "", Request{File: ""}, []string{"empty"}, ""},
		{"a Dockerfile of another name", "FROM scratch\n", Request{File: "nowhere"}, []string{"read Dockerfile: open nowhere: no such file"}, ""},
		{"twice from standard input", "FROM scratch\n", Request{Context: "-", File: "-", Stdin: strings.NewReader("\x1f\x8b\x08")}, []string{"standard input"}, ""},
		{"nothing on standard input", "", Request{Context: "-", Stdin: strings.NewReader("")}, []string{"it is empty"}, ""},
		{"no standard input", "", Request{Context: "-"}, []string{"there is none"}, ""},
		{"no directory", "", Request{Context: "/dev/null"}, []string{"is no directory"}, ""},
		{"a context that is not there", "", Request{Context: "/nonexistent/x"}, []string{"build context: stat /nonexistent/x: no such file"}, ""},
		{"owner on scratch", "FROM scratch\nCOPY --chown=me a /\n", Request{}, []string{"Dockerfile:2", "no /etc/passwd"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := contextDir(t, tt.dockerfile, "a 1", "ignored 2", ".dockerignore ignored\n")
			r := tt.r
			if r.Context == "" {
				r.Context = dir
			}
			res, err := b.Build(t.Context(), r)
			if err == nil || res == nil {
				t.Fatalf("Build = %+v, %v, want an error", res, err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q, want %q in it", err, w)
				}
			}
			if tt.not != "" && strings.Contains(err.Error(), tt.not) {
				t.Errorf("error %q, want no %q in it", err, tt.not)
			}
			if text := err.Error(); strings.Count(text, "not found") > 1 || strings.Count(text, "Dockerfile:2") > 1 {
				t.Errorf("error %q says a thing twice", text)
			}
		})
	}
}

func TestAllowed(t *testing.T) {
	b := openAt(t, t.TempDir())
	dir := withBusybox(t, contextDir(t, shell+"RUN --network=host --security=insecure true\n"))
	build(t, b, Request{Context: dir, Allow: []string{"network.host", "security.insecure"}})
}

func tarOf(t *testing.T, members ...member) []byte {
	t.Helper()
	data, err := io.ReadAll(pack(t, 1_600_000_000, members))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestContextFromStandardInput(t *testing.T) {
	plain := tarOf(t, "Dockerfile=FROM scratch\nCOPY a /x\n", "a=1", "sub/Dockerfile=FROM scratch\nCOPY a /y\n", ".dockerignore=b")
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(plain)
	z.Close()
	tests := []struct {
		name string
		data []byte
		file string
		want string // path in the image, or error
		err  string
	}{
		{"tar", plain, "", "/x", ""},
		{"gzip", zipped.Bytes(), "", "/x", ""},
		{"another Dockerfile of it", plain, "sub/Dockerfile", "/y", ""},
		{"a Dockerfile", []byte("FROM scratch\nCOPY <<EOF /z\nhi\nEOF\n"), "", "/z", ""},
		{"a Dockerfile with a file of a context", []byte("FROM scratch\nCOPY a /\n"), "", "", `"/a": not found`},
		{"no Dockerfile in it", tarOf(t, "a=1"), "", "", "there is no Dockerfile in the build context"},
		{"cut", plain[:1100], "", "", "unexpected EOF"},
		{"a Dockerfile that leads out", tarOf(t, "Dockerfile->/etc/hostname"), "", "", "escapes"},
		{"a link to the Dockerfile", tarOf(t, "Dockerfile->sub/D", "sub/D=FROM scratch\nCOPY a /w\n", "a=1"), "", "/w", ""},
		{"an ignore file that leads out", tarOf(t, "Dockerfile=FROM scratch\n", ".dockerignore->../../../../../../../../etc/hostname"), "", "", "escapes"},
		{"links out are followed inside", tarOf(t, "Dockerfile=FROM scratch\nCOPY l /v\n", "l->../../../a", "a=1"), "", "/v", ""},
	}
	b := openAt(t, t.TempDir())
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			res, err := b.Build(t.Context(), Request{Context: "-", File: tt.file, Stdin: bytes.NewReader(tt.data), Seal: true})
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("Build = %v, want %q", err, tt.err)
			}
			if err == nil {
				if got := files(t, b, res.Images[0]); len(got) == 0 || !has(got, tt.want) {
					t.Errorf("the image holds %v, want %s", got, tt.want)
				}
			}
			tmp, _ := b.Store.TempDir()
			if left, _ := os.ReadDir(tmp); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func has(m map[string]string, k string) bool { _, ok := m[k]; return ok }

func TestTagOfAResult(t *testing.T) {
	b := openAt(t, t.TempDir())
	dir := contextDir(t, "FROM scratch\nCOPY a /a\nCMD [\"/a\"]\n", "a 1")
	plain := build(t, b, Request{Context: dir})
	if plain.Sealed || !strings.HasPrefix(string(plain.ID), "blake3:") {
		t.Errorf("a build without a name is sealed: %v, as %s", plain.Sealed, plain.ID)
	}
	if again := build(t, b, Request{Context: dir}); again.ID != plain.ID {
		t.Errorf("the same build again is %s, before %s", again.ID, plain.ID)
	}
	if err := b.Tag(t.Context(), plain.ID.Encoded()[:12], name(t, "x:1"), name(t, "y")); err != nil {
		t.Fatal(err)
	}
	named := build(t, b, Request{Context: dir, Tags: []oci.Reference{name(t, "z")}})
	for _, n := range []string{"x:1", "y", "z"} {
		d, err := b.Images.Get(name(t, n))
		if err != nil {
			t.Fatalf("%s: %v", n, err)
		}
		if id, err := b.Images.ID(d); err != nil || id != named.ID {
			t.Errorf("%s is image %s, %v, want %s", n, id, err, named.ID)
		}
	}
	if err := b.Tag(t.Context(), "ffffffffffff", name(t, "q")); err == nil {
		t.Error("Tag of no result succeeds")
	}
}

func TestLocalImageAsBase(t *testing.T) {
	root := t.TempDir()
	b := openAt(t, root)
	dir := contextDir(t, "FROM scratch\nCOPY a /a\nENV A=1\n", "a 1")
	base := build(t, b, Request{Context: dir, Tags: []oci.Reference{name(t, "base")}})
	up := contextDir(t, "FROM base\nCOPY b /b\n", "b 2")
	r := Request{Context: up, Seal: true}
	got := build(t, b, r)
	img := got.Images[0]
	if held := files(t, b, img); held["/a"] != "1" || held["/b"] != "2" {
		t.Errorf("the image holds %v", held)
	}
	if len(img.Layers) != 2 || img.Image.RootFS.DiffIDs[0] != base.Images[0].Image.RootFS.DiffIDs[0] {
		t.Errorf("layers %v, want the base's first", img.Image.RootFS.DiffIDs)
	}
	if env := img.Image.Config.Env; len(env) == 0 || env[len(env)-1] != "A=1" {
		t.Errorf("environment %q, want the base's", env)
	}
	if again := build(t, openAt(t, root), r); again.ID != got.ID || again.Ran != 0 {
		t.Errorf("again it is %s after %d steps, want %s cached", again.ID, again.Ran, got.ID)
	}
	// The name is another image now.
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("3"), 0o644); err != nil {
		t.Fatal(err)
	}
	build(t, b, Request{Context: dir, Tags: []oci.Reference{name(t, "base")}})
	if again := build(t, b, r); files(t, b, again.Images[0])["/a"] != "3" {
		t.Error("the base is not the image that has the name now")
	}
}

func TestSecrets(t *testing.T) {
	root := t.TempDir()
	b := openAt(t, root)
	const secret = "correct horse battery staple"
	t.Setenv("BUILD_TEST_SECRET", secret)
	file := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, make([]byte, maxSecret+1), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(id string) string {
		return shell + "RUN --mount=type=secret,id=" + id + ",required=true /bin/busybox wc -c < /run/secrets/" + id + " > /n; " +
			"/bin/busybox stat -c %a /run/secrets/" + id + " >> /n\n"
	}
	tests := []struct {
		name, dockerfile string
		given            map[string]Secret
		want, err        string
	}{
		{"of a file", run("s"), map[string]Secret{"s": {File: file}}, "28\n400\n", ""},
		{"of the environment", run("t"), map[string]Secret{"t": {Env: "BUILD_TEST_SECRET"}}, "28\n400\n", ""},
		{"as a variable", shell + "RUN --mount=type=secret,id=s,env=S echo -n $S | /bin/busybox wc -c > /n\n", map[string]Secret{"s": {File: file}}, "28\n", ""},
		{"not given", run("u"), nil, "", `secret "u" was not given: add --secret id=u`},
		{"a file that is not there", run("v"), map[string]Secret{"v": {File: "/nonexistent"}}, "", "--secret id=v: stat /nonexistent"},
		{"a variable that is not set", run("w"), map[string]Secret{"w": {Env: "BUILD_TEST_NONE"}}, "0\n400\n", ""},
		{"too large", run("x"), map[string]Secret{"x": {File: big}}, "", "larger than 512000 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := withBusybox(t, contextDir(t, tt.dockerfile))
			res, err := b.Build(t.Context(), Request{Context: dir, Secrets: tt.given, Seal: true, Frontend: dockerfile.Options{Network: llb.NetworkNone}})
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("Build = %v, want %q", err, tt.err)
			}
			if err == nil {
				if got := files(t, b, res.Images[0])["/n"]; got != tt.want {
					t.Errorf("the step saw %q, want %q", got, tt.want)
				}
			}
		})
	}
	// Nothing on the disk knows it.
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(p)
		if err == nil && bytes.Contains(data, []byte(secret)) {
			t.Errorf("%s holds the secret", p)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Builds of several processes that want the same step at the same time: one runs
// it. Two Builders have nothing in common but the directory.
func TestSameStepRunsOnce(t *testing.T) {
	root := t.TempDir()
	builders := []*Builder{openAt(t, root), openAt(t, root)}
	dir := withBusybox(t, contextDir(t, shell+"RUN /bin/busybox sleep 0.2; /bin/busybox cat /proc/sys/kernel/random/uuid > /id\n"))
	var mu sync.Mutex
	ran, ids := 0, map[oci.Digest]bool{}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			res, err := builders[i%2].Build(context.Background(), Request{Context: dir, Seal: true, Frontend: dockerfile.Options{Network: llb.NetworkNone}})
			if err != nil {
				t.Error(err)
				return
			}
			id := oci.Digest(files(t, builders[0], res.Images[0])["/id"])
			mu.Lock()
			defer mu.Unlock()
			ids[id] = true
			ran += res.Ran
		})
	}
	wg.Wait()
	if len(ids) != 1 {
		t.Errorf("the step was run %d times, want once", len(ids))
	}
}

// sink keeps events.
type sink struct {
	mu     sync.Mutex
	events []progress.Event
}

func (s *sink) Emit(e progress.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

// A build that is stopped leaves no record of the step that it was in.
func TestStopped(t *testing.T) {
	b := openAt(t, t.TempDir())
	dir := withBusybox(t, contextDir(t, shell+"RUN echo half > /half; /bin/busybox test -e /go || /bin/busybox sleep 100\nRUN echo whole > /whole\n"))
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stopped by the test")
	watch := &stopper{at: "echo half", stop: func() { cancel(stop) }}
	r := Request{Context: dir, Seal: true, Sink: watch, Frontend: dockerfile.Options{Network: llb.NetworkNone}}
	_, err := b.Build(ctx, r)
	if !errors.Is(err, context.Canceled) && !errors.Is(err, stop) {
		t.Errorf("Build = %v, want that it was stopped", err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	// The next build runs the very step again, which now ends.
	text := strings.Replace(string(data), "sleep 100", "true", 1)
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	r.Sink = nil
	res := build(t, b, r)
	if got := files(t, b, res.Images[0]); got["/half"] != "half\n" || got["/whole"] != "whole\n" || res.Ran != 2 {
		t.Errorf("after %d steps the image holds %q and %q", res.Ran, got["/half"], got["/whole"])
	}
}

// stopper stops the build when a step has begun.
type stopper struct {
	at   string
	stop func()
	once sync.Once
}

func (s *stopper) Emit(e progress.Event) {
	if st, ok := e.(progress.Started); ok && strings.Contains(st.Name, s.at) {
		s.once.Do(s.stop)
	}
}

func TestFailedStep(t *testing.T) {
	b := openAt(t, t.TempDir())
	dir := withBusybox(t, contextDir(t, shell+"RUN echo said; exit 3\n"))
	events := &sink{}
	res, err := b.Build(t.Context(), Request{Context: dir, Sink: events, Frontend: dockerfile.Options{Network: llb.NetworkNone}})
	var place *BuildError
	var exit *sandbox.ExitError
	if !errors.As(err, &place) || place.Position != "Dockerfile:4" || !strings.Contains(place.Excerpt, "exit 3") || !errors.As(err, &exit) || exit.Code != 3 {
		t.Errorf("Build = %v, want a *BuildError at Dockerfile:4 with exit code 3", err)
	}
	if res == nil || res.Sealed {
		t.Errorf("response %+v", res)
	}
	said := false
	for _, e := range events.events {
		if l, ok := e.(progress.Log); ok {
			said = said || bytes.Contains(l.Data, []byte("said"))
		}
	}
	if !said {
		t.Error("what the step wrote was not passed on")
	}
}
