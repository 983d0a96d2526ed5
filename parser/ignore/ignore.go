// Package ignore reads .dockerignore files and says which paths they exclude.
//
// The syntax is Docker's: https://docs.docker.com/build/concepts/context/#dockerignore-files.
package ignore

import (
	"fmt"
	"io"
	"path"
	"strings"
	"sync"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// Matcher holds the patterns of one file. A nil Matcher excludes nothing. It is
// safe for concurrent use.
type Matcher struct {
	negated []negation

	mu       sync.Mutex // patternmatcher compiles on first use
	patterns *patternmatcher.PatternMatcher
	dirs     map[string]patternmatcher.MatchInfo // of each directory that was asked about
}

// Parse reads a .dockerignore file. The error names a pattern that is none.
func Parse(r io.Reader) (*Matcher, error) {
	patterns, err := ignorefile.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read ignore file: %w", err)
	}
	return New(patterns)
}

// New is the matcher of patterns: lines of a .dockerignore file, or the values
// of COPY --exclude.
func New(patterns []string) (*Matcher, error) {
	m := &Matcher{dirs: map[string]patternmatcher.MatchInfo{}}
	var err error
	if m.patterns, err = patternmatcher.New(patterns); err != nil {
		return nil, badPattern(patterns, err)
	}
	for _, p := range m.patterns.Patterns() {
		// Patterns are compiled when they are first needed; one that cannot be
		// is found here, not in the middle of a walk.
		one, err := patternmatcher.New([]string{p.String()})
		if err == nil {
			_, err = one.MatchesOrParentMatches("x")
		}
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w", p.String(), err)
		}
		if p.Exclusion() {
			m.negated = append(m.negated, newNegation(p.String()))
		}
	}
	return m, nil
}

func badPattern(patterns []string, err error) error {
	for _, p := range patterns {
		if _, bad := patternmatcher.New([]string{p}); bad != nil {
			return fmt.Errorf("pattern %q: %w", p, bad)
		}
	}
	return fmt.Errorf("patterns: %w", err)
}

// Match reports whether p is excluded: whether the last pattern to match p, or
// a directory above it, is not a negated one. p is relative to the context,
// with slashes, as is or with a leading slash; the context itself is never
// excluded. Of a directory that is excluded, paths below may yet be included:
// see Prunable.
func (m *Matcher) Match(p string, isDir bool) (excluded bool) {
	if m == nil {
		return false
	}
	p = clean(p)
	if p == "." {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	excluded, info := m.match(p)
	if isDir {
		m.dirs[p] = info
	}
	return excluded
}

// MatchesAsWritten reports whether p or a directory above it is excluded, p being
// what a Dockerfile has and not what it leads to: no pattern matches "/a" or "../a"
// where it matches "a".
func (m *Matcher) MatchesAsWritten(p string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	// New has compiled each pattern: there is no error left to have.
	excluded, _ := m.patterns.MatchesOrParentMatches(p)
	return excluded
}

// match needs what each pattern made of the directory above, not only what all
// of them together did. A pattern that a walk from the root skips at a directory
// (because an earlier one had decided) is skipped for what lies below, too.
func (m *Matcher) match(p string) (bool, patternmatcher.MatchInfo) {
	var above patternmatcher.MatchInfo
	if dir := path.Dir(p); dir != "." {
		var known bool
		if above, known = m.dirs[dir]; !known {
			_, above = m.match(dir)
			m.dirs[dir] = above
		}
	}
	// New has compiled each pattern: there is no error left to have.
	excluded, info, _ := m.patterns.MatchesUsingParentResults(p, above)
	return excluded, info
}

// Prunable reports whether nothing below dir, which Match has excluded, can be
// included: no negated pattern could match a path there.
func (m *Matcher) Prunable(dir string) bool {
	if m == nil {
		return false
	}
	parts := split(clean(dir))
	for _, n := range m.negated {
		if n.reaches(parts) {
			return false
		}
	}
	return true
}

// Negated reports whether any pattern is a negated one.
func (m *Matcher) Negated() bool { return m != nil && len(m.negated) > 0 }

// MatchesRoot reports whether a pattern is one of "*", "**" and "**/*", by which
// everything is excluded.
func (m *Matcher) MatchesRoot() bool {
	if m == nil {
		return false
	}
	for _, p := range m.patterns.Patterns() {
		switch p.String() {
		case "*", "**", "**/*":
			if !p.Exclusion() {
				return true
			}
		}
	}
	return false
}

// negation is what a negated pattern can match.
type negation struct {
	literal []string // leading components without wildcards
	depth   int      // components of what it matches; 0: any number
}

func newNegation(pattern string) negation {
	var n negation
	parts := split(pattern)
	// A class may match a slash, as may "**".
	if !strings.Contains(pattern, "**") && !strings.ContainsAny(pattern, `[\`) {
		n.depth = len(parts)
	}
	for _, p := range parts {
		if strings.ContainsAny(p, `*?[]\`) {
			break
		}
		n.literal = append(n.literal, p)
	}
	return n
}

// reaches reports whether n could match something below dir.
func (n negation) reaches(dir []string) bool {
	if n.depth > 0 && n.depth <= len(dir) {
		return false
	}
	for i := range min(len(n.literal), len(dir)) {
		if n.literal[i] != dir[i] {
			return false
		}
	}
	return true
}

// clean is p without a leading slash; "." is the context itself.
func clean(p string) string {
	if p = strings.TrimPrefix(path.Clean("/"+p), "/"); p == "" {
		return "."
	}
	return p
}

func split(p string) []string { return strings.Split(strings.TrimPrefix(p, "/"), "/") }
