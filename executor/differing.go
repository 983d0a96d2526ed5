package executor

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/internal/oci"
)

// FileChange is one file that two selections have otherwise.
type FileChange struct {
	Path string
	Was  time.Time // modification time before, in whole seconds; zero for a new file
	Gone bool
}

// String is "src/a.go changed (was 3 Nov, 14:02)".
func (f FileChange) String() string {
	name := strings.TrimPrefix(f.Path, "/")
	switch {
	case f.Gone:
		return name + " is gone"
	case f.Was.IsZero():
		return name + " is new"
	}
	return fmt.Sprintf("%s changed (was %s)", name, when(f.Was))
}

// Changed lists the files by which the selection now differs from old, both
// digests of what a COPY takes; files before the directories that they are in.
// It is empty where that was not kept.
func (c Records) Changed(old, now oci.Digest) []FileChange {
	before, err := c.Store.Listing(old)
	if err != nil {
		return nil
	}
	after, err := c.Store.Listing(now)
	if err != nil {
		return nil
	}
	changes := compareListings(before, after)
	out := make([]FileChange, 0, len(changes))
	for _, holds := range []bool{false, true} {
		for _, f := range changes {
			if f.holds == holds {
				out = append(out, f.FileChange)
			}
		}
	}
	return out
}

// differing is a file that differs.
type differing struct {
	FileChange
	sum   [8]byte
	holds bool // it is a directory that holds the file after it
}

// compareListings is what differs, in the order of after, and then what is gone.
// It holds what differs only, where both are sorted, as are those of one source.
func compareListings(before, after *cache.Listing) []differing {
	var out, gone []differing
	b, f := before.Files(), after.Files()
	more := b.Next()
	pass := func() {
		gone = append(gone, differing{FileChange: FileChange{Path: string(b.Path), Was: b.ModTime(), Gone: true}, sum: b.Sum})
		more = b.Next()
	}
	differed := false // the file before f
	for f.Next() {
		if differed && isBelow(f.Path, out[len(out)-1].Path) {
			out[len(out)-1].holds = true
		}
		for more && comparePaths(b.Path, f.Path) < 0 {
			pass()
		}
		same := more && bytes.Equal(b.Path, f.Path)
		if differed = !same || b.Sum != f.Sum; differed {
			d := differing{FileChange: FileChange{Path: string(f.Path)}, sum: f.Sum}
			if same {
				d.Was = b.ModTime()
			}
			out = append(out, d)
		}
		if same {
			more = b.Next()
		}
	}
	for more {
		pass()
	}
	if len(gone) == 0 {
		return out
	}
	// What is not sorted may be among both.
	lost := make(map[string]differing, len(gone))
	for _, g := range gone {
		lost[g.Path] = g
	}
	kept := out[:0]
	for _, f := range out {
		if was, ok := lost[f.Path]; ok && f.Was.IsZero() {
			delete(lost, f.Path)
			if was.sum == f.sum {
				continue
			}
			f.Was = was.Was
		}
		kept = append(kept, f)
	}
	for _, g := range gone {
		if _, ok := lost[g.Path]; ok {
			delete(lost, g.Path)
			kept = append(kept, g)
		}
	}
	return kept
}

// isBelow reports whether a file is in the directory dir, or further down.
func isBelow(file []byte, dir string) bool {
	dir = strings.TrimSuffix(dir, "/")
	return len(file) > len(dir)+1 && file[len(dir)] == '/' && string(file[:len(dir)]) == dir
}

// difference is what is said and kept of the files by which two selections differ.
type difference struct {
	count int
	first string   // what happened to the first one
	files []string // all, gathered
}

// Differences remembers what was found out when steps turned out not to be cached,
// for the records of their new results. The zero value knows nothing; it is safe for
// concurrent use. A nil one forgets.
type Differences struct {
	mu sync.Mutex
	of map[[2]oci.Digest]difference // by the digests of both selections
}

// maxDifferences is how many are remembered.
const maxDifferences = 256

func (d *Differences) get(of [2]oci.Digest) (difference, bool) {
	if d == nil {
		return difference{}, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	is, ok := d.of[of]
	return is, ok
}

func (d *Differences) set(of [2]oci.Digest, is difference) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.of == nil || len(d.of) >= maxDifferences {
		d.of = map[[2]oci.Digest]difference{}
	}
	d.of[of] = is
}

// compare is how the selection now differs from old, both digests of what a COPY
// takes. Its count is 0 where that was not kept.
func (c Records) compare(old, now oci.Digest) difference {
	of := [2]oci.Digest{old, now}
	if d, ok := c.Differences.get(of); ok {
		return d
	}
	changed := c.Changed(old, now)
	if len(changed) == 0 {
		return difference{}
	}
	paths := make([]string, len(changed))
	for i, f := range changed {
		paths[i] = f.Path
	}
	d := difference{count: len(changed), first: changed[0].String(), files: gather(paths)}
	c.Differences.set(of, d)
	return d
}
