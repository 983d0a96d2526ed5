package dockerfile

import (
	"maps"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/861fb494/build/parser"
)

// scope is what ARGs mean in one file that brings stages.
type scope struct {
	args    map[string]string // build arguments, and over them the values that INCLUDE hands over
	globals env               // the ARGs before its first FROM
	// arguments are these ARGs by name.
	arguments map[string]argument
}

// evaluate works out the ARGs before the first FROM of each file, given build
// arguments. Files do not see each other's.
func (l *lowering) evaluate(predefined env, globals []parser.Global, args map[string]string) (map[*parser.Include]*scope, error) {
	scopes := map[*parser.Include]*scope{nil: {args: args, globals: predefined, arguments: map[string]argument{}}}
	for _, g := range globals {
		if g.Arg == nil {
			outer := scopes[g.File.Outer].globals
			given, err := l.given(g.File, args, func(word string) (string, error) {
				v, _, err := l.lex.ProcessWord(word, outer)
				return v, err
			})
			if err != nil {
				return nil, l.file.Error(err, g.File.At)
			}
			scopes[g.File] = &scope{args: given, globals: predefined, arguments: map[string]argument{}}
			continue
		}
		c := scopes[g.File]
		for _, kv := range g.Arg.Args {
			v, set := c.args[kv.Key]
			var needs map[string]struct{}
			if !set && kv.Value != nil {
				word, err := l.lex.ProcessWordWithMatches(*kv.Value, c.globals)
				if err != nil {
					return nil, l.file.Error(err, g.Arg.Location())
				}
				v, set, needs = word.Result, true, word.Matched
			}
			if set {
				c.globals = c.globals.set(kv.Key, v)
			}
			a := l.argument(kv, v, g.Arg.Location())
			if _, again := needs[kv.Key]; again { // ARG A=${A}x: what the first needed, this needs
				delete(needs, kv.Key)
				maps.Copy(needs, c.arguments[kv.Key].needs)
			}
			a.needs = needs
			c.arguments[kv.Key] = a
		}
	}
	return scopes, nil
}

// given is the build arguments with an INCLUDE's values over them.
func (l *lowering) given(in *parser.Include, args map[string]string, expand func(string) (string, error)) (map[string]string, error) {
	out := maps.Clone(args)
	if out == nil {
		out = map[string]string{}
	}
	for _, kv := range in.Given {
		v, err := expand(kv.Value)
		if err != nil {
			return nil, err
		}
		out[kv.Key] = v
	}
	return out, nil
}

// included is a file whose instructions stand in a stage, while they are done.
type included struct {
	by   *parser.Include
	args map[string]string // for its ARGs
	// What is so again after it: its includer's.
	env      env
	declared []instructions.KeyValuePairOptional
}

// enter is the state before an instruction that in brought: files that end
// before it are left, and those that begin do not see their includers' ARGs.
func (l *lowering) enter(st state, in *parser.Include) (state, error) {
	var chain []*parser.Include
	for i := in; i != nil; i = i.Outer {
		chain = append(chain, i)
	}
	slices.Reverse(chain)
	same := 0
	for same < len(chain) && same < len(st.included) && st.included[same].by == chain[same] {
		same++
	}
	st = st.leave(same)
	for _, i := range chain[same:] {
		args, err := l.given(i, l.args, func(word string) (string, error) {
			v, unmatched, err := l.lex.ProcessWord(word, st.env)
			checkVariables(l.lint, st, unmatched, i.At)
			return v, err
		})
		if err != nil {
			return st, err
		}
		st.included = append(slices.Clip(st.included), included{by: i, args: args, env: st.env, declared: st.args})
		config := env(st.image.Config.Env)
		for _, a := range st.args {
			if v, ok := config.Get(a.Key); ok {
				st.env = st.env.set(a.Key, v)
			} else {
				st.env = st.env.unset(a.Key)
			}
		}
		st.args = nil
	}
	return st, nil
}

// leave ends all but the first n files.
func (s state) leave(n int) state {
	for len(s.included) > n {
		last := s.included[len(s.included)-1]
		s.env, s.args, s.included = last.env, last.declared, s.included[:len(s.included)-1]
	}
	return s
}

// setEnv is what ENV does: it outlasts the file that it stands in.
func (s state) setEnv(name, value string) state {
	s.env = s.env.set(name, value)
	s.included = slices.Clone(s.included)
	for i := range s.included {
		s.included[i].env = s.included[i].env.set(name, value)
	}
	return s
}

// argsFor is the values for ARGs at an instruction.
func (x *step) argsFor(s state) map[string]string {
	if n := len(s.included); n > 0 {
		return s.included[n-1].args
	}
	return x.scopes[x.stage.File].args
}
