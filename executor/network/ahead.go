package network

import (
	"context"
	"time"
)

// ahead is an endpoint for an Attach to come.
type ahead struct {
	cancel context.CancelFunc
	expiry *time.Timer
	ready  chan struct{} // closed when the rest is set
	e      *Endpoint
	err    error
}

// aheadLife is how long an endpoint waits to be asked for.
const aheadLife = time.Second

// Warm begins, in the background, what an Attach to the bridge without ports takes,
// for one that is to come soon. It is a hint: an endpoint that nobody asks for
// within a second is given up.
func (n *Networks) Warm() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ahead != nil {
		return
	}
	// Not a step's: it is for whoever comes next, and ends by giveUp.
	ctx, cancel := context.WithCancel(context.Background())
	a := &ahead{cancel: cancel, ready: make(chan struct{})}
	n.ahead = a
	n.warming.Go(func() {
		defer close(a.ready)
		a.e, a.err = n.attachBridge(ctx, nil)
	})
	a.expiry = time.AfterFunc(aheadLife, func() { n.giveUp(a) })
}

// taken is the endpoint that Warm has begun, nil if there is none.
func (n *Networks) taken(ctx context.Context) *Endpoint {
	n.mu.Lock()
	a := n.ahead
	n.ahead = nil
	n.mu.Unlock()
	if a == nil {
		return nil
	}
	defer a.cancel()
	a.expiry.Stop()
	stop := context.AfterFunc(ctx, a.cancel)
	defer stop()
	if <-a.ready; a.err != nil {
		return nil // who attaches finds out what is wrong
	}
	return a.e
}

// giveUp closes the endpoint a, unless somebody has it.
func (n *Networks) giveUp(a *ahead) {
	n.mu.Lock()
	if n.ahead != a {
		n.mu.Unlock()
		return
	}
	n.ahead = nil
	n.warming.Add(1)
	n.mu.Unlock()
	defer n.warming.Done()
	a.expiry.Stop()
	a.cancel()
	if <-a.ready; a.err == nil {
		_ = a.e.Close() // what is left the next to attach clears away
	}
}

// cool gives up what Warm has begun and is not used.
func (n *Networks) cool() {
	n.mu.Lock()
	a := n.ahead
	n.mu.Unlock()
	if a != nil {
		n.giveUp(a)
	}
	n.warming.Wait()
}
