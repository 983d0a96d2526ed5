package display

import (
	"bytes"
	"encoding/json"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/861fb494/build/internal/progress"
)

// JSON writes each event as one line, an object whose "type" is started, done,
// counter, log, warning or hint; Close adds nothing. The other fields have the names
// of progress's types in lower case, zero values are left out. A log's bytes
// are "text", or "data" in base64 where they are no UTF-8. Times are RFC 3339.
func JSON(w io.Writer, o Options) Display {
	return &jsonLines{out: newQueue(w, o.Broken)}
}

type jsonLines struct {
	out *queue

	mu     sync.Mutex
	closed bool
	err    error
}

// object is any event. Its fields are those of all types.
type object struct {
	Type     string          `json:"type"`
	Step     progress.Step   `json:"step,omitempty"`
	Name     string          `json:"name,omitempty"`
	Inputs   []progress.Step `json:"inputs,omitempty"`
	Platform string          `json:"platform,omitempty"`
	Position string          `json:"position,omitempty"`
	Internal bool            `json:"internal,omitempty"`
	Cached   bool            `json:"cached,omitempty"`
	Why      string          `json:"why,omitempty"`
	Error    string          `json:"error,omitempty"`
	Canceled bool            `json:"canceled,omitempty"`
	Current  int64           `json:"current,omitempty"`
	Total    int64           `json:"total,omitempty"`
	Unit     string          `json:"unit,omitempty"`
	Done     bool            `json:"done,omitempty"`
	Stream   int             `json:"stream,omitempty"`
	Text     string          `json:"text,omitempty"`
	Data     []byte          `json:"data,omitempty"`
	Rule     string          `json:"rule,omitempty"`
	Message  string          `json:"message,omitempty"`
	Detail   string          `json:"detail,omitempty"`
	URL      string          `json:"url,omitempty"`
	Excerpt  string          `json:"excerpt,omitempty"`
	Time     time.Time       `json:"time,omitzero"`
}

func objectOf(e progress.Event) object {
	switch e := e.(type) {
	case progress.Started:
		return object{Type: "started", Step: e.Step, Name: e.Name, Inputs: e.Inputs, Platform: e.Platform,
			Position: e.Position, Internal: e.Internal, Time: e.Time}
	case progress.Missed:
		return object{Type: "missed", Step: e.Step, Why: e.Why, Time: e.Time}
	case progress.Done:
		o := object{Type: "done", Step: e.Step, Cached: e.Cached, Time: e.Time}
		if e.Err != nil {
			o.Error, o.Canceled = e.Err.Error(), isStopped(e.Err)
		}
		return o
	case progress.Counter:
		return object{Type: "counter", Step: e.Step, Name: e.Name, Current: e.Current, Total: e.Total,
			Unit: e.Unit, Done: e.Done, Time: e.Time}
	case progress.Log:
		o := object{Type: "log", Step: e.Step, Stream: e.Stream, Time: e.Time}
		if utf8.Valid(e.Data) {
			o.Text = string(e.Data)
		} else {
			o.Data = e.Data
		}
		return o
	case progress.Warning:
		return object{Type: "warning", Rule: e.Rule, Message: e.Message, Detail: e.Detail, URL: e.URL,
			Position: e.Position, Excerpt: string(e.Excerpt)}
	case progress.Hint:
		return object{Type: "hint", Message: e.Message, Position: e.Position}
	}
	return object{}
}

func (j *jsonLines) Emit(e progress.Event) {
	o := objectOf(e)
	if o.Type == "" {
		return
	}
	var line bytes.Buffer
	enc := json.NewEncoder(&line) // ends the line
	enc.SetEscapeHTML(false)
	err := enc.Encode(o)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil && j.err == nil { // a year beyond 9999
		j.err = err
	}
	if err == nil && !j.closed {
		_, _ = j.out.Write(line.Bytes()) // Close tells
	}
}

// Output is empty: who reads the events has it.
func (j *jsonLines) Output(progress.Step) Output { return Output{} }

func (j *jsonLines) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.closed {
		j.closed = true
		if err := j.out.Close(); j.err == nil {
			j.err = err
		}
	}
	return j.err
}
