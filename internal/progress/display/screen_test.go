package display

import (
	"slices"
	"strings"
	"testing"
)

func TestScreen(t *testing.T) {
	tests := []struct {
		name string
		in   string
		want []string
	}{
		{"lines", "a\nb\r\nc", []string{"a", "b", "c"}},
		{"empty lines are left out", "a\n\n \x1b[0m \nb\n", []string{"a", "b"}},
		{"colours stay", "\x1b[1;31mred\x1b[m\n\x1b[38:5:2mx", []string{"\x1b[1;31mred\x1b[m", "\x1b[38:5:2mx"}},
		{"cursor movement goes", "a\x1b[2Jb\x1b[10;20Hc\x1b[1Ad\x1b[?25le\x1b[>4;2mf", []string{"abcdef"}},
		{"carriage return begins anew", "10%\r20%\r100%\ndone", []string{"100%", "done"}},
		{"carriage return at the end keeps", "10%\r", []string{"10%"}},
		{"erased after a carriage return", "10%\r\x1b[K", nil},
		{"erased before a carriage return", "10%\x1b[2K\r20%", []string{"20%"}},
		{"backspaces", "working |\b/\b-", []string{"working -"}},
		{"backspaces over colours", "5\x1b[1m7\x1b[0m\b\b42\b\b\b\b\bx", []string{"x"}},
		{"title and links", "\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b\x1b]8;;\x1b\\", []string{"ab"}},
		{"C1 controls", "a\u009b2Jb\u009dtitle\u009cc\u0085d", []string{"abcd"}},
		{"device control", "a\x1bPq#0\x1b\\b\x1b_apc\x1b\\c", []string{"abc"}},
		{"unfinished command ends with the line", "a\x1b]0;title\nb", []string{"a", "b"}},
		{"character sets and resets", "\x1b(Ba\x1bcb\x1b7c\x1b#8d", []string{"abcd"}},
		{"sequence broken by another", "\x1b[3\x1b[31mred", []string{"\x1b[31mred"}},
		{"tabs", "a\tb\t\tc", []string{"a       b               c"}},
		{"no UTF-8", "a\xff\xfeb", []string{"a\ufffd\ufffdb"}},
		{"reordering characters", "a\u202eb\u2066c\x00\x07", []string{"abc"}},
		{"wide", "日本\b語", []string{"日語"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, size := range []int{len(tt.in), 1} { // in one piece and byte by byte
				var s screen
				for i := 0; i < len(tt.in); i += size {
					s.write([]byte(tt.in[i:min(len(tt.in), i+size)]))
				}
				if got := s.last(100); !slices.Equal(got, tt.want) {
					t.Errorf("in pieces of %d: last(100) of %q = %q, want %q", size, tt.in, got, tt.want)
				}
			}
		})
	}
}

func TestScreenKeepsTheLast(t *testing.T) {
	s := screen{keep: 3}
	s.write([]byte(strings.Repeat("x\n", 1000) + "a\nb\nc\nd"))
	for n, want := range [][]string{nil, {"d"}, {"c", "d"}, {"b", "c", "d"}, {"a", "b", "c", "d"}, {"a", "b", "c", "d"}} {
		if got := s.last(n); !slices.Equal(got, want) {
			t.Errorf("last(%d) = %q, want %q", n, got, want)
		}
	}
	s.write([]byte(strings.Repeat("y", 1<<20)))
	if n := len(s.line); n > screenLine {
		t.Errorf("a line of %d bytes is kept, want at most %d", n, screenLine)
	}
}

func TestFit(t *testing.T) {
	tests := []struct {
		in   string
		max  int
		want string
	}{
		{"hello", 5, "hello"}, {"hello", 4, "hel…"}, {"hello", 1, "…"}, {"hello", 0, ""}, {"hello", -3, ""}, {"", 3, ""},
		{"日本語", 6, "日本語"}, {"日本語", 5, "日本…"}, {"日本語", 4, "日…"},
		{"\x1b[31mhello\x1b[0m", 5, "\x1b[31mhello\x1b[0m"}, {"\x1b[31mhello\x1b[0m", 3, "\x1b[31mhe…"},
		{"e\u0301e\u0301", 2, "e\u0301e\u0301"}, {"🚀🚀", 3, "🚀…"},
	}
	for _, tt := range tests {
		if got := fit(tt.in, tt.max); got != tt.want {
			t.Errorf("fit(%q, %d) = %q, want %q", tt.in, tt.max, got, tt.want)
		}
	}
}

// Nothing that a step writes can reach the terminal but text and colours.
func FuzzScreen(f *testing.F) {
	f.Add([]byte("a\x1b[31mb\x1b]0;x\x07\r\n\t\b\xff"))
	f.Add([]byte("\x1b[\x1b[m\u009b31m\x1bP\x1b\\"))
	f.Fuzz(func(t *testing.T, p []byte) {
		var s screen
		s.write(p)
		for _, l := range s.last(1 << 20) {
			for _, r := range plainText(l) {
				if r < 0x20 || r >= 0x7f && r < 0xa0 {
					t.Fatalf("%q comes out of %q", l, p)
				}
			}
			for _, max := range []int{1, 10, 80} {
				if w := columns(fit(l, max)); w > max {
					t.Fatalf("fit(%q, %d) is %d wide", l, max, w)
				}
			}
		}
	})
}
