package source

import (
	"iter"
	"maps"
	"slices"

	"github.com/861fb494/build/cache"
)

// Hashed is the files that had to be read, and whose stamps will tell them from
// what they may become, by the directory on the host, with a slash at its end: what
// the next build should know.
func (c *Context) Hashed() map[string]iter.Seq[cache.Hashed] {
	c.mu.Lock()
	// What was learned last comes last.
	known := slices.Collect(maps.Values(c.singles))
	known = slices.AppendSeq(known, maps.Values(c.before))
	known = slices.AppendSeq(known, maps.Values(c.listings))
	c.mu.Unlock()
	dirs := map[string][]*directory{}
	for _, l := range known {
		for range l.hashed() {
			dirs[l.host] = append(dirs[l.host], l)
			break
		}
	}
	out := make(map[string]iter.Seq[cache.Hashed], len(dirs))
	for dir, list := range dirs {
		out[dir] = func(yield func(cache.Hashed) bool) {
			for _, l := range list {
				for h := range l.hashed() {
					if !yield(h) {
						return
					}
				}
			}
		}
	}
	return out
}

// hashed yields what Hashed has of the directory.
func (l *directory) hashed() iter.Seq[cache.Hashed] {
	return func(yield func(cache.Hashed) bool) {
		<-l.ready
		for i := range l.files {
			l.c.mu.Lock()
			known := l.content(i)
			l.c.mu.Unlock()
			if known.state&fresh != 0 && !yield(cache.Hashed{Name: l.Name(i), Stamp: l.stamp(i), Sum: known.sum}) {
				return
			}
		}
	}
}
