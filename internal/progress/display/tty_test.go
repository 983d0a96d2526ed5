package display

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/internal/progress"
)

// running makes a tracker and steps that run, with logs and counters.
func running(n int) (*tracker, []*ttyStep) {
	t := newTracker(began, ttyBytes)
	var out []*ttyStep
	for i := range n {
		s := t.start(progress.Started{Step: progress.Step(fmt.Sprint("step:", i)),
			Name: fmt.Sprintf("[stage 1/%d] RUN make a thing with a rather long name %d", n, i), Time: at(float64(i))}, began)
		v := &ttyStep{step: s, screen: screen{keep: 2 * logLines}}
		v.screen.write([]byte("\x1b[32mgreen\x1b[0m\nsecond 日本語日本語日本語日本語日本語\n1%\r99%"))
		t.count(s, progress.Counter{Name: "sha256:aa", Current: 0, Total: 5e6, Unit: "B", Time: at(0)}, began)
		t.count(s, progress.Counter{Name: "sha256:aa", Current: 2e6, Total: 5e6, Unit: "B", Time: at(2)}, began)
		out = append(out, v)
	}
	return t, out
}

func TestLiveFitsTheTerminal(t *testing.T) {
	for _, n := range []int{0, 1, 3, 10, 100} {
		tr, steps := running(n)
		for _, w := range []int{1, 2, 8, 20, 40, 80, 300} {
			for _, h := range []int{1, 2, 3, 5, 24, 80} {
				f := frame{now: at(30), width: w, height: h}
				lines := f.live("Building", tr, steps)
				if len(lines) > max(1, h-1) {
					t.Errorf("%d steps on %dx%d: %d lines", n, w, h, len(lines))
				}
				for _, l := range lines {
					if c := columns(l); c >= max(w, 1) {
						t.Errorf("%d steps on %dx%d: %q is %d wide", n, w, h, l, c)
					}
				}
			}
		}
	}
}

func TestLive(t *testing.T) {
	tr, steps := running(3)
	tests := []struct {
		w, h int
		want string
	}{
		{60, 24, `[+] Building 30.0s (0/3)
 => [stage 1/3] RUN make a thing with a rather long … 30.0s
 => => sha256:aa                     2.0MB / 5.0MB  1.0MB/s
 => => # green
 => => # second 日本語日本語日本語日本語日本語
 => => # 99%
 => [stage 1/3] RUN make a thing with a rather long … 29.0s
 => => sha256:aa                     2.0MB / 5.0MB  1.0MB/s
 => => # green
 => => # second 日本語日本語日本語日本語日本語
 => => # 99%
 => [stage 1/3] RUN make a thing with a rather long … 28.0s
 => => sha256:aa                     2.0MB / 5.0MB  1.0MB/s
 => => # green
 => => # second 日本語日本語日本語日本語日本語
 => => # 99%`},
		{30, 7, `[+] Building 30.0s (0/3)
 => [stage 1/3] RUN ma… 30.0s
 => [stage 1/3] RUN ma… 29.0s
 => => sha256:aa
 => [stage 1/3] RUN ma… 28.0s
 => => sha256:aa`},
		{30, 4, `[+] Building 30.0s (0/3)
 => [stage 1/3] RUN ma… 30.0s
 => and 2 more`},
	}
	for _, tt := range tests {
		f := frame{now: at(30), width: tt.w, height: tt.h, noColor: true}
		if got := strings.Join(f.live("Building", tr, steps), "\n"); got != tt.want {
			t.Errorf("on %dx%d:\n%s\nwant\n%s", tt.w, tt.h, got, tt.want)
		}
	}
}

// Why a step runs is seen while it runs, and afterwards however it ended.
func TestWhy(t *testing.T) {
	tr, steps := running(1)
	steps[0].missed(progress.Missed{Why: "src/a.go changed (was 3 Nov, 14:02)"})
	f := frame{now: at(30), width: 40, height: 24, noColor: true}
	const why = " => => not cached: src/a.go changed (w…"
	if got := f.live("Building", tr, steps); len(got) < 3 || got[2] != why {
		t.Errorf("live:\n%s\nwant %q below the step", strings.Join(got, "\n"), why)
	}
	f.height = 4
	if got := f.live("Building", tr, steps); len(got) != 3 || got[2] == why {
		t.Errorf("live, where one line is left:\n%s\nwant the log's", strings.Join(got, "\n"))
	}
	for _, err := range []error{nil, errors.New("exit code 1")} {
		tr.end(steps[0].step, progress.Done{Err: err, Time: at(31)}, began)
		if got := f.ended(steps[0].step); len(got) != 2 || got[1] != why {
			t.Errorf("ended with %v:\n%s\nwant %q", err, strings.Join(got, "\n"), why)
		}
	}
}

func TestRows(t *testing.T) {
	lines := []string{"", "12345", "\x1b[31m1234567890\x1b[0m"}
	for width, want := range map[int]int{80: 3, 10: 3, 9: 4, 5: 4, 4: 6} {
		if got := rows(lines, width); got != want {
			t.Errorf("rows(…, %d) = %d, want %d", width, got, want)
		}
	}
}

func TestMain(m *testing.M) {
	if dir := os.Getenv("DISPLAY_TEST_DIR"); dir != "" {
		os.Exit(helperBuild(dir))
	}
	os.Exit(m.Run())
}

// helperBuild is the process that TestTerminal runs in a terminal. It ends when
// there is a file named finish in dir.
func helperBuild(dir string) int {
	d, err := New("auto", os.Stderr, Options{})
	if err != nil {
		fmt.Println(err)
		return 2
	}
	now := time.Now
	for i := range 30 {
		s := progress.Step(fmt.Sprint("cached:", i))
		d.Emit(progress.Started{Step: s, Name: fmt.Sprintf("[base %d/30] RUN step%d", i+1, i+1), Time: now()})
		d.Emit(progress.Done{Step: s, Cached: true, Time: now()})
	}
	d.Emit(progress.Started{Step: "r:1", Name: "[web 1/2] RUN npm ci", Time: now()})
	d.Emit(progress.Started{Step: "r:2", Name: "[api 1/2] RUN make all the things that have to be made", Time: now()})
	d.Emit(progress.Log{Step: "r:1", Data: []byte("\x1b[2J\x1b[Hevil\nfetching 1\rfetching 2"), Time: now()})
	for i := range 40 {
		d.Emit(progress.Log{Step: "r:2", Data: fmt.Appendf(nil, "compile %d\n", i+1), Time: now()})
	}
	d.Emit(progress.Counter{Step: "r:1", Name: "sha256:feed", Current: 12.3e6, Total: 45.6e6, Unit: "B", Time: now()})
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, "finish")); err == nil {
			break
		}
	}
	d.Emit(progress.Done{Step: "r:1", Time: now()})
	d.Emit(progress.Done{Step: "r:2", Err: errors.New("exit code 2"), Time: now()})
	if err := d.Close(); err != nil {
		return 1
	}
	return 0
}

// terminal is a tmux session of the test's own server.
type terminal struct {
	t      *testing.T
	socket string
}

func (m terminal) tmux(args ...string) string {
	m.t.Helper()
	out, err := exec.Command("tmux", append([]string{"-S", m.socket, "-f", "/dev/null"}, args...)...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("tmux %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// until captures the pane, scrolled lines included, until it matches.
func (m terminal) until(pattern string) string {
	m.t.Helper()
	re := regexp.MustCompile(pattern)
	var screen string
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		screen = m.tmux("capture-pane", "-p", "-S", "-500")
		if re.MatchString(screen) {
			return screen
		}
	}
	m.t.Fatalf("the terminal does not show %q but\n%s", pattern, screen)
	return ""
}

func TestTerminal(t *testing.T) {
	if _, err := exec.LookPath("tmux"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("tmux is missing")
		}
		t.Skip("needs tmux")
	}
	dir := t.TempDir()
	sock, err := os.MkdirTemp("", "tmux") // short: a socket's path has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(sock)
	m := terminal{t, filepath.Join(sock, "s")}
	m.tmux("new-session", "-d", "-x", "80", "-y", "40",
		fmt.Sprintf("DISPLAY_TEST_DIR='%s' '%s'; echo status $?; exec cat", dir, os.Args[0]))
	defer m.tmux("kill-server")

	screen := m.until(`compile 40\n`)
	for _, want := range []string{
		` => CACHED \[base 1/30\] RUN step1 +0\.0s\n`,
		` => CACHED \[base 30/30\] RUN step30 +0\.0s\n\[\+\] Building \d+\.\ds \(30/32\)\n => \[web 1/2\] RUN npm ci +\d\.\ds\n`,
		` => => sha256:feed +12\.3MB / 45\.6MB\n => => # evil\n => => # fetching 2\n => \[api 1/2\]`,
		` => => # compile 35\n => => # compile 36\n`,
	} {
		if !regexp.MustCompile(want).MatchString(screen) {
			t.Errorf("the terminal does not show %q but\n%s", want, screen)
		}
	}

	for _, size := range []struct{ columns, rows, want string }{
		{"44", "40", `(?m)^ => \[api 1/2\] RUN make all the thing\S*… \d+\.\ds$`},
		{"44", "15", `compile 40\n`},
		{"120", "30", `RUN make all the things that have to be made {20,}\d`},
	} {
		m.tmux("resize-window", "-x", size.columns, "-y", size.rows)
		m.until(size.want)
		time.Sleep(3 * redraw)
		screen = m.until(`compile 40\n`)
		if !strings.Contains(screen, "RUN step30") {
			t.Errorf("at %sx%s step 30 is gone:\n%s", size.columns, size.rows, screen)
		}
		if n := strings.Count(screen, "[+] Building"); n != 1 {
			t.Errorf("at %sx%s there are %d headings:\n%s", size.columns, size.rows, n, screen)
		}
	}

	if err := os.WriteFile(filepath.Join(dir, "finish"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	screen = m.until(`status \d`)
	for _, want := range []string{
		`RUN step30 .*\n => \[web 1/2\] RUN npm ci +\d\.\ds\n => ERROR \[api 1/2\] RUN make all .*\n------\n > \[api 1/2\] RUN make .*:\ncompile 1\n`,
		`compile 40\n------\n\nFailed after \d\.\ds: 32 steps, 30 cached, 1 failed\nstatus 0\n`,
	} {
		if !regexp.MustCompile(want).MatchString(screen) {
			t.Errorf("the terminal does not show %q but\n%s", want, screen)
		}
	}
	for i := range 30 {
		if n := strings.Count(screen, fmt.Sprintf("RUN step%d ", i+1)); n != 1 {
			t.Errorf("step %d is shown %d times", i+1, n)
		}
	}
	if strings.Contains(screen, "Building") || strings.Contains(screen, "=> =>") {
		t.Errorf("what was live is left:\n%s", screen)
	}
	if got := strings.TrimSpace(m.tmux("display-message", "-p", "#{cursor_flag}")); got != "1" {
		t.Errorf("cursor_flag = %s, want 1", got)
	}
}
