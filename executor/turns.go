package executor

import (
	"context"
	"slices"
	"sync"
)

// turns are for work that keeps a processor busy: no more of it at once than there
// are processors ends none of it later, and the first of it sooner.
type turns struct {
	mu      sync.Mutex
	free    int
	waiting []*waiter
}

type waiter struct {
	order int
	turn  chan struct{} // closed when it has its turn
}

// take waits for a turn, to be given back. Of those who wait, that of the lowest
// order is next.
func (t *turns) take(ctx context.Context, order int) error {
	t.mu.Lock()
	if t.free > 0 {
		t.free--
		t.mu.Unlock()
		return nil
	}
	w := &waiter{order, make(chan struct{})}
	t.waiting = append(t.waiting, w)
	t.mu.Unlock()
	select {
	case <-w.turn:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	i := slices.Index(t.waiting, w)
	if i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
	}
	t.mu.Unlock()
	if i < 0 {
		t.give() // it had come
	}
	return context.Cause(ctx)
}

func (t *turns) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		t.free++
		return
	}
	first := 0
	for i, w := range t.waiting {
		if w.order < t.waiting[first].order {
			first = i
		}
	}
	close(t.waiting[first].turn)
	t.waiting = slices.Delete(t.waiting, first, first+1)
}
