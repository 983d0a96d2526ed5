// Package dockerfile lowers a parsed Dockerfile to an llb graph.
//
// Each family of instructions has a file with functions of the form
// (state, instruction) -> state. Bases is the package's only way to the world:
// everything else it needs is in the file and in Options.
//
// What the instructions mean is what BuildKit makes of them; the language's
// description is https://docs.docker.com/reference/dockerfile/.
package dockerfile

import (
	"context"
	"slices"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/parser"
	"github.com/861fb494/build/parser/ignore"
)

// Bases finds images. It is called concurrently, once for each reference and
// platform.
type Bases interface {
	// Resolve returns the image's source, pinned or not, and its configuration.
	// ref is a full name with a tag or a digest, or "oci-layout://NAME:TAG",
	// "oci-layout://NAME@DIGEST" as a named context has it.
	Resolve(ctx context.Context, ref string, p oci.Platform) (llb.Source, oci.Image, error)
}

// Options are what a build sets beside the Dockerfile. The zero value builds the
// last stage for the platform that the program runs on.
type Options struct {
	Target    string            // stage; empty: the last
	BuildArgs map[string]string // --build-arg
	Labels    map[string]string // --label

	// Platform is what is built for; the zero value is BuildPlatform, or what
	// the base image is for if that differs. BuildPlatform is where steps run;
	// the zero value is linux on this program's architecture.
	Platform, BuildPlatform oci.Platform
	MultiPlatform           bool // names of steps begin with the platform

	// Contexts are named contexts, which stand in for stages and images of
	// their name: "docker-image://REF", "oci-layout://NAME@DIGEST",
	// "target:STAGE", the URL of a git repository or an archive; anything else
	// is a directory, an llb.Local source under the context's name. A name may
	// end in "::PLATFORM".
	Contexts map[string]string
	Ignore   *ignore.Matcher // of the main context, for the rule CopyIgnoredFile

	NoCache       bool       // for all stages
	NoCacheFilter []string   // for these stages
	Epoch         *time.Time // SOURCE_DATE_EPOCH, where no build argument sets it
	Dated         bool       // where nothing sets it, SOURCE_DATE_EPOCH is 0
	// Date is when a git repository or a URL was last changed, or the main
	// context, as llb.Local; nil where that is not known. It is called for a
	// SOURCE_DATE_EPOCH that names one; may be nil.
	Date      func(context.Context, llb.Source) (*time.Time, error)
	AllStages bool // lower stages that the target does not need, too: for --check, for a lock

	// Of each RUN.
	Network      string // llb.NetworkDefault, NetworkNone or NetworkHost
	Hostname     string
	Hosts        []llb.Host
	Devices      []llb.Device
	ShmSize      int64 // bytes
	Ulimits      []llb.Ulimit
	CgroupParent string
}

// Result is a lowered Dockerfile.
type Result struct {
	// Graph has one target, the target stage's root filesystem.
	Graph llb.Graph
	// Stages are the root filesystems of all that was lowered, the target's among
	// them: with AllStages also of stages that it does not need.
	Stages []*llb.Node
	// Image is the target's configuration. RootFS.DiffIDs are the base's; each
	// History entry made here that is no EmptyLayer stands for one layer that
	// the stage's nodes append to it, in order. Created is set only by an epoch.
	Image    oci.Image
	Platform oci.Platform
	Epoch    *time.Time // SOURCE_DATE_EPOCH
	Warnings []Warning
	Outline  Outline
}

// Warning is what a rule of the linter found.
type Warning struct {
	Rule     string // "StageNameCasing"
	Message  string // "Stage name 'Base' should be lowercase"
	Detail   string // what the rule is about
	URL      string // may be empty
	Position llb.Position
	Excerpt  string // the lines of the file there
}

// Lower makes the graph of the target stage and all that it needs. Errors that
// have a place in the file are *parser.Error. If it fails after the linter has
// run, the result holds the warnings; it is never nil.
func Lower(ctx context.Context, f *parser.File, b Bases, o Options) (*Result, error) {
	l := &lowering{
		opts:  o,
		file:  f,
		bases: b,
		lex:   shell.NewLex(f.Escape),
		args:  buildArgs(o),
		memo:  map[string]func() resolution{},
	}
	err := l.run(ctx)
	r := &Result{Warnings: l.warnings}
	if err != nil {
		return r, err
	}
	r.Graph = l.graph
	r.Graph.Targets = []*llb.Node{l.target.state.root}
	for _, s := range slices.Concat(l.others, l.stages) {
		if s.lowered && s.state.root != nil {
			r.Stages = append(r.Stages, s.state.root)
		}
	}
	r.Image, r.Platform, r.Epoch = l.target.state.image, *l.target.platform, l.epoch
	r.Outline = l.outline()
	return r, nil
}

// lowering is one call of Lower.
type lowering struct {
	opts  Options
	file  *parser.File
	bases Bases
	lex   *shell.Lex
	args  map[string]string // build arguments

	lint     *linter.Linter
	warnings []Warning

	machine, platform oci.Platform // what steps run on, and are built for
	implicit          bool         // nobody asked for the platform
	multi             bool
	epoch             *time.Time
	scopes            map[*parser.Include]*scope // of the files that bring stages
	proxy             []string

	stages []*stage // of the file, in order
	others []*stage // images and contexts that COPY --from and mounts name
	byName map[string]*stage
	target *stage

	memo  map[string]func() resolution
	graph llb.Graph
}

func (l *lowering) run(ctx context.Context) error {
	if err := l.configure(); err != nil {
		return l.file.Error(err, nil)
	}
	stages, globals, err := l.file.Instructions(l.lint)
	if err != nil {
		return err
	}
	l.checkStageNames(stages)
	l.checkCasing(stages)
	if err := l.declare(ctx, stages, globals); err != nil {
		return err
	}
	if err := l.collect(stages); err != nil {
		return err
	}
	if err := l.connect(); err != nil {
		return err
	}
	needed, err := l.resolve(ctx)
	if err != nil {
		return err
	}
	if err := l.lower(needed); err != nil {
		return err
	}
	if err := l.lint.Error(); err != nil {
		return l.file.Error(lintError(l.warnings), nil)
	}
	l.finish()
	return nil
}

// finish puts on the target's configuration what is not of the Dockerfile.
func (l *lowering) finish() {
	t := l.target
	t.state = l.layered(t, t.state)
	s := &t.state
	if len(l.opts.Labels) > 0 {
		s.image.Config.Labels = merged(s.image.Config.Labels, l.opts.Labels)
	}
	if !l.implicit {
		setPlatform(&s.image, l.platform)
	}
	s.image.Platform = normalize(s.image.Platform)
}
