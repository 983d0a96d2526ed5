package builder

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// What the last build did has that build's time, also where it did what the one
// before had done, and so wrote nothing.
func TestLast(t *testing.T) {
	b := openAt(t, t.TempDir())
	if p, err := b.Last(); err == nil {
		t.Errorf("before any build: %v", p)
	}
	dir := contextDir(t, "FROM scratch\nCOPY a /\n", "a 1")
	path := filepath.Join(b.Store.Dir(), lastFile)
	written := func() os.FileInfo {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	var before os.FileInfo
	for _, tt := range []struct {
		name   string
		same   bool // as the build before
		status []string
	}{
		{"first", false, []string{StepRuns}},
		{"cached", false, []string{StepCached}},
		{"cached again", true, []string{StepCached}},
	} {
		start := time.Now().Truncate(time.Second)
		build(t, b, Request{Context: dir})
		p, err := b.Last()
		if err != nil {
			t.Fatal(err)
		}
		var status []string
		for _, s := range p.Steps {
			status = append(status, s.Status)
		}
		if !slices.Equal(status, tt.status) || p.Dockerfile != "Dockerfile" || p.Context != dir {
			t.Errorf("%s: %+v, want steps %q", tt.name, p, tt.status)
		}
		if p.Time.Before(start) || p.Time.After(time.Now()) {
			t.Errorf("%s: built %v, want %v", tt.name, p.Time, start)
		}
		after := written()
		if before != nil && os.SameFile(before, after) != tt.same {
			t.Errorf("%s: the file is as it was: %v, want %v", tt.name, !tt.same, tt.same)
		}
		old := time.Now().Add(-time.Hour)
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
		before = after
	}
}
