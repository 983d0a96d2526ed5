package executor

import (
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/solver"
)

// mainContext is the name of the context that .dockerignore belongs to.
const mainContext = "context"

// Bounds of what is kept of a place.
const (
	maxMisses    = 8   // the latest
	maxMissFiles = 16  // of each; more are gathered by their directories
	maxMissPath  = 256 // bytes; longer paths become that of a directory above
)

// contextParts names the parts of n's key that are files of the main context.
func contextParts(n *llb.Node) []string {
	local := func(input int) bool {
		s, ok := n.Inputs[input].Op.(llb.Source)
		return ok && s.Scheme == llb.Local && s.Ref == mainContext
	}
	var parts []string
	switch op := n.Op.(type) {
	case llb.File:
		for i, a := range op.Actions {
			if c, ok := a.(llb.Copy); ok && local(c.Input) {
				parts = append(parts, partFiles+strconv.Itoa(i))
			}
		}
	case llb.Exec:
		for _, m := range op.Mounts {
			if m.Input != 0 && local(m.Input) {
				parts = append(parts, partMount+m.Target)
			}
		}
	}
	return parts
}

// misses is what is kept of the misses of a place, with this one, if files of
// the context are all that k has otherwise than the last record there.
func (c Records) misses(last *cache.Record, k solver.Key) []cache.Miss {
	changed, only := contextChanges(last.Parts, k.Parts)
	if !only {
		return last.Misses
	}
	var files []string
	for old, now := range changed {
		d := c.compare(old, now)
		if d.count == 0 {
			files = nil // nobody knows all of them
			break
		}
		files = append(files, d.files...)
	}
	out := append(slices.Clip(last.Misses), cache.Miss{At: time.Now().UTC(), Files: gather(files)})
	return out[max(0, len(out)-maxMisses):]
}

// contextChanges are the digests of files of the context, old and new, in which
// the parts differ, and whether they differ in nothing else.
func contextChanges(old []cache.Part, now []solver.Part) (changed map[oci.Digest]oci.Digest, only bool) {
	before, ofContext := map[string]string{}, map[string]bool{}
	for _, p := range old {
		if !p.Info {
			before[p.Name] = p.Value
		}
	}
	for _, p := range now {
		if part, ok := strings.CutPrefix(p.Name, partContext); ok {
			ofContext[part] = true
		}
	}
	changed = map[oci.Digest]oci.Digest{}
	for _, p := range now {
		if p.Info {
			continue
		}
		was, had := before[p.Name]
		delete(before, p.Name)
		switch {
		case !had, was != p.Value && !ofContext[p.Name]:
			return nil, false
		case was != p.Value:
			changed[oci.Digest(was)] = oci.Digest(p.Value)
		}
	}
	return changed, len(changed) > 0 && len(before) == 0
}

// gather is files, sorted, each once; where they are too many, those that lie
// deepest become the directories above them, which end in a slash.
func gather(files []string) []string {
	files = slices.Clone(files)
	for i, f := range files {
		for len(f) > maxMissPath {
			f = above(f)
		}
		files[i] = f
	}
	slices.Sort(files)
	for files = slices.Compact(files); len(files) > maxMissFiles; files = slices.Compact(files) {
		deepest := 0
		for _, f := range files {
			deepest = max(deepest, depth(f))
		}
		for i, f := range files {
			if depth(f) == deepest {
				files[i] = above(f)
			}
		}
		slices.Sort(files)
	}
	return files
}

// depth is how many names f has.
func depth(f string) int {
	f = strings.Trim(f, "/")
	if f == "" {
		return 0
	}
	return strings.Count(f, "/") + 1
}

// above is the directory that f is in, with a slash.
func above(f string) string {
	return strings.TrimSuffix(path.Dir(strings.TrimSuffix(f, "/")), "/") + "/"
}

// Misses is what is kept of the times that the step n was not found because of
// files of the context alone, and what its user was told of them.
func (w *Worker) Misses(n *llb.Node) ([]cache.Miss, cache.Hint) {
	of := w.place(n)
	if of == "" || len(contextParts(n)) == 0 {
		return nil, cache.Hint{}
	}
	last, err := w.Store.Last(of)
	if err != nil {
		return nil, cache.Hint{}
	}
	return last.Misses, last.Hint
}

// SetHint records what the user is told of n's misses. Where that cannot be
// recorded they are told again.
func (w *Worker) SetHint(n *llb.Node, h cache.Hint) { _ = w.Store.SetHint(w.place(n), h) }
