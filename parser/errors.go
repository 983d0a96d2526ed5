package parser

import (
	"bytes"
	"errors"
	"fmt"
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
	var located *parser.LocationError
	if errors.As(err, &located) && len(located.Locations) > 0 && len(located.Locations[0]) > 0 {
		at = located.Locations[0]
	}
	line, until := bounds(at)
	return &Error{File: f.Name, Line: line, Until: until, Source: f.Excerpt(line, until), Err: unlocated(err)}
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

// Excerpt is the lines from line to until and two on either side, numbered;
// those meant are marked. It is empty if line is 0.
func (f *File) Excerpt(line, until int) string {
	const around = 2
	if line <= 0 {
		return ""
	}
	until = max(line, until)
	lines := bytes.Split(f.Data, []byte("\n"))
	if n := len(lines); n > 0 && len(lines[n-1]) == 0 {
		lines = lines[:n-1]
	}
	var b strings.Builder
	for i := max(1, line-around); i <= min(len(lines), until+around); i++ {
		mark := "   "
		if i >= line && i <= until {
			mark = ">>>"
		}
		text := strings.TrimRight(fmt.Sprintf("%4d | %s %s", i, mark, bytes.TrimSuffix(lines[i-1], []byte("\r"))), " ")
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
