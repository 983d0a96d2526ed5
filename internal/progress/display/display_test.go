package display

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/861fb494/build/internal/progress"
)

var update = flag.Bool("update", false, "write the golden files")

// began is when the builds of the tests begin.
var began = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return began.Add(time.Duration(seconds * float64(time.Second))) }

// clock is a clock that is set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// golden compares with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

func log(step progress.Step, sec float64, text string) progress.Log {
	return progress.Log{Step: step, Stream: 1, Data: []byte(text), Time: at(sec)}
}

// build is the events of a build that has everything.
func build() []progress.Event {
	return []progress.Event{
		progress.Started{Step: "blake3:i", Name: "load .dockerignore", Internal: true, Time: at(0)},
		progress.Done{Step: "blake3:i", Time: at(0.1)},
		progress.Started{Step: "blake3:a", Name: "[base 1/2] FROM alpine", Time: at(0.1)},
		progress.Counter{Step: "blake3:a", Name: "sha256:3f2a", Current: 0, Total: 40e6, Unit: "B", Time: at(0.2)},
		progress.Missed{Step: "blake3:a", Why: "never built here", Time: at(0.2)},
		progress.Started{Step: "blake3:b", Name: "[web 1/2] WORKDIR /app", Time: at(0.2)},
		progress.Done{Step: "blake3:b", Cached: true, Time: at(0.2)},
		progress.Counter{Step: "blake3:a", Name: "sha256:3f2a", Current: 1e6, Total: 40e6, Unit: "B", Time: at(1)},
		progress.Counter{Step: "blake3:a", Name: "sha256:3f2a", Current: 21.5e6, Total: 40e6, Unit: "B", Time: at(5.3)},
		progress.Counter{Step: "blake3:a", Name: "sha256:3f2a", Current: 40e6, Total: 40e6, Unit: "B", Done: true, Time: at(6)},
		progress.Counter{Step: "blake3:a", Name: "unpacking", Current: 12, Unit: "files", Done: true, Time: at(6)},
		progress.Done{Step: "blake3:a", Time: at(6.5)},
		progress.Started{Step: "blake3:c", Name: "[web 2/2] RUN <<EOF\nnpm ci\nEOF", Platform: "linux/arm64", Time: at(6.5)},
		log("blake3:c", 6.912, "added 3 pack"),
		progress.Started{Step: "blake3:d", Name: "[api 2/2] RUN make", Time: at(7)},
		progress.Missed{Step: "blake3:d", Why: "src/a.go changed", Time: at(7)},
		log("blake3:d", 7.5, "cc\r\n\x1b[31mred\x1b[0m\n"),
		log("blake3:c", 16.9, "ages\nno newline at the end"),
		log("blake3:d", 120, "make: *** [all] Error 2"),
		progress.Warning{Rule: "StageNameCasing", Message: "Stage name 'Web' should be lowercase",
			URL: "https://example.com/rule", Position: "Dockerfile:10", Excerpt: []byte("  10 | >>> FROM base AS Web\n")},
		progress.Warning{Message: "no rule, no place"},
		progress.Hint{Message: "one\nline", Position: "Dockerfile:7"},
		progress.Done{Step: "blake3:d", Err: errors.New("exit code 2\nsee above"), Time: at(120.5)},
		progress.Done{Step: "blake3:c", Err: fmt.Errorf("run: %w", context.Canceled), Time: at(120.6)},
		progress.Started{Step: "blake3:j", Name: "resolve busybox", Internal: true, Time: at(120.6)},
		log("blake3:j", 120.7, "trying registry\n"),
		progress.Done{Step: "blake3:j", Err: errors.New("no such host"), Time: at(120.8)},
		log("blake3:0123456789abcdef", 121, "never announced\n"),
	}
}

// play emits events at their times.
func play(d Display, c *clock, events []progress.Event) {
	for _, e := range events {
		switch e := e.(type) {
		case progress.Started:
			c.set(e.Time)
		case progress.Done:
			c.set(e.Time)
		case progress.Log:
			c.set(e.Time)
		case progress.Counter:
			c.set(e.Time)
		}
		d.Emit(e)
	}
}

func TestPlain(t *testing.T) {
	c := &clock{now: began}
	var b bytes.Buffer
	d := Plain(&b, Options{Now: c.Now})
	play(d, c, build())
	if got, want := fmt.Sprint(d.Output("blake3:d")), "{[cc \x1b[31mred\x1b[0m make: *** [all] Error 2] 0}"; got != want {
		t.Errorf("Output = %q, want %q", got, want)
	}
	for range 2 {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	d.Emit(log("blake3:a", 200, "too late\n"))
	golden(t, "plain.txt", b.String())
}

func TestPlainSuccess(t *testing.T) {
	c := &clock{now: began}
	var b bytes.Buffer
	d := Plain(&b, Options{Now: c.Now})
	play(d, c, build()[:12])
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), "\nFinished in 6.5s: 2 steps, 1 cached\n"; !strings.HasSuffix(got, want) {
		t.Errorf("ends with %q, want %q", got[max(0, len(got)-80):], want)
	}
}

// Whatever a step writes, in whatever pieces, comes out once and in order.
func TestPlainNeverClips(t *testing.T) {
	var b bytes.Buffer
	d := Plain(&b, Options{NoSummary: true})
	d.Emit(progress.Started{Step: "s", Name: "s", Time: began})
	long := strings.Repeat("0123456789", 50000)
	text := "short\n" + long + "\n\n" + long + "\xff\x00end"
	for i := 0; i < len(text); i += 30011 {
		d.Emit(log("s", 1, text[i:min(len(text), i+30011)]))
	}
	d.Emit(progress.Done{Step: "s", Time: at(2)})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, l := range strings.Split(b.String(), "\n") {
		if l, ok := strings.CutPrefix(l, "#1 1.000 "); ok {
			got.WriteString(l)
		}
	}
	if want := strings.ReplaceAll(text, "\n", ""); got.String() != want {
		t.Errorf("%d bytes came out, want %d", got.Len(), len(want))
	}
}

func TestPlainConcurrent(t *testing.T) {
	var b bytes.Buffer
	d := Plain(&b, Options{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			step := progress.Step(fmt.Sprint("step:", i))
			d.Emit(progress.Started{Step: step, Name: fmt.Sprint("step ", i), Time: time.Now()})
			for range 200 {
				progress.Writer{Sink: d, Step: step, Stream: 1}.Write([]byte("line\n"))
			}
			d.Emit(progress.Done{Step: step, Time: time.Now()})
		})
	}
	wg.Wait()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), " line\n"); n != 1600 {
		t.Errorf("%d lines, want 1600", n)
	}
	whole := regexp.MustCompile(`^(#\d (step \d|\d\.\d+ line|DONE \d\.\ds)|Finished in \d\.\ds: 8 steps|)$`)
	for _, l := range strings.Split(b.String(), "\n") {
		if !whole.MatchString(l) {
			t.Fatalf("line %q", l)
		}
	}
}

// stuck is a writer that does not return until it is let go.
type stuck struct {
	bytes.Buffer
	free chan struct{}
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.free
	return s.Buffer.Write(p)
}

func TestEmitDoesNotWaitForTheReader(t *testing.T) {
	w := &stuck{free: make(chan struct{})}
	d := Plain(w, Options{NoSummary: true})
	d.Emit(progress.Started{Step: "s", Name: "s", Time: began})
	for range 1000 {
		d.Emit(log("s", 0, "0123456789\n"))
	}
	close(w.free)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(w.String(), "0123456789\n"); n != 1000 {
		t.Errorf("%d lines, want 1000", n)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestCloseTellsOfWriteErrors(t *testing.T) {
	var told atomic.Int32
	o := Options{Broken: func(err error) {
		if errors.Is(err, os.ErrClosed) {
			told.Add(1)
		}
	}}
	for i, d := range []Display{Plain(broken{}, o), JSON(broken{}, o)} {
		d.Emit(progress.Started{Step: "s", Name: "s", Time: began})
		for range 2 {
			if err := d.Close(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("%T.Close() = %v, want %v", d, err, os.ErrClosed)
			}
		}
		if n := int(told.Load()); n != i+1 {
			t.Errorf("%T called Broken %d times, want once", d, n-i)
		}
	}
}

func TestOutput(t *testing.T) {
	var b bytes.Buffer
	for _, tt := range []struct {
		d           Display
		lines, left int
	}{{Plain(&b, Options{}), 20, 4980}, {Quiet(io.Discard), 5000, 0}} {
		tt.d.Emit(progress.Started{Step: "s", Name: "s", Time: began})
		for i := range 5000 {
			tt.d.Emit(log("s", 0, fmt.Sprintf("line %d, which is fairly long\n", i)))
		}
		tt.d.Emit(progress.Done{Step: "s", Err: errors.New("exit code 1")})
		o := tt.d.Output("s")
		if len(o.Lines) != tt.lines || o.Left != tt.left || o.Lines[len(o.Lines)-1] != "line 4999, which is fairly long" {
			t.Errorf("%T.Output = %d lines, %d left; want %d, %d", tt.d, len(o.Lines), o.Left, tt.lines, tt.left)
		}
		if o := tt.d.Output("unknown"); len(o.Lines) != 0 {
			t.Errorf("%T.Output of an unknown step = %q", tt.d, o.Lines)
		}
		if err := tt.d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	d := JSON(&b, Options{})
	for _, e := range append(build(), log("blake3:a", 1, "a\xffb<")) {
		d.Emit(e)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(strings.TrimSpace(b.String()), "\n") {
		if !json.Valid([]byte(l)) {
			t.Errorf("line %q is not JSON", l)
		}
	}
	golden(t, "json.txt", b.String())
}

func TestNew(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tests := []struct{ mode, want string }{
		{"", "*display.plain"}, {"auto", "*display.plain"}, {"plain", "*display.plain"},
		{"quiet", "*display.quiet"}, {"rawjson", "*display.jsonLines"}, {"tty", ""}, {"fancy", ""},
	}
	for _, tt := range tests {
		d, err := New(tt.mode, f, Options{})
		if tt.want == "" {
			if err == nil {
				t.Errorf("New(%q) = %T, want an error", tt.mode, d)
			}
			continue
		}
		if got := fmt.Sprintf("%T", d); err != nil || got != tt.want {
			t.Errorf("New(%q) = %s, %v, want %s", tt.mode, got, err, tt.want)
			continue
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestUnits(t *testing.T) {
	for _, tt := range []struct {
		got, want string
	}{
		{size(0), "0B"}, {size(999), "999B"}, {size(1000), "1.0kB"}, {size(999_949), "999.9kB"},
		{size(999_950), "1.0MB"}, {size(45_600_000), "45.6MB"}, {size(1 << 62), "4.6EB"}, {size(-5000), "-5.0kB"},
		{seconds(-time.Second), "0.0s"}, {seconds(840 * time.Millisecond), "0.8s"}, {seconds(99 * time.Second), "99.0s"},
		{seconds(187 * time.Second), "3m07s"}, {seconds(3725 * time.Second), "1h02m05s"},
		{stamp(412 * time.Millisecond), "0.412"}, {stamp(12345 * time.Millisecond), "12.35"}, {stamp(123 * time.Second), "123.0"},
		{stamp(-1), "0.000"},
	} {
		if tt.got != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
}
