package display

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/861fb494/build/internal/progress"
)

const rule = "--------------------"

// PrintWarnings writes the warnings in the form of docker build --check, in the
// order of the file:
//
//	WARNING: StageNameCasing - https://docs.docker.com/go/dockerfile/rule/stage-name-casing/
//	Stage name 'Foo' should be lowercase
//	Dockerfile:1
//	--------------------
//	   1 | >>> FROM scratch AS Foo
//	--------------------
//
// Each has an empty line before it.
func PrintWarnings(w io.Writer, warnings []progress.Warning) error {
	sorted := slices.Clone(warnings)
	slices.SortStableFunc(sorted, func(a, b progress.Warning) int {
		fa, la := position(a.Position)
		fb, lb := position(b.Position)
		if c := strings.Compare(fa, fb); c != 0 {
			return c
		}
		return la - lb
	})
	var b bytes.Buffer
	for _, v := range sorted {
		b.WriteString("\nWARNING: ")
		switch {
		case v.Rule != "" && v.URL != "":
			fmt.Fprintf(&b, "%s - %s\n", v.Rule, v.URL)
		case v.Rule != "":
			fmt.Fprintln(&b, v.Rule)
		}
		text := v.Message
		if text == "" {
			text = v.Detail
		}
		fmt.Fprintln(&b, Printable(strings.TrimRight(text, "\n")))
		excerpt(&b, v.Position, string(v.Excerpt))
	}
	_, err := w.Write(b.Bytes())
	return err
}

// excerpt writes a position and the lines there.
func excerpt(b *bytes.Buffer, position, lines string) {
	if position == "" {
		return
	}
	fmt.Fprintln(b, position)
	if lines = strings.TrimRight(lines, "\n"); lines != "" {
		fmt.Fprintf(b, "%s\n%s\n%s\n", rule, Printable(lines), rule)
	}
}

// position takes "Dockerfile:7" apart.
func position(s string) (file string, line int) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, 0
	}
	line, err := strconv.Atoi(s[i+1:])
	if err != nil {
		return s, 0
	}
	return s[:i], line
}

// Failure is what a user is told of a build that failed. All but Err may be
// empty.
type Failure struct {
	Step     string // its name: "[web 2/5] RUN npm ci"
	Output   Output // of the step: Display.Output
	Position string // "Dockerfile:7"
	Excerpt  string // the lines there, numbered, with ">>>" before those meant
	Err      error  // its text says the exit code
}

// Print writes f: the end of the step's output, the place in the file, the error.
func (f Failure) Print(w io.Writer) error {
	var b bytes.Buffer
	if f.Step != "" && len(f.Output.Lines) > 0 {
		fmt.Fprintf(&b, "------\n > %s:\n", OneLine(f.Step))
		if f.Output.Left > 0 {
			fmt.Fprintf(&b, "(the last %s; %d before)\n", count(len(f.Output.Lines), "line"), f.Output.Left)
		}
		for _, l := range f.Output.Lines {
			fmt.Fprintln(&b, l)
		}
		b.WriteString("------\n")
	}
	if f.Excerpt != "" || f.Err == nil || !strings.HasPrefix(f.Err.Error(), f.Position+":") {
		excerpt(&b, f.Position, f.Excerpt)
	}
	if f.Err != nil {
		fmt.Fprintf(&b, "ERROR: %s\n", Printable(strings.TrimRight(f.Err.Error(), "\n")))
	}
	_, err := w.Write(b.Bytes())
	return err
}
