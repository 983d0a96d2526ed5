package dockerfile_test

import (
	"context"
	"encoding/json"
	"path"
	"strings"
	"testing"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/llb/dockerfile"
	"github.com/861fb494/build/parser"
)

// oneBase has one image, by any name.
type oneBase struct{ img oci.Image }

func (b oneBase) Resolve(_ context.Context, ref string, p oci.Platform) (llb.Source, oci.Image, error) {
	return llb.Source{Scheme: llb.Registry, Ref: ref, Digest: "sha256:9999", Platform: p}, b.img, nil
}

// FuzzImageConfig builds upon images whose configuration anybody can have written.
func FuzzImageConfig(f *testing.F) {
	const text = "FROM base AS a\nRUN x\nWORKDIR y\nCOPY b c\nENV D=$PATH\nUSER $D\nFROM a\nHEALTHCHECK CMD z\nEXPOSE 80\nVOLUME /v\nLABEL a=b\nCMD x\n"
	f.Add([]byte(`{"os":"linux","architecture":"amd64","config":{"Env":["PATH=/bin","x","=y",""],"WorkingDir":"a/../../b","User":"::","OnBuild":["RUN x","COPY --from=a / /"]}}`))
	f.Add([]byte(`{"os":"windows","architecture":"arm","variant":"v9","config":{"WorkingDir":"C:\\x","Shell":["cmd",""],"ExposedPorts":{"1/x":{}},"Volumes":null,"Healthcheck":{"Test":[]}},"rootfs":{"diff_ids":["x"]},"history":[{},{"empty_layer":true}]}`))
	f.Add([]byte(`{"config":{"OnBuild":["ONBUILD RUN x","FROM a","INCLUDE x","RUN --mount=type=cache x","ARG A","# x"],"Labels":{"":""}},"history":null}`))
	f.Fuzz(func(t *testing.T, config []byte) {
		var img oci.Image
		if json.Unmarshal(config, &img) != nil {
			return
		}
		file, err := parser.Parse("Dockerfile", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		r, err := dockerfile.Lower(t.Context(), file, oneBase{img}, dockerfile.Options{})
		if err != nil {
			return
		}
		r.Graph.Walk(func(n *llb.Node) {
			op, ok := n.Op.(llb.Exec)
			if !ok {
				return
			}
			if op.Dir != "" && (!path.IsAbs(op.Dir) || strings.Contains(op.Dir+"/", "/../")) {
				t.Errorf("Lower upon %q: RUN in %q, want an absolute path that stays in the tree", config, op.Dir)
			}
		})
		if _, err := json.Marshal(r.Image); err != nil {
			t.Errorf("Lower upon %q: its configuration cannot be written: %v", config, err)
		}
	})
}

// FuzzInclude takes any file into a stage and above the first FROM.
func FuzzInclude(f *testing.F) {
	f.Add("ARG x=1\nRUN $x\nENV x=2\n", "x=$o")
	f.Add("ARG v\nFROM ${v:-a} AS b\nCOPY --from=0 / /\n", "v='a b'")
	f.Add("# build: include\nINCLUDE f\n", "")
	f.Fuzz(func(t *testing.T, text, given string) {
		if strings.ContainsAny(given, "\r\n") {
			return
		}
		for _, main := range []string{"# build: include\nFROM a\nARG o=1\nINCLUDE f " + given + "\nRUN $o\n", "# build: include\nARG o=1\nINCLUDE f " + given + "\nFROM a\nARG o\nRUN $o\n"} {
			file, err := parser.ParseIncluding("Dockerfile", []byte(main), func(_, name string) (string, []byte, error) { return name, []byte(text), nil })
			if err != nil {
				continue
			}
			r, err := dockerfile.Lower(t.Context(), file, oneBase{}, dockerfile.Options{AllStages: true})
			if err != nil {
				continue
			}
			// The includer's last RUN sees its own o, unless an ENV said otherwise.
			op, ok := r.Graph.Targets[0].Op.(llb.Exec)
			if ok && !strings.Contains(strings.ToLower(text), "env") && !strings.Contains(strings.ToLower(text), "onbuild") && !argsOnly(text) {
				if got := value(op.Env, "o"); got != "1" {
					t.Errorf("Lower(%q) including %q: o=%q, want 1", main, text, got)
				}
			}
		}
	})
}

// argsOnly reports whether a file may stand for its text.
func argsOnly(text string) bool {
	file, err := parser.Parse("f", []byte("FROM a\n"+text))
	if err != nil {
		return true
	}
	stages, _, err := file.Instructions(nil)
	if err != nil {
		return true
	}
	for _, s := range stages {
		for _, i := range s.Instructions {
			if !strings.EqualFold(i.Name(), "arg") {
				return false
			}
		}
	}
	return len(stages) == 1
}

func value(env []string, name string) string {
	for _, kv := range env {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			return v
		}
	}
	return ""
}
