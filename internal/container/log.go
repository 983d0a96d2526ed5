package container

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
	"unicode/utf8"
)

// Record is a line of the log file, as JSON: a line that the container wrote,
// or a piece of one. Streams are 1 and 2, as file descriptors are.
type Record struct {
	Time   time.Time `json:"time"`
	Stream int       `json:"stream"`
	Text   string    `json:"text,omitempty"`  // if it is UTF-8
	Bytes  []byte    `json:"bytes,omitempty"` // if it is not
}

// Data is what was written.
func (r *Record) Data() []byte {
	if r.Bytes != nil {
		return r.Bytes
	}
	return []byte(r.Text)
}

// logWriter appends to a log. Its streams may be written to concurrently.
type logWriter struct {
	now  func() time.Time
	lost func() // called when what the output is passed on to takes no more
	mu   sync.Mutex
	f    *os.File
}

func newLogWriter(dir string, now func() time.Time) (*logWriter, error) {
	f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return &logWriter{now: now, f: f}, nil
}

// stream is the writer of one stream, which passes on to also, if that is not
// nil.
func (l *logWriter) stream(n int, also io.Writer) io.Writer {
	return &logStream{log: l, n: n, also: also}
}

type logStream struct {
	log  *logWriter
	n    int
	also io.Writer
}

// Write logs p. A full disk loses the log, not the container: the error is kept
// from the process, which would be told of it as of a closed output.
func (s *logStream) Write(p []byte) (int, error) {
	s.log.write(s.n, p)
	if s.also == nil {
		return len(p), nil
	}
	n, err := s.also.Write(p)
	if err != nil {
		s.log.lost()
	}
	return n, err
}

func (l *logWriter) write(stream int, p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out bytes.Buffer
	at := l.now().UTC()
	for line := range bytes.Lines(p) {
		r := Record{Time: at, Stream: stream}
		if utf8.Valid(line) {
			r.Text = string(line)
		} else {
			r.Bytes = line
		}
		b, err := json.Marshal(r)
		if err != nil {
			continue
		}
		out.Write(b)
		out.WriteByte('\n')
	}
	_, _ = l.f.Write(out.Bytes()) // as Write says
}

// LogOptions say what of a log is wanted. The zero value is all of it.
type LogOptions struct {
	Follow     bool // go on until the container has ended
	Tail       int  // the last lines only, if Lines is set
	Lines      bool
	Timestamps bool
	Since      time.Time // what was written later
}

// Logs writes a container's log to out and err, each stream to its own.
func (cs *Containers) Logs(ctx context.Context, name string, o LogOptions, out, errOut io.Writer) error {
	info, err := cs.Find(name)
	if err != nil {
		return err
	}
	dir := filepath.Join(cs.Dir, info.ID)
	f, err := os.Open(filepath.Join(dir, "log"))
	if errors.Is(err, os.ErrNotExist) && !o.Follow {
		return nil // never started
	}
	for o.Follow && errors.Is(err, os.ErrNotExist) && locked(filepath.Join(dir, "lock")) {
		if err := sleep(ctx, logPoll); err != nil {
			return nil
		}
		f, err = os.Open(filepath.Join(dir, "log"))
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	defer f.Close()
	p := &logPrinter{LogOptions: o, to: [3]io.Writer{1: out, 2: errOut}, fresh: [3]bool{true, true, true}}
	records := &logReader{r: bufio.NewReader(f)}
	if o.Lines {
		if err := records.skipTo(o.Tail, f); err != nil {
			return err
		}
	}
	for {
		// Looked at before reading: what is there once it has ended is all.
		alive := o.Follow && locked(filepath.Join(dir, "lock"))
		if err := p.print(records); err != nil {
			return err
		}
		if !alive {
			return nil
		}
		if err := sleep(ctx, logPoll); err != nil {
			return nil // the reader has had enough
		}
	}
}

// logPoll is how often a log that is followed is looked at.
const logPoll = 50 * time.Millisecond

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// logReader reads records of a file that grows.
type logReader struct {
	r    *bufio.Reader
	part []byte // of a line that is not all there
}

// next is the next record, or io.EOF where there is none yet. A damaged line is
// left out.
func (l *logReader) next() (Record, error) {
	for {
		b, err := l.r.ReadBytes('\n')
		l.part = append(l.part, b...)
		if err != nil {
			return Record{}, err
		}
		var r Record
		err = json.Unmarshal(l.part, &r)
		l.part = l.part[:0]
		if err == nil && (r.Stream == 1 || r.Stream == 2) {
			return r, nil
		}
	}
}

// skipTo moves to where the last n lines begin.
func (l *logReader) skipTo(n int, f *os.File) error {
	var starts []int64 // offsets of the records that begin a line
	var at int64
	begins := [3]bool{true, true, true}
	r := bufio.NewReader(f)
	for {
		b, err := r.ReadBytes('\n')
		if err == io.EOF {
			at += int64(len(b))
			break
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		var rec Record
		if json.Unmarshal(b, &rec) == nil && (rec.Stream == 1 || rec.Stream == 2) {
			if begins[rec.Stream] {
				starts = append(starts, at)
			}
			begins[rec.Stream] = bytes.HasSuffix(rec.Data(), []byte("\n"))
		}
		at += int64(len(b))
	}
	switch {
	case n == 0:
	case n < len(starts):
		at = starts[len(starts)-n]
	default:
		at = 0
	}
	if _, err := f.Seek(at, io.SeekStart); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	l.r.Reset(f)
	return nil
}

type logPrinter struct {
	LogOptions
	to    [3]io.Writer
	fresh [3]bool // the next piece begins a line
}

func (p *logPrinter) print(records *logReader) error {
	for {
		r, err := records.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if !r.Time.After(p.Since) {
			continue
		}
		data := r.Data()
		if p.Timestamps && p.fresh[r.Stream] {
			data = append(append(r.Time.AppendFormat(nil, "2006-01-02T15:04:05.000000000Z07:00"), ' '), data...)
		}
		p.fresh[r.Stream] = bytes.HasSuffix(data, []byte("\n"))
		if _, err := p.to[r.Stream].Write(data); err != nil {
			return err
		}
	}
}
