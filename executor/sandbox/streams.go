package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"sync"
	"time"
)

// drainTime is how long output is waited for after a process has ended. What it
// wrote is in the pipe by then; what holds the pipe open any longer is not the
// process's.
const drainTime = 2 * time.Second

// streams connects a process's standard streams to a Spec's.
type streams struct {
	child [3]*os.File // what the child inherits
	close []*os.File  // of those, the ones that are ours to close

	stdin  io.Reader // copied to input, if not nil
	input  *os.File
	copies []outputCopy
	master *os.File // terminal
	spec   *Spec

	wait sync.WaitGroup // for the copiers of output
	mu   sync.Mutex
	errs []error
}

type outputCopy struct {
	from *os.File
	to   io.Writer
}

func newStreams(s Spec) (*streams, error) {
	st := &streams{spec: &s}
	err := st.open(s)
	if err != nil {
		st.closeChild()
		st.abort()
		return nil, err
	}
	return st, nil
}

func (st *streams) open(s Spec) (err error) {
	if s.Terminal {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		st.close = append(st.close, null)
		st.child = [3]*os.File{null, null, null}
		return nil
	}
	if st.child[0], err = st.openInput(s.Stdin); err != nil {
		return err
	}
	if st.child[1], err = st.openOutput(s.Stdout); err != nil {
		return err
	}
	// One pipe for both where they are the same, so that their order is kept
	// and the writer sees no concurrent calls.
	if s.Stdout != nil && sameWriter(s.Stdout, s.Stderr) {
		st.child[2] = st.child[1]
		return nil
	}
	st.child[2], err = st.openOutput(s.Stderr)
	return err
}

func sameWriter(a, b io.Writer) bool {
	return reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.TypeOf(a).Comparable() && a == b
}

func (st *streams) openInput(r io.Reader) (*os.File, error) {
	if f, ok := r.(*os.File); ok && f != nil {
		return f, nil
	}
	if r == nil {
		return st.null(os.O_RDONLY)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	st.close = append(st.close, pr)
	st.stdin, st.input = r, pw
	return pr, nil
}

func (st *streams) openOutput(w io.Writer) (*os.File, error) {
	if f, ok := w.(*os.File); ok && f != nil {
		return f, nil
	}
	if w == nil {
		return st.null(os.O_WRONLY)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	st.close = append(st.close, pw)
	st.copies = append(st.copies, outputCopy{from: pr, to: w})
	return pw, nil
}

func (st *streams) null(flag int) (*os.File, error) {
	f, err := os.OpenFile(os.DevNull, flag, 0)
	if err == nil {
		st.close = append(st.close, f)
	}
	return f, err
}

// closeChild closes what only the child needs.
func (st *streams) closeChild() {
	for _, f := range st.close {
		f.Close()
	}
	st.close = nil
}

// abort closes everything, where there is no process.
func (st *streams) abort() {
	for _, c := range st.copies {
		c.from.Close()
	}
	if st.input != nil {
		st.input.Close()
	}
}

// start starts copying. master is the terminal's, or nil.
func (st *streams) start(master *os.File) {
	if master != nil {
		st.master = master
		if st.spec.Stdout != nil {
			st.copies = append(st.copies, outputCopy{from: master, to: st.spec.Stdout})
		} else {
			st.copies = append(st.copies, outputCopy{from: master, to: io.Discard})
		}
		st.stdin, st.input = st.spec.Stdin, master
	}
	for _, c := range st.copies {
		st.wait.Go(func() { st.copyOutput(c) })
	}
	if st.stdin != nil {
		// Nobody waits for it: it may be in a Read that never returns. It ends
		// at the latest when it has something for a process that is gone.
		go func() {
			_, _ = io.Copy(st.input, st.stdin) // a process need not read its input
			if st.master == nil {
				st.input.Close()
			}
		}()
	}
}

// copyOutput copies until the last writer has closed its end. A reader that
// fails must not stop the process: the rest is thrown away then, and Wait
// reports the error.
func (st *streams) copyOutput(c outputCopy) {
	buf := make([]byte, 32<<10)
	to := c.to
	for {
		n, err := c.from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil && to != io.Discard {
				to = io.Discard
				st.fail(fmt.Errorf("write output: %w", werr))
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && n > 0 {
			c.from.SetReadDeadline(time.Now().Add(drainTime))
			continue
		}
		// A terminal ends with EIO, when its last slave is closed.
		if err != nil {
			return
		}
		if st.ended() {
			// As long as there is something, it is read.
			c.from.SetReadDeadline(time.Now().Add(drainTime))
		}
	}
}

func (st *streams) fail(err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.errs = append(st.errs, err)
}

func (st *streams) ended() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.spec == nil
}

// finish waits, after the process has ended, for its output to be written.
func (st *streams) finish() error {
	st.mu.Lock()
	st.spec = nil
	st.mu.Unlock()
	for _, c := range st.copies {
		c.from.SetReadDeadline(time.Now().Add(drainTime))
	}
	st.wait.Wait()
	st.abort()
	return errors.Join(st.errs...)
}
