package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// publish opens the endpoint's ports. Each is held by a socket, so that a port
// in use is noticed and nobody else can take it; what nftables does not
// translate (loopback, IPv6) comes to that socket and is passed on from there.
func (e *Endpoint) publish(ports []Port) error {
	if len(ports) == 0 {
		return nil
	}
	for _, p := range ports {
		to := netip.AddrPortFrom(e.Addr, p.Container)
		px, host, err := newProxy(p, to)
		if err != nil {
			return err
		}
		p.Host, p.Proto = host, p.proto()
		e.proxies = append(e.proxies, px)
		e.Ports = append(e.Ports, p)
	}
	// Where the kernel shows bridged frames to netfilter (br_netfilter), a frame
	// from the endpoint to its own published port leaves by where it came in.
	if err := allowHairpin(e.Addr); err != nil {
		return err
	}
	return addRules(e.networks.options.Name, e.Addr, e.Ports)
}

// proxy passes connections or datagrams on to an endpoint.
type proxy struct {
	to     netip.AddrPort
	socket io.Closer
	wg     sync.WaitGroup

	mu     sync.Mutex
	closed bool
	open   map[io.Closer]bool
}

// newProxy binds p's host port and returns which it is.
func newProxy(p Port, to netip.AddrPort) (*proxy, uint16, error) {
	host := ""
	if p.HostIP.IsValid() && !(p.HostIP.Is4() && p.HostIP.IsUnspecified()) {
		host = p.HostIP.String()
	}
	on := net.JoinHostPort(host, fmt.Sprint(p.Host))
	px := &proxy{to: to, open: map[io.Closer]bool{}}
	if p.proto() == "udp" {
		c, err := net.ListenPacket("udp", on)
		if err != nil {
			return nil, 0, inUse(p, err)
		}
		px.socket = c
		px.wg.Go(func() { px.datagrams(c.(*net.UDPConn)) })
		return px, uint16(c.LocalAddr().(*net.UDPAddr).Port), nil
	}
	l, err := net.Listen("tcp", on)
	if err != nil {
		return nil, 0, inUse(p, err)
	}
	px.socket = l
	px.wg.Go(func() { px.connections(l) })
	return px, uint16(l.Addr().(*net.TCPAddr).Port), nil
}

func inUse(p Port, err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("publish %s: port %d is already in use", p, p.Host)
	}
	return fmt.Errorf("publish %s: %w", p, err)
}

// close ends what is open and waits for it.
func (px *proxy) close() {
	px.mu.Lock()
	px.closed = true
	px.socket.Close()
	for c := range px.open {
		c.Close()
	}
	px.mu.Unlock()
	px.wg.Wait()
}

// track notes an open connection, for close; false means that px is closed.
func (px *proxy) track(c io.Closer) bool {
	px.mu.Lock()
	defer px.mu.Unlock()
	if px.closed {
		c.Close()
		return false
	}
	px.open[c] = true
	return true
}

func (px *proxy) drop(c io.Closer) {
	px.mu.Lock()
	delete(px.open, c)
	px.mu.Unlock()
	c.Close()
}

func (px *proxy) connections(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors, say: it may pass
			continue
		}
		px.wg.Go(func() { px.connection(c.(*net.TCPConn)) })
	}
}

func (px *proxy) connection(c *net.TCPConn) {
	if !px.track(c) {
		return
	}
	defer px.drop(c)
	conn, err := net.DialTimeout("tcp", px.to.String(), 30*time.Second)
	if err != nil {
		c.SetLinger(0) // the client sees a reset, not an empty answer
		return
	}
	if !px.track(conn) {
		return
	}
	defer px.drop(conn)
	back := conn.(*net.TCPConn)
	var both sync.WaitGroup
	both.Go(func() { pass(back, c) })
	both.Go(func() { pass(c, back) })
	both.Wait()
}

// pass copies until from ends, and tells to that it has.
func pass(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		// Neither side can be told of a half that broke: break both.
		to.SetLinger(0)
		to.Close()
		from.Close()
		return
	}
	to.CloseWrite()
}

// flowIdle is how long a client's port is remembered, as by the kernel
// (nf_conntrack_udp_timeout_stream is 120 s).
const flowIdle = 2 * time.Minute

// datagrams gives each client a socket of its own to the endpoint, so that
// answers find their way back.
func (px *proxy) datagrams(front *net.UDPConn) {
	var mu sync.Mutex
	flows := map[netip.AddrPort]net.Conn{}
	buf := make([]byte, 64<<10)
	for {
		n, client, err := front.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		mu.Lock()
		back := flows[client]
		mu.Unlock()
		if back == nil {
			back, err = (&net.Dialer{}).DialContext(context.Background(), "udp", px.to.String())
			if err != nil || !px.track(back) {
				continue
			}
			mu.Lock()
			flows[client] = back
			mu.Unlock()
			px.wg.Go(func() {
				answers(front, back, client)
				mu.Lock()
				delete(flows, client)
				mu.Unlock()
				px.drop(back)
			})
		}
		back.SetReadDeadline(time.Now().Add(flowIdle))
		_, _ = back.Write(buf[:n]) // that nobody listens is what UDP does not tell
	}
}

// answers passes datagrams back to a client until the flow is idle.
func answers(front *net.UDPConn, back net.Conn, client netip.AddrPort) {
	buf := make([]byte, 64<<10)
	for {
		n, err := back.Read(buf)
		if errors.Is(err, unix.ECONNREFUSED) {
			continue // nobody listens yet
		}
		if err != nil {
			return
		}
		back.SetReadDeadline(time.Now().Add(flowIdle))
		if _, err := front.WriteToUDPAddrPort(buf[:n], client); err != nil {
			return
		}
	}
}
