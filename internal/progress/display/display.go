// Package display renders the events of a build: as plain lines, as a live list
// of steps on a terminal, as JSON, or not at all.
package display

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"github.com/861fb494/build/internal/progress"
)

// Display renders events until it is closed.
type Display interface {
	progress.Sink
	// Close writes what is left, ends with the warnings, hints and a summary, and
	// leaves the terminal as it was. Events that come later are dropped. The
	// error is the first one in writing; a further Close does nothing.
	Close() error
	// Output is the end of what a step put out, for a Failure. It is empty
	// where the display itself shows the whole of it when it closes.
	Output(progress.Step) Output
}

// Options are those of all displays. The zero value works.
type Options struct {
	Title     string           // "Building", if empty
	Now       func() time.Time // time.Now, if nil
	NoColor   bool             // leave out colours; those of logs too
	NoSummary bool             // neither warnings nor hints nor a summary at the end
	// Broken is told, once, when lines cannot be written any more, by a goroutine of
	// the display's. It may be nil.
	Broken func(error)
}

func (o Options) now() time.Time {
	if o.Now != nil {
		return o.Now()
	}
	return time.Now()
}

// New makes the display that --progress names: auto (or empty), plain, tty,
// quiet or rawjson. auto is tty where f is a terminal that can move its cursor,
// else plain.
func New(mode string, f *os.File, o Options) (Display, error) {
	terminal := term.IsTerminal(int(f.Fd()))
	switch mode {
	case "", "auto":
		if terminal && os.Getenv("TERM") != "dumb" {
			return TTY(f, o), nil
		}
		return Plain(f, o), nil
	case "plain":
		return Plain(f, o), nil
	case "tty":
		if !terminal {
			return nil, fmt.Errorf("progress %q: %s is not a terminal", mode, f.Name())
		}
		return TTY(f, o), nil
	case "quiet":
		return Quiet(f), nil
	case "rawjson":
		return JSON(f, o), nil
	}
	return nil, fmt.Errorf("progress %q: not one of auto, plain, tty, quiet, rawjson", mode)
}

// summarize writes the warnings and the line that closes a build.
func summarize(w io.Writer, t *tracker, o Options, now time.Time) {
	if o.NoSummary {
		return
	}
	_ = PrintWarnings(w, t.warnings) // w takes everything
	if t.shown == 0 {
		return
	}
	if len(t.hints) > 0 {
		fmt.Fprintln(w)
	}
	for _, h := range t.hints {
		fmt.Fprintln(w, Hint(h.Position, h.Message))
	}
	verb := "Finished in"
	if t.failed > 0 {
		verb = "Failed after"
	} else if t.stopped > 0 || t.ended < t.shown {
		verb = "Stopped after"
	}
	fmt.Fprintf(w, "\n%s %s: %s", verb, seconds(now.Sub(t.began)), count(t.shown, "step"))
	if t.cached > 0 {
		fmt.Fprintf(w, ", %d cached", t.cached)
	}
	if t.failed > 0 {
		fmt.Fprintf(w, ", %d failed", t.failed)
	}
	if n := len(t.warnings); n > 0 {
		fmt.Fprintf(w, ", %s", count(n, "warning"))
	}
	fmt.Fprintln(w)
}

// Hint is the line that a hint is shown as.
func Hint(position, message string) string {
	if position != "" {
		position += ": "
	}
	return "HINT: " + position + OneLine(message)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
