package builder

import (
	"cmp"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/executor"
	"github.com/861fb494/build/internal/builder/churn"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
)

// Hint says that a step is run again and again for the same files of the
// context.
type Hint struct {
	Name     string   `json:"name"`
	Position string   `json:"position,omitempty"` // "Dockerfile:7"
	Runs     int      `json:"runs"`               // how often it was for Files alone
	Of       int      `json:"of"`                 // of so many times
	Files    []string `json:"files"`              // relative to the context; a pattern or a directory stands for all it has
	// Lines of IgnoreFile would exclude Files; none: they look like ones that the
	// image is made of.
	Lines      []string `json:"lines,omitempty"`
	IgnoreFile string   `json:"ignoreFile,omitempty"`

	latest bool // the last time it was for Files
	node   *llb.Node
}

// String is `3 of the last 4 times, COPY . . ran for .git alone; unless the image
// needs it, add ".git" to .dockerignore`.
func (h Hint) String() string {
	name := h.Name
	if strings.HasPrefix(name, "[") {
		_, name, _ = strings.Cut(name, "] ")
	}
	s := fmt.Sprintf("%d of the last %d times, %s ran for %s alone", h.Runs, h.Of, name, listed(h.Files))
	if len(h.Lines) == 0 {
		return s
	}
	var lines []string
	for _, l := range h.Lines {
		lines = append(lines, `"`+l+`"`)
	}
	it := "it"
	if len(h.Files) > 1 || strings.Contains(h.Files[0], "*") {
		it = "them"
	}
	return fmt.Sprintf("%s; unless the image needs %s, add %s to %s", s, it, listed(lines), h.IgnoreFile)
}

// listed is "a, b and c".
func listed(names []string) string {
	if n := len(names) - 1; n > 0 {
		return strings.Join(names[:n], ", ") + " and " + names[n]
	}
	return names[0]
}

// hints are those for the steps that want selects.
func (j *job) hints(w *executor.Worker, want func(*llb.Node) bool) []Hint {
	c := j.contexts
	if c.dir == "" || c.temp != "" {
		return nil // it is no directory that somebody works in
	}
	var out []Hint
	var b *churn.Build
	j.graph.Walk(func(n *llb.Node) {
		if !want(n) {
			return
		}
		misses, _ := w.Misses(n)
		if len(misses) == 0 {
			return
		}
		if b == nil {
			b = j.churning()
		}
		a, ok := b.Advise(misses, time.Now())
		if !ok {
			return
		}
		m := j.graph.Meta[n.Digest]
		h := Hint{Name: m.Name, Runs: a.Runs, Of: a.Of, Files: a.Files, Lines: a.Lines, latest: a.Latest, node: n}
		if len(a.Lines) > 0 {
			h.IgnoreFile = cmp.Or(c.ignoreName, ".dockerignore")
		}
		if len(m.Positions) > 0 {
			h.Position = m.Positions[0].String()
		}
		// Each platform says the same.
		if !slices.ContainsFunc(out, func(o Hint) bool { return o.Position == h.Position && slices.Equal(o.Files, h.Files) }) {
			out = append(out, h)
		}
	})
	if b != nil {
		b.Close()
	}
	return out
}

// hintAgain is how long after a hint the same one is not given again.
const hintAgain = 24 * time.Hour

// giveHints tells the user of steps that have run just now, as many times before,
// for files that may be excluded. That is told once a day.
func (j *job) giveHints(w *executor.Worker, hints []Hint) {
	now := time.Now()
	for _, h := range hints {
		text := strings.Join(h.Lines, "\n")
		if _, told := w.Misses(h.node); text == "" || !h.latest || told.Text == text && now.Sub(told.At) < hintAgain {
			continue
		}
		j.Sink.Emit(progress.Hint{Message: h.String(), Position: h.Position})
		w.SetHint(h.node, cache.Hint{At: now.UTC(), Text: text})
	}
}

// churning is what is known of this build to those who advise.
func (j *job) churning() *churn.Build {
	c := j.contexts
	dir, err := filepath.Abs(c.dir)
	if err != nil {
		dir = c.dir
	}
	b := &churn.Build{Dir: dir, Ignore: c.ignore}
	own := []string{c.dockerfilePath, filepath.Join(dir, cmp.Or(c.ignoreName, ".dockerignore"))}
	if c.ignoreName != "" && c.dockerfilePath != "" {
		own = append(own, filepath.Join(filepath.Dir(c.dockerfilePath), c.ignoreName))
	}
	for _, p := range own {
		if abs, err := filepath.Abs(p); err == nil && p != "" {
			if rel, err := filepath.Rel(dir, abs); err == nil && filepath.IsLocal(rel) {
				b.Own = append(b.Own, "/"+filepath.ToSlash(rel))
			}
		}
	}
	// What this build takes has its variables expanded; what other targets take is
	// known as it is written.
	j.graph.Walk(func(n *llb.Node) {
		if s, ok := n.Op.(llb.Source); ok && s.Scheme == llb.Local && s.Ref == "context" {
			b.Sources = append(b.Sources, s.Select.Paths...)
		}
	})
	stages, _, _ := j.file.Instructions(nil) // they have been read without an error
	for _, s := range stages {
		for _, in := range s.Instructions {
			sources, words := mentioned(in.Command)
			b.Sources, b.Words = append(b.Sources, sources...), append(b.Words, words...)
		}
	}
	for i, s := range b.Sources {
		b.Sources[i] = path.Join("/", s) // "/./" of COPY --parents
	}
	return b
}

// mentioned is what an instruction takes out of the context, and the words of one
// that takes nothing.
func mentioned(c instructions.Command) (sources, words []string) {
	switch c := c.(type) {
	case *instructions.AddCommand:
		return c.SourcePaths, nil
	case *instructions.CopyCommand:
		if c.From == "" {
			return c.SourcePaths, nil
		}
	case *instructions.RunCommand:
		for _, f := range c.Files {
			words = append(words, churn.Words(f.Data)...)
		}
	}
	if s, ok := c.(fmt.Stringer); ok {
		words = append(words, churn.Words(s.String())...)
	}
	return nil, words
}
