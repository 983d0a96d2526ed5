package parser

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Error is what is wrong with a Dockerfile, and where.
type Error struct {
	File        string
	Line, Until int    // from 1, ends included; 0 if it has no place
	Source      string // the lines about there, numbered; empty without a place
	Err         error
}

// Error is "Dockerfile:7: …".
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Err.Error()
	}
	return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Error puts err at the lines at. An error that has a place keeps it.
func (f *File) Error(err error, at []Range) error {
	if err == nil {
		return nil
	}
	var placed *Error
	if errors.As(err, &placed) {
		return err
	}
	if own := located(err); len(own) > 0 {
		at = own
	}
	return f.errorAt(err, at)
}

func (f *File) errorAt(err error, at []Range) *Error {
	name, line, until := f.Position(at)
	return &Error{File: name, Line: line, Until: until, Source: f.Excerpt(name, line, until), Err: unlocated(err)}
}

// located is where an error of BuildKit's says that it is.
func located(err error) []Range {
	var e *parser.LocationError
	if errors.As(err, &e) && len(e.Locations) > 0 {
		return e.Locations[0]
	}
	return nil
}

// Position is the file, the first and the last line of ranges; the lines are 0
// if there is none.
func (f *File) Position(at []Range) (file string, line, until int) {
	line, until = bounds(at)
	s := f.source(line)
	if line == 0 {
		return s.Name, 0, 0
	}
	return s.Name, line - s.before, until - s.before
}

// source is the file that has the line.
func (f *File) source(line int) *Source {
	for i := len(f.Sources) - 1; i > 0; i-- {
		if line > f.Sources[i].before {
			return f.Sources[i]
		}
	}
	return f.Sources[0]
}

// unlocated takes off BuildKit's wrapping of positions, whose text says nothing
// that Error does not say.
func unlocated(err error) error {
	var located *parser.LocationError
	if !errors.As(err, &located) || located.Unwrap() == nil {
		return err
	}
	if inner := located.Unwrap(); inner.Error() == err.Error() {
		return inner
	}
	return err
}

// Excerpt is the lines from line to until of the file of that name, and two on
// either side, numbered; those meant are marked. It is empty if line is 0. Of a
// line, the first 2000 bytes are shown.
func (f *File) Excerpt(file string, line, until int) string {
	const around, longest = 2, 2000
	i := slices.IndexFunc(f.Sources, func(s *Source) bool { return s.Name == file })
	if line <= 0 || i < 0 {
		return ""
	}
	until = max(line, until)
	lines := bytes.Split(f.Sources[i].Data, []byte("\n"))
	if n := len(lines); n > 0 && len(lines[n-1]) == 0 {
		lines = lines[:n-1]
	}
	var b strings.Builder
	for i := max(1, line-around); i <= min(len(lines), until+around); i++ {
		mark := "   "
		if i >= line && i <= until {
			mark = ">>>"
		}
		shown := string(bytes.TrimSuffix(lines[i-1], []byte("\r")))
		if len(shown) > longest {
			shown = strings.ToValidUTF8(shown[:longest], "") + "…"
		}
		text := strings.TrimRight(fmt.Sprintf("%4d | %s %s", i, mark, shown), " ")
		b.WriteString(text + "\n")
	}
	return b.String()
}

// bounds is the first and the last line of ranges, 0 and 0 if there is none.
func bounds(at []Range) (line, until int) {
	for _, r := range at {
		if line == 0 || r.Start.Line < line {
			line = r.Start.Line
		}
		until = max(until, r.End.Line)
	}
	return line, max(line, until)
}
