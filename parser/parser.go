// Package parser turns the bytes of a Dockerfile into instructions with
// positions. It opens nothing.
//
// The grammar is BuildKit's: its packages parser, instructions and linter do
// the reading. Added here are errors that name the file and show the lines,
// the choice of front end, and what BuildKit does not have: some flags of RUN,
// and INCLUDE, whose files a caller hands in.
package parser

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Range is a range of lines, from 1.
type Range = parser.Range

// File is a parsed Dockerfile. It is never changed: Instructions gives each
// caller instructions of its own.
//
// The lines of a Dockerfile and of what it includes are numbered through: where
// a Range is tells Position.
type File struct {
	Name    string // for positions and messages
	Data    []byte
	Escape  rune      // '\\' or '`'
	Check   string    // value of the directive "check", such as "skip=all;error=true"
	Sources []*Source // this file, and those that it includes

	entries []entry
	blank   []Range // where a continued line is followed by an empty one
}

// Stage is a FROM and what follows it, up to the next FROM. The embedded
// Stage's Commands are empty.
type Stage struct {
	instructions.Stage
	Instructions []Instruction
	File         *Include // brought the file that it is in; nil: the Dockerfile itself
}

// Instruction is one instruction of a stage.
type Instruction struct {
	instructions.Command
	Run RunFlags // of a RUN
	In  *Include // brought it into the stage; nil: it stands there
}

// Global is an ARG before the first FROM, or the place where an included file
// begins.
type Global struct {
	File *Include                 // the file; nil: the Dockerfile itself
	Arg  *instructions.ArgCommand // nil: File begins
}

// Parse reads a Dockerfile; name is what messages call it. Errors are *Error;
// the file has its Sources even then.
//
// The grammar is that of https://docs.docker.com/reference/dockerfile/. Where
// the file asks for another front end than docker/dockerfile, that is an error.
func Parse(name string, data []byte) (*File, error) {
	return ParseIncluding(name, data, nil)
}

// ParseIncluding is Parse for a Dockerfile that may include others, which read
// finds.
func ParseIncluding(name string, data []byte, read Reader) (*File, error) {
	return ParseWith(name, data, Options{Read: read})
}

// Options are those of ParseWith.
type Options struct {
	Read Reader // finds what INCLUDE names; may be nil
	// AnyFrontend: what front end the file asks for does not count, since the
	// user has chosen one.
	AnyFrontend bool
}

// ParseWith is Parse with options.
func ParseWith(name string, data []byte, o Options) (*File, error) {
	f := &File{Name: name, Data: data, Escape: parser.DefaultEscapeToken}
	r := &reading{File: f, read: o.Read, anyFrontend: o.AnyFrontend, taken: map[string]bool{}}
	s, nodes, err := r.source(name, data)
	if err != nil {
		return f, err
	}
	f.Check, _, _, _ = parser.ParseDirective("check", data)
	if f.entries, err = r.expand(place{source: s, path: []string{name}}, nodes); err != nil {
		return f, err
	}
	_, _, err = f.Instructions(nil)
	return f, err
}

// Instructions returns the stages and the ARGs before the first FROM. Each call
// makes them anew, since expanding variables changes them. What the rules of
// lint find on the way is given to lint, which may be nil.
func (f *File) Instructions(lint *linter.Linter) ([]Stage, []Global, error) {
	if lint == nil {
		lint = linter.New(&linter.Config{}) // says nothing; a nil one cannot read "# check=" above an instruction
	}
	for _, at := range f.blank {
		lint.Run(&linter.RuleNoEmptyContinuation, []Range{at}, linter.RuleNoEmptyContinuation.Format())
	}
	var stages []Stage
	var globals []Global
	for _, e := range f.entries {
		if e.node == nil {
			globals = append(globals, Global{File: e.file})
			continue
		}
		parsed, err := instructions.ParseInstructionWithLinter(e.node, lint)
		if err != nil {
			return nil, nil, f.Error(err, e.node.Location())
		}
		switch c := parsed.(type) {
		case *instructions.Stage:
			stages = append(stages, Stage{Stage: *c, File: e.file})
		case instructions.Command:
			if arg, ok := c.(*instructions.ArgCommand); ok && e.global {
				globals = append(globals, Global{File: e.file, Arg: arg})
				continue
			}
			last := &stages[len(stages)-1]
			last.Instructions = append(last.Instructions, Instruction{Command: c, Run: e.run, In: e.in})
		default:
			return nil, nil, f.Error(fmt.Errorf("unexpected %T", parsed), e.node.Location())
		}
	}
	if len(stages) == 0 {
		return nil, nil, f.Error(errors.New("no FROM: there is no stage to build"), nil)
	}
	return stages, globals, nil
}

// Trigger reads the text of an ONBUILD; its instruction is put at the lines at,
// those of the FROM that brings it in. Errors are not yet located.
func (f *File) Trigger(text string, at []Range) (Instruction, error) {
	tree, err := parser.Parse(bytes.NewReader([]byte(text)))
	if err != nil {
		return Instruction{}, unlocated(err)
	}
	if len(tree.AST.Children) != 1 {
		return Instruction{}, fmt.Errorf("ONBUILD trigger %q is not one instruction", text)
	}
	n := tree.AST.Children[0]
	n.StartLine, n.EndLine = bounds(at)
	if strings.EqualFold(n.Value, include) {
		return Instruction{}, errTrigger
	}
	run, err := takeRunFlags(n, f.source(n.StartLine).opts)
	if err != nil {
		return Instruction{}, err
	}
	parsed, err := instructions.ParseInstructionWithLinter(n, linter.New(&linter.Config{}))
	if err != nil {
		return Instruction{}, unlocated(err)
	}
	c, ok := parsed.(instructions.Command)
	if !ok {
		return Instruction{}, fmt.Errorf("%s isn't allowed as an ONBUILD trigger", n.Value)
	}
	return Instruction{Command: c, Run: run}, nil
}
