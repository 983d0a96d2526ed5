// Package parser turns the bytes of a Dockerfile into instructions with
// positions. It opens nothing.
//
// The grammar is BuildKit's: its packages parser, instructions and linter do
// the reading. Added here are errors that name the file and show the lines,
// the choice of front end, and flags of RUN that BuildKit does not have.
package parser

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Range is a range of lines, from 1.
type Range = parser.Range

// File is a parsed Dockerfile. It is never changed: Instructions gives each
// caller instructions of its own.
type File struct {
	Name   string // for positions and messages
	Data   []byte
	Escape rune   // '\\' or '`'
	Check  string // value of the directive "check", such as "skip=all;error=true"

	nodes []*parser.Node
	runs  map[*parser.Node]RunFlags
	blank []Range // where a continued line is followed by an empty one
	opts  extensions
}

// Stage is a FROM and what follows it, up to the next FROM. The embedded
// Stage's Commands are empty.
type Stage struct {
	instructions.Stage
	Instructions []Instruction
}

// Instruction is one instruction of a stage.
type Instruction struct {
	instructions.Command
	Run RunFlags // of a RUN
}

// Parse reads a Dockerfile; name is what messages call it. Errors are *Error.
//
// The grammar is that of https://docs.docker.com/reference/dockerfile/. Where
// the file asks for another front end than docker/dockerfile, that is an error.
func Parse(name string, data []byte) (*File, error) {
	f := &File{Name: name, Data: data, Escape: parser.DefaultEscapeToken, runs: map[*parser.Node]RunFlags{}}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, f.Error(errors.New("the Dockerfile is empty"), nil)
	}
	if ref, _, at, ok := parser.DetectSyntax(data); ok {
		if err := Frontend(ref); err != nil {
			return nil, f.Error(err, at)
		}
	}
	f.Check, _, _, _ = parser.ParseDirective("check", data)
	f.opts = findExtensions(data)

	tree, err := parser.Parse(bytes.NewReader(data))
	if err != nil {
		return nil, f.Error(err, nil)
	}
	f.nodes, f.Escape = tree.AST.Children, tree.EscapeToken
	for _, w := range tree.Warnings {
		if w.URL == linter.RuleNoEmptyContinuation.URL && w.Location != nil {
			f.blank = append(f.blank, *w.Location)
		}
	}
	for _, n := range f.nodes {
		if f.runs[n], err = takeRunFlags(n, f.opts); err != nil {
			return nil, f.Error(err, n.Location())
		}
	}
	if _, _, err := f.Instructions(nil); err != nil {
		return nil, err
	}
	return f, nil
}

// Instructions returns the stages and the ARGs before the first FROM. Each call
// makes them anew, since expanding variables changes them. What the rules of
// lint find on the way is given to lint, which may be nil.
func (f *File) Instructions(lint *linter.Linter) ([]Stage, []instructions.ArgCommand, error) {
	if lint == nil {
		lint = linter.New(&linter.Config{}) // says nothing; a nil one cannot read "# check=" above an instruction
	}
	for _, at := range f.blank {
		lint.Run(&linter.RuleNoEmptyContinuation, []Range{at}, linter.RuleNoEmptyContinuation.Format())
	}
	var stages []Stage
	var args []instructions.ArgCommand
	for _, n := range f.nodes {
		parsed, err := instructions.ParseInstructionWithLinter(n, lint)
		if err != nil {
			return nil, nil, f.Error(err, n.Location())
		}
		switch c := parsed.(type) {
		case *instructions.Stage:
			stages = append(stages, Stage{Stage: *c})
		case instructions.Command:
			if len(stages) > 0 {
				last := &stages[len(stages)-1]
				last.Instructions = append(last.Instructions, Instruction{Command: c, Run: f.runs[n]})
				continue
			}
			arg, ok := c.(*instructions.ArgCommand)
			if !ok {
				return nil, nil, f.Error(fmt.Errorf("%s before the first FROM: only ARG may stand there", n.Value), n.Location())
			}
			args = append(args, *arg)
		default:
			return nil, nil, f.Error(fmt.Errorf("unexpected %T", parsed), n.Location())
		}
	}
	if len(stages) == 0 {
		return nil, nil, f.Error(errors.New("no FROM: there is no stage to build"), nil)
	}
	return stages, args, nil
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
	run, err := takeRunFlags(n, f.opts)
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
