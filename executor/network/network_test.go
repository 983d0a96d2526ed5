package network

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The tests run in a network namespace of their own, the "host", whose only
// way out leads to another, the "server": no packet leaves the two.
const (
	hostAddr   = "203.0.113.1"
	serverAddr = "203.0.113.2"
)

var serverNS *os.File

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	switch os.Getenv("NETWORK_TEST") {
	case "":
		if os.Geteuid() != 0 {
			break
		}
		// Once more, as the same program in a fresh namespace.
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), "NETWORK_TEST=host")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	case "host":
		if err := makeWorld(); err != nil {
			fmt.Fprintln(os.Stderr, "make the test's networks:", err)
			return 1
		}
	case "attach":
		return attachHelper()
	}
	return m.Run()
}

func makeWorld() (err error) {
	if err := raiseLoopback(); err != nil {
		return err
	}
	if serverNS, err = newNetNS(); err != nil {
		return err
	}
	wan := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "wan0", MTU: 1400, Flags: net.FlagUp, TxQLen: -1},
		PeerName:  "eth0", PeerNamespace: netlink.NsFd(serverNS.Fd()), PeerTxQLen: -1,
	}
	if err := netlink.LinkAdd(wan); err != nil {
		return err
	}
	addr := func(link netlink.Link, a string) error {
		p := netip.PrefixFrom(netip.MustParseAddr(a), 24)
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p)})
	}
	if err := addr(wan, hostAddr); err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(serverAddr)}); err != nil {
		return err
	}
	return inNetNS(serverNS, func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := addr(eth0, serverAddr); err != nil {
			return err
		}
		return netlink.LinkSetUp(eth0)
	})
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root, to make network namespaces")
	}
}

// attachHelper is another process with an endpoint: it prints the address and
// keeps the endpoint until its input ends.
func attachHelper() int {
	ctx := context.Background()
	n := New(os.Args[1], Options{})
	var ports []Port
	if len(os.Args) > 2 {
		var err error
		if ports, err = ParsePorts(os.Args[2]); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	e, err := n.Attach(ctx, Bridge, ports)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(e.Addr)
	io.Copy(io.Discard, os.Stdin)
	if err := e.Close(); err != nil {
		fmt.Println(err)
		return 1
	}
	if err := n.Close(); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

type helper struct {
	cmd   *exec.Cmd
	stdin io.Closer
	line  string // what it printed first
}

func startHelper(t *testing.T, args ...string) *helper {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "NETWORK_TEST=attach")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the helper printed nothing: %v", err)
	}
	return &helper{cmd: cmd, stdin: in, line: strings.TrimSpace(line)}
}

func attach(t testing.TB, n *Networks, ports ...string) *Endpoint {
	t.Helper()
	var ps []Port
	for _, s := range ports {
		more, err := ParsePorts(s)
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, more...)
	}
	e, err := n.Attach(context.Background(), Bridge, ps)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// networks are closed at the test's end, and must then have left nothing.
func networks(t testing.TB, dir string, o Options) *Networks {
	t.Helper()
	needRoot(t)
	n := New(dir, o)
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if left := devices(t); len(left) > 0 {
			t.Errorf("devices left: %v", left)
		}
		if there, err := tableExists("build0"); there || err != nil {
			t.Errorf("tableExists after Close = %v, %v, want false", there, err)
		}
	})
	return n
}

// devices is the names of the host's devices that are not the test's own.
func devices(t testing.TB) (names []string) {
	t.Helper()
	links, err := dump(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		name := l.Attrs().Name
		if l.Type() == "bridge" || strings.HasPrefix(name, "bld") {
			names = append(names, name)
		}
	}
	return names
}

// serve answers each connection in a namespace (nil: the host's) with the
// client's address.
func serve(t *testing.T, ns *os.File, on string) {
	t.Helper()
	var l net.Listener
	listen := func() (err error) {
		l, err = net.Listen("tcp", on)
		return err
	}
	err := listen
	if ns != nil {
		err = func() error { return inNetNS(ns, listen) }
	}
	if err := err(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			io.WriteString(c, host)
			c.Close()
		}
	}()
}

// ask connects from a namespace (nil: the host's) and returns the answer.
func ask(ns *os.File, to string) (string, error) {
	var c net.Conn
	dial := func() (err error) {
		c, err = net.DialTimeout("tcp", to, time.Second)
		return err
	}
	var err error
	if ns == nil {
		err = dial()
	} else {
		err = inNetNS(ns, dial)
	}
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestOutbound(t *testing.T) {
	n := networks(t, t.TempDir(), Options{})
	serve(t, serverNS, serverAddr+":80")
	e := attach(t, n)
	got, err := ask(e.ns, serverAddr+":80")
	if err != nil || got != hostAddr {
		t.Errorf("the server saw %q, %v, want a client at %q", got, err, hostAddr)
	}
	if fi, err := os.Stat(e.NetNS); err != nil {
		t.Errorf("Stat(%q) = %v", e.NetNS, err)
	} else if own, err := e.ns.Stat(); err != nil || !os.SameFile(fi, own) {
		t.Errorf("%s is not the endpoint's namespace", e.NetNS)
	}
	link, err := netlink.LinkByName("build0")
	if err != nil || link.Attrs().MTU != 1400 {
		t.Errorf("MTU of build0 = %d, %v, want the uplink's 1400", link.Attrs().MTU, err)
	}
	// Steps see each other, and the host's services at the gateway.
	other := attach(t, n)
	serve(t, other.ns, ":80")
	if got, err := ask(e.ns, other.Addr.String()+":80"); err != nil || got != e.Addr.String() {
		t.Errorf("from step to step: %q, %v, want %q", got, err, e.Addr)
	}
	serve(t, nil, e.Gateway.String()+":8081")
	if got, err := ask(e.ns, e.Gateway.String()+":8081"); err != nil || got != e.Addr.String() {
		t.Errorf("from step to gateway: %q, %v, want %q", got, err, e.Addr)
	}
}

func TestModes(t *testing.T) {
	n := New(t.TempDir(), Options{})
	tests := []struct {
		mode  string
		ports []Port
		netNS string
		err   string
	}{
		{"host", nil, "host", ""},
		{"none", nil, "", ""},
		{"host", []Port{{Host: 80, Container: 80}}, "", "cannot publish ports"},
		{"none", []Port{{Host: 80, Container: 80}}, "", "cannot publish ports"},
		{"backend", nil, "", `unknown network "backend"`},
	}
	for _, tt := range tests {
		e, err := n.Attach(context.Background(), tt.mode, tt.ports)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Attach(%q, %v) = %v, want %q", tt.mode, tt.ports, err, tt.err)
			}
			continue
		}
		if err != nil || e.NetNS != tt.netNS {
			t.Errorf("Attach(%q).NetNS = %q, %v, want %q", tt.mode, e.NetNS, err, tt.netNS)
		} else if err := e.Close(); err != nil {
			t.Errorf("Close of %q = %v", tt.mode, err)
		}
	}
}

func TestClosedToNeighbours(t *testing.T) {
	n := networks(t, t.TempDir(), Options{Subnet: netip.MustParsePrefix("10.99.0.0/24")})
	e := attach(t, n, "8080:80")
	serve(t, e.ns, ":80")
	serve(t, e.ns, ":81")
	route := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.99.0.0/24")), Gw: net.ParseIP(hostAddr)}
	if err := inNetNS(serverNS, func() error { return netlink.RouteAdd(route) }); err != nil {
		t.Fatal(err)
	}
	defer inNetNS(serverNS, func() error { return netlink.RouteDel(route) })
	if got, err := ask(serverNS, hostAddr+":8080"); err != nil {
		t.Errorf("published port: %q, %v", got, err)
	}
	if got, err := ask(serverNS, e.Addr.String()+":81"); err == nil {
		t.Errorf("a neighbour reached a port that is not published: %q", got)
	}
}

func TestSmallSubnet(t *testing.T) {
	n := networks(t, t.TempDir(), Options{Subnet: netip.MustParsePrefix("10.98.0.0/29")})
	var last *Endpoint
	for range 5 {
		last = attach(t, n)
	}
	_, err := n.Attach(context.Background(), Bridge, nil)
	if err == nil || !strings.Contains(err.Error(), "no free address in 10.98.0.0/29") {
		t.Errorf("sixth Attach = %v, want no free address", err)
	}
	if err := last.Close(); err != nil {
		t.Fatal(err)
	}
	if e := attach(t, n); e.Addr != last.Addr {
		t.Errorf("Attach after a Close = %v, want the freed %v", e.Addr, last.Addr)
	}
}

func TestTwoProcesses(t *testing.T) {
	dir := t.TempDir()
	n := networks(t, dir, Options{})
	serve(t, serverNS, serverAddr+":80")
	h := startHelper(t, dir)
	e := attach(t, n)
	if h.line == e.Addr.String() {
		t.Errorf("both processes have %s", h.line)
	}
	// Whoever leaves first takes nothing away from the other.
	h.stdin.Close()
	if err := h.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(e.ns, serverAddr+":80"); err != nil {
		t.Errorf("after the other has left: %v", err)
	}
	second := startHelper(t, dir)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	left := fmt.Sprint(devices(t))
	if !strings.Contains(left, "build0") || !strings.Contains(left, deviceName(netip.MustParseAddr(second.line))) {
		t.Errorf("devices while the other is attached: %v, want its bridge and veth", left)
	}
	second.stdin.Close()
	if err := second.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestKilled(t *testing.T) {
	dir := t.TempDir()
	n := networks(t, dir, Options{})
	h := startHelper(t, dir, "8082:80")
	dead, err := netip.ParseAddr(h.line)
	if err != nil {
		t.Fatal(h.line)
	}
	h.cmd.Process.Kill()
	h.cmd.Wait()

	e := attach(t, n, "8082:80") // the port is free again
	serve(t, e.ns, ":80")
	if got, err := ask(serverNS, hostAddr+":8082"); err != nil || got != serverAddr {
		t.Errorf("the port of the dead: %q, %v, want an answer from the new owner", got, err)
	}
	if dead != e.Addr {
		if _, err := netlink.LinkByName(deviceName(dead)); err == nil {
			t.Errorf("%s of the killed process is still there", deviceName(dead))
		}
		if _, err := os.Stat(filepath.Join(e.lease.state.dir, dead.String())); err == nil {
			t.Errorf("the lease of the killed process is still there")
		}
	}
}

// What the last user of a network leaves, if it is killed, goes without anybody
// attaching again; what is in use stays.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	n := New(dir, Options{})
	if err := n.Sweep(t.Context()); err != nil {
		t.Fatalf("Sweep of nothing = %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("Sweep of nothing makes %v", left)
	}
	there := func() bool {
		_, err := netlink.LinkByName("build0")
		return err == nil
	}
	h := startHelper(t, dir, "8082:80")
	if err := n.Sweep(t.Context()); err != nil || !there() {
		t.Errorf("Sweep of a network in use = %v; the bridge is there: %v, want true", err, there())
	}
	h.cmd.Process.Kill()
	h.cmd.Wait()
	if err := n.Sweep(t.Context()); err != nil || there() {
		t.Errorf("Sweep = %v; the bridge is there: %v, want false", err, there())
	}
}

func TestFlushedFirewall(t *testing.T) {
	n := networks(t, t.TempDir(), Options{})
	serve(t, serverNS, serverAddr+":80")
	attach(t, n)
	if err := removeTable("build0"); err != nil {
		t.Fatal(err)
	}
	e := attach(t, n)
	if _, err := ask(e.ns, serverAddr+":80"); err != nil {
		t.Errorf("after the table was removed: %v", err)
	}
}

func TestHalfMadeBridge(t *testing.T) {
	n := networks(t, t.TempDir(), Options{})
	half := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "build0", HardwareAddr: ourMAC, TxQLen: -1}}
	if err := netlink.LinkAdd(half); err != nil {
		t.Fatal(err)
	}
	serve(t, serverNS, serverAddr+":80")
	e := attach(t, n)
	if _, err := ask(e.ns, serverAddr+":80"); err != nil {
		t.Error(err)
	}
}

func TestForeignDevice(t *testing.T) {
	needRoot(t)
	foreign := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "build0", TxQLen: -1}}
	if err := netlink.LinkAdd(foreign); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(foreign)
	n := New(t.TempDir(), Options{})
	_, err := n.Attach(context.Background(), Bridge, nil)
	if err == nil || !strings.Contains(err.Error(), "not a bridge of ours") {
		t.Errorf("Attach = %v, want a refusal to use another's device", err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName("build0"); err != nil {
		t.Errorf("another's device was removed: %v", err)
	}
}

func TestUnprivileged(t *testing.T) {
	needRoot(t)
	// A directory that another user can enter: t.TempDir's parents may not be.
	dir, err := os.MkdirTemp("", "network")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "network.test")
	if b, err := os.ReadFile("/proc/self/exe"); err != nil {
		t.Fatal(err)
	} else if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{filepath.Join(dir, "mine"), "/proc/1/not-mine"} {
		cmd := exec.Command(exe, state)
		cmd.Env = append(os.Environ(), "NETWORK_TEST=attach")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--network host") && !strings.Contains(string(out), "no such file") {
			t.Errorf("Attach as nobody in %s: %v, %s, want a hint at --network host", state, err, out)
		}
	}
}

func TestCancelled(t *testing.T) {
	n := networks(t, t.TempDir(), Options{})
	e := attach(t, n)
	unlock, err := e.lease.state.lock(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := n.Attach(ctx, Bridge, nil); err == nil || ctx.Err() == nil {
		t.Errorf("Attach while another holds the lock = %v, want the context's error", err)
	}
	unlock()
}

func TestThreadsStayHome(t *testing.T) {
	n := networks(t, t.TempDir(), Options{})
	for range 5 {
		attach(t, n)
	}
	var home unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &home); err != nil {
		t.Fatal(err)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		var st unix.Stat_t
		if err := unix.Stat("/proc/self/task/"+task.Name()+"/ns/net", &st); err == nil && st.Ino != home.Ino {
			t.Errorf("thread %s is in network namespace %d, want %d", task.Name(), st.Ino, home.Ino)
		}
	}
}

func BenchmarkAttach(b *testing.B) {
	n := networks(b, b.TempDir(), Options{})
	ctx := context.Background()
	keep, err := n.Attach(ctx, Bridge, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer keep.Close()
	var closing time.Duration
	for b.Loop() {
		e, err := n.Attach(ctx, Bridge, nil)
		if err != nil {
			b.Fatal(err)
		}
		at := time.Now()
		if err := e.Close(); err != nil {
			b.Fatal(err)
		}
		closing += time.Since(at)
	}
	b.ReportMetric(float64(closing.Microseconds())/float64(b.N), "µs-close/op")
}

// BenchmarkAlone is a whole use: bridge and table made and removed again.
func BenchmarkAlone(b *testing.B) {
	n := networks(b, b.TempDir(), Options{})
	var attaching time.Duration
	for b.Loop() {
		at := time.Now()
		e, err := n.Attach(context.Background(), Bridge, nil)
		if err != nil {
			b.Fatal(err)
		}
		attaching += time.Since(at)
		if err := e.Close(); err != nil {
			b.Fatal(err)
		}
		if err := n.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(attaching.Microseconds())/float64(b.N), "µs-attach/op")
}
