package sandbox

import (
	"errors"
	"strconv"
	"time"
)

// Warmer is a Sandbox that can begin before it knows with what.
type Warmer interface {
	// Warm prepares, in the background, for a Start that is to come soon, with
	// a Spec of this CgroupParent. id begins what stands for the Spec's ID. It is a
	// hint: where that Start does not come within a second, what has been prepared
	// is given up.
	Warm(id, cgroupParent string)
	// Close ends what has been prepared and is not used, and prepares no more.
	Close() error
}

// spare is the place of a sandbox to come. What nearly every sandbox has is mounted
// there already. It holds the host's mounts, which it would keep busy where they are
// not shared with it: so it does not wait for long.
type spare struct {
	parent string
	expiry *time.Timer
	ready  chan struct{} // closed when place is set
	place  *place        // nil: it could not be made
}

// spareLife is how long a spare place waits.
const spareLife = time.Second

// Warm implements Warmer.
func (n *Native) Warm(id, parent string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.spare != nil || n.closed || n.noStub.Load() || !stubsWork() {
		return
	}
	n.warmed++
	id += "-next-" + strconv.Itoa(n.warmed)
	sp := &spare{parent: parent, ready: make(chan struct{})}
	n.spare = sp
	sp.expiry = time.AfterFunc(spareLife, func() { _ = n.giveUp(sp) }) // what is left is swept
	go func() {
		defer close(sp.ready)
		group := n.cgroups.Unlimited(parent, id)
		pl, err := newPlace(group, true)
		if err != nil {
			_ = group.Remove() // whoever starts one finds out what is wrong
			return
		}
		sp.place = pl
	}()
}

// take is the spare place, if there is one that can be that of s.
func (n *Native) take(s Spec) *place {
	n.mu.Lock()
	sp := n.spare
	if sp == nil || s.CgroupParent != sp.parent {
		n.mu.Unlock()
		return nil
	}
	n.spare = nil
	n.mu.Unlock()
	sp.expiry.Stop()
	<-sp.ready
	return sp.place
}

// giveUp gives the spare place sp up, unless it has been taken.
func (n *Native) giveUp(sp *spare) error {
	n.mu.Lock()
	if n.spare != sp {
		n.mu.Unlock()
		return nil
	}
	n.spare = nil
	n.ending.Add(1)
	n.mu.Unlock()
	defer n.ending.Done()
	sp.expiry.Stop()
	if <-sp.ready; sp.place == nil {
		return nil
	}
	return errors.Join(sp.place.leave(), sp.place.group.Remove())
}

// Close implements Warmer.
func (n *Native) Close() error {
	n.mu.Lock()
	sp := n.spare
	n.closed = true
	n.mu.Unlock()
	var err error
	if sp != nil {
		err = n.giveUp(sp)
	}
	n.ending.Wait()
	return err
}
