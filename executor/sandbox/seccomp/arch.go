package seccomp

import (
	"iter"
	"strconv"
	"strings"
)

// table is the system calls of an architecture, as "name number" lines, and those
// that have other numbers there or are spelled otherwise in other tables.
type table struct {
	lines string
	other map[string]uint32
}

// all gives the number of each name.
func (t table) all() iter.Seq2[string, uint32] {
	return func(yield func(string, uint32) bool) {
		for line := range strings.Lines(t.lines) {
			name, number, _ := strings.Cut(strings.TrimSpace(line), " ")
			if _, ok := t.other[name]; ok {
				continue
			}
			n, err := strconv.ParseUint(number, 10, 32)
			if err == nil && !yield(name, uint32(n)) {
				return
			}
		}
		for name, n := range t.other {
			if !yield(name, n) {
				return
			}
		}
	}
}
