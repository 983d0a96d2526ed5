package dockerfile

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/buildkit/util/suggest"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/parser"
)

// The rules, their names and texts are BuildKit's; what is here decides when
// they apply, as its own front end does.
// Rules: https://docs.docker.com/reference/build-checks/.

// warn is called by the linter.
func (l *lowering) warn(rule, detail, url, message string, at []parser.Range) {
	p := l.position(at)
	l.warnings = append(l.warnings, Warning{
		Rule: rule, Message: message, Detail: detail, URL: url,
		Position: p, Excerpt: l.file.Excerpt(p.File, p.Line, p.Until),
	})
}

// lintError is the failure that "check=error=true" makes of warnings.
func lintError(warnings []Warning) error {
	rules := map[string]bool{}
	for _, w := range warnings {
		rules[w.Rule] = true
	}
	return fmt.Errorf("lint violation found for rules: %s", strings.Join(slices.Sorted(maps.Keys(rules)), ", "))
}

func (l *lowering) checkStageNames(stages []parser.Stage) {
	seen := map[string]bool{}
	for _, s := range stages {
		if s.Name == "" {
			continue
		}
		if s.Name == scratch || s.Name == mainContext {
			l.lint.Run(&linter.RuleReservedStageName, s.Location, linter.RuleReservedStageName.Format(s.Name))
		}
		if seen[s.Name] {
			l.lint.Run(&linter.RuleDuplicateStageName, s.Location, linter.RuleDuplicateStageName.Format(s.Name))
		}
		seen[s.Name] = true
	}
}

// checkCasing wants each instruction in the case of most of them.
func (l *lowering) checkCasing(stages []parser.Stage) {
	type word struct {
		text string
		at   []parser.Range
	}
	var words []word
	for _, s := range stages {
		words = append(words, word{s.OrigCmd, s.Location})
		for _, i := range s.Instructions {
			words = append(words, word{i.Name(), i.Location()})
		}
	}
	lower, upper := 0, 0
	for _, w := range words {
		switch w.text {
		case strings.ToLower(w.text):
			lower++
		case strings.ToUpper(w.text):
			upper++
		}
	}
	for _, w := range words {
		want, should := strings.ToUpper(w.text), "uppercase"
		if lower > upper {
			want, should = strings.ToLower(w.text), "lowercase"
		}
		if w.text != want {
			l.lint.Run(&linter.RuleConsistentInstructionCasing, w.at, linter.RuleConsistentInstructionCasing.Format(w.text, should))
		}
	}
}

// checkDefaultBases wants base names that are valid without build arguments.
func (l *lowering) checkDefaultBases(stages []parser.Stage, predefined env, globals []parser.Global) {
	scopes, err := l.evaluate(predefined, globals, nil)
	if err != nil {
		return // it fails again, and not as a warning
	}
	for _, s := range stages {
		name, _, err := l.lex.ProcessWord(s.BaseName, scopes[s.File].globals)
		if err != nil {
			return
		}
		if _, err := oci.ParseReference(name); err != nil {
			l.lint.Run(&linter.RuleInvalidDefaultArgInFrom, s.Location, linter.RuleInvalidDefaultArgInFrom.Format(s.BaseName))
		}
	}
}

// checkFromArgs wants the variables of a FROM to be declared.
func (c *scope) checkFromArgs(lint *linter.Linter, unmatched map[string]struct{}, at []parser.Range) {
	known := append(c.globals.Keys(), slices.Sorted(maps.Keys(c.arguments))...)
	for _, name := range slices.Sorted(maps.Keys(unmatched)) {
		if slices.Contains(known, name) {
			continue
		}
		match, _ := suggest.Search(name, known, true)
		lint.Run(&linter.RuleUndefinedArgInFrom, at, linter.RuleUndefinedArgInFrom.Format(name, match))
	}
}

// checkTargetPlatform finds --platform=$TARGETPLATFORM, which says nothing.
func (c *scope) checkTargetPlatform(lint *linter.Linter, text string, word shell.ProcessWordResult, at []parser.Range) {
	const name = "TARGETPLATFORM"
	if _, ok := word.Matched[name]; !ok || len(word.Matched) != 1 || len(word.Unmatched) != 0 {
		return
	}
	if v, _ := c.globals.Get(name); v == word.Result {
		lint.Run(&linter.RuleRedundantTargetPlatform, at, linter.RuleRedundantTargetPlatform.Format(text))
	}
}

// checkConstPlatform finds a --platform that is always the same, unless the
// stage's name says so.
func checkConstPlatform(lint *linter.Linter, name string, word shell.ProcessWordResult, at []parser.Range) {
	if len(word.Matched) > 0 || len(word.Unmatched) > 0 {
		return
	}
	p, err := platforms.Parse(word.Result)
	if err != nil || strings.Contains(name, p.OS) || strings.Contains(name, p.Architecture) {
		return
	}
	rule := &linter.RuleFromPlatformFlagConstDisallowed
	lint.Run(rule, at, rule.Format(word.Result))
}

// checkBasePlatform wants an image for the platform that was asked for.
func (l *lowering) checkBasePlatform(s *stage) {
	img := s.found.image
	if img == nil || s.context != "" || s.found.named || s.found.name == "" {
		return
	}
	want, got := normalize(*s.platform), normalize(img.Platform)
	if s.platform.OS != img.OS || s.platform.Architecture != img.Architecture {
		rule := &linter.RuleInvalidBaseImagePlatform
		l.lint.Run(rule, s.Location, rule.Format(s.BaseName, platforms.FormatAll(want), platforms.FormatAll(got)))
	}
}

// checkVariables wants variables to be set, or declared as ARG.
func checkVariables(lint *linter.Linter, s state, unmatched map[string]struct{}, at []parser.Range) {
	for _, name := range slices.Sorted(maps.Keys(unmatched)) {
		declared := slices.ContainsFunc(s.args, func(a instructions.KeyValuePairOptional) bool { return a.Key == name })
		if declared || slices.Contains(noEnvArgs, name) {
			continue
		}
		match, _ := suggest.Search(name, s.env.Keys(), true)
		lint.Run(&linter.RuleUndefinedVar, at, linter.RuleUndefinedVar.Format(name, match))
	}
}

func (x *step) checkLegacy(noDelimiter bool) {
	if noDelimiter {
		x.lint.Run(&linter.RuleLegacyKeyValueFormat, x.Location(), linter.RuleLegacyKeyValueFormat.Format(x.Name()))
	}
}

// checkOnce warns at the earlier instruction, the one that does not count.
func (x *step) checkOnce(earlier []parser.Range) {
	if earlier != nil {
		rule := &linter.RuleMultipleInstructionsDisallowed
		x.lint.Run(rule, earlier, rule.Format(x.Name()))
	}
}

func (x *step) checkJSONArgs(s state) {
	if len(s.image.Config.Shell) == 0 {
		x.lint.Run(&linter.RuleJSONArgsRecommended, x.Location(), linter.RuleJSONArgsRecommended.Format(x.Name()))
	}
}

// checkWorkdir wants the first WORKDIR to be absolute, whatever the base's is.
func (x *step) checkWorkdir(s state, dir string) {
	if !s.workdirSet && !path.IsAbs(dir) {
		x.lint.Run(&linter.RuleWorkdirRelativePath, x.Location(), linter.RuleWorkdirRelativePath.Format(dir))
	}
}

// checkIgnored finds sources that .dockerignore excludes. With negated patterns
// nothing is said: a file in an excluded directory may be included.
func (x *step) checkIgnored(command, src string) {
	m := x.opts.Ignore
	if m == nil || m.Negated() {
		return
	}
	src = path.Clean(src)
	root := src == "." || src == "/"
	if root && m.MatchesRoot() || !root && m.MatchesAsWritten(src) {
		x.lint.Run(&linter.RuleCopyIgnoredFile, x.Location(), linter.RuleCopyIgnoredFile.Format(command, src))
	}
}

// checkSecret finds names of variables that hold a secret by the look of it.
func (x *step) checkSecret(instruction, key string) {
	deny := []string{"apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"}
	allow := []string{"public", "file", "version"}
	secret := false
	for _, word := range strings.Split(strings.ToLower(key), "_") {
		if slices.Contains(allow, word) {
			return
		}
		secret = secret || slices.Contains(deny, word)
	}
	if secret {
		rule := &linter.RuleSecretsUsedInArgOrEnv
		x.lint.Run(rule, x.Location(), rule.Format(instruction, key))
	}
}

// suggestAny adds to err what one of names might have been meant to be.
func suggestAny(err error, names map[string]struct{}, options []string) error {
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if ok, wrapped := suggest.WrapErrorMaybe(err, name, options, true); ok {
			return wrapped
		}
	}
	return err
}
