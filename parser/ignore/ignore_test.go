package ignore

import (
	"fmt"
	"path"
	"strings"
	"testing"

	"github.com/moby/patternmatcher"
)

func TestMatch(t *testing.T) {
	tests := []struct {
		name, patterns string // separated by spaces
		excluded       string
		included       string
	}{
		{"nothing", "", "", "a a/b"},
		{"a name at the root only", "a", "a a/b a/b/c", "b/a ab"},
		{"leading slash", "/a", "a a/b", "b/a"},
		{"star", "*.log", "x.log", "d/x.log x.logs"},
		{"question mark", "a?", "ab", "a abc"},
		{"class", "[ab]", "a b", "c"},
		{"any depth", "**/*.log", "x.log d/x.log d/e/x.log", "x.txt"},
		{"all below", "d/**", "d/a d/b/c", "d"},
		{"negated", "* !keep", "a b/c", "keep keep/x"},
		{"negated in an excluded directory", "d !d/keep", "d d/x d/keep2", "d/keep d/keep/x"},
		{"excluded again", "* !d d/secret", "a d/secret d/secret/x", "d d/x"},
		{"order counts", "!a a", "a", "b"},
		{"comment", "#a b", "b", "a"},
		{"the context itself", "**", "a", "."},
		// A walk skips the third pattern at d, which the first has excluded
		// already, and so does not find it matched at d/x.
		{"skipped above, skipped below", "* !d/x d", "d d/y", "d/x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Parse(strings.NewReader(strings.ReplaceAll(tt.patterns, " ", "\n")))
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range strings.Fields(tt.excluded) {
				if !m.Match(p, false) {
					t.Errorf("Match(%q) = false, want true", p)
				}
			}
			for _, p := range strings.Fields(tt.included) {
				if m.Match(p, false) {
					t.Errorf("Match(%q) = true, want false", p)
				}
			}
		})
	}
}

func TestPrunable(t *testing.T) {
	tests := []struct {
		patterns, dir string
		want          bool
	}{
		{"node_modules", "node_modules", true},
		{"* !src", "vendor", true},
		{"* !src/a", "src", false},
		{"* !src/a", "src/b", true},
		{"* !src/a", "src/a", true}, // depth: it can match src/a itself, which is not below
		{"* !*.md", "docs", true},
		{"* !*/*.md", "docs", false},
		{"* !**/*.md", "docs/x/y", false},
		{"* !src/**", "docs", true},
		{"* !s[/r]c", "s", false},
		{`* !a\*b/c`, "x", false},
	}
	for _, tt := range tests {
		m, err := New(strings.Fields(tt.patterns))
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Prunable(tt.dir); got != tt.want {
			t.Errorf("%q: Prunable(%q) = %v, want %v", tt.patterns, tt.dir, got, tt.want)
		}
	}
}

func TestBadPattern(t *testing.T) {
	for _, p := range []string{"[", "a[", "!"} {
		if _, err := New([]string{"ok", p}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", p)) {
			t.Errorf("New(%q) = %v, want an error that names it", p, err)
		}
	}
}

func TestNil(t *testing.T) {
	var m *Matcher
	if m.Match("a", false) || m.Prunable("a") || m.Negated() || m.MatchesRoot() {
		t.Error("a nil Matcher excludes something")
	}
}

// walk is how a context is walked: each directory's results go to what it holds.
func walk(pm *patternmatcher.PatternMatcher, paths []string) map[string]bool {
	infos, out := map[string]patternmatcher.MatchInfo{}, map[string]bool{}
	for _, p := range paths {
		out[p], infos[p], _ = pm.MatchesUsingParentResults(p, infos[path.Dir(p)])
	}
	return out
}

// Asked in any order, about directories or files first, the answer is the
// walk's; and nothing below a directory that is prunable is included.
func FuzzMatchIsTheWalks(f *testing.F) {
	f.Add("*\n!a/b\na")
	f.Add("**/b\n!a/**\n*/c*")
	var paths []string
	for _, a := range "abc" {
		paths = append(paths, string(a))
		for _, b := range "abc" {
			paths = append(paths, fmt.Sprintf("%c/%c", a, b))
			for _, c := range "abc" {
				paths = append(paths, fmt.Sprintf("%c/%c/%c", a, b, c))
			}
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := Parse(strings.NewReader(text))
		if err != nil {
			return
		}
		want := walk(m.patterns, paths)
		for i := range paths {
			p := paths[len(paths)-1-i]
			if got := m.Match(p, i%2 == 0); got != want[p] {
				t.Errorf("%q: Match(%q) = %v, want %v", text, p, got, want[p])
			}
		}
		for _, p := range paths {
			for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
				if want[dir] && m.Prunable(dir) && !want[p] {
					t.Errorf("%q: %s is prunable, but %s is included", text, dir, p)
				}
			}
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	patterns := strings.Fields("node_modules **/*.log **/.git *.tmp build dist !dist/keep docs/**/*.md **/__pycache__ .env*")
	for b.Loop() {
		m, err := New(patterns)
		if err != nil {
			b.Fatal(err)
		}
		for d := range 1000 {
			dir := fmt.Sprintf("src/pkg%d/inner", d)
			m.Match(dir, true)
			for f := range 100 {
				m.Match(fmt.Sprintf("%s/file%d.go", dir, f), false)
			}
		}
	}
}
