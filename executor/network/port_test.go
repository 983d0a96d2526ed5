package network

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

func TestParsePorts(t *testing.T) {
	tests := []struct {
		in   string
		want string // as printed, or the error
	}{
		{"8080:80", "[0.0.0.0:8080->80/tcp]"},
		{"80", "[0.0.0.0:0->80/tcp]"},
		{"80/udp", "[0.0.0.0:0->80/udp]"},
		{"127.0.0.1:53:5353/UDP", "[127.0.0.1:53->5353/udp]"},
		{"127.0.0.1::80", "[127.0.0.1:0->80/tcp]"},
		{"[::1]:8080:80", "[[::1]:8080->80/tcp]"},
		{"7000-7002:80-82", "[0.0.0.0:7000->80/tcp 0.0.0.0:7001->81/tcp 0.0.0.0:7002->82/tcp]"},
		{"65535:65535", "[0.0.0.0:65535->65535/tcp]"},
		{"7000-7002:80-81", "the ranges differ in length"},
		{"82-80", `range "82-80" goes down`},
		{"", `"" is no port`},
		{"127.0.0.1:0:80", "[127.0.0.1:0->80/tcp]"},
		{"8080:0", `"0" is no port`},
		{"65536:80", `"65536" is no port`},
		{"8080:", `"" is no port`},
		{"80/sctp", `protocol "sctp" is not supported`},
		{"localhost:80:80", `"localhost" is no IP address`},
		{"::1:80:80", `"::1" is no IP address`},
		{"[127.0.0.1]:80:80", `"[127.0.0.1]" is no IP address`},
	}
	for _, tt := range tests {
		ports, err := ParsePorts(tt.in)
		got := fmt.Sprint(ports)
		if err != nil {
			got = err.Error()
		}
		if got != tt.want && !(err != nil && strings.Contains(got, tt.want)) {
			t.Errorf("ParsePorts(%q) = %s, want %s", tt.in, got, tt.want)
		}
	}
}

func TestPublish(t *testing.T) {
	n := networks(t, t.TempDir(), Options{})
	e := attach(t, n, "8080:80", "127.0.0.1:8081:80", "80")
	serve(t, e.ns, ":80")
	client := attach(t, n)
	gateway := e.Gateway.String()
	chosen := fmt.Sprint(e.Ports[2].Host)
	tests := []struct {
		name string
		from *os.File
		to   string
		want string // the client as the container sees it; "" for no answer
	}{
		{"loopback", nil, "127.0.0.1:8080", gateway},
		{"loopback IPv6", nil, "[::1]:8080", gateway},
		{"own address", nil, hostAddr + ":8080", hostAddr},
		{"from outside", serverNS, hostAddr + ":8080", serverAddr},
		{"another container", client.ns, hostAddr + ":8080", gateway},
		{"another container, by gateway", client.ns, gateway + ":8080", gateway},
		{"itself", e.ns, hostAddr + ":8080", gateway},
		{"loopback only", nil, "127.0.0.1:8081", gateway},
		{"loopback only, from outside", serverNS, hostAddr + ":8081", ""},
		{"chosen port", serverNS, hostAddr + ":" + chosen, serverAddr},
	}
	for _, tt := range tests {
		got, err := ask(tt.from, tt.to)
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("%s: the client of %s was %q, %v, want %q", tt.name, tt.to, got, err, tt.want)
		}
	}

	_, err := n.Attach(context.Background(), Bridge, []Port{{Host: 8080, Container: 1}})
	if err == nil || !strings.Contains(err.Error(), "port 8080 is already in use") {
		t.Errorf("Attach with a port in use = %v", err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		if got, err := ask(tt.from, tt.to); err == nil {
			t.Errorf("%s after Close: %s answered %q", tt.name, tt.to, got)
		}
	}
	if e := attach(t, n, "8080:80"); len(e.Ports) != 1 {
		t.Errorf("Ports = %v, want one", e.Ports)
	}
}

func TestPublishOneAddress(t *testing.T) {
	n := networks(t, t.TempDir(), Options{})
	e := attach(t, n, hostAddr+":8080:80")
	serve(t, e.ns, ":80")
	if got, err := ask(serverNS, hostAddr+":8080"); err != nil || got != serverAddr {
		t.Errorf("at its address: %q, %v, want %q", got, err, serverAddr)
	}
	if got, err := ask(nil, "127.0.0.1:8080"); err == nil {
		t.Errorf("at another address: %q, want no answer", got)
	}
}

func TestPublishUDP(t *testing.T) {
	n := networks(t, t.TempDir(), Options{})
	// A second round meets the flows that the kernel remembers of the first.
	for round := range 2 {
		e := attach(t, n, "5353:53/udp")
		var pc net.PacketConn
		err := inNetNS(e.ns, func() (err error) {
			pc, err = net.ListenPacket("udp", ":53")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			buf := make([]byte, 1500)
			for {
				n, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				pc.WriteTo(append([]byte("re: "), buf[:n]...), from)
			}
		}()
		for _, tt := range []struct {
			from *os.File
			to   string
		}{{nil, "127.0.0.1:5353"}, {nil, "[::1]:5353"}, {nil, hostAddr + ":5353"}, {serverNS, hostAddr + ":5353"}} {
			if got, err := echo(tt.from, tt.to, "hi"); got != "re: hi" {
				t.Errorf("round %d: %s answered %q, %v", round, tt.to, got, err)
			}
		}
		pc.Close()
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// echo sends a datagram, from always the same port, and returns the answer.
func echo(ns *os.File, to, msg string) (string, error) {
	d := net.Dialer{LocalAddr: &net.UDPAddr{Port: 40000}}
	var c net.Conn
	dial := func() (err error) {
		c, err = d.Dial("udp", to)
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
	c.SetDeadline(time.Now().Add(time.Second))
	io.WriteString(c, msg)
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func TestChooseSubnet(t *testing.T) {
	tests := []struct {
		name  string
		taken []string
		want  string
	}{
		{"free host", nil, "10.213.0.0/20"},
		{"docker and a LAN", []string{"172.17.0.0/16", "192.168.1.0/24"}, "10.213.0.0/20"},
		{"first in use", []string{"10.213.0.0/20"}, "10.213.16.0/20"},
		{"an address in the first", []string{"10.213.15.1/32"}, "10.213.16.0/20"},
		{"a company's 10/8", []string{"10.0.0.0/8"}, "172.30.0.0/20"},
		{"and 172.16/12", []string{"10.0.0.0/8", "172.16.0.0/12"}, "192.168.192.0/20"},
		{"a VPN's halves", []string{"0.0.0.0/1", "128.0.0.0/1"}, "10.213.0.0/20"},
		{"all of them", []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}, "invalid Prefix"},
	}
	for _, tt := range tests {
		var taken []netip.Prefix
		for _, s := range tt.taken {
			taken = append(taken, netip.MustParsePrefix(s))
		}
		if got, _ := chooseSubnet(taken); got.String() != tt.want {
			t.Errorf("%s: chooseSubnet(%v) = %v, want %v", tt.name, tt.taken, got, tt.want)
		}
	}
}

func TestRenderResolv(t *testing.T) {
	tests := []struct {
		name, in   string
		fallback   bool
		want       string
		reachables int
	}{
		{"plain", "# by hand\nsearch example.org\nnameserver 192.0.2.53\noptions ndots:2\n", true,
			"search example.org\noptions ndots:2\nnameserver 192.0.2.53\n", 1},
		{"loopback among others", "nameserver 127.0.0.1\nnameserver 192.0.2.53\n", true, "nameserver 192.0.2.53\n", 1},
		{"stub only", "nameserver 127.0.0.53\noptions edns0\n", true,
			"options edns0\nnameserver 8.8.8.8\nnameserver 8.8.4.4\n", 0},
		{"stub only, no network", "nameserver 127.0.0.53\n", false, "", 0},
		{"IPv6", "nameserver fe80::1%eth0\nnameserver 2001:db8::53\nnameserver ::ffff:192.0.2.1", true, "nameserver 192.0.2.1\n", 1},
		{"no final newline, CRLF", "search a b\r\nnameserver 192.0.2.53", true, "search a b\nnameserver 192.0.2.53\n", 1},
		{"nonsense", "nameserver\nnameserver elsewhere\n", false, "nameserver\n", 0},
	}
	for _, tt := range tests {
		r := parseResolv([]byte(tt.in))
		if got := string(r.render(tt.fallback)); got != tt.want {
			t.Errorf("%s: render(%q) = %q, want %q", tt.name, tt.in, got, tt.want)
		}
		if got := len(r.reachable()); got != tt.reachables {
			t.Errorf("%s: %d reachable servers, want %d", tt.name, got, tt.reachables)
		}
	}
	host, err := os.ReadFile(resolvConf)
	if got, err2 := ResolvConf(Host); string(got) != string(host) || (err2 != nil) != (err != nil && !os.IsNotExist(err)) {
		t.Errorf("ResolvConf(host) = %q, %v, want the host's", got, err2)
	}
}

func TestHosts(t *testing.T) {
	addr := netip.MustParseAddr("10.213.0.7")
	extra := []HostEntry{{"db", "192.0.2.7"}, {"v6", "2001:db8::1"}}
	const loopback6 = "::1\tlocalhost ip6-localhost ip6-loopback\n"
	tests := []struct {
		hostname string
		addr     netip.Addr
		extra    []HostEntry
		want     string
	}{
		{"buildkitsandbox", netip.Addr{}, nil, "127.0.0.1\tlocalhost buildkitsandbox\n" + loopback6},
		{"c0ffee", addr, extra, "127.0.0.1\tlocalhost\n" + loopback6 + "10.213.0.7\tc0ffee\n192.0.2.7\tdb\n2001:db8::1\tv6\n"},
		{"", addr, nil, "127.0.0.1\tlocalhost\n" + loopback6},
	}
	for _, tt := range tests {
		if got := string(Hosts(tt.hostname, tt.addr, tt.extra)); got != tt.want {
			t.Errorf("Hosts(%q, %v) = %q, want %q", tt.hostname, tt.addr, got, tt.want)
		}
	}
}
