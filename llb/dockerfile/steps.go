package dockerfile

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/parser"
)

// step is what a function for an instruction knows beside the state and the
// instruction.
type step struct {
	*lowering
	stage *stage
	instruction
	ordinal int
	lint    *linter.Linter // with what comments at the instruction say
	used    []llb.Variable // whose values the instruction's words have
}

// lower does the instructions of the stages needed, in the file's order.
func (l *lowering) lower(needed map[*stage]bool) error {
	for _, s := range l.others {
		if !needed[s] || s.base != nil {
			continue
		}
		if err := l.lowerStage(s); err != nil {
			return err
		}
	}
	for _, s := range l.stages {
		if !needed[s] {
			continue
		}
		if err := l.lowerStage(s); err != nil {
			return err
		}
	}
	return nil
}

// errWindows is the error for a layer upon those of a Windows image, which have
// the files below Files/ and hives of the registry beside them.
var errWindows = errors.New("this adds a layer to a Windows image, which is not supported: only its configuration can be changed, or a Windows image built from scratch")

func (l *lowering) lowerStage(s *stage) error {
	if s.lowered {
		return nil
	}
	if s.base != nil {
		if err := l.lowerStage(s.base); err != nil {
			return err
		}
	}
	st, err := l.start(s)
	if err != nil {
		return l.file.Error(err, s.Location)
	}
	if !s.replaced {
		for i, in := range s.steps {
			x := &step{lowering: l, stage: s, instruction: in, ordinal: i + 1}
			x.lint = l.lint.WithMergedConfigFromComments(in.Comments())
			if st, err = l.enter(st, in.In); err != nil {
				return l.file.Error(err, in.In.At)
			}
			before := st.root
			if st, err = x.do(st); err == nil && st.windows && st.root != before {
				err = errWindows
			}
			if err != nil {
				return l.file.Error(err, in.Location())
			}
		}
		st = st.leave(0)
	}
	s.state, s.lowered = st, true
	return nil
}

// do is the state after the instruction.
func (x *step) do(s state) (state, error) {
	if err := x.expand(s); err != nil {
		return s, err
	}
	switch c := x.Command.(type) {
	case *instructions.AddCommand:
		return x.copy(s, addition(c))
	case *instructions.ArgCommand:
		return x.arg(s, c)
	case *instructions.CmdCommand:
		return x.cmd(s, c)
	case *instructions.CopyCommand:
		return x.copy(s, copying(c))
	case *instructions.EntrypointCommand:
		return x.entrypoint(s, c)
	case *instructions.EnvCommand:
		return x.env(s, c)
	case *instructions.ExposeCommand:
		return x.expose(s, c)
	case *instructions.HealthCheckCommand:
		return x.healthcheck(s, c)
	case *instructions.LabelCommand:
		return x.label(s, c)
	case *instructions.MaintainerCommand:
		return x.maintainer(s, c)
	case *instructions.OnbuildCommand:
		return x.onbuild(s, c)
	case *instructions.RunCommand:
		return x.run(s, c)
	case *instructions.ShellCommand:
		return x.shell(s, c)
	case *instructions.StopSignalCommand:
		return x.stopsignal(s, c)
	case *instructions.UserCommand:
		return x.user(s, c)
	case *instructions.VolumeCommand:
		return x.volume(s, c)
	case *instructions.WorkdirCommand:
		return x.workdir(s, c)
	}
	return s, fmt.Errorf("instruction %s is not known", x.Name())
}

// expand puts values in for the variables, where the instruction has them
// expanded. ARG is not among these: a default that a build argument overrides
// is never looked at.
func (x *step) expand(s state) error {
	if c, ok := x.Command.(instructions.SupportsSingleWordExpansion); ok {
		if _, isArg := x.Command.(*instructions.ArgCommand); !isArg {
			if err := c.Expand(func(word string) (string, error) { return x.word(s, word) }); err != nil {
				return err
			}
		}
	}
	// The content of an inline document keeps its quotes.
	if c, ok := x.Command.(instructions.SupportsSingleWordExpansionRaw); ok {
		lex := shell.NewLex('\\')
		lex.SkipProcessQuotes = true
		return c.ExpandRaw(func(word string) (string, error) {
			return x.process(lex, s, word)
		})
	}
	return nil
}

// word is a word with variables expanded and quotes removed.
func (x *step) word(s state, word string) (string, error) {
	return x.process(x.lex, s, word)
}

func (x *step) process(lex *shell.Lex, s state, word string) (string, error) {
	v, err := lex.ProcessWordWithMatches(word, s.env)
	checkVariables(x.lint, s, v.Unmatched, x.Location())
	for _, name := range slices.Sorted(maps.Keys(v.Matched)) {
		if one := s.variable(name); !slices.Contains(x.used, one) {
			x.used = append(x.used, one)
		}
	}
	return v.Result, err
}

// node adds a node of this instruction to the graph.
func (x *step) node(op llb.Op, m llb.Meta, inputs ...*llb.Node) *llb.Node {
	if m.Variables == nil {
		m.Variables = x.used
	}
	return x.lowering.node(x.stage, x.ordinal, x.Location(), op, m, inputs...)
}

// internal adds a node that is shown only if it fails.
func (x *step) internal(name string, op llb.Op, inputs ...*llb.Node) *llb.Node {
	return x.node(op, llb.Meta{Name: "[internal] " + name, Internal: true}, inputs...)
}

// scratch is an empty tree.
func (x *step) scratch() *llb.Node {
	return x.empty(x.stage)
}

// input is what a stage yields, or of a directory of the user's what sel
// selects. A nil stage is the main context.
func (x *step) input(from *stage, sel llb.Select) *llb.Node {
	switch {
	case from == nil:
		return x.local(x.stage, mainContext, sel, x.Location())
	case from.state.local != "":
		return x.local(x.stage, from.state.local, sel, x.Location())
	}
	return from.state.root
}

// available fails if a stage is not lowered yet: it comes later in the file.
func (x *step) available(from *stage, name string) error {
	if from == nil || from.lowered {
		return nil
	}
	if from.external && from.base != nil { // a context that stands for a stage
		if err := x.available(from.base, name); err != nil {
			return err
		}
		return x.lowerStage(from)
	}
	return fmt.Errorf("cannot read from stage %q, it needs to be defined before current stage %q", name, x.stage.shown)
}

// title is the step's name for people: its number in the stage, and the
// instruction with the variables' values in it.
func (x *step) title(lex *shell.Lex, e shell.EnvGetter, text string) string {
	if v, _, err := lex.ProcessWord(text, e); err == nil {
		text = v
	}
	word, rest, more := strings.Cut(text, " ")
	if text = strings.ToUpper(word); more {
		text += " " + rest
	}
	return text
}

// numbered is a title with "[stage 2/5] " before it. Each call takes a number.
func (x *step) numbered(s state, title string) string {
	return x.stage.prefix(x.multi, s.env, x.trigger) + title
}

func (s *stage) prefix(platform bool, e env, trigger bool) string {
	if s.total == 0 {
		return ""
	}
	out := "["
	if platform && s.platform != nil {
		out += platforms.FormatAll(*s.platform) + crossing(*s.platform, e) + " "
	}
	if s.shown != "" {
		out += s.shown + " "
	}
	s.count++
	width := int(1 + math.Log10(float64(s.total)))
	out += fmt.Sprintf("%*d/%d] ", width, s.count, s.total)
	if trigger {
		out += "ONBUILD "
	}
	return out
}

// position is where the instruction is.
func (l *lowering) position(at []parser.Range) llb.Position {
	var p llb.Position
	p.File, p.Line, p.Until = l.file.Position(at)
	return p
}
