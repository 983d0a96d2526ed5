package parser

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// Reader finds the file that an INCLUDE names. from is the name of the file that
// it stands in, "" for the Dockerfile itself; name is what messages call the
// file found, and the same for the same file.
type Reader func(from, path string) (name string, data []byte, err error)

// Include is one INCLUDE:
//
//	INCLUDE path [NAME=value …]
//
// Above the first FROM it brings the stages of another file, below a FROM
// instructions into the stage. The file's ARGs are its own, and the includer's
// are not seen in it; values are handed over by name. A file of nothing but
// ARGs is the exception: it stands for its text, and makes no Include.
type Include struct {
	Outer *Include // the one that brought the file it stands in, of its kind; nil: none
	Given instructions.KeyValuePairs
	At    []Range // where it stands
}

// Source is one of the files that a Dockerfile consists of.
type Source struct {
	Name string
	Data []byte

	before int // what is added to its line numbers in a Range
	opts   extensions
}

// What an INCLUDE may lead to: enough for any use, too little for a small file
// to fill the memory.
const (
	maxIncludes     = 256 // in all
	maxIncludeDepth = 16
	maxIncluded     = 16 << 20 // bytes in all
)

const include = "include"

// entry is an instruction of one of the files, or the place where one begins.
type entry struct {
	node   *parser.Node // nil: file begins
	run    RunFlags
	file   *Include // brought the file of its stage
	in     *Include // brought it into its stage
	global bool     // an ARG before the file's first FROM
}

// reading is the reading of a Dockerfile and what it includes.
type reading struct {
	*File
	read        Reader
	anyFrontend bool            // Options.AnyFrontend
	count       int             // of INCLUDEs
	bytes       int             // of what they name
	taken       map[string]bool // files whose stages are there
}

// place is where a file's instructions come to stand.
type place struct {
	source  *Source
	file    *Include
	in      *Include
	inStage bool
	path    []string // the files on the way
}

// source adds a file and parses it. Its nodes get lines of their own.
func (r *reading) source(name string, data []byte) (*Source, []*parser.Node, error) {
	s := &Source{Name: name, Data: data, opts: findExtensions(data)}
	if n := len(r.Sources); n > 0 {
		last := r.Sources[n-1]
		s.before = last.before + bytes.Count(last.Data, []byte("\n")) + 2
	}
	r.Sources = append(r.Sources, s)
	if len(bytes.TrimSpace(data)) == 0 {
		what := "the Dockerfile"
		if s.before > 0 {
			what = "the file"
		}
		return nil, nil, &Error{File: name, Err: fmt.Errorf("%s is empty", what)}
	}
	if ref, _, at, ok := parser.DetectSyntax(data); ok && !r.anyFrontend {
		if err := Frontend(ref); err != nil {
			return nil, nil, r.errorAt(err, s.shift(at))
		}
	}
	tree, err := parser.Parse(bytes.NewReader(data))
	if err != nil {
		if at := located(err); len(at) > 0 {
			return nil, nil, r.errorAt(err, s.shift(at))
		}
		return nil, nil, &Error{File: name, Err: unlocated(err)}
	}
	if s.before == 0 {
		r.Escape = tree.EscapeToken
	} else if tree.EscapeToken != r.Escape {
		return nil, nil, &Error{File: name, Err: fmt.Errorf("the escape character is %q here and %q where it is included", tree.EscapeToken, r.Escape)}
	}
	for _, w := range tree.Warnings {
		if w.Location != nil {
			r.blank = append(r.blank, s.shift([]Range{*w.Location})...)
		}
	}
	for _, n := range tree.AST.Children {
		n.StartLine, n.EndLine = n.StartLine+s.before, n.EndLine+s.before
	}
	return s, tree.AST.Children, nil
}

func (s *Source) shift(at []Range) []Range {
	out := slices.Clone(at)
	for i := range out {
		if out[i].Start.Line > 0 {
			out[i].Start.Line += s.before
		}
		if out[i].End.Line > 0 {
			out[i].End.Line += s.before
		}
	}
	return out
}

// expand is the instructions of a file, with those that it includes.
func (r *reading) expand(p place, nodes []*parser.Node) ([]entry, error) {
	var out []entry
	started := p.inStage
	for _, n := range nodes {
		e := entry{node: n, file: p.file, in: p.in}
		var err error
		switch word := strings.ToLower(n.Value); {
		case word == include:
			var list []entry
			if list, err = r.include(p, n, started); err == nil {
				out = append(out, list...)
			}
			if err != nil {
				return nil, r.Error(err, n.Location())
			}
			continue
		case word == command.From && p.inStage:
			err = errors.New("FROM in a file that is included below a FROM; a file with stages is included above the first FROM")
		case word == command.From:
			started = true
		case word == command.Onbuild && p.source.opts.include && isInclude(n):
			err = errTrigger
		case started:
			e.run, err = takeRunFlags(n, p.source.opts)
		case word == command.Arg:
			e.global = true
		case isCommand(word):
			err = fmt.Errorf("%s before the first FROM: only ARG may stand there", n.Value)
			if p.file != nil {
				err = fmt.Errorf("%s before the first FROM: a file without stages is included below a FROM", n.Value)
			}
		}
		if err != nil {
			return nil, r.Error(err, n.Location())
		}
		out = append(out, e)
	}
	return out, nil
}

var errTrigger = errors.New("INCLUDE isn't allowed as an ONBUILD trigger")

// isInclude reports whether an ONBUILD's trigger is an INCLUDE.
func isInclude(n *parser.Node) bool {
	words := strings.Fields(n.Original)
	return len(words) > 1 && strings.EqualFold(words[1], include)
}

func isCommand(word string) bool {
	_, ok := command.Commands[word]
	return ok
}

// include is the instructions that an INCLUDE stands for.
func (r *reading) include(p place, n *parser.Node, started bool) ([]entry, error) {
	if !p.source.opts.include {
		return nil, notAsked("unknown instruction: INCLUDE", include)
	}
	path, inc, err := r.parseInclude(n)
	if err != nil {
		return nil, err
	}
	if r.count++; r.count > maxIncludes {
		return nil, fmt.Errorf("INCLUDE %s: more than %d files are included", path, maxIncludes)
	}
	if len(p.path) > maxIncludeDepth {
		return nil, fmt.Errorf("INCLUDE %s: files include one another more than %d deep", path, maxIncludeDepth)
	}
	if r.read == nil {
		return nil, fmt.Errorf("INCLUDE %s: there are no files to include here", path)
	}
	from := ""
	if len(p.path) > 1 {
		from = p.source.Name
	}
	name, data, err := r.read(from, path)
	if err != nil {
		return nil, fmt.Errorf("INCLUDE %s: %w", path, err)
	}
	if slices.Contains(p.path, name) {
		return nil, fmt.Errorf("INCLUDE %s: it includes itself: %s", path, strings.Join(append(slices.Clone(p.path), name), " -> "))
	}
	if r.bytes += len(data); r.bytes > maxIncluded {
		return nil, fmt.Errorf("INCLUDE %s: the files included are larger than %d bytes", path, maxIncluded)
	}
	s, nodes, err := r.source(name, data)
	if err != nil {
		return nil, err
	}
	inner := place{source: s, file: p.file, in: inc, inStage: true, path: append(slices.Clone(p.path), name)}
	if inc.Outer = p.in; !started {
		inner.file, inner.in, inner.inStage = inc, nil, false
		inc.Outer = p.file
	}
	list, err := r.expand(inner, nodes)
	if err != nil {
		return nil, err
	}
	if argsOnly(list) {
		if len(inc.Given) > 0 {
			return nil, fmt.Errorf("INCLUDE %s: it holds nothing but ARGs, which count where it is included: they take no values here, but from an ARG below", path)
		}
		for i := range list {
			list[i].file, list[i].in = p.file, p.in
		}
		return list, nil
	}
	if err := checkGiven(inc, list); err != nil {
		return nil, fmt.Errorf("INCLUDE %s: %w", path, err)
	}
	if started {
		return list, nil
	}
	if len(inc.Given) == 0 {
		// Two files that lean on the same third one share its stages.
		if r.taken[name] {
			return nil, nil
		}
		r.taken[name] = true
	}
	return append([]entry{{file: inc}}, list...), nil
}

func argsOnly(list []entry) bool {
	return !slices.ContainsFunc(list, func(e entry) bool {
		return e.node == nil || !strings.EqualFold(e.node.Value, command.Arg)
	})
}

// checkGiven wants the values that are handed over to be declared in the file.
func checkGiven(inc *Include, list []entry) error {
	declared := map[string]bool{}
	for _, e := range list {
		if e.node == nil || !strings.EqualFold(e.node.Value, command.Arg) || e.in != inc && (e.in != nil || e.file != inc) {
			continue
		}
		for w := e.node.Next; w != nil; w = w.Next {
			name, _, _ := strings.Cut(w.Value, "=")
			declared[name] = true
		}
	}
	for _, g := range inc.Given {
		if !declared[g.Key] {
			return fmt.Errorf("it has no ARG %s to take the value", g.Key)
		}
	}
	return nil
}

// parseInclude reads the words of an INCLUDE, which are divided as ARG's are.
func (r *reading) parseInclude(n *parser.Node) (path string, inc *Include, err error) {
	usage := errors.New("INCLUDE needs a path, and may have values after it: INCLUDE path [NAME=value ...]")
	if len(n.Flags) > 0 {
		return "", nil, fmt.Errorf("unknown flag: %s", n.Flags[0])
	}
	fields := strings.TrimSpace(n.Original)[len(n.Value):]
	tree, err := parser.Parse(strings.NewReader("# escape=" + string(r.Escape) + "\nARG " + strings.TrimSpace(fields)))
	if err != nil || len(tree.AST.Children) != 1 || tree.AST.Children[0].Next == nil || strings.TrimSpace(fields) == "" {
		return "", nil, usage
	}
	inc = &Include{At: n.Location()}
	words := tree.AST.Children[0].Next
	word, err := shell.NewLex(r.Escape).ProcessWordWithMatches(words.Value, shell.EnvsFromSlice(nil))
	if err != nil {
		return "", nil, fmt.Errorf("INCLUDE %s: %w", words.Value, err)
	}
	if len(word.Matched)+len(word.Unmatched) > 0 {
		return "", nil, fmt.Errorf("INCLUDE %s: variables are not expanded in the path", words.Value)
	}
	if word.Result == "" {
		return "", nil, usage
	}
	for w := words.Next; w != nil; w = w.Next {
		name, value, ok := strings.Cut(w.Value, "=")
		if !ok || name == "" {
			return "", nil, fmt.Errorf("INCLUDE %s: %s: want NAME=value", word.Result, w.Value)
		}
		inc.Given = append(inc.Given, instructions.KeyValuePair{Key: name, Value: value})
	}
	return word.Result, inc, nil
}
