package churn

import (
	"path"
	"slices"
	"strings"
)

// rule is why a file is one that a build can be thought to do without.
type rule struct {
	name string // tells it from others
	// pattern is for an ignore file; empty: the file is none of those.
	pattern  string
	anchored bool // the pattern has the whole path
	junk     bool // nobody wants it, wherever it lies
	own      bool // git need not be asked: the Dockerfile and its ignore file, which are read all the same; .git
	// used reports whether a Dockerfile with such words makes use of it. May be nil.
	used func(words []string) bool
}

// junkDir is the rule of a directory of that name; ok is false for others.
func junkDir(name string) (r rule, ok bool) {
	switch name {
	case ".git":
		r.used, r.own = readsGit, true
	case "node_modules":
		r.used = func(words []string) bool { return !installsNode(words) }
	case ".hg", ".svn", ".bzr", ".jj",
		".idea", ".vscode", ".vs", ".fleet",
		"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".tox", ".nox", ".hypothesis", ".ipynb_checkpoints",
		".gradle", ".terraform", ".parcel-cache", ".turbo", ".nyc_output", ".sass-cache", "htmlcov":
	default:
		return rule{}, false
	}
	r.pattern, r.junk = name, true
	return r, true
}

// junkFile is the rule of a file of that name.
func junkFile(name string) (r rule, ok bool) {
	switch name {
	case ".DS_Store", "Thumbs.db", "desktop.ini", ".coverage", "coverage.out", "lcov.info", "nohup.out",
		".eslintcache", ".stylelintcache", ".bash_history", ".python_history":
		return rule{pattern: name, junk: true}, true
	}
	for _, pattern := range []string{
		"*.log", "*.swp", "*.swo", "*.swx", "*~", ".#*", "#*#", // logs; what editors leave
		"*.pyc", "*.pyo", "*.tsbuildinfo", "*.tmp", "*.bak", "*.orig", "*.rej", "*.pid",
	} {
		if ok, _ := path.Match(pattern, name); ok {
			return rule{pattern: pattern, junk: true}, true
		}
	}
	return rule{}, false
}

// readsGit reports whether a Dockerfile with such words asks git for something,
// or has a tool do so.
func readsGit(words []string) bool {
	for i, w := range words {
		switch w {
		case "goreleaser", "gitversion", "setuptools_scm", "setuptools-scm", "hatch-vcs", "versioneer", "nbgv":
			return true
		case "git":
			if i+1 == len(words) {
				continue
			}
			next := words[i+1]
			if strings.HasPrefix(next, "-") || slices.Contains([]string{
				"archive", "branch", "cat-file", "checkout", "config", "describe", "diff", "for-each-ref", "log", "ls-files", "ls-tree",
				"name-rev", "rev-list", "rev-parse", "shortlog", "show", "show-ref", "status", "submodule", "symbolic-ref", "tag", "worktree",
			}, next) {
				return true
			}
		}
	}
	return false
}

// installsNode reports whether something fills node_modules anew: else the one
// of the context is what the image uses.
func installsNode(words []string) bool {
	return slices.ContainsFunc(words, func(w string) bool {
		return slices.Contains([]string{"npm", "yarn", "pnpm", "bun", "deno", "lerna", "rush"}, w)
	})
}

// ruleOf is the rule for the file f of the context, or the directory, as in
// cache.Miss, and what of its path the rule is about: f, or a directory above.
// A file that no rule knows is its own, without a pattern.
func (b *Build) ruleOf(f string) (r rule, at string) {
	p, isDir := strings.CutSuffix(f, "/")
	if slices.Contains(b.Own, p) {
		return rule{name: p, pattern: escape(p[1:]), anchored: true, own: true}, p
	}
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		at += "/" + name
		if r, ok := junkDir(name); ok {
			r.name = r.pattern
			return r, at
		}
	}
	if r, ok := junkFile(path.Base(p)); ok && !isDir {
		r.name = r.pattern
		return r, p
	}
	if t, err := b.worktree(); err == nil && t != nil && p != "" {
		if r, at, ok := t.ignores(p, isDir); ok {
			return r, at
		}
	}
	return rule{name: f}, p
}
