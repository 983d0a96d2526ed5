package dockerfile_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/llb/dockerfile"
	"github.com/861fb494/build/parser"
)

func describe(o dockerfile.Outline) string {
	out := []string{strings.TrimSpace(o.Name + " " + o.Description)}
	for _, a := range o.Args {
		out = append(out, fmt.Sprintf("arg %s=%s at %d: %s", a.Name, a.Value, a.Location.Ranges[0].Start.Line, a.Description))
	}
	for _, s := range o.Secrets {
		out = append(out, fmt.Sprintf("secret %s %v at %d", s.Name, s.Required, s.Location.Ranges[0].Start.Line))
	}
	for _, s := range o.SSH {
		out = append(out, fmt.Sprintf("ssh %s %v at %d", s.Name, s.Required, s.Location.Ranges[0].Start.Line))
	}
	for _, c := range o.Cache {
		out = append(out, fmt.Sprintf("cache %s at %d", c.ID, c.Location.Ranges[0].Start.Line))
	}
	return strings.Join(out, "\n")
}

func TestOutline(t *testing.T) {
	tests := []struct {
		name, in string
		opts     dockerfile.Options
		want     []string
	}{
		{"nothing", "FROM scratch\n", dockerfile.Options{}, []string{""}},
		{"arguments", `ARG base=busy
ARG other=x
ARG end=est
# tag is a tag
ARG tag="lat${end}"
ARG unused=abc${other}

FROM ${base}box:$tag AS first
# nothing of FOO
ARG FOO=123
# BAR is a number
ARG BAR=456
RUN true

FROM alpine$unused AS second
ARG BAZ

FROM scratch AS third
ARG ABC=a ABC=b
# check=skip=all
ARG password
# word shows up
# check=skip=all
ARG word
ARG TARGETARCH

# target is built
FROM third AS target
ARG other
COPY --from=first /etc /

FROM second
`, dockerfile.Options{Target: "target", BuildArgs: map[string]string{"BAR": "678", "end": "est"}}, []string{"target is built",
			"arg base=busy at 1: ", "arg other=x at 2: ", "arg end=est at 3: ", "arg tag=latest at 5: is a tag", "arg FOO=123 at 10: ", "arg BAR=678 at 12: is a number",
			"arg ABC=b at 19: ", "arg password= at 21: ", "arg word= at 24: shows up"}},
		{"arguments of arguments", "ARG A=1\nARG B=2\nARG C=3\nARG A=${A}${B}\nARG D=${A}4\nARG A=${A}4${D}\nFROM scratch\nARG A\n", dockerfile.Options{},
			[]string{"", "arg B=2 at 2: ", "arg D=124 at 5: ", "arg A=124124 at 6: "}},
		{"an argument given", "ARG A=1\nARG B=$A\nFROM scratch\nARG B\n", dockerfile.Options{BuildArgs: map[string]string{"B": "x"}},
			[]string{"", "arg B=x at 4: "}},
		{"mounts", `FROM busybox AS first
RUN --mount=type=secret,target=/etc/passwd,required=true --mount=type=ssh true

FROM alpine AS second
RUN --mount=type=secret,id=unused --mount=type=ssh,id=ssh2 true

FROM busybox AS third
ARG BAR
RUN --mount=type=secret,id=second${BAR} true

FROM third AS target
COPY --from=first /foo /
RUN --mount=type=ssh,id=ssh3,required --mount=type=cache,target=/c --mount=type=cache,target=/d,id=e true
RUN --mount=type=cache,target=/c true

FROM second
`, dockerfile.Options{Target: "target", BuildArgs: map[string]string{"BAR": "678"}}, []string{"target", "arg BAR=678 at 8: ",
			"secret passwd true at 2", "secret second678 false at 9", "ssh default false at 2", "ssh ssh3 true at 13", "cache /c at 13", "cache e at 13"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := lower(tt.in, &fakeBases{}, tt.opts)
			if err != nil {
				t.Fatalf("Lower(%q) = %v", tt.in, err)
			}
			if got, want := describe(r.Outline), strings.Join(tt.want, "\n"); got != want {
				t.Errorf("Lower(%q).Outline = %s\nwant %s", tt.in, got, want)
			}
			if len(r.Outline.Sources) != 1 || string(r.Outline.Sources[0]) != tt.in {
				t.Errorf("Lower(%q).Outline.Sources = %q, want the file", tt.in, r.Outline.Sources)
			}
		})
	}
}

func TestListTargets(t *testing.T) {
	const in = `
# build defines stage for compiling the binary
FROM alpine AS build
RUN true

FROM busybox as Second

FROM --platform=$BUILDPLATFORM alpine$X

# binary returns the compiled binary
FROM second AS binary
`
	f, err := parser.Parse("Dockerfile", []byte(in))
	if err != nil {
		t.Fatal(err)
	}
	list, err := dockerfile.ListTargets(f)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range list.Targets {
		got = append(got, fmt.Sprintf("%s|%s|%s|%s|%v|%d", l.Name, l.Base, l.Platform, l.Description, l.Default, l.Location.Ranges[0].Start.Line))
	}
	want := "build|alpine||defines stage for compiling the binary|false|3 second|busybox|||false|6 |alpine$X|$BUILDPLATFORM||false|8 binary|second||returns the compiled binary|true|11"
	if got := strings.Join(got, " "); got != want {
		t.Errorf("ListTargets(%q) = %s, want %s", in, got, want)
	}
}

func TestReport(t *testing.T) {
	in := "FROM scratch AS Foo\nMAINTAINER x\n"
	f, err := parser.Parse("Dockerfile", []byte(in))
	if err != nil {
		t.Fatal(err)
	}
	at := func(line int) llb.Position { return llb.Position{File: "Dockerfile", Line: line, Until: line} }
	r := dockerfile.Report(f, []dockerfile.Warning{{Rule: "B", Message: "b", Position: at(2)}, {Rule: "A", Message: "a", Position: at(1)}}, fmt.Errorf("no"), at(2))
	if len(r.Warnings) != 2 || r.Warnings[0].Rule != "A" || r.Warnings[1].Location.Ranges[0].Start.Line != 2 {
		t.Errorf("Report(…).Warnings = %+v, want A at 1 and B at 2", r.Warnings)
	}
	if r.Error == nil || r.Error.Message != "no" || r.Error.Location.Ranges[0].End.Line != 2 {
		t.Errorf("Report(…).Error = %+v, want it at line 2", r.Error)
	}
	if len(r.Sources) != 1 || string(r.Sources[0].Data) != in || r.Sources[0].Language != "Dockerfile" {
		t.Errorf("Report(…).Sources = %+v, want the file", r.Sources)
	}
}
