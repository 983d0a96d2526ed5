package dockerfile

import (
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/parser"
)

// The types below are written as JSON in the form of BuildKit's subrequests
// frontend.outline, frontend.targets and frontend.lint, for programs that read
// what docker buildx build --call prints.

// Location is lines of one of the files of a Dockerfile.
type Location struct {
	SourceIndex int     `json:"sourceIndex,omitempty"` // in the list of sources
	Ranges      []Range `json:"ranges,omitempty"`
}

// Range is from one place to another, ends included.
type Range struct {
	Start Place `json:"start"`
	End   Place `json:"end"`
}

// Place is a line, from 1.
type Place struct {
	Line int `json:"line,omitempty"`
}

// Outline is the parameters that a target takes.
type Outline struct {
	Name        string        `json:"name,omitempty"` // of the stage
	Description string        `json:"description,omitempty"`
	Args        []Arg         `json:"args,omitempty"`
	Secrets     []Requirement `json:"secrets,omitempty"`
	SSH         []Requirement `json:"ssh,omitempty"`
	Cache       []CacheMount  `json:"cache,omitempty"`
	Sources     [][]byte      `json:"sources,omitempty"`
}

// Arg is a build argument. Its description is the comment above the ARG that
// begins with its name.
type Arg struct {
	Name        string    `json:"name"`
	Description string    `json:"description,omitempty"`
	Value       string    `json:"value,omitempty"`
	Location    *Location `json:"location,omitempty"`
}

// Requirement is a secret or an ssh socket.
type Requirement struct {
	Name     string    `json:"name"`
	Required bool      `json:"required,omitempty"`
	Location *Location `json:"location,omitempty"`
}

// CacheMount is a RUN --mount=type=cache.
type CacheMount struct {
	ID       string    `json:"ID"`
	Location *Location `json:"location,omitempty"`
}

// Targets is the stages of a Dockerfile, in order.
type Targets struct {
	Targets []Target `json:"targets"`
	Sources [][]byte `json:"sources"`
}

// Target is one stage. Its description is the comment above the FROM that begins
// with its name; base and platform are as written.
type Target struct {
	Name        string    `json:"name,omitempty"`
	Default     bool      `json:"default,omitempty"`
	Description string    `json:"description,omitempty"`
	Base        string    `json:"base,omitempty"`
	Platform    string    `json:"platform,omitempty"`
	Location    *Location `json:"location,omitempty"`
}

// ListTargets lists the stages of f.
func ListTargets(f *parser.File) (Targets, error) {
	stages, _, err := f.Instructions(nil)
	if err != nil {
		return Targets{}, err
	}
	t := Targets{Sources: sourceData(f)}
	for i, s := range stages {
		t.Targets = append(t.Targets, Target{
			Name: s.Name, Default: i == len(stages)-1, Description: s.DocComment,
			Base: s.BaseName, Platform: s.Platform, Location: locate(f, s.Location),
		})
	}
	return t, nil
}

// ListArgs names the arguments that f declares, in any stage or above them.
func ListArgs(f *parser.File) ([]string, error) {
	stages, meta, err := f.Instructions(nil)
	if err != nil {
		return nil, err
	}
	var names []string
	add := func(a *instructions.ArgCommand) {
		for _, pair := range a.Args {
			names = append(names, pair.Key)
		}
	}
	for _, m := range meta {
		if m.Arg != nil {
			add(m.Arg)
		}
	}
	for _, s := range stages {
		for _, in := range s.Instructions {
			if a, ok := in.Command.(*instructions.ArgCommand); ok {
				add(a)
			}
		}
	}
	return names, nil
}

// Findings is what a check found.
type Findings struct {
	Warnings []Finding    `json:"warnings"`
	Sources  []SourceInfo `json:"sources"`
	Error    *Failure     `json:"buildError,omitempty"`
}

// Finding is a Warning.
type Finding struct {
	Rule        string    `json:"ruleName"`
	Description string    `json:"description,omitempty"` // of the rule
	URL         string    `json:"url,omitempty"`
	Detail      string    `json:"detail,omitempty"` // what is wrong
	Location    *Location `json:"location,omitempty"`
}

// Failure is an error that ended the check.
type Failure struct {
	Message  string   `json:"message"`
	Location Location `json:"location"`
}

// SourceInfo is one of the files of a Dockerfile.
type SourceInfo struct {
	Filename string `json:"filename,omitempty"`
	Data     []byte `json:"data,omitempty"`
	Language string `json:"language,omitempty"`
}

// Report is what a check of f found, in the order of the file. failed is nil if
// the check reached its end; f may be nil if it did not.
func Report(f *parser.File, warnings []Warning, failed error, at llb.Position) Findings {
	var out Findings
	if f != nil {
		for _, s := range f.Sources {
			out.Sources = append(out.Sources, SourceInfo{Filename: s.Name, Data: s.Data, Language: "Dockerfile"})
		}
	}
	for _, w := range warnings {
		out.Warnings = append(out.Warnings, Finding{
			Rule: w.Rule, Description: w.Detail, URL: w.URL, Detail: w.Message, Location: locatePosition(f, w.Position),
		})
	}
	slices.SortStableFunc(out.Warnings, func(a, b Finding) int { return a.Location.compare(b.Location) })
	if failed != nil {
		out.Error = &Failure{Message: failed.Error(), Location: *locatePosition(f, at)}
	}
	return out
}

func sourceData(f *parser.File) [][]byte {
	var out [][]byte
	for _, s := range f.Sources {
		out = append(out, s.Data)
	}
	return out
}

func locate(f *parser.File, at []parser.Range) *Location {
	var p llb.Position
	p.File, p.Line, p.Until = f.Position(at)
	return locatePosition(f, p)
}

func locatePosition(f *parser.File, p llb.Position) *Location {
	var loc Location
	if f != nil {
		loc.SourceIndex = max(0, slices.IndexFunc(f.Sources, func(s *parser.Source) bool { return s.Name == p.File }))
	}
	if p.Line > 0 {
		loc.Ranges = []Range{{Start: Place{Line: p.Line}, End: Place{Line: max(p.Line, p.Until)}}}
	}
	return &loc
}

func (l *Location) compare(o *Location) int {
	if l.SourceIndex != o.SourceIndex {
		return l.SourceIndex - o.SourceIndex
	}
	return l.line() - o.line()
}

func (l *Location) line() int {
	if len(l.Ranges) == 0 {
		return 0
	}
	return l.Ranges[0].Start.Line
}
