package display

import (
	"io"
	"sync"
)

// queueLimit is how many bytes may wait for a slow reader before writers wait too.
const queueLimit = 16 << 20

// queue is a writer in front of a slower one: a build does not wait for the
// terminal, unless it is far ahead of it.
type queue struct {
	w      io.Writer
	broken func(error) // see Options; may be nil
	done   chan struct{}

	mu     sync.Mutex
	change *sync.Cond
	data   []byte
	closed bool
	err    error // the first; what comes after it is dropped
}

func newQueue(w io.Writer, broken func(error)) *queue {
	q := &queue{w: w, broken: broken, done: make(chan struct{})}
	q.change = sync.NewCond(&q.mu)
	go q.drain()
	return q
}

// Write never fails: Close tells.
func (q *queue) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.data) > queueLimit && q.err == nil {
		q.change.Wait()
	}
	if q.err == nil {
		q.data = append(q.data, p...)
		q.change.Broadcast()
	}
	return len(p), nil
}

func (q *queue) drain() {
	defer close(q.done)
	var p []byte
	for {
		q.mu.Lock()
		for len(q.data) == 0 && !q.closed {
			q.change.Wait()
		}
		if len(q.data) == 0 {
			q.mu.Unlock()
			return
		}
		p, q.data = q.data, p[:0]
		q.change.Broadcast()
		q.mu.Unlock()

		if _, err := q.w.Write(p); err != nil {
			q.mu.Lock()
			first := q.err == nil
			if first {
				q.err = err
			}
			q.data = nil
			q.change.Broadcast()
			q.mu.Unlock()
			if first && q.broken != nil {
				q.broken(err)
			}
		}
	}
}

// Close waits until all is written. Write must not be called any more.
func (q *queue) Close() error {
	q.mu.Lock()
	q.closed = true
	q.change.Broadcast()
	q.mu.Unlock()
	<-q.done
	return q.err
}
