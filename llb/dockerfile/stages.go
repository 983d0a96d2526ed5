package dockerfile

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/util/suggest"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/parser"
)

// scratch is the base name of a stage that begins with nothing.
const scratch = "scratch"

// stage is a FROM and what follows it; or, if it is external, an image or a
// context that COPY --from or a mount names.
type stage struct {
	parser.Stage
	index    int    // in the file
	shown    string // in names of steps; empty if there is no other stage
	external bool
	base     *stage // the stage that it is built upon
	context  string // the named context that it is built upon
	replaced bool   // context or base stand for the whole stage: its instructions do not count
	steps    []instruction
	platform *oci.Platform // as asked for by --platform; once resolved, what it is
	noCache  bool

	resolved  bool
	found     resolution
	triggered bool // ONBUILD triggers of what it is built upon are in steps
	lowered   bool
	state     state

	total, count int // of its numbered steps; those named so far
	uses         uses
}

// instruction is an instruction and the stages that it reads from: one for COPY
// --from, one for each mount of a RUN (nil where a mount has no from).
type instruction struct {
	parser.Instruction
	from    []*stage
	trigger bool // of an ONBUILD
}

// label is how Meta names the stage.
func (s *stage) label() string {
	if s.external {
		return s.BaseName
	}
	if s.Name != "" {
		return s.Name
	}
	return strconv.Itoa(s.index)
}

// collect makes the stages of the file: their bases by name, their platforms,
// the named contexts that stand in for them.
func (l *lowering) collect(parsed []parser.Stage) error {
	l.byName = map[string]*stage{}
	for i, p := range parsed {
		s := &stage{Stage: p, index: i, shown: p.Name}
		if s.shown == "" {
			s.shown = fmt.Sprintf("stage-%d", i)
		}
		if err := l.expandFrom(s); err != nil {
			return l.file.Error(err, p.Location)
		}
		s.base = l.byName[s.BaseName]
		var err error
		if s.Name != "" {
			if s.context, err = l.namedContext(s.Name, s.platform); err != nil {
				return l.file.Error(err, p.Location)
			}
		}
		if s.context != "" {
			s.replaced, s.base, s.uses = true, nil, uses{}
		} else {
			s.setTotal()
			s.noCache = l.skipsCache(s.Name)
		}
		l.stages = append(l.stages, s)
		if s.Name != "" {
			l.byName[s.Name] = s
		}
	}
	l.target = l.stages[len(l.stages)-1]
	if name := l.opts.Target; name != "" {
		t, ok := l.byName[strings.ToLower(name)]
		if !ok {
			return l.file.Error(l.noTarget(name), nil)
		}
		l.target = t
	}
	return nil
}

// noTarget says that no stage is called name, and what the stages are called.
func (l *lowering) noTarget(name string) error {
	err := fmt.Errorf("target stage %q could not be found", name)
	if similar, err := suggest.WrapErrorMaybe(err, name, l.names(), true); similar {
		return err
	}
	var names []string
	for _, s := range l.stages {
		if s.Name != "" {
			names = append(names, s.Name)
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("%w: no stage has a name", err)
	}
	return fmt.Errorf("%w: the stages are %s", err, strings.Join(names, ", "))
}

func (s *stage) setTotal() {
	if s.BaseName != scratch && s.base == nil {
		s.total = 1
	}
	for _, i := range s.Instructions {
		switch i.Command.(type) {
		case *instructions.AddCommand, *instructions.CopyCommand, *instructions.RunCommand, *instructions.WorkdirCommand:
			s.total++
		}
	}
}

func (l *lowering) skipsCache(name string) bool {
	for _, n := range l.opts.NoCacheFilter {
		if strings.EqualFold(n, name) {
			return true
		}
	}
	return l.opts.NoCache
}

// expandFrom expands FROM's base name and platform.
func (l *lowering) expandFrom(s *stage) error {
	lint := l.lint.WithMergedConfigFromComments(s.Comments)
	in := l.scopes[s.File]
	name, err := l.lex.ProcessWordWithMatches(s.BaseName, in.globals)
	in.checkFromArgs(lint, name.Unmatched, s.Location)
	if err != nil {
		return err
	}
	if name.Result == "" {
		return fmt.Errorf("base name (%s) should not be blank", s.BaseName)
	}
	s.BaseName = name.Result
	s.uses.global(name.Matched)
	if s.Platform == "" {
		return nil
	}
	p, err := l.lex.ProcessWordWithMatches(s.Platform, in.globals)
	in.checkFromArgs(lint, p.Unmatched, s.Location)
	in.checkTargetPlatform(lint, s.Platform, p, s.Location)
	checkConstPlatform(lint, s.Name, p, s.Location)
	if err != nil {
		return fmt.Errorf("--platform=%s: %w", s.Platform, err)
	}
	if p.Result == "" {
		err = fmt.Errorf("empty platform value from expression %s", s.Platform)
		return suggestAny(err, p.Unmatched, in.globals.Keys())
	}
	s.uses.global(p.Matched)
	parsed, err := platforms.Parse(p.Result)
	if err != nil {
		return suggestAny(fmt.Errorf("--platform=%s: %w", s.Platform, err), p.Unmatched, in.globals.Keys())
	}
	s.platform = &parsed
	return nil
}

// names are the stages' names as shown, for suggestions.
func (l *lowering) names() []string {
	var out []string
	for _, s := range l.stages {
		if s.shown != "" {
			out = append(out, s.shown)
		}
	}
	return out
}

// connect finds what stages each instruction reads from, and that they do not
// go in circles.
func (l *lowering) connect() error {
	for _, s := range l.stages {
		s.steps = nil
		if s.replaced {
			continue
		}
		for _, parsed := range s.Instructions {
			i, err := l.sources(s, instruction{Instruction: parsed})
			if err != nil {
				return l.file.Error(err, parsed.Location())
			}
			s.steps = append(s.steps, i)
		}
	}
	if len(l.stages)+len(l.others) == 1 {
		l.stages[0].shown = ""
	}
	return l.checkCircles()
}

// sources fills in i.from. A number counts the stages of the file that s is in.
func (l *lowering) sources(s *stage, i instruction) (instruction, error) {
	switch c := i.Command.(type) {
	case *instructions.CopyCommand:
		if c.From == "" {
			return i, nil
		}
		if word, _, err := l.lex.ProcessWord(c.From, env{}); err != nil || word != c.From {
			return i, errors.New("variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround")
		}
		if n, err := strconv.Atoi(c.From); err == nil {
			stages := slices.DeleteFunc(slices.Clone(l.stages), func(o *stage) bool { return o.File != s.File })
			if n < 0 || n >= len(stages) {
				return i, fmt.Errorf("invalid stage index %d: there are %d stages, from 0", n, len(stages))
			}
			i.from = []*stage{stages[n]}
			return i, nil
		}
		i.from = []*stage{l.find(c.From, c.Location())}
	case *instructions.RunCommand:
		mounts := instructions.GetMounts(c)
		i.from = make([]*stage, len(mounts))
		for j, m := range mounts {
			if m.From != "" {
				i.from[j] = l.find(m.From, c.Location())
			}
		}
	}
	return i, nil
}

// find is the stage of that name, or else the image or context.
func (l *lowering) find(name string, at []parser.Range) *stage {
	if s, ok := l.byName[strings.ToLower(name)]; ok {
		return s
	}
	s := &stage{external: true, index: -1}
	s.BaseName, s.Location = name, at
	l.others = append(l.others, s)
	return s
}

// checkCircles finds stages that need themselves.
func (l *lowering) checkCircles() error {
	done, path := map[*stage]bool{}, map[*stage]bool{}
	var visit func(*stage) error
	visit = func(s *stage) error {
		if done[s] {
			return nil
		}
		done[s], path[s] = true, true
		if s.base != nil {
			if path[s.base] {
				return l.file.Error(fmt.Errorf("circular dependency detected on stage: %s", s.label()), s.Location)
			}
			if err := visit(s.base); err != nil {
				return err
			}
		}
		for _, i := range s.steps {
			for _, dep := range i.from {
				if dep == nil {
					continue
				}
				if path[dep] {
					return l.file.Error(fmt.Errorf("circular dependency detected on stage: %s", s.label()), i.Location())
				}
				if err := visit(dep); err != nil {
					return err
				}
			}
		}
		delete(path, s)
		return nil
	}
	for _, s := range l.stages {
		if err := visit(s); err != nil {
			return err
		}
	}
	return nil
}

// reachable is the target and all stages that it needs.
func (l *lowering) reachable() map[*stage]bool {
	seen := map[*stage]bool{}
	var visit func(*stage)
	visit = func(s *stage) {
		if s == nil || seen[s] {
			return
		}
		seen[s] = true
		visit(s.base)
		for _, i := range s.steps {
			for _, dep := range i.from {
				visit(dep)
			}
		}
	}
	visit(l.target)
	if l.opts.AllStages {
		for _, s := range l.stages {
			visit(s)
		}
	}
	return seen
}
