package display

import (
	"io"
	"sync"
	"time"

	"github.com/861fb494/build/internal/progress"
)

// quietBytes is how much of each step's output is kept for a Failure.
const quietBytes = 1 << 20

// Quiet shows nothing but, at the end, warnings that are not the linter's: that a
// cache could not be put out, for instance. Since the output was not shown, Output
// gives much more of it than other displays do: the last MiB.
func Quiet(w io.Writer) Display {
	return &quiet{out: w, tracker: newTracker(time.Time{}, quietBytes)}
}

type quiet struct {
	out     io.Writer
	mu      sync.Mutex
	tracker *tracker
}

func (q *quiet) Emit(e progress.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch e := e.(type) {
	case progress.Started:
		q.tracker.start(e, e.Time)
	case progress.Log:
		s := q.tracker.find(e.Step, e.Time)
		s.output.add(e.Data)
	case progress.Done:
		s := q.tracker.find(e.Step, e.Time)
		q.tracker.end(s, e, e.Time)
		if e.Err == nil {
			s.output.data = nil
		}
	case progress.Warning:
		if e.Rule == "" {
			q.tracker.note(e)
		}
	}
}

func (q *quiet) Output(id progress.Step) Output {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s, ok := q.tracker.steps[id]; ok {
		return s.output.last(0)
	}
	return Output{}
}

func (q *quiet) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.tracker.warnings
	q.tracker.warnings = nil // told once
	return PrintWarnings(q.out, list)
}
