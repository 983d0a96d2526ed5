package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What the processes share is below stateDir/<inode of the network
// namespace>/<name of the bridge>, all of it locks of flock(2), which the
// kernel releases when a process ends, however it ends:
//
//	lock       held while anything below, or the bridge, is changed
//	users      held shared by each Networks that has attached; who gets it
//	           exclusively is the last, and removes bridge, table and this
//	10.0.0.2   one empty file an endpoint, held by it; its device and its rules
//	           carry the address, so that anyone can remove those of the dead
//
// A file is made, locked and removed only under "lock".
type state struct {
	dir     string
	options Options
	users   *os.File
}

// lease is an endpoint's right to an address.
type lease struct {
	state  *state
	file   *os.File
	addr   netip.Addr
	bridge bridge
}

// findState is the state of a network, which need not be there.
func findState(stateDir string, o Options) (*state, error) {
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		return nil, fmt.Errorf("look up the network namespace: %w", err)
	}
	return &state{
		dir:     filepath.Join(stateDir, strconv.FormatUint(ns.Ino, 10), o.Name),
		options: o,
	}, nil
}

func openState(ctx context.Context, stateDir string, o Options) (*state, error) {
	s, err := findState(stateDir, o)
	if err != nil {
		return nil, err
	}
	// Only root may hold locks here: nobody else can keep it waiting.
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if s.users, err = openLocked(s.path("users"), unix.LOCK_SH); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *state) path(name string) string { return filepath.Join(s.dir, name) }

// lock waits for the lock that guards all the rest.
func (s *state) lock(ctx context.Context) (unlock func(), err error) {
	// The holders need a millisecond or two each; flock(2) could wait by
	// itself, but not for ctx.
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 5*time.Millisecond) {
		f, err := openLocked(s.path("lock"), unix.LOCK_EX)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %s: %w", s.path("lock"), ctx.Err())
		case <-time.After(wait):
		}
	}
}

// openLocked opens or makes a file and locks it, or fails with EWOULDBLOCK.
func openLocked(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// acquire takes a free address. Bridge and table are there when it returns, and
// stay until the lease and the state are closed.
func (s *state) acquire(ctx context.Context) (*lease, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	live, err := s.sweep()
	if err != nil {
		return nil, err
	}
	br, err := ensureBridge(s.options, len(live) > 0)
	if err != nil {
		return nil, err
	}
	addr, ok := freeAddr(br.addr, live)
	if !ok {
		return nil, fmt.Errorf("no free address in %s: %d endpoints are in use", br.addr.Masked(), len(live))
	}
	f, err := openLocked(s.path(addr.String()), unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return &lease{state: s, file: f, addr: addr, bridge: br}, nil
}

// release gives the address back. The device goes with the endpoint's namespace,
// a little later and together with others': to wait for it takes some 30 ms.
func (l *lease) release(rules bool) error {
	unlock, err := l.state.lock(context.Background())
	if err != nil {
		return err
	}
	defer unlock()
	if rules {
		err = removeRules(l.state.options.Name, func(a netip.Addr) bool { return a == l.addr })
	}
	err = errors.Join(err, os.Remove(l.file.Name()))
	l.file.Close()
	return err
}

// sweep removes what dead processes left and returns the addresses in use.
// The caller holds the lock.
func (s *state) sweep() (map[netip.Addr]bool, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	live := map[netip.Addr]bool{}
	var dead []*os.File
	defer func() {
		for _, f := range dead {
			f.Close()
		}
	}()
	for _, e := range entries {
		addr, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue // lock, users
		}
		f, err := openLocked(s.path(e.Name()), unix.LOCK_EX)
		switch {
		case errors.Is(err, unix.EWOULDBLOCK):
			live[addr] = true
		case err != nil:
			return nil, err
		default:
			dead = append(dead, f)
			if err := removeDevice(addr); err != nil {
				return nil, err
			}
		}
	}
	if len(dead) == 0 {
		return live, nil
	}
	if err := removeRules(s.options.Name, func(a netip.Addr) bool { return !live[a] }); err != nil {
		return nil, err
	}
	for _, f := range dead {
		if err := os.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return live, nil
}

// close removes bridge and table if nobody else uses them.
func (s *state) close() error {
	unlock, err := s.lock(context.Background())
	if err != nil {
		return err
	}
	defer unlock()
	s.users.Close()
	last, err := openLocked(s.path("users"), unix.LOCK_EX)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer last.Close()
	if _, err := s.sweep(); err != nil {
		return err
	}
	var table error
	var wg sync.WaitGroup
	wg.Go(func() { table = errors.Join(removeTable(s.options.Name), closeFirewall(s.options.Name)) }) // waits on the kernel, as does the other
	err = removeBridge(s.options.Name)
	wg.Wait()
	if err = errors.Join(table, err); err == nil {
		err = os.Remove(last.Name())
	}
	return err
}

// freeAddr is an address of the bridge's subnet that is not in use: not always
// the same one, so that packets still under way to an endpoint that has ended
// do not meet the next.
func freeAddr(bridge netip.Prefix, used map[netip.Addr]bool) (netip.Addr, bool) {
	size := 1 << (32 - bridge.Bits())
	// Without the network's and the broadcast address.
	start := rand.IntN(size - 2)
	for i := range size - 2 {
		addr := nth(bridge.Masked().Addr(), 1+(start+i)%(size-2))
		if addr != bridge.Addr() && !used[addr] {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// nth is the n-th address after base, IPv4.
func nth(base netip.Addr, n int) netip.Addr {
	b := base.As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += uint32(n)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}
