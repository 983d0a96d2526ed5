package display

import (
	"bytes"
	"strings"
)

// Output is the end of what a step put out.
type Output struct {
	Lines []string // without line ends
	Left  int      // number of earlier lines that are not among Lines
}

// record keeps the last limit bytes of a log, or somewhat more.
type record struct {
	limit int
	data  []byte
	lost  int // lines, of what is not kept
}

func (r *record) add(p []byte) {
	r.data = append(r.data, p...)
	if len(r.data) > 2*r.limit {
		cut := len(r.data) - r.limit
		if i := bytes.IndexByte(r.data[cut:], '\n'); i >= 0 {
			cut += i + 1 // whole lines
		}
		r.lost += max(1, bytes.Count(r.data[:cut], []byte("\n")))
		r.data = append(r.data[:0:0], r.data[cut:]...)
	}
}

// last is up to n last lines; n <= 0: all that are kept.
func (r *record) last(n int) Output {
	text := strings.TrimSuffix(string(r.data), "\n")
	if text == "" {
		return Output{Left: r.lost}
	}
	lines := strings.Split(text, "\n")
	cut := 0
	if n > 0 {
		cut = max(0, len(lines)-n)
	}
	for i, l := range lines[cut:] {
		lines[cut+i] = strings.TrimSuffix(l, "\r")
	}
	return Output{Lines: lines[cut:], Left: r.lost + cut}
}
