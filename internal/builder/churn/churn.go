// Package churn says which files of a context have a step run again and again,
// and which line of .dockerignore would end that.
//
// A line is proposed only for files that a build can be thought to do without:
// those of version control, of editors and of tools that leave caches and logs
// (see junk.go), the Dockerfile itself, and what .gitignore excludes. Nothing is
// proposed that git tracks, the Dockerfile aside, nor anything that the
// Dockerfile names. Other files are named without a line.
package churn

import (
	"maps"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/parser/ignore"
)

const (
	window = 5                   // misses that are looked at, the latest ones
	enough = 3                   // of them for the same files is again and again
	recent = 30 * 24 * time.Hour // how old they may be
	// exact is how many files are excluded by their names, where a pattern would
	// exclude more than is proposed.
	exact = 2
)

// Build is what is known of a build. Paths are those of the context, absolute
// and clean.
type Build struct {
	Dir    string          // the context's, on the host
	Ignore *ignore.Matcher // may be nil
	// Own are the Dockerfile and the ignore file, where they are in the context:
	// they are read whether excluded or not.
	Own []string
	// Sources is what COPY, ADD and bind mounts take out of the context; they
	// may have wildcards.
	Sources []string
	// Words are those of all other instructions, in order: see Words.
	Words []string

	tree    *worktree
	treeErr error
	opened  bool
}

// Advice is what is to be said of a step.
type Advice struct {
	Runs   int      // how many of the last misses were for Files alone
	Of     int      // how many misses were looked at
	Latest bool     // the last one was for Files
	Files  []string // what changed, or a pattern or directory that has it all
	// Lines of an ignore file exclude Files; none: there is none to propose.
	Lines []string

	causes []string // names of rules
}

// Advise says what has a step missed again and again; misses are in the order
// in which they came. It is false where there is nothing to say.
func (b *Build) Advise(misses []cache.Miss, now time.Time) (Advice, bool) {
	var list []map[string]*cause // what each miss was for, the last one first
	all := map[string]*cause{}
	for _, m := range slices.Backward(misses) {
		if len(list) == window || now.Sub(m.At) > recent {
			break
		}
		causes := b.causes(m, all)
		if len(m.Files) > 0 && len(causes) == 0 {
			continue // all of it is excluded meanwhile
		}
		list = append(list, causes)
	}
	times := map[string]int{}
	for _, causes := range list {
		for name := range causes {
			times[name]++
		}
	}
	lines := map[string][]string{}
	for name, c := range all {
		if times[name] >= enough {
			lines[name] = b.lines(c)
		}
	}
	// First those that a line helps against: then the others would not have it
	// missed. Else those that are only named.
	if a := advice(list, func(name string) bool { return len(lines[name]) > 0 }); a.Runs >= enough {
		for _, name := range a.causes {
			a.Files = append(a.Files, all[name].label())
			a.Lines = append(a.Lines, lines[name]...)
		}
		return a, true
	}
	a := advice(list, func(name string) bool { return times[name] >= enough })
	for _, name := range a.causes {
		a.Files = append(a.Files, all[name].label())
	}
	return a, a.Runs >= enough
}

// advice counts the misses that were for nothing but what counts; the last one
// comes first.
func advice(list []map[string]*cause, counts func(name string) bool) Advice {
	a := Advice{Of: len(list)}
	for i, causes := range list {
		alone := len(causes) > 0
		for name := range causes {
			alone = alone && counts(name)
		}
		if !alone {
			continue
		}
		a.Runs++
		a.Latest = a.Latest || i == 0
		a.causes = slices.AppendSeq(a.causes, maps.Keys(causes))
	}
	slices.Sort(a.causes)
	a.causes = slices.Compact(a.causes)
	return a
}

// cause is files that one rule is about, or a single file.
type cause struct {
	rule  rule
	files map[string]string // as in cache.Miss, to what of it the rule is about
}

// causes are what m was for, by the names of their rules; files that are
// excluded now are left out. They are gathered in all.
func (b *Build) causes(m cache.Miss, all map[string]*cause) map[string]*cause {
	out := map[string]*cause{}
	for _, f := range m.Files {
		if b.excluded(f) {
			continue
		}
		r, at := b.ruleOf(f)
		c := all[r.name]
		if c == nil {
			c = &cause{rule: r, files: map[string]string{}}
			all[r.name] = c
		}
		c.files[f] = at
		out[r.name] = c
	}
	return out
}

func (b *Build) excluded(f string) bool {
	p, dir := strings.CutSuffix(f, "/")
	return p != "" && b.Ignore.Match(p, dir) && (!dir || b.Ignore.Prunable(p))
}

// label is how people call c's files.
func (c *cause) label() string {
	ats := c.ats()
	switch {
	case len(ats) > 1:
		return c.rule.pattern
	case ats[0] == "":
		return "many files"
	}
	return ats[0][1:]
}

// ats is what of the files the rule is about, each once.
func (c *cause) ats() []string { return slices.Compact(slices.Sorted(maps.Values(c.files))) }

// lines are those that exclude c's files and nothing that the build needs; none
// where no line can be proposed.
func (b *Build) lines(c *cause) []string {
	if c.rule.pattern == "" {
		return nil
	}
	ats := c.ats()
	top := true // all of it lies in the context itself
	for _, at := range ats {
		if b.used(c.rule, at) {
			return nil
		}
		top = top && strings.LastIndexByte(at, '/') == 0
	}
	line := c.rule.pattern
	if !top && !c.rule.anchored || strings.HasPrefix(line, "#") {
		line = "**/" + line
	}
	files := slices.Sorted(maps.Keys(c.files))
	if b.proposable(c.rule, files, line) {
		return []string{line}
	}
	if len(ats) > exact {
		return nil
	}
	var lines []string
	for _, at := range ats {
		lines = append(lines, escape(at[1:]))
	}
	if !b.proposable(c.rule, files, strings.Join(lines, "\n")) {
		return nil
	}
	return lines
}

// proposable reports whether lines, put at the end of an ignore file, exclude
// files, and nothing that is known to be needed.
func (b *Build) proposable(r rule, files []string, lines string) bool {
	odd := func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }
	if strings.ContainsFunc(lines, odd) || strings.Contains(lines, "  ") {
		return false // it would not be shown as it is
	}
	m, err := ignore.Parse(strings.NewReader(lines + "\n"))
	if err != nil {
		return false
	}
	for _, f := range files {
		p, dir := strings.CutSuffix(f, "/")
		if !m.Match(p, dir) {
			return false
		}
	}
	for _, s := range b.Sources {
		if !strings.ContainsAny(s, `*?[\`) && m.Match(s, true) {
			return false
		}
	}
	if r.own {
		return true
	}
	t, err := b.worktree()
	return err == nil && (t == nil || !t.tracks(m))
}

// used reports whether the Dockerfile names at, or what r says of it.
func (b *Build) used(r rule, at string) bool {
	for _, s := range b.Sources {
		s = generic(s)
		switch {
		case s == "/":
			continue
		case s == at, strings.HasPrefix(s, at+"/"):
			return true
		case !r.junk && strings.HasPrefix(at, s+"/"):
			return true
		}
		if strings.ContainsAny(s, `*?[\`) {
			if m, err := ignore.New([]string{s[1:]}); err != nil || m.Match(at, true) {
				return true
			}
		}
	}
	if r.used != nil && r.used(b.Words) {
		return true
	}
	return slices.Contains(b.Words, path.Base(at))
}

// generic is s without the "*" at its end: that takes what there is, and names
// nothing.
func generic(s string) string {
	for s != "/" && strings.Trim(path.Base(s), "*") == "" {
		s = path.Dir(s)
	}
	return s
}

// escape is name as a pattern that matches it alone.
func escape(name string) string {
	var b strings.Builder
	for _, r := range name {
		if strings.ContainsRune(`*?[]\!#`, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Words takes the text of an instruction apart: into what may be names of files.
func Words(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r > 0x7f || strings.ContainsRune("._~#@+-", r))
	})
}
