package parser

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

func TestParseErrors(t *testing.T) {
	tests := []struct {
		name, in, want string
		line, until    int
	}{
		{"empty", "", "Dockerfile: the Dockerfile is empty", 0, 0},
		{"only spaces", " \n\t\n", "Dockerfile: the Dockerfile is empty", 0, 0},
		{"only comments", "# hello\n", "Dockerfile:1: file with no instructions", 1, 1},
		{"unknown instruction", "FROM a\n\nRUM true\n", "Dockerfile:3: unknown instruction: RUM (did you mean RUN?)", 3, 3},
		{"unknown flag", "FROM a\nCOPY --frm=b c d\n", "Dockerfile:2: unknown flag: --frm (did you mean from?)", 2, 2},
		{"unknown flag of RUN", "FROM a\nRUN --devise=x true\n", "Dockerfile:2: unknown flag: --devise (did you mean device?)", 2, 2},
		{"no FROM", "ARG a\n", "Dockerfile: no FROM: there is no stage to build", 0, 0},
		{"RUN first", "ARG a\nRUN true\n", "Dockerfile:2: RUN before the first FROM: only ARG may stand there", 2, 2},
		{"several lines", "FROM a\nCOPY \\\n one\n", "Dockerfile:2: COPY requires at least two arguments, but only one was provided. Destination could not be determined", 2, 3},
		{"bad escape", "# escape=x\nFROM a\n", "Dockerfile: invalid escape token 'x' does not match ` or \\", 0, 0},
		{"open document", "FROM a\nRUN <<EOF\ntrue\n", "Dockerfile:2: unterminated heredoc", 2, 3},
		{"other front end", "# syntax=example.com/other:1\nFROM a\n", `Dockerfile:1: the front end "example.com/other:1" is not supported: the Dockerfile language (docker/dockerfile) is built in, and no other is run`, 1, 1},
		{"timeout not asked for", "FROM a\nRUN --timeout=3s true\n", `Dockerfile:2: unknown flag: --timeout (other builders do not have it; to use it, write the line "# build: timeout" above the first instruction)`, 2, 2},
		{"bad timeout", "# build: timeout\nFROM a\nRUN --timeout=3 true\n", "Dockerfile:3: --timeout=3: want a duration such as 90s or 10m", 3, 3},
		{"device without a name", "FROM a\nRUN --device=required true\n", "Dockerfile:2: --device needs a name", 2, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("Dockerfile", []byte(tt.in))
			var e *Error
			if !errors.As(err, &e) || err.Error() != tt.want || e.Line != tt.line || e.Until != tt.until {
				t.Errorf("Parse(%q) = %v (%+v), want %v at %d-%d", tt.in, err, e, tt.want, tt.line, tt.until)
			}
		})
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		name, in string
		escape   rune
		check    string
		stages   string // "name:base:number of instructions …"
	}{
		{"plain", "FROM a AS one\nRUN x\nFROM one\n", '\\', "", "one:a:1 :one:0"},
		{"byte order mark and CRLF", "\xef\xbb\xbfFROM a\r\nRUN x \\\r\n y\r\n", '\\', "", ":a:1"},
		{"escape", "# escape=`\nFROM a\nRUN x `\n y\n", '`', "", ":a:1"},
		{"check", "# check=skip=all;error=true\nFROM a\n", '\\', "skip=all;error=true", ":a:0"},
		{"our front end", "# syntax=docker/dockerfile:1.7-labs\nFROM a\n", '\\', "", ":a:0"},
		{"its upstream, mirrored", "# syntax=mirror.example/docker/dockerfile-upstream:master\nfrom a\n", '\\', "", ":a:0"},
		{"shebang", "#!/usr/bin/env build\n# syntax=docker/dockerfile:1\nFROM a\n", '\\', "", ":a:0"},
		{"check at an instruction", "FROM a\n# check=skip=all\nRUN x\n", '\\', "", ":a:1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Parse("Dockerfile", []byte(tt.in))
			if err != nil {
				t.Fatalf("Parse(%q) = %v", tt.in, err)
			}
			stages, _, err := f.Instructions(nil)
			if err != nil {
				t.Fatalf("Instructions() = %v", err)
			}
			var got []string
			for _, s := range stages {
				got = append(got, s.Name+":"+s.BaseName+":"+string(rune('0'+len(s.Instructions))))
			}
			if strings.Join(got, " ") != tt.stages || f.Escape != tt.escape || f.Check != tt.check {
				t.Errorf("Parse(%q) = %q, escape %q, check %q, want %q, %q, %q", tt.in, got, f.Escape, f.Check, tt.stages, tt.escape, tt.check)
			}
		})
	}
}

func TestRunFlags(t *testing.T) {
	const asked = "# build: timeout, no-cache\n"
	tests := []struct {
		in   string
		want RunFlags
	}{
		{"RUN true", RunFlags{}},
		{"RUN --timeout=90s --network=none true", RunFlags{Timeout: 90 * time.Second}},
		{"RUN --no-cache true", RunFlags{NoCache: true}},
		{"RUN --no-cache=false true", RunFlags{}},
		{"RUN --no-cache=12h true", RunFlags{TTL: 12 * time.Hour}},
		{"RUN --device=v.example/c=x,required true", RunFlags{Devices: []Device{{"v.example/c=x", true}}}},
		{"RUN --device=name=v.example/c,required=false true", RunFlags{Devices: []Device{{"v.example/c", false}}}},
		{"RUN -- --timeout=90s", RunFlags{}},
	}
	for _, tt := range tests {
		f, err := Parse("Dockerfile", []byte(asked+"FROM a\n"+tt.in+"\n"))
		if err != nil {
			t.Errorf("Parse(%q) = %v", tt.in, err)
			continue
		}
		stages, _, _ := f.Instructions(nil)
		got := stages[0].Instructions[0].Run
		if got.Timeout != tt.want.Timeout || got.NoCache != tt.want.NoCache || got.TTL != tt.want.TTL ||
			len(got.Devices) != len(tt.want.Devices) || len(got.Devices) > 0 && got.Devices[0] != tt.want.Devices[0] {
			t.Errorf("flags of %q = %+v, want %+v", tt.in, got, tt.want)
		}
	}
}

// What one caller expands, the next must find as it was written.
func TestInstructionsAreFresh(t *testing.T) {
	f, err := Parse("Dockerfile", []byte("FROM a\nWORKDIR $x\n"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		stages, _, err := f.Instructions(nil)
		if err != nil {
			t.Fatal(err)
		}
		c := stages[0].Instructions[0].Command.(*instructions.WorkdirCommand)
		if c.Path != "$x" {
			t.Fatalf("Path = %q, want $x", c.Path)
		}
		c.Path = "changed"
	}
}

func TestTrigger(t *testing.T) {
	f, err := Parse("Dockerfile", []byte("FROM a\n"))
	if err != nil {
		t.Fatal(err)
	}
	at := []Range{{}}
	at[0].Start.Line, at[0].End.Line = 7, 7
	tests := []struct{ in, want string }{
		{"RUN <<EOF\ntrue\nEOF\n", ""},
		{"# check=skip=all\nRUN true", ""},
		{"RUN a\nRUN b", `ONBUILD trigger "RUN a\nRUN b" is not one instruction`},
		{"FROM x", "FROM isn't allowed as an ONBUILD trigger"},
		{"BOGUS x", "unknown instruction: BOGUS"},
	}
	for _, tt := range tests {
		in, err := f.Trigger(tt.in, at)
		if got := message(err); got != tt.want {
			t.Errorf("Trigger(%q) = %q, want %q", tt.in, got, tt.want)
		}
		if err == nil && in.Location()[0].Start.Line != 7 {
			t.Errorf("Trigger(%q) is at %v, want line 7", tt.in, in.Location())
		}
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestExcerpt(t *testing.T) {
	f := &File{Sources: []*Source{{Name: "Dockerfile", Data: []byte("one\r\ntwo\n\nfour\nfive\nsix\n")}}}
	want := "   2 |     two\n   3 |\n   4 | >>> four\n   5 | >>> five\n   6 |     six\n"
	if got := f.Excerpt("Dockerfile", 4, 5); got != want {
		t.Errorf("Excerpt(4, 5) = %q, want %q", got, want)
	}
	if got := f.Excerpt("Dockerfile", 0, 0); got != "" {
		t.Errorf("Excerpt(0, 0) = %q, want nothing", got)
	}
	if got := f.Excerpt("Dockerfile", 6, 99); !strings.HasSuffix(got, "   6 | >>> six\n") {
		t.Errorf("Excerpt(6, 99) = %q, want it to end with the last line", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("FROM a\nRUN --mount=type=cache,target=/x <<EOF\ntrue\nEOF\n"))
	f.Add([]byte("# escape=`\nARG x=1\nFROM a:${x}\nCOPY --from=b <<-\"E\" `\n /\n\tE\nE\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := Parse("Dockerfile", data)
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Errorf("Parse(%q) = %T, want *Error", data, err)
		}
	})
}
