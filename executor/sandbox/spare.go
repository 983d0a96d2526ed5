package sandbox

import (
	"strconv"
	"time"

	"github.com/861fb494/build/executor/sandbox/cgroup"
	"github.com/861fb494/build/executor/sandbox/child"
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

// spare is the first process of a sandbox to come. Most of the time that a sandbox
// takes to start goes by before this program's runtime has started in it and has
// read what to do, which is the same for all. It is in namespaces of its own
// already, and mounts what nearly every sandbox has. It holds the host's mounts,
// which it would keep busy where they are not shared with it: so it does not wait
// for long.
type spare struct {
	parent string
	expiry *time.Timer
	ready  chan struct{} // closed when the rest is set
	*started
	group *cgroup.Group
	err   error
}

// spareLife is how long a spare process waits.
const spareLife = time.Second

// Warm implements Warmer.
func (n *Native) Warm(id, parent string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.spare != nil || n.closed {
		return
	}
	n.warmed++
	id += "-next-" + strconv.Itoa(n.warmed)
	sp := &spare{parent: parent, ready: make(chan struct{})}
	n.spare = sp
	sp.expiry = time.AfterFunc(spareLife, func() { _ = n.giveUp(sp) }) // what is left is swept
	go func() {
		defer close(sp.ready)
		sp.group = n.cgroups.Unlimited(parent, id)
		if sp.started, sp.err = startFirst(sp.group, child.Name, 0); sp.err != nil {
			_ = sp.group.Remove() // whoever starts one finds out what is wrong
		}
	}()
}

// take is the spare process, if there is one that can run s.
func (n *Native) take(s Spec) *spare {
	n.mu.Lock()
	sp := n.spare
	if sp == nil || s.Init || s.CgroupParent != sp.parent {
		n.mu.Unlock()
		return nil
	}
	n.spare = nil
	n.mu.Unlock()
	sp.expiry.Stop()
	if <-sp.ready; sp.err != nil {
		return nil
	}
	return sp
}

// giveUp ends the spare process sp, unless it has been taken.
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
	if <-sp.ready; sp.err != nil {
		return nil
	}
	sp.end()
	return sp.group.Remove()
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
