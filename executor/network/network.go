// Package network gives steps and containers their networks.
//
// A bridge network is a network namespace of its own, joined by a veth pair to
// a Linux bridge, with its outbound traffic masqueraded by nftables. Many
// processes share one bridge and no daemon looks after it: whoever comes first
// makes it, whoever leaves last removes it, and what killed processes leave
// behind the next one to attach clears away. See lease.go for how.
package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"sync"
)

// Modes of Attach. "" and "default" are Bridge too.
const (
	Bridge = "bridge"
	Host   = "host"
	None   = "none"
)

// DefaultStateDir is where leases are kept unless New is told otherwise. It is
// gone after a reboot, as the devices are.
const DefaultStateDir = "/run/build/network"

// Options of New. The zero value works.
type Options struct {
	// Name is the bridge's and the nftables table's; "" is "build0". Of at most
	// 15 bytes.
	Name string
	// Subnet is the bridge's, IPv4, of /29 or wider; its first address is the
	// bridge. The zero value chooses one that no route of the host overlaps.
	Subnet netip.Prefix
}

// Networks makes endpoints. It is safe for concurrent use.
type Networks struct {
	stateDir string
	options  Options

	mu    sync.Mutex
	state *state // nil until the first bridge endpoint
	ahead *ahead // nil: none

	warming sync.WaitGroup // what of ahead goes on in the background
}

// New returns the networks that the processes with the same stateDir share; ""
// is DefaultStateDir. All processes that use a bridge of one name in one
// network namespace must be given the same. Nothing is done until Attach.
func New(stateDir string, o Options) *Networks {
	if stateDir == "" {
		stateDir = DefaultStateDir
	}
	if o.Name == "" {
		o.Name = "build0"
	}
	return &Networks{stateDir: stateDir, options: o}
}

// Endpoint is one step's or container's place in a network.
type Endpoint struct {
	// NetNS is what sandbox.Spec.NetNS takes: "host", "" for a new namespace
	// with nothing but its loopback, or a path below /proc that is valid until
	// Close, in every process that sees this one.
	NetNS string
	// Addr and Gateway are zero except on a bridge.
	Addr    netip.Addr
	Gateway netip.Addr
	// Ports are the published ports, with the host ports that were chosen for
	// those that asked for any.
	Ports []Port

	networks *Networks
	lease    *lease
	ns       *os.File
	proxies  []*proxy
	close    sync.Once
	err      error
}

// Attach makes an endpoint. The caller closes it once the processes in it have
// ended. Ports can be published on a bridge only.
//
// Where the rights for a bridge are missing the error is an fs.ErrPermission.
func (n *Networks) Attach(ctx context.Context, mode string, ports []Port) (*Endpoint, error) {
	switch mode {
	case None, Host:
		if len(ports) > 0 {
			return nil, fmt.Errorf("network %q cannot publish ports: use --network bridge", mode)
		}
		if mode == Host {
			return &Endpoint{NetNS: Host}, nil
		}
		return &Endpoint{}, nil
	case Bridge, "", "default":
	default:
		return nil, fmt.Errorf("unknown network %q: want bridge, host or none", mode)
	}
	if len(ports) == 0 {
		if e := n.taken(ctx); e != nil {
			return e, nil
		}
	}
	e, err := n.attachBridge(ctx, ports)
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w (a bridge network needs root, or CAP_NET_ADMIN and CAP_SYS_ADMIN: use --network host or none without)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("attach to network %s: %w", n.options.Name, err)
	}
	return e, nil
}

func (n *Networks) attachBridge(ctx context.Context, ports []Port) (_ *Endpoint, err error) {
	st, err := n.open(ctx)
	if err != nil {
		return nil, err
	}
	e := &Endpoint{networks: n}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	if e.lease, err = st.acquire(ctx); err != nil {
		return nil, err
	}
	e.Addr, e.Gateway = e.lease.addr, e.lease.bridge.addr.Addr()
	if e.ns, err = newNetNS(); err != nil {
		return nil, err
	}
	e.NetNS = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), e.ns.Fd())
	if err := connect(e.lease, e.ns); err != nil {
		return nil, err
	}
	if err := e.publish(ports); err != nil {
		return nil, err
	}
	return e, nil
}

func (n *Networks) open(ctx context.Context) (*state, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.state == nil {
		s, err := openState(ctx, n.stateDir, n.options)
		if err != nil {
			return nil, err
		}
		n.state = s
	}
	return n.state, nil
}

// Close removes bridge and rules if no other process uses them. It comes after
// the Close of all endpoints, and after it n can be used again.
func (n *Networks) Close() error {
	n.cool()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.state == nil {
		return nil
	}
	err := n.state.close()
	n.state = nil
	if err != nil {
		return fmt.Errorf("leave network %s: %w", n.options.Name, err)
	}
	return nil
}

// Sweep is Close for a network whose last user was killed. It is quick where
// there is none, and does nothing where somebody uses the network.
func (n *Networks) Sweep(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.state != nil {
		return nil
	}
	s, err := findState(n.stateDir, n.options)
	if err == nil {
		if _, err := os.Lstat(s.path("users")); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		s, err = openState(ctx, n.stateDir, n.options)
	}
	if err == nil {
		err = s.close()
	}
	if err != nil {
		return fmt.Errorf("clear away network %s: %w", n.options.Name, err)
	}
	return nil
}

// Close removes the endpoint. Calls after the first return what it returned.
func (e *Endpoint) Close() error {
	e.close.Do(func() {
		for _, p := range e.proxies {
			p.close()
		}
		var errs []error
		if e.ns != nil {
			errs = append(errs, e.ns.Close())
		}
		if e.lease != nil {
			errs = append(errs, e.lease.release(len(e.Ports) > 0))
		}
		for _, p := range e.Ports {
			if p.Proto == "udp" {
				errs = append(errs, forgetFlows(e.Addr))
				break
			}
		}
		if err := errors.Join(errs...); err != nil {
			e.err = fmt.Errorf("leave network %s: %w", e.networks.options.Name, err)
		}
	})
	return e.err
}
