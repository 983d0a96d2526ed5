package display

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/861fb494/build/internal/progress"
)

func TestPrintWarnings(t *testing.T) {
	var b bytes.Buffer
	err := PrintWarnings(&b, []progress.Warning{
		{Rule: "FromAsCasing", Message: "'as' and 'FROM' keywords' casing do not match", URL: "https://docs.docker.com/go/dockerfile/rule/from-as-casing/",
			Position: "sub dir/Dockerfile:12", Excerpt: []byte("  11 |     \n  12 | >>> FROM a as b\n")},
		{Rule: "StageNameCasing", Message: "Stage name 'Foo' should be lowercase", Position: "sub dir/Dockerfile:2",
			Detail: "Stage names should be lowercase", Excerpt: []byte("   2 | >>> FROM a AS Foo\n")},
		{Rule: "NoURL", Detail: "no message", Position: "sub dir/Dockerfile:3"},
		{Message: "nothing but a message"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `
WARNING: nothing but a message

WARNING: StageNameCasing
Stage name 'Foo' should be lowercase
sub dir/Dockerfile:2
--------------------
   2 | >>> FROM a AS Foo
--------------------

WARNING: NoURL
no message
sub dir/Dockerfile:3

WARNING: FromAsCasing - https://docs.docker.com/go/dockerfile/rule/from-as-casing/
'as' and 'FROM' keywords' casing do not match
sub dir/Dockerfile:12
--------------------
  11 |     
  12 | >>> FROM a as b
--------------------
`
	if b.String() != want {
		t.Errorf("PrintWarnings =\n%s\nwant\n%s", &b, want)
	}
}

// Tools find warnings by this form, of docker build --check.
func TestWarningsAreFound(t *testing.T) {
	var b bytes.Buffer
	if err := PrintWarnings(&b, []progress.Warning{
		{Rule: "B", Message: "second", Position: "Dockerfile:12", URL: "https://x/y", Excerpt: []byte("  12 | >>> X\n")},
		{Rule: "A", Message: "first", Position: "Dockerfile:9", Excerpt: []byte("   9 | >>> X\n")},
	}); err != nil {
		t.Fatal(err)
	}
	re := regexp.MustCompile(`(?m)^WARNING: (\w+).*\n(.*)\n\S*:(\d+)$`)
	var got []string
	for _, m := range re.FindAllStringSubmatch(b.String(), -1) {
		got = append(got, fmt.Sprint(m[1:]))
	}
	if want := []string{"[A first 9]", "[B second 12]"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

func TestFailure(t *testing.T) {
	full := Failure{
		Step:     "[web 2/5] RUN npm ci",
		Output:   Output{Lines: []string{"npm ERR! code E404", "npm ERR! 404"}, Left: 340},
		Position: "Dockerfile:7",
		Excerpt:  "   6 |     WORKDIR /app\n   7 | >>> RUN npm ci\n   8 |     COPY . .\n",
		Err:      errors.New("Dockerfile:7: [web 2/5] RUN npm ci: exit code 1"),
	}
	tests := []struct {
		name string
		f    Failure
		want string
	}{
		{"all", full, `------
 > [web 2/5] RUN npm ci:
(the last 2 lines; 340 before)
npm ERR! code E404
npm ERR! 404
------
Dockerfile:7
--------------------
   6 |     WORKDIR /app
   7 | >>> RUN npm ci
   8 |     COPY . .
--------------------
ERROR: Dockerfile:7: [web 2/5] RUN npm ci: exit code 1
`},
		{"silent step", Failure{Step: "RUN false", Position: "Dockerfile:2", Err: errors.New("exit code 1")},
			"Dockerfile:2\nERROR: exit code 1\n"},
		{"no step", Failure{Err: errors.New("no such file\n")}, "ERROR: no such file\n"},
	}
	for _, tt := range tests {
		var b bytes.Buffer
		if err := tt.f.Print(&b); err != nil || b.String() != tt.want {
			t.Errorf("%s: Print = %q, %v, want %q", tt.name, &b, err, tt.want)
		}
	}
}

// A Dockerfile that somebody else has written does nothing to the terminal.
func TestPrintable(t *testing.T) {
	const hostile = "a\x1b[2J\x1b]0;owned\ab\u202ec\x9bd\te"
	const want = "a\ufffd[2J\ufffd]0;owned\ufffdb\ufffdc\ufffdd\te"
	var b bytes.Buffer
	f := Failure{Position: "Dockerfile:1", Excerpt: "   1 | >>> " + hostile + "\n", Err: errors.New("unknown instruction: " + hostile)}
	if err := f.Print(&b); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); strings.Count(got, want) != 2 || strings.ContainsAny(got, "\x1b\a") {
		t.Errorf("printed %q, want %q twice", got, want)
	}
	if got := OneLine("x\x1b[31mred\nrow"); strings.ContainsAny(got, "\x1b\n") {
		t.Errorf("OneLine gives %q", got)
	}
}

// Quiet tells of what went wrong beside the build, and of nothing else.
func TestQuietWarnings(t *testing.T) {
	var b bytes.Buffer
	d := Quiet(&b)
	d.Emit(progress.Warning{Rule: "StageNameCasing", Message: "stage"})
	d.Emit(progress.Warning{Message: "the cache could not be put out"})
	d.Emit(progress.Hint{Message: "hint"})
	for range 2 {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := b.String(), "\nWARNING: the cache could not be put out\n"; got != want {
		t.Errorf("quiet writes %q, want %q", got, want)
	}
}
