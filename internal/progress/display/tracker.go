package display

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/861fb494/build/internal/progress"
)

// tracker is what the events so far say. Its displays guard it.
type tracker struct {
	began    time.Time
	steps    map[progress.Step]*step
	warnings []progress.Warning
	hints    []progress.Hint

	// Numbers of steps; internal ones count if they fail.
	shown, ended, cached, failed, stopped int

	keep  int         // bytes of a running step's output that are kept
	begun func(*step) // is told each new step; may be nil
}

func newTracker(now time.Time, keep int) *tracker {
	return &tracker{began: now, steps: map[progress.Step]*step{}, keep: keep}
}

// step is one step, or one time it was done.
type step struct {
	id       progress.Step
	number   int // from 1, in the order in which steps are shown; 0: not shown
	name     string
	internal bool
	began    time.Time
	counters []*counter
	output   record

	why    string // it is not cached, in one line; empty: it is, or nobody has said so
	done   bool
	result progress.Done
}

// counter is a Counter with its history.
type counter struct {
	progress.Counter
	began   time.Time // of the first event
	first   int64     // what it said
	printed time.Time
}

// start takes in e and returns its step. A step that comes again after it has
// ended is a new one.
func (t *tracker) start(e progress.Started, now time.Time) *step {
	if s, ok := t.steps[e.Step]; ok && !s.done {
		return s
	}
	s := &step{id: e.Step, name: OneLine(e.Name), internal: e.Internal, began: e.Time, output: record{limit: t.keep}}
	if s.name == "" {
		s.name = shortID(e.Step)
	}
	if e.Platform != "" && !strings.Contains(s.name, e.Platform) {
		s.name = "[" + e.Platform + "] " + s.name
	}
	if s.began.IsZero() {
		s.began = now
	}
	t.steps[e.Step] = s
	t.stopped = 0 // it goes on: those steps were not the end
	if !s.internal {
		t.show(s)
	}
	if t.begun != nil {
		t.begun(s)
	}
	return s
}

// find is the step that an event is about; one never announced is made up.
func (t *tracker) find(id progress.Step, now time.Time) *step {
	if s, ok := t.steps[id]; ok {
		return s
	}
	return t.start(progress.Started{Step: id}, now)
}

// show gives s a number.
func (t *tracker) show(s *step) {
	if s.number == 0 {
		t.shown++
		s.number = t.shown
	}
}

// missed takes in e.
func (s *step) missed(e progress.Missed) {
	s.why = "not cached: " + strings.TrimPrefix(OneLine(e.Why), "not cached: ")
}

// end takes in e, which ends s.
func (t *tracker) end(s *step, e progress.Done, now time.Time) {
	if e.Time.IsZero() {
		e.Time = now
	}
	s.done, s.result = true, e
	stopped := isStopped(e.Err)
	if e.Err != nil && !stopped {
		t.show(s)
		t.failed++
	}
	if s.number == 0 {
		return
	}
	t.ended++
	switch {
	case stopped:
		t.stopped++
	case e.Cached:
		t.cached++
	}
}

// count takes in e.
func (t *tracker) count(s *step, e progress.Counter, now time.Time) *counter {
	if e.Time.IsZero() {
		e.Time = now
	}
	for _, c := range s.counters {
		if c.Name == e.Name {
			c.Counter = e
			return c
		}
	}
	c := &counter{Counter: e, began: e.Time, first: e.Current, printed: e.Time}
	s.counters = append(s.counters, c)
	return c
}

// note takes in e, if it is about no step: each warning once.
func (t *tracker) note(e progress.Event) {
	switch e := e.(type) {
	case progress.Warning:
		same := func(w progress.Warning) bool {
			return w.Rule == e.Rule && w.Message == e.Message && w.Position == e.Position
		}
		if !slices.ContainsFunc(t.warnings, same) {
			t.warnings = append(t.warnings, e)
		}
	case progress.Hint:
		t.hints = append(t.hints, e)
	}
}

func isStopped(err error) bool {
	return errors.Is(err, context.Canceled)
}

func shortID(id progress.Step) string {
	s := string(id)
	if _, hex, ok := strings.Cut(s, ":"); ok {
		s = hex
	}
	return s[:min(len(s), 12)]
}

// Printable is s without what does something to a terminal but to begin a line.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || isBidi(r)) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// OneLine is s with each run of white space and of what would move the cursor or hide
// text as one space: names and texts that come from Dockerfiles and contexts may have
// any bytes.
func OneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || isBidi(r)
	}), " ")
}
