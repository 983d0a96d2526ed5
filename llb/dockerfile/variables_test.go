package dockerfile_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/llb/dockerfile"
)

// Which variables a step has the values of, and which instruction set them.
func TestVariables(t *testing.T) {
	tests := []struct {
		name, in string
		args     map[string]string
		want     string // of the last step
	}{
		{"ARG and ENV that RUN sees", "ARG A=1\nENV B=2\nRUN x\n", nil, "ARG A=1, ENV B=2"},
		{"ARG without a value", "ARG A\nRUN x\n", nil, ""},
		{"ARG with a value given", "ARG A\nRUN x\n", map[string]string{"A": "3"}, "ARG A=3"},
		{"ENV over ARG", "ARG A=1\nENV A=2\nRUN x\n", nil, "ENV A=2"},
		{"ENV of an ARG", "ARG A=1\nENV A=$A\nRUN x\n", nil, "ENV A=1"},
		{"words of COPY", "ARG A=1\nARG B=2\nENV C=3\nCOPY a /$A/$C\n", nil, "ARG A=1, ENV C=3"},
		{"words of WORKDIR", "ARG A=1\nWORKDIR /$A\n", nil, "ARG A=1"},
		{"inline document", "ARG A=1\nCOPY <<EOF /a\n$A\nEOF\n", nil, "ARG A=1"},
		{"none of its own", "ARG A=1\nCOPY a /a\n", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			res, err := lower("FROM scratch\n"+tt.in, &fakeBases{}, dockerfile.Options{BuildArgs: tt.args})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, v := range res.Graph.Meta[res.Graph.Targets[0].Digest].Variables {
				if v.Name != "PATH" {
					got = append(got, fmt.Sprintf("%s %s=%s", map[bool]string{true: "ARG", false: "ENV"}[v.Arg], v.Name, v.Value))
				}
			}
			if s := strings.Join(got, ", "); s != tt.want {
				t.Errorf("variables of %q = %q, want %q", tt.in, s, tt.want)
			}
		})
	}
}

// They are for people: the digests are those of the operations.
func TestVariablesAreInNoDigest(t *testing.T) {
	var nodes []*llb.Node
	for _, in := range []string{"ARG A=1\nCOPY a /$A\n", "ENV A=1\nCOPY a /$A\n", "COPY a /1\n"} {
		res, err := lower("FROM scratch\n"+in, &fakeBases{}, dockerfile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, res.Graph.Targets[0])
	}
	if nodes[0].Digest != nodes[1].Digest || nodes[1].Digest != nodes[2].Digest {
		t.Errorf("digests %s, %s, %s: want one", nodes[0].Digest, nodes[1].Digest, nodes[2].Digest)
	}
}
