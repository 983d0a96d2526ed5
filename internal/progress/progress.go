// Package progress carries what a build tells its user while it runs: events,
// and the sink they go to. Rendering is progress/display's.
package progress

import (
	"time"

	"github.com/861fb494/build/internal/oci"
)

// Step identifies a step in every event about it.
type Step = oci.Digest

// Event is one of the types below. The set is closed.
type Event interface{ event() }

// Started announces a step. It comes before any other event of that step.
type Started struct {
	Step     Step
	Name     string // "[web 2/5] RUN npm ci"
	Inputs   []Step
	Platform string    // "linux/arm64"; empty where the build has only one
	Position string    // "Dockerfile:7"; empty for steps that stand in no file
	Internal bool      // shown only where something goes wrong: "load .dockerignore"
	Time     time.Time // of the start
}

// Missed says why a step is not cached, when it begins to run.
type Missed struct {
	Step Step
	Why  string // not empty
	Time time.Time
}

// Done ends a step.
type Done struct {
	Step   Step
	Cached bool
	Err    error // non-nil if it failed; context.Canceled if it was stopped
	Time   time.Time
}

// Counter reports how far a part of a step is: a layer's download, a copy.
// Events of the same step and name replace each other.
type Counter struct {
	Step    Step
	Name    string // "sha256:3f2a…", "copying files"
	Current int64
	Total   int64  // 0: unknown
	Unit    string // "B", "files"
	Done    bool
	Time    time.Time
}

// Log is output of a step's process, as it came: any bytes, not whole lines.
type Log struct {
	Step   Step
	Stream int // 1: standard output, 2: standard error
	Data   []byte
	Time   time.Time
}

// Warning is something the user should mend though the build goes on.
type Warning struct {
	Rule     string // linter's name for it: "StageNameCasing"; may be empty
	Message  string
	Detail   string
	URL      string
	Position string // "Dockerfile:7"
	Excerpt  []byte // the lines of the file
}

// Hint is something that would make later builds faster.
type Hint struct {
	Message  string // one line
	Position string // "Dockerfile:7"; may be empty
}

func (Started) event() {}
func (Missed) event()  {}
func (Done) event()    {}
func (Counter) event() {}
func (Log) event()     {}
func (Warning) event() {}
func (Hint) event()    {}

// Sink takes events. It is safe for concurrent calls and does not block on
// slow readers for long; it must not keep Log.Data after it returns.
type Sink interface{ Emit(Event) }

// Discard is the sink that forgets.
var Discard Sink = discard{}

type discard struct{}

func (discard) Emit(Event) {}

// Writer is an io.Writer whose writes become a step's Log events.
type Writer struct {
	Sink   Sink
	Step   Step
	Stream int
}

// Write emits p as one Log event. It never fails.
func (w Writer) Write(p []byte) (int, error) {
	w.Sink.Emit(Log{Step: w.Step, Stream: w.Stream, Data: p, Time: time.Now()})
	return len(p), nil
}
