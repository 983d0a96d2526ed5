package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
)

const (
	resolvConf = "/etc/resolv.conf"
	// resolvedConf has the servers behind systemd-resolved's stub on 127.0.0.53
	// (systemd-resolved.service(8)).
	resolvedConf = "/run/systemd/resolve/resolv.conf"
)

// ResolvConf is the content of /etc/resolv.conf for a process in a network of
// that mode. On the host's network it is the host's; elsewhere name servers
// that could not be reached from there, on loopback or by IPv6, are left out.
// If that leaves none, a bridge gets Google's, as with Docker.
func ResolvConf(mode string) ([]byte, error) {
	conf, err := os.ReadFile(resolvConf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if mode == Host {
		return conf, nil
	}
	r := parseResolv(conf)
	if len(r.reachable()) == 0 {
		if behind, err := os.ReadFile(resolvedConf); err == nil {
			r = parseResolv(behind)
		}
	}
	return r.render(mode != None), nil
}

// resolv is a resolver's configuration; resolv.conf(5).
type resolv struct {
	servers []netip.Addr
	rest    [][]byte // the other lines, as they are
}

func parseResolv(conf []byte) resolv {
	var r resolv
	for line := range bytes.Lines(conf) {
		line = bytes.TrimRight(line, "\r\n")
		f := bytes.Fields(line)
		if len(f) >= 2 && string(f[0]) == "nameserver" {
			if a, err := netip.ParseAddr(string(f[1])); err == nil {
				r.servers = append(r.servers, a.Unmap())
			}
			continue
		}
		if len(f) > 0 && f[0][0] != '#' && f[0][0] != ';' {
			r.rest = append(r.rest, line)
		}
	}
	return r
}

// reachable is the servers that a bridge leads to.
func (r resolv) reachable() []netip.Addr {
	var as []netip.Addr
	for _, a := range r.servers {
		if a.Is4() && !a.IsLoopback() && !a.IsUnspecified() {
			as = append(as, a)
		}
	}
	return as
}

func (r resolv) render(fallback bool) []byte {
	servers := r.reachable()
	if len(servers) == 0 && fallback {
		servers = []netip.Addr{netip.AddrFrom4([4]byte{8, 8, 8, 8}), netip.AddrFrom4([4]byte{8, 8, 4, 4})}
	}
	var b bytes.Buffer
	for _, line := range r.rest {
		b.Write(line)
		b.WriteByte('\n')
	}
	for _, a := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	return b.Bytes()
}

// HostEntry is a line of /etc/hosts.
type HostEntry struct{ Name, Addr string }

// HostGateway stands for the address of this machine in a HostEntry.
const HostGateway = "host-gateway"

// Resolve puts in the address at which e reaches this machine.
func (e *Endpoint) Resolve(entries []HostEntry) []HostEntry {
	gateway := e.Gateway
	if !gateway.IsValid() {
		gateway = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	entries = slices.Clone(entries)
	for i, h := range entries {
		if h.Addr == HostGateway {
			entries[i].Addr = gateway.String()
		}
	}
	return entries
}

// Hosts is the content of /etc/hosts. With an address the host name stands
// there, as Docker writes it for containers; without, at 127.0.0.1, as BuildKit does
// for steps.
func Hosts(hostname string, addr netip.Addr, extra []HostEntry) []byte {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost")
	if hostname != "" && !addr.IsValid() {
		b.WriteString(" " + hostname)
	}
	b.WriteString("\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if hostname != "" && addr.IsValid() {
		fmt.Fprintf(&b, "%s\t%s\n", addr, hostname)
	}
	for _, e := range extra {
		fmt.Fprintf(&b, "%s\t%s\n", e.Addr, e.Name)
	}
	return []byte(b.String())
}
