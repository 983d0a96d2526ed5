package builder

import (
	"errors"
	"fmt"
	"strings"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/llb/dockerfile"
	"github.com/861fb494/build/parser"
	"github.com/861fb494/build/solver"
)

// BuildError is a build's failure with what a person needs to find its place.
type BuildError struct {
	Step     oci.Digest   // of the step that failed; empty if it was none
	Name     string       // of the step: "[2/3] RUN make"
	Position string       // "Dockerfile:7"; may be empty
	Place    llb.Position // the same; Line 0: none
	Excerpt  string       // the lines there, numbered
	Err      error
}

// Error is one line: the place, the step, what happened.
func (e *BuildError) Error() string {
	text := e.Err.Error()
	if e.Name != "" {
		// "[internal] download URL" and an error that begins with "download URL: "
		// say it once.
		_, words, _ := strings.Cut(e.Name, " ")
		text = e.Name + ": " + strings.TrimPrefix(text, words+": ")
	}
	if e.Position != "" {
		text = e.Position + ": " + text
	}
	return text
}

func (e *BuildError) Unwrap() error { return e.Err }

// locate makes a BuildError of an error that has a place in the Dockerfile.
func (j *job) locate(err error) error {
	var placed *parser.Error
	if errors.As(err, &placed) {
		b := &BuildError{Excerpt: placed.Source, Err: placed.Err}
		b.Place = llb.Position{File: placed.File, Line: placed.Line, Until: placed.Until}
		if placed.Line > 0 {
			b.Position = fmt.Sprintf("%s:%d", placed.File, placed.Line)
		} else {
			b.Position = placed.File
		}
		return b
	}
	var step *solver.StepError
	if errors.As(err, &step) {
		b := &BuildError{Step: step.Node.Digest, Name: step.Meta.Name, Err: step.Err}
		if len(step.Meta.Positions) > 0 {
			p := step.Meta.Positions[0]
			b.Place, b.Position, b.Excerpt = p, p.String(), j.file.Excerpt(p.File, p.Line, p.Until)
		}
		return b
	}
	return err
}

// Event is a linter's warning in the form that displays take.
func Event(w dockerfile.Warning) progress.Warning {
	return progress.Warning{
		Rule: w.Rule, Message: w.Message, Detail: w.Detail, URL: w.URL,
		Position: w.Position.String(), Excerpt: []byte(w.Excerpt),
	}
}
