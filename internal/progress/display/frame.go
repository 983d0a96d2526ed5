package display

import (
	"fmt"
	"strings"
	"time"
)

// Styles are SGR sequences.
const (
	styleDim    = "\x1b[2m"
	styleBold   = "\x1b[1m"
	styleRed    = "\x1b[31m"
	styleYellow = "\x1b[33m"
	styleBlue   = "\x1b[34m"
	styleReset  = "\x1b[0m"
)

// logLines is how much of a running step's log is shown.
const logLines = 6

// frame lays out lines for a terminal of a width and height.
type frame struct {
	now           time.Time
	width, height int
	noColor       bool
}

// row is one line: left, cut as needed, and right at the end where it has room.
// It leaves the last column free, since terminals differ in what they do there.
func (f frame) row(style, left, right string) string {
	room := f.width - 1
	if right != "" && room-columns(right)-1 < 12 {
		right = ""
	}
	if right != "" {
		room -= columns(right) + 1
		left = fit(left, room)
		left += strings.Repeat(" ", room-columns(left)+1) + right
	} else {
		left = fit(left, room)
	}
	if f.noColor {
		return plainText(left)
	}
	if style == "" && !strings.Contains(left, "\x1b") {
		return left
	}
	return style + left + styleReset
}

// live is the part that is drawn again and again: a heading and what runs. It
// has fewer lines than the terminal.
func (f frame) live(title string, t *tracker, running []*ttyStep) []string {
	head := fmt.Sprintf("[+] %s %s (%d/%d)", title, seconds(f.now.Sub(t.began)), t.ended, t.shown)
	lines := []string{f.row(styleBold, head, "")}
	room := f.height - 2 // one for the heading, one for the cursor
	if room < 1 {
		return lines
	}
	shown := running
	if len(shown) > room {
		shown = shown[:room-1]
	}
	free := room - len(shown)
	if len(shown) < len(running) {
		free = 0
	}
	details := f.details(shown, free)
	for i, s := range shown {
		lines = append(lines, f.row("", " => "+s.name, seconds(f.now.Sub(s.began))))
		lines = append(lines, details[i]...)
	}
	if n := len(running) - len(shown); n > 0 {
		lines = append(lines, f.row(styleDim, fmt.Sprintf(" => and %d more", n), ""))
	}
	return lines
}

// details are the lines below each step: why it runs, its counters, then the end of
// its log. Together they are at most free lines, dealt out evenly.
func (f frame) details(steps []*ttyStep, free int) [][]string {
	out := make([][]string, len(steps))
	for i, s := range steps {
		share := min(free/(len(steps)-i), logLines)
		var rows []string
		if s.why != "" && share > 1 {
			rows = append(rows, f.row(styleDim, " => => "+s.why, ""))
		}
		for _, c := range s.counters {
			if !c.Done {
				rows = append(rows, f.row("", " => => "+c.Name, strings.TrimSpace(c.amount()+"  "+c.rate())))
			}
		}
		if len(rows) > share {
			rows = rows[len(rows)-share:]
		}
		for _, l := range s.screen.last(share - len(rows)) {
			rows = append(rows, f.row(styleDim, " => => # "+l, ""))
		}
		out[i] = rows
		free -= len(rows)
	}
	return out
}

// ended is what stays of a step that is over: a line, and one of why it ran.
func (f frame) ended(s *step) []string {
	style, mark := styleBlue, ""
	switch {
	case isStopped(s.result.Err):
		style, mark = styleYellow, "CANCELED "
	case s.result.Err != nil:
		style, mark = styleRed, "ERROR "
	case s.result.Cached:
		mark = "CACHED "
	}
	lines := []string{f.row(style, " => "+mark+s.name, seconds(s.result.Time.Sub(s.began)))}
	if s.why != "" {
		lines = append(lines, f.row(styleDim, " => => "+s.why, ""))
	}
	return lines
}

// rows is how many rows of a terminal of that width the lines take, as they are
// when it has become narrower since they were written.
func rows(lines []string, width int) int {
	n := 0
	for _, l := range lines {
		n += max(1, (columns(l)+width-1)/width)
	}
	return n
}
