package dockerfile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/util/suggest"
	"golang.org/x/sync/errgroup"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/parser"
)

// resolution is what a base name came to.
type resolution struct {
	source llb.Source
	unpack bool       // source is a file to be unpacked
	image  *oci.Image // nil: it has none
	base   *stage     // instead of all that: a stage
	name   string     // of the step: "FROM …"
	named  bool       // it came from a named context
	err    error
}

// resolve finds the bases of the stages that are needed, concurrently, and puts
// in their ONBUILD triggers, which may need further stages. It returns the
// stages needed.
func (l *lowering) resolve(ctx context.Context) (map[*stage]bool, error) {
	for {
		needed := l.reachable()
		if err := l.resolveBases(ctx, needed); err != nil {
			return nil, err
		}
		if l.redirect(needed) {
			continue
		}
		more := false
		for _, s := range l.stages {
			if !needed[s] || s.replaced || s.triggered {
				continue
			}
			s.triggered = true
			grown, err := l.addTriggers(s)
			if err != nil {
				return nil, l.file.Error(err, s.Location)
			}
			more = more || grown
		}
		if !more {
			return needed, l.checkCircles()
		}
	}
}

// resolveBases fills in found of each needed stage that is built upon no other.
func (l *lowering) resolveBases(ctx context.Context, needed map[*stage]bool) error {
	if err := l.checkNames(); err != nil {
		return err
	}
	var todo []*stage
	for _, s := range slices.Concat(l.stages, l.others) {
		if needed[s] && s.base == nil && !s.resolved {
			s.resolved = true
			todo = append(todo, s)
		}
	}
	// Not errgroup's context: the cause of its end is one stage's error, which
	// would be taken for that of all others.
	gctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var g errgroup.Group
	var mu sync.Mutex // guards l.memo
	for _, s := range todo {
		g.Go(func() error {
			s.found = l.findBase(gctx, &mu, s)
			if s.found.err != nil {
				cancel()
			}
			return s.found.err
		})
	}
	if g.Wait() == nil {
		for _, s := range todo {
			l.checkBasePlatform(s)
		}
		return nil
	}
	// The first in the file that failed by itself, whichever failed first.
	var failed *stage
	for _, s := range todo {
		if s.found.err != nil && (failed == nil || errors.Is(failed.found.err, context.Canceled)) {
			failed = s
		}
	}
	return l.file.Error(l.explain(failed), failed.Location)
}

// checkNames is an error if a name that is no stage's can be none of an image's,
// whether it is needed or a context stands for it.
func (l *lowering) checkNames() error {
	for _, s := range slices.Concat(l.stages, l.others) {
		if s.base != nil || s.BaseName == scratch {
			continue
		}
		if _, err := oci.ParseReference(s.BaseName); err != nil {
			return l.file.Error(l.guess(s, errors.Unwrap(err)), s.Location)
		}
	}
	return nil
}

// explain says of a base that was not found what might have been meant.
func (l *lowering) explain(s *stage) error {
	err := s.found.err
	if errors.Is(err, context.Canceled) {
		return err
	}
	if s.context != "" {
		return fmt.Errorf("context %s: %w", s.Name, err)
	}
	if s.found.named {
		return fmt.Errorf("context %s: %w", s.BaseName, err)
	}
	return l.guess(s, err)
}

// guess says what might have been meant by the name of s, which is wrong because of
// err.
func (l *lowering) guess(s *stage, err error) error {
	options := l.names()
	if s.external {
		err = fmt.Errorf("no stage is named %q, nor is it to be had as an image: %w", s.BaseName, err)
	} else {
		err = fmt.Errorf("%s: %w", s.BaseName, err)
		for _, name := range []string{"alpine", "busybox", "centos", "debian", "fedora", "golang", "node", "python", "ubuntu"} {
			options = append(options, name, name+":latest")
		}
	}
	return suggest.WrapError(err, s.BaseName, options, true)
}

// findBase resolves one stage's base, its named context or its image.
func (l *lowering) findBase(ctx context.Context, mu *sync.Mutex, s *stage) resolution {
	p := l.platform
	if s.platform != nil {
		p = *s.platform
	}
	if s.BaseName == scratch && s.context == "" {
		img := emptyImage(l.platform)
		s.platform = &l.platform
		return resolution{source: llb.Source{Scheme: llb.Scratch}, image: &img}
	}
	if s.context != "" {
		r := l.load(ctx, mu, s.Name, s.context, p)
		s.platform = &p
		if r.image != nil && r.image.OS != "" && r.image.Architecture != "" {
			s.platform = &oci.Platform{OS: r.image.OS, Architecture: r.image.Architecture, Variant: r.image.Variant,
				OSVersion: r.image.OSVersion, OSFeatures: slices.Clone(r.image.OSFeatures)}
		}
		return r
	}
	named, err := oci.ParseReference(s.BaseName)
	if err != nil {
		return resolution{err: errors.Unwrap(err)} // who reports it names the image
	}
	full := named.String()
	value, err := l.namedContext(full, &p)
	if err != nil {
		return resolution{err: err}
	}
	if value != "" {
		r := l.load(ctx, mu, s.BaseName, value, p)
		if r.image == nil {
			img := emptyImage(p)
			r.image = &img
		}
		r.named = true
		s.platform = &p
		return r
	}
	r := l.image(ctx, mu, full, p)
	if r.err == nil && s.platform == nil && l.implicit && r.image.OS == l.machine.OS && r.image.Architecture == l.machine.Architecture {
		p = l.machine
	}
	s.platform = &p
	return r
}

// image asks Bases, once for each reference and platform.
func (l *lowering) image(ctx context.Context, mu *sync.Mutex, ref string, p oci.Platform) resolution {
	key := ref + " " + platforms.FormatAll(p)
	mu.Lock()
	once, ok := l.memo[key]
	if !ok {
		once = sync.OnceValue(func() resolution {
			source, img, err := l.bases.Resolve(ctx, ref, p)
			if err != nil {
				return resolution{err: err}
			}
			img.Created = nil
			if isEmpty(img) {
				return resolution{source: llb.Source{Scheme: llb.Scratch}, image: &img}
			}
			name := ref
			if source.Digest != "" && !strings.Contains(name, "@") {
				name += "@" + string(source.Digest)
			}
			return resolution{source: source, image: &img, name: "FROM " + name}
		})
		l.memo[key] = once
	}
	mu.Unlock()
	return once()
}

// isEmpty reports whether an image has no layer.
func isEmpty(img oci.Image) bool {
	return len(img.RootFS.DiffIDs) == 0 &&
		!slices.ContainsFunc(img.History, func(h oci.History) bool { return !h.EmptyLayer })
}

// redirect builds upon another stage what a "target:" context sends there. It
// reports whether there was any.
func (l *lowering) redirect(needed map[*stage]bool) bool {
	any := false
	for s := range needed {
		if s.base == nil && s.found.base != nil {
			s.base, any = s.found.base, true
			s.setTotal()
		}
	}
	return any
}

// addTriggers puts the ONBUILD triggers of what s is built upon before its own
// instructions. It reports whether they read from stages.
func (l *lowering) addTriggers(s *stage) (bool, error) {
	var texts []string
	if s.base != nil {
		for _, i := range s.base.steps {
			if c, ok := i.Command.(*instructions.OnbuildCommand); ok {
				texts = append(texts, c.Expression)
			}
		}
		if s.base.replaced && s.base.found.image != nil {
			texts = append(texts, s.base.found.image.Config.OnBuild...)
		}
	} else if s.found.image != nil {
		texts = s.found.image.Config.OnBuild
	}
	grown := false
	var steps []instruction
	for _, text := range texts {
		parsed, err := l.file.Trigger(text, s.Location)
		if err != nil {
			return false, fmt.Errorf("ONBUILD trigger %q: %w", text, err)
		}
		i, err := l.sources(s, instruction{Instruction: parsed, trigger: true})
		if err != nil {
			return false, fmt.Errorf("ONBUILD trigger %q: %w", text, err)
		}
		grown = grown || len(i.from) > 0
		steps = append(steps, i)
	}
	s.steps = append(steps, s.steps...)
	s.total += len(steps)
	return grown, nil
}

// start is the state before a stage's first instruction.
func (l *lowering) start(s *stage) (state, error) {
	var st state
	if s.base != nil {
		st = s.base.state.inherit()
		s.platform = s.base.platform
	} else {
		r := s.found
		if r.image != nil {
			st.image = cloneImage(*r.image)
			st.image.Config.OnBuild = nil
			if s.external || s.replaced {
				st.image.Config.OnBuild = r.image.Config.OnBuild
			}
		}
		st.dir = "/"
		switch r.source.Scheme {
		case llb.Local:
			st.local = r.source.Ref
		case llb.Git, llb.HTTP:
			st.root, st.bare = l.fromNode(s, r), true
		default:
			st.root = l.fromNode(s, r)
			st.windows = r.image != nil && r.image.OS == windows && r.source.Scheme != llb.Scratch
		}
	}
	if s.external || s.replaced {
		return st, nil
	}
	return l.useConfig(s, l.layered(s, st))
}

// layered is st as something to build upon. What is no image has no layers: its
// files are copied into one.
func (l *lowering) layered(s *stage, st state) state {
	if st.local == "" && !st.bare {
		return st
	}
	from := st.root
	if st.local != "" {
		from = l.local(s, st.local, llb.Select{}, s.Location)
	}
	all := llb.Copy{Input: 1, Sources: []string{"/"}, Dest: "/"}
	st.root = l.node(s, 0, s.Location, llb.File{Actions: []llb.Action{all}},
		llb.Meta{Name: "[internal] FROM " + s.BaseName}, l.empty(s), from)
	st.local, st.bare = "", false
	return st.commit("FROM "+s.BaseName, true, l.epoch)
}

// empty is an empty tree.
func (l *lowering) empty(s *stage) *llb.Node {
	return l.node(s, 0, nil, llb.Source{Scheme: llb.Scratch}, llb.Meta{Name: "[internal] " + scratch, Internal: true})
}

// fromNode is the node of a base that is no directory of the user's.
func (l *lowering) fromNode(s *stage, r resolution) *llb.Node {
	m := llb.Meta{Name: r.name, Internal: r.source.Scheme == llb.Scratch}
	switch {
	case r.name == "":
		m.Name = "[internal] " + r.source.Scheme
	case s.total > 0:
		m.Name = s.prefix(l.multi, env{}, false) + r.name
	}
	n := l.node(s, 0, s.Location, r.source, m)
	if !r.unpack {
		return n
	}
	unpack := llb.Copy{Input: 1, Sources: []string{"/" + r.source.Filename}, Dest: "/", Unpack: true}
	return l.node(s, 0, s.Location, llb.File{Actions: []llb.Action{unpack}},
		llb.Meta{Name: "[context] unpack " + r.source.Ref}, l.empty(s), n)
}

// useConfig puts what the base's configuration says into the state.
func (l *lowering) useConfig(s *stage, st state) (state, error) {
	c := &st.image.Config
	if _, ok := env(c.Env).Get("PATH"); !ok && s.platform.OS != windows {
		c.Env = append(slices.Clip(c.Env), "PATH="+defaultPath)
	}
	for _, kv := range c.Env {
		k, v, _ := strings.Cut(kv, "=")
		st.env = st.env.set(k, v)
	}
	if c.WorkingDir != "" {
		c.WorkingDir, st.dir = joinWorkdir(s.platform.OS, c.WorkingDir, c.WorkingDir)
	}
	return st, nil
}

// node adds a node to the graph; m gets what all nodes of a stage share.
func (l *lowering) node(s *stage, ordinal int, at []parser.Range, op llb.Op, m llb.Meta, inputs ...*llb.Node) *llb.Node {
	n := llb.New(op, inputs...)
	m.Stage, m.Ordinal = s.label(), ordinal
	if len(at) > 0 {
		m.Positions = []llb.Position{l.position(at)}
	}
	if s.platform != nil {
		m.Platform = platforms.FormatAll(*s.platform)
	}
	l.graph.Join(n.Digest, m)
	return n
}

// local is a directory of the user's, as far as sel reaches. Each use has its
// own node, so that it depends on its own files only.
func (l *lowering) local(s *stage, name string, sel llb.Select, at []parser.Range) *llb.Node {
	text := "[context " + name + "] load"
	if name == mainContext {
		text = "[internal] load build context"
	}
	return l.node(s, 0, at, llb.Source{Scheme: llb.Local, Ref: name, Select: sel}, llb.Meta{Name: text, Internal: true})
}
