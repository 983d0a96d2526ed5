package dockerfile_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/llb/dockerfile"
	"github.com/861fb494/build/parser"
	"github.com/861fb494/build/parser/ignore"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden lowers the Dockerfile of each file of testdata/golden with its
// options and compares what comes of it with the file's last part.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files (%v)", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			parts := map[string]string{}
			for _, f := range ar.Files {
				parts[f.Name] = string(f.Data)
			}
			got := golden(t, parts)
			if *update {
				ar.Files = append(withoutPart(ar.Files, "want"), txtar.File{Name: "want", Data: []byte(got)})
				if err := os.WriteFile(name, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(parts["want"], got); d != "" {
				t.Errorf("Lower (-want +got):\n%s", d)
			}
		})
	}
}

func withoutPart(files []txtar.File, name string) []txtar.File {
	var out []txtar.File
	for _, f := range files {
		if f.Name != name {
			out = append(out, f)
		}
	}
	return out
}

func golden(t *testing.T, parts map[string]string) string {
	var o dockerfile.Options
	o.BuildPlatform = oci.Platform{OS: "linux", Architecture: "amd64"}
	if s := parts["options"]; s != "" {
		if err := json.Unmarshal([]byte(s), &o); err != nil {
			t.Fatal(err)
		}
	}
	if s, ok := parts[".dockerignore"]; ok {
		m, err := ignore.Parse(strings.NewReader(s))
		if err != nil {
			t.Fatal(err)
		}
		o.Ignore = m
	}
	f, err := parser.ParseIncluding("Dockerfile", []byte(parts["Dockerfile"]), func(_, path string) (string, []byte, error) {
		return path, []byte(parts[path]), nil
	})
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	bases := &fakeBases{}
	r, err := dockerfile.Lower(context.Background(), f, bases, o)
	var b strings.Builder
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "warning: %s: %s: %s\n", w.Position, w.Rule, w.Message)
	}
	if err != nil {
		return b.String() + "error: " + err.Error() + "\n"
	}
	fmt.Fprintf(&b, "resolved: %s\n\n", strings.Join(bases.resolved(), " "))
	dumpGraph(&b, r.Graph)
	fmt.Fprintf(&b, "\nplatform: %s/%s\n", r.Image.OS, r.Image.Architecture)
	config, _ := json.Marshal(r.Image.Config)
	fmt.Fprintf(&b, "config: %s\n", compact(config))
	for _, h := range r.Image.History {
		layer := "layer"
		if h.EmptyLayer {
			layer = "-----"
		}
		fmt.Fprintf(&b, "history: %s %s\n", layer, strings.ReplaceAll(h.CreatedBy, "\n", `\n`))
	}
	return b.String()
}

// dumpGraph writes each node once, inputs first.
func dumpGraph(b *strings.Builder, g llb.Graph) {
	number := map[oci.Digest]int{}
	g.Walk(func(n *llb.Node) {
		number[n.Digest] = len(number) + 1
		op, _ := json.Marshal(n.Op)
		m := g.Meta[n.Digest]
		fmt.Fprintf(b, "%d. %s\n   %s %s", number[n.Digest], m.Name, strings.TrimPrefix(fmt.Sprintf("%T", n.Op), "llb."), compact(op))
		for _, in := range n.Inputs {
			fmt.Fprintf(b, " <%d", number[in.Digest])
		}
		fmt.Fprintf(b, "\n   stage %q, %d of it", m.Stage, m.Ordinal)
		for _, p := range m.Positions {
			fmt.Fprintf(b, ", lines %d-%d", p.Line, p.Until)
		}
		if m.NoCache {
			b.WriteString(", not from the cache")
		}
		if m.Timeout > 0 {
			fmt.Fprintf(b, ", at most %v", m.Timeout)
		}
		if m.ProxyEnv != nil {
			fmt.Fprintf(b, ", proxies %q", m.ProxyEnv)
		}
		if m.Internal {
			b.WriteString(", internal")
		}
		b.WriteString("\n")
	})
}

// compact is JSON without what is empty.
func compact(data []byte) string {
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return err.Error()
	}
	v = prune(v, "")
	if v == nil {
		return "{}"
	}
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err.Error()
	}
	return strings.TrimSpace(b.String())
}

func prune(v any, key string) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, x := range v {
			if x = prune(x, k); x != nil {
				out[k] = x
			}
		}
		if len(out) == 0 && key != "ExposedPorts" && key != "Volumes" {
			return keepEmpty(key)
		}
		return out
	case []any:
		for i := range v {
			v[i] = prune(v[i], "item")
		}
		if len(v) == 0 {
			return nil
		}
		return v
	case string:
		if v == "" && key != "item" {
			return nil
		}
		if key == "Data" {
			text, _ := base64.StdEncoding.DecodeString(v)
			return string(text)
		}
		return v
	case float64:
		if v == 0 {
			return nil
		}
		if key == "Mode" {
			return fmt.Sprintf("%#o", int(v))
		}
	case bool:
		if !v {
			return nil
		}
	}
	return v
}

// keepEmpty is the value of a set's member.
func keepEmpty(key string) any {
	if strings.ContainsAny(key, "/") {
		return map[string]any{}
	}
	return nil
}

// fakeBases knows a few images.
type fakeBases struct {
	mu    sync.Mutex
	calls []string
}

func (b *fakeBases) Resolve(_ context.Context, ref string, p oci.Platform) (llb.Source, oci.Image, error) {
	call := strings.TrimPrefix(ref, "docker.io/library/") + "@" + p.OS + "/" + p.Architecture
	b.mu.Lock()
	b.calls = append(b.calls, call)
	b.mu.Unlock()
	img := oci.Image{}
	img.Platform = p
	img.RootFS.DiffIDs = []oci.Digest{"sha256:1111"}
	img.History = []oci.History{{CreatedBy: "base"}}
	img.Config.Env = []string{"PATH=/bin", "LANG=C"}
	scheme := llb.Registry
	switch ref {
	case "docker.io/library/alpine:latest", "docker.io/library/alpine:3", "docker.io/library/busybox:latest":
		img.Config.Cmd = []string{"sh"}
	case "docker.io/library/node:latest":
		img.Config.Entrypoint = []string{"node"}
		img.Config.Cmd = []string{"index.js"}
		img.Config.User = "node"
		img.Config.WorkingDir = "/app/"
		img.Config.Env = []string{"NODE=1"}
		img.Config.Labels = map[string]string{"base": "yes"}
	case "docker.io/library/onbuild:latest":
		img.Config.OnBuild = []string{"COPY --from=tools /t /t", "RUN touch /triggered", "ENV TRIGGERED=1"}
	case "docker.io/library/nothing:latest":
		img.RootFS.DiffIDs, img.History = nil, nil
	case "docker.io/library/windows:latest":
		img.OS, img.OSVersion = "windows", "10.0.20348.1006"
	case "docker.io/library/arm:latest":
		img.Architecture = "arm64"
	case "oci-layout://store@sha256:" + strings.Repeat("2", 64):
		scheme = llb.Layout
	default:
		return llb.Source{}, oci.Image{}, fmt.Errorf("%s: not found", ref)
	}
	return llb.Source{Scheme: scheme, Ref: ref, Digest: "sha256:9999", Platform: p}, img, nil
}

func (b *fakeBases) resolved() []string {
	sort.Strings(b.calls)
	return b.calls
}
