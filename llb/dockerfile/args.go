package dockerfile

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/parser"
)

const epochArg = "SOURCE_DATE_EPOCH"

// noEnvArgs are ARGs for the builder; RUN does not see them.
var noEnvArgs = []string{"BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"}

// buildArgs are o's build arguments, with what is one by another name.
func buildArgs(o Options) map[string]string {
	args := maps.Clone(o.BuildArgs)
	if args == nil {
		args = map[string]string{}
	}
	if _, ok := args[epochArg]; !ok && o.Epoch != nil {
		args[epochArg] = strconv.FormatInt(o.Epoch.Unix(), 10)
	}
	return args
}

// configure reads what must be known before the instructions are.
func (l *lowering) configure() error {
	if ref, ok := l.args["BUILDKIT_SYNTAX"]; ok {
		ref, _, _ = strings.Cut(strings.TrimSpace(ref), " ")
		if err := parser.Frontend(ref); err != nil {
			return err
		}
	}
	check, ok := l.args["BUILDKIT_DOCKERFILE_CHECK"]
	if !ok {
		check = l.file.Check
	}
	config, err := linter.ParseLintOptions(check)
	if err != nil {
		return fmt.Errorf("check options: %w", err)
	}
	config.Warn = l.warn
	l.lint = linter.New(config)
	l.multi = l.opts.MultiPlatform
	if v, ok := l.args["BUILDKIT_MULTI_PLATFORM"]; ok && v != "" {
		if l.multi, err = strconv.ParseBool(v); err != nil {
			return fmt.Errorf("BUILDKIT_MULTI_PLATFORM=%s: want true or false", v)
		}
	}
	if v := l.args["BUILDKIT_SANDBOX_HOSTNAME"]; v != "" {
		l.opts.Hostname = v
	}
	switch n := l.opts.Network; n {
	case "", llb.NetworkDefault, llb.NetworkNone, llb.NetworkHost:
	default:
		return fmt.Errorf("invalid network mode %q: want default, none or host", n)
	}
	l.setPlatforms()
	l.proxy = proxyEnv(l.args)
	return nil
}

// proxyEnv is the predefined proxy arguments, as programs want them: in upper
// and lower case.
func proxyEnv(args map[string]string) []string {
	values := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(args)) {
		values[strings.ToUpper(k)] = args[k]
	}
	var out []string
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"} {
		if v := values[name]; v != "" {
			out = append(out, name+"="+v, strings.ToLower(name)+"="+v)
		}
	}
	return out
}

// declare works out the ARGs before the first FROM.
func (l *lowering) declare(ctx context.Context, stages []parser.Stage, globals []parser.Global) error {
	target := l.opts.Target
	if target == "" {
		target = stages[len(stages)-1].Name
	}
	if target == "" {
		target = "default"
	}
	predefined := l.platformArgs(target)
	l.checkDefaultBases(stages, predefined, globals)
	var err error
	if l.scopes, err = l.evaluate(predefined, globals, l.args); err != nil {
		return err
	}
	return l.setEpoch(ctx, stages)
}

// arg does ARG in a stage.
func (x *step) arg(s state, c *instructions.ArgCommand) (state, error) {
	words := make([]string, 0, len(c.Args))
	args := x.argsFor(s)
	for _, a := range c.Args {
		x.checkSecret("ARG", a.Key)
		inherited := false
		if v, ok := args[a.Key]; ok {
			a.Value = &v
		} else if a.Value != nil {
			v, err := x.word(s, *a.Value)
			if err != nil {
				return s, err
			}
			a.Value = &v
		} else if v, ok := x.scopes[x.stage.File].globals.Get(a.Key); ok {
			a.Value, inherited = &v, true
		}
		x.stage.uses.arg(x.argument(a, a.ValueString(), x.Location()), inherited)
		word := a.Key
		if a.Value != nil {
			if !slices.Contains(noEnvArgs, a.Key) {
				s.env = s.env.set(a.Key, *a.Value)
			}
			word += "=" + *a.Value
		}
		s.args = append(slices.Clip(s.args), a)
		words = append(words, word)
	}
	return s.commit("ARG "+strings.Join(words, " "), false, x.epoch), nil
}
