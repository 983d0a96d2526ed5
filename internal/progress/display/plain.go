package display

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/861fb494/build/internal/progress"
)

const (
	// counterInterval is between two lines about one counter.
	counterInterval = 5 * time.Second
	// lineLimit is how much of a line without an end is held back: a step's
	// line is written whole, lest other steps' lines stand in it.
	lineLimit = 64 << 10
	// tailLines is how much of a step's output a Failure repeats, and
	// tailBytes what is kept for it.
	tailLines = 20
	tailBytes = 64 << 10
)

// Plain writes lines, each as soon as it is known, in the form of docker build:
//
//	#5 [web 2/5] RUN npm ci
//	#5 0.412 added 3 packages
//	#5 DONE 0.8s
//
// Steps are numbered in the order in which they begin. Log lines have their
// time in seconds since then, and are whatever bytes the step wrote.
func Plain(w io.Writer, o Options) Display {
	p := &plain{
		o: o, out: newQueue(w, o.Broken), tracker: newTracker(o.now(), tailBytes),
		partial: map[*step]*partial{},
	}
	p.tracker.begun = p.header
	return p
}

type plain struct {
	o   Options
	out *queue

	mu      sync.Mutex
	tracker *tracker
	partial map[*step]*partial
	last    *step // whose line was the last
	closed  bool
	err     error
}

// partial is a line whose end has not come.
type partial struct {
	data []byte
	at   time.Time // of its first byte
}

func (p *plain) Emit(e progress.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	now := p.o.now()
	switch e := e.(type) {
	case progress.Started:
		p.tracker.start(e, now)
	case progress.Log:
		p.log(p.tracker.find(e.Step, now), e, now)
	case progress.Counter:
		p.counter(p.tracker.find(e.Step, now), e, now)
	case progress.Missed:
		s := p.tracker.find(e.Step, now)
		s.missed(e)
		p.line(s, s.why)
	case progress.Done:
		p.finish(p.tracker.find(e.Step, now), e, now)
	default:
		p.tracker.note(e)
	}
}

// header announces a step that is shown, after an empty line.
func (p *plain) header(s *step) {
	if s.number == 0 {
		return
	}
	if p.last != nil {
		fmt.Fprintln(p.out)
	}
	p.line(s, s.name)
}

// line writes one line, of a step that is shown.
func (p *plain) line(s *step, text string) {
	if s.number == 0 {
		return
	}
	p.last = s
	fmt.Fprintf(p.out, "#%d %s\n", s.number, text)
}

func (p *plain) log(s *step, e progress.Log, now time.Time) {
	s.output.add(e.Data)
	at := e.Time
	if at.IsZero() {
		at = now
	}
	data := e.Data
	for len(data) > 0 {
		held := p.partial[s]
		if held == nil {
			held = &partial{at: at}
			p.partial[s] = held
		}
		end := bytes.IndexByte(data, '\n')
		if end < 0 && len(held.data)+len(data) <= lineLimit {
			held.data = append(held.data, data...)
			return
		}
		if end < 0 {
			// All of it: the cut may be in a character, but nothing is lost.
			held.data, data = append(held.data, data...), nil
		} else {
			held.data, data = append(held.data, data[:end]...), data[end+1:]
		}
		p.flush(s)
	}
}

// flush writes the line that s has begun.
func (p *plain) flush(s *step) {
	held, ok := p.partial[s]
	if !ok {
		return
	}
	delete(p.partial, s)
	text := strings.TrimSuffix(string(held.data), "\r")
	p.line(s, stamp(held.at.Sub(s.began))+" "+text)
}

func (p *plain) counter(s *step, e progress.Counter, now time.Time) {
	c := p.tracker.count(s, e, now)
	if e.Done {
		p.line(s, c.text()+" done")
		return
	}
	if c.Time.Sub(c.printed) >= counterInterval {
		c.printed = c.Time
		p.line(s, c.text())
	}
}

// text is the counter's line: name, amount, time.
func (c *counter) text() string {
	t := c.Name
	if a := c.amount(); a != "" {
		t += " " + a
	}
	if d := c.Time.Sub(c.began); d >= 50*time.Millisecond {
		t += " " + seconds(d)
	}
	return t
}

func (p *plain) finish(s *step, e progress.Done, now time.Time) {
	if s.done {
		return
	}
	wasShown := s.number > 0
	p.tracker.end(s, e, now)
	if !wasShown && s.number > 0 {
		// An internal step that failed shows itself with what it said.
		p.header(s)
		for _, l := range s.output.last(0).Lines {
			p.line(s, l)
		}
		delete(p.partial, s)
	}
	p.flush(s)
	switch {
	case isStopped(e.Err):
		p.line(s, "CANCELED")
	case e.Err != nil:
		text := strings.TrimRight(e.Err.Error(), "\n")
		for i, l := range strings.Split(text, "\n") {
			if i == 0 {
				l = "ERROR: " + l
			}
			p.line(s, l)
		}
	case e.Cached:
		p.line(s, "CACHED")
	default:
		p.line(s, "DONE "+seconds(s.result.Time.Sub(s.began)))
	}
	if e.Err == nil {
		s.output.data = nil
	}
}

func (p *plain) Output(id progress.Step) Output {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s, ok := p.tracker.steps[id]; ok {
		return s.output.last(tailLines)
	}
	return Output{}
}

func (p *plain) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return p.err
	}
	p.closed = true
	open := slices.SortedFunc(maps.Keys(p.partial), func(a, b *step) int { return a.number - b.number })
	for _, s := range open {
		p.flush(s)
	}
	summarize(p.out, p.tracker, p.o, p.o.now())
	p.err = p.out.Close()
	return p.err
}
