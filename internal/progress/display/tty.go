package display

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/861fb494/build/internal/progress"
)

const (
	// redraw is between two drawings: faster than that nobody reads.
	redraw = 100 * time.Millisecond
	// ttyBytes is how much of a running step's output is kept in case it fails.
	ttyBytes = 32 << 20
)

// TTY shows what runs as a list that is drawn anew ten times a second at most,
// with times, counters and the end of each log; what is over scrolls up and
// stays. If a step fails, its output is written whole when the display closes.
//
// Control sequences of logs do not reach the terminal, colours excepted. The
// cursor is hidden during each drawing only, so that it is there however the
// process ends.
func TTY(f *os.File, o Options) Display {
	if o.Title == "" {
		o.Title = "Building"
	}
	t := &tty{
		f: f, o: o, tracker: newTracker(o.now(), ttyBytes), screens: map[*step]*ttyStep{},
		stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	t.tracker.begun = t.begin
	go t.loop()
	return t
}

type tty struct {
	f             *os.File
	o             Options
	closing       sync.Once
	stop, stopped chan struct{}

	mu      sync.Mutex
	tracker *tracker
	screens map[*step]*ttyStep
	running []*ttyStep // in the order in which they began
	over    []*step    // ended, and not yet written
	failed  []*step
	closed  bool

	// Of the goroutine that draws.
	drawn []string // what is on the terminal and will be replaced
	err   error
}

// ttyStep is a step and the end of its log, made fit for a terminal.
type ttyStep struct {
	*step
	screen screen
}

func (t *tty) Emit(e progress.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	now := t.o.now()
	switch e := e.(type) {
	case progress.Started:
		t.tracker.start(e, now)
	case progress.Log:
		s := t.tracker.find(e.Step, now)
		s.output.add(e.Data)
		if v, ok := t.screens[s]; ok {
			v.screen.write(e.Data)
		}
	case progress.Counter:
		t.tracker.count(t.tracker.find(e.Step, now), e, now)
	case progress.Missed:
		t.tracker.find(e.Step, now).missed(e)
	case progress.Done:
		t.finish(t.tracker.find(e.Step, now), e, now)
	default:
		t.tracker.note(e)
	}
}

func (t *tty) begin(s *step) {
	if s.number == 0 {
		return
	}
	v := &ttyStep{step: s, screen: screen{keep: 2 * logLines}}
	t.screens[s] = v
	t.running = append(t.running, v)
}

func (t *tty) finish(s *step, e progress.Done, now time.Time) {
	if s.done {
		return
	}
	t.tracker.end(s, e, now)
	if v, ok := t.screens[s]; ok {
		delete(t.screens, s)
		for i, r := range t.running {
			if r == v {
				t.running = append(t.running[:i], t.running[i+1:]...)
				break
			}
		}
	}
	if s.number > 0 {
		t.over = append(t.over, s)
	}
	if e.Err != nil && !isStopped(e.Err) {
		t.failed = append(t.failed, s)
	} else {
		s.output.data = nil
	}
}

func (t *tty) loop() {
	defer close(t.stopped)
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.draw(false)
		case <-t.stop:
			t.draw(true)
			return
		}
	}
}

// draw writes what is over and, unless it is the last time, what runs.
func (t *tty) draw(last bool) {
	f := frame{width: 80, height: 24, noColor: t.o.NoColor}
	if w, h, err := term.GetSize(int(t.f.Fd())); err == nil && w > 0 && h > 0 {
		f.width, f.height = w, h
	}
	t.mu.Lock()
	f.now = t.o.now()
	var stay, live []string
	for _, s := range t.over {
		stay = append(stay, f.ended(s)...)
	}
	t.over = nil
	switch {
	case last:
		for _, s := range t.running { // nobody said what became of it
			stay = append(stay, f.row(styleYellow, " => "+s.name, seconds(f.now.Sub(s.began))))
		}
	case t.tracker.shown > 0:
		live = f.live(t.o.Title, t.tracker, t.running)
	}
	t.mu.Unlock()
	if len(stay) == 0 && slices.Equal(live, t.drawn) {
		return
	}

	var b bytes.Buffer
	b.WriteString("\x1b[?25l\r") // hide the cursor
	if n := min(rows(t.drawn, f.width), f.height-1); n > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", n)
	}
	for _, l := range append(stay, live...) {
		// Erase the whole row first, and not the rest of it afterwards: only
		// that makes a terminal forget that it had wrapped what was there, so
		// that it does not join rows when it becomes wider.
		b.WriteString("\x1b[2K" + l + "\r\n")
	}
	b.WriteString("\x1b[J\x1b[?25h") // erase what is below, show the cursor
	t.drawn = live
	t.write(b.Bytes())
}

func (t *tty) write(p []byte) {
	if t.err != nil {
		return
	}
	_, t.err = t.f.Write(p)
}

func (t *tty) Close() error {
	t.closing.Do(func() {
		t.mu.Lock()
		t.closed = true
		t.mu.Unlock()
		close(t.stop)
		<-t.stopped

		var b bytes.Buffer
		for _, s := range t.failed {
			t.failure(&b, s)
		}
		summarize(&b, t.tracker, t.o, t.o.now())
		t.write(b.Bytes())
	})
	return t.err
}

// failure writes all that a failed step put out.
func (t *tty) failure(b *bytes.Buffer, s *step) {
	var all screen
	all.write(s.output.data)
	if len(all.line) > 0 {
		all.newline()
	}
	if len(all.lines) == 0 {
		return
	}
	fmt.Fprintf(b, "------\n > %s:\n", s.name)
	if s.output.lost > 0 {
		fmt.Fprintf(b, "(%d lines before)\n", s.output.lost)
	}
	for _, l := range all.lines {
		switch {
		case t.o.NoColor:
			l = plainText(l)
		case strings.Contains(l, "\x1b"):
			l += styleReset
		}
		b.WriteString(l + "\n")
	}
	b.WriteString("------\n")
}

// Output is empty: Close writes the whole.
func (t *tty) Output(progress.Step) Output { return Output{} }
