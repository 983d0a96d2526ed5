package dockerfile

import (
	"cmp"
	"maps"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/861fb494/build/parser"
)

// uses is the parameters that a stage's own lines name.
type uses struct {
	globals map[string]bool // ARGs before the first FROM
	args    map[string]argument
	secrets map[string]Requirement
	ssh     map[string]Requirement
	caches  map[string]CacheMount
}

// argument is an ARG and what it came to.
type argument struct {
	Arg
	needs map[string]struct{} // ARGs in its default
}

func (l *lowering) argument(kv instructions.KeyValuePairOptional, value string, at []parser.Range) argument {
	return argument{Arg: Arg{Name: kv.Key, Description: kv.DocComment, Value: value, Location: locate(l.file, at)}}
}

func (u *uses) global(names map[string]struct{}) {
	if u.globals == nil {
		u.globals = map[string]bool{}
	}
	for name := range names {
		u.globals[name] = true
	}
}

// arg notes an ARG of the stage. Of one that is inherited, that before the first
// FROM is shown.
func (u *uses) arg(a argument, inherited bool) {
	if inherited {
		u.global(map[string]struct{}{a.Name: {}})
		return
	}
	if u.args == nil {
		u.args = map[string]argument{}
	}
	u.args[a.Name] = a
}

// note adds an entry that is not there yet: the first place is what is shown.
func note[V any](m *map[string]V, name string, v V) {
	if *m == nil {
		*m = map[string]V{}
	}
	if _, ok := (*m)[name]; !ok {
		(*m)[name] = v
	}
}

// mount notes a mount of a RUN.
func (x *step) mount(m *instructions.Mount, id string) {
	u, at := &x.stage.uses, locate(x.file, x.Location())
	switch m.Type {
	case instructions.MountTypeSecret:
		note(&u.secrets, id, Requirement{Name: id, Required: m.Required, Location: at})
	case instructions.MountTypeSSH:
		note(&u.ssh, id, Requirement{Name: id, Required: m.Required, Location: at})
	case instructions.MountTypeCache:
		note(&u.caches, id, CacheMount{ID: id, Location: at})
	}
}

// outline is the parameters of the target and of all that it needs. Where
// several stages have one of the same name, that nearest to the target counts.
func (l *lowering) outline() Outline {
	o := Outline{Name: l.target.Name, Description: l.target.DocComment, Sources: sourceData(l.file)}
	var all uses
	seen := map[*stage]bool{}
	var visit func(s *stage)
	visit = func(s *stage) {
		if s == nil || seen[s] {
			return
		}
		seen[s] = true
		for name, a := range s.uses.args {
			note(&all.args, name, a)
		}
		if c := l.scopes[s.File]; !s.external {
			l.needed(c, s.uses.globals, &all, map[string]bool{})
		}
		for name, v := range s.uses.secrets {
			note(&all.secrets, name, v)
		}
		for name, v := range s.uses.ssh {
			note(&all.ssh, name, v)
		}
		for name, v := range s.uses.caches {
			note(&all.caches, name, v)
		}
		visit(s.base)
		for _, i := range s.steps {
			for _, from := range i.from {
				visit(from)
			}
		}
	}
	visit(l.target)
	for _, a := range all.args {
		o.Args = append(o.Args, a.Arg)
	}
	slices.SortFunc(o.Args, func(a, b Arg) int {
		return cmp.Or(a.Location.compare(b.Location), cmp.Compare(a.Name, b.Name))
	})
	o.Secrets, o.SSH = sorted(all.secrets), sorted(all.ssh)
	o.Cache = slices.SortedFunc(maps.Values(all.caches), func(a, b CacheMount) int {
		return cmp.Or(a.Location.compare(b.Location), cmp.Compare(a.ID, b.ID))
	})
	return o
}

func sorted(m map[string]Requirement) []Requirement {
	return slices.SortedFunc(maps.Values(m), func(a, b Requirement) int {
		return cmp.Or(a.Location.compare(b.Location), cmp.Compare(a.Name, b.Name))
	})
}

// needed adds ARGs before the first FROM, and those that their defaults name.
func (l *lowering) needed(c *scope, names map[string]bool, all *uses, seen map[string]bool) {
	for name := range names {
		a, ok := c.arguments[name]
		if !ok || seen[name] {
			continue
		}
		seen[name] = true
		note(&all.args, name, a)
		more := map[string]bool{}
		for n := range a.needs {
			more[n] = true
		}
		l.needed(c, more, all, seen)
	}
}
