package display

import (
	"bytes"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// screen turns the output of a process into lines that may be shown within
// other text. It keeps colours (SGR sequences) and drops all else that moves
// the cursor or speaks to the terminal; a carriage return begins the line anew,
// as progress bars mean it. The zero value is ready.
type screen struct {
	keep  int      // finished lines that are kept; 0: all
	lines []string // finished ones
	line  []byte
	cols  int  // of line
	back  bool // a carriage return came: the next character begins the line anew

	state  escape
	params []byte // of the control sequence under way
	tail   []byte // an incomplete UTF-8 sequence
}

// escape is where in an escape sequence (ECMA-48) the screen is.
type escape int

const (
	ground    escape = iota
	escaped          // ESC came
	charset          // ESC and an intermediate byte: one more follows
	control          // CSI: parameters until a final byte
	command          // OSC, DCS, APC, PM, SOS: a string until BEL or ST
	commandSt        // ESC within a command
)

// screenLine is the longest line, in bytes, of a screen that does not keep all.
const screenLine = 16 << 10

// write takes in output.
func (s *screen) write(p []byte) {
	if len(s.tail) > 0 {
		p = append(s.tail, p...)
		s.tail = nil
	}
	for len(p) > 0 {
		if !utf8.FullRune(p) {
			s.tail = append([]byte(nil), p...)
			break
		}
		r, size := utf8.DecodeRune(p)
		s.rune(r)
		p = p[size:]
	}
}

func (s *screen) rune(r rune) {
	switch s.state {
	case ground:
		s.text(r)
	case escaped:
		switch {
		case r == '[':
			s.state, s.params = control, s.params[:0]
		case strings.ContainsRune("]PX^_", r):
			s.state = command
		case r >= 0x20 && r <= 0x2f:
			s.state = charset
		default:
			s.state = ground
		}
	case charset:
		if r < 0x20 || r > 0x2f {
			s.state = ground
		}
	case control:
		s.control(r)
	case command:
		switch r {
		case 0x07, 0x9c, 0x18, 0x1a:
			s.state = ground
		case 0x1b:
			s.state = commandSt
		case '\n': // none has one: this was no command
			s.state = ground
			s.text(r)
		}
	case commandSt:
		s.state = ground
		if r != '\\' {
			s.state = escaped
			s.rune(r)
		}
	}
}

// control takes a character of a control sequence.
func (s *screen) control(r rune) {
	switch {
	case r >= 0x20 && r <= 0x3f:
		if len(s.params) < 64 {
			s.params = append(s.params, byte(r))
		}
	case r == 0x1b:
		s.state = escaped
	case r >= 0x40 && r <= 0x7e:
		s.state = ground
		params := string(s.params)
		switch {
		case r == 'm' && strings.Trim(params, "0123456789;:") == "":
			s.put("\x1b["+params+"m", 0)
		case r == 'K' && s.back && params != "1":
			s.reset() // erased from its beginning
		}
	default:
		s.state = ground
		s.text(r)
	}
}

// text takes a character outside of escape sequences.
func (s *screen) text(r rune) {
	switch {
	case r == 0x1b:
		s.state = escaped
	case r == 0x9b:
		s.state, s.params = control, s.params[:0]
	case r == 0x90 || r == 0x9d || r == 0x98 || r == 0x9e || r == 0x9f:
		s.state = command
	case r == '\n':
		s.newline()
	case r == '\r':
		s.back = true
	case r == '\b':
		s.backspace()
	case r == '\t':
		s.put(strings.Repeat(" ", 8-s.cols%8), 8-s.cols%8)
	case unicode.IsControl(r) || isBidi(r):
	default:
		s.put(string(r), runeWidth(r))
	}
}

func (s *screen) put(text string, cols int) {
	if s.back {
		s.reset()
	}
	if s.keep == 0 || len(s.line) < screenLine {
		s.line = append(s.line, text...)
	}
	s.cols += cols
}

// backspace takes off the last character, as spinners step back over theirs.
func (s *screen) backspace() {
	for {
		i := bytes.LastIndex(s.line, []byte("\x1b["))
		if i < 0 || i+sgrLen(string(s.line[i:])) < len(s.line) {
			break
		}
		s.line = s.line[:i]
	}
	r, size := utf8.DecodeLastRune(s.line)
	if size > 0 {
		s.line = s.line[:len(s.line)-size]
		s.cols = max(0, s.cols-runeWidth(r))
	}
}

func (s *screen) reset() {
	s.line = s.line[:0]
	s.cols, s.back = 0, false
}

func (s *screen) newline() {
	s.lines = append(s.lines, string(s.line))
	if s.keep > 0 && len(s.lines) > s.keep {
		s.lines = append(s.lines[:0], s.lines[len(s.lines)-s.keep:]...)
	}
	s.reset()
}

// last is up to n last lines that are not empty, the unfinished one included.
func (s *screen) last(n int) []string {
	var out []string
	if n > 0 && s.cols > 0 {
		out = append(out, string(s.line))
	}
	for i := len(s.lines) - 1; i >= 0 && len(out) < n; i-- {
		if strings.TrimSpace(plainText(s.lines[i])) != "" {
			out = append(out, s.lines[i])
		}
	}
	slices.Reverse(out)
	return out
}

// isBidi reports whether r reorders the text around it.
func isBidi(r rune) bool {
	return r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x200e || r == 0x200f
}

// runeWidth is how many columns a terminal gives r (UAX #11).
func runeWidth(r rune) int {
	if r < 0x300 {
		return 1
	}
	if unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf) {
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// sgrLen is the length of the SGR sequence that s begins with, or 0. Text that
// reaches it holds no other sequences.
func sgrLen(s string) int {
	if !strings.HasPrefix(s, "\x1b[") {
		return 0
	}
	return strings.IndexByte(s, 'm') + 1
}

// plainText is s without its SGR sequences.
func plainText(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		if n := sgrLen(s); n > 0 {
			s = s[n:]
			continue
		}
		_, n := utf8.DecodeRuneInString(s)
		b.WriteString(s[:n])
		s = s[n:]
	}
	return b.String()
}

// columns is how wide s is.
func columns(s string) int {
	n := 0
	for _, r := range plainText(s) {
		n += runeWidth(r)
	}
	return n
}

// fit is s cut to max columns, with "…" where something is missing.
func fit(s string, max int) string {
	if max <= 0 {
		return ""
	}
	if columns(s) <= max {
		return s
	}
	var b strings.Builder
	cols := 0
	for len(s) > 0 {
		if n := sgrLen(s); n > 0 {
			b.WriteString(s[:n])
			s = s[n:]
			continue
		}
		r, n := utf8.DecodeRuneInString(s)
		if cols+runeWidth(r) > max-1 {
			break
		}
		cols += runeWidth(r)
		b.WriteString(s[:n])
		s = s[n:]
	}
	return b.String() + "…"
}
