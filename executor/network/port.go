package network

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Port is a published port: what comes to Host goes to Container.
type Port struct {
	HostIP    netip.Addr // zero: all of the host's addresses
	Host      uint16     // 0: any that is free
	Container uint16
	Proto     string // "tcp" or "udp"; "" is "tcp"
}

// String is "0.0.0.0:8080->80/tcp".
func (p Port) String() string {
	ip := "0.0.0.0"
	if p.HostIP.IsValid() {
		ip = p.HostIP.String()
	}
	if strings.Contains(ip, ":") {
		ip = "[" + ip + "]"
	}
	return fmt.Sprintf("%s:%d->%d/%s", ip, p.Host, p.Container, p.proto())
}

func (p Port) proto() string {
	if p.Proto == "" {
		return "tcp"
	}
	return p.Proto
}

// ParsePorts reads the argument of docker run --publish:
//
//	[[ip:][hostPort]:]containerPort[/tcp|/udp]
//
// A host port of 0, or none, is any that is free. Ports may be ranges
// "8000-8010", both of one length. An IPv6 address stands in brackets.
// Source: https://docs.docker.com/reference/cli/docker/container/run/#publish.
func ParsePorts(s string) ([]Port, error) {
	fail := func(why string) ([]Port, error) {
		return nil, fmt.Errorf("published port %q: %s; want [[ip:]hostPort:]containerPort[/tcp|udp]", s, why)
	}
	rest, proto, _ := strings.Cut(s, "/")
	proto = strings.ToLower(proto)
	switch proto {
	case "":
		proto = "tcp"
	case "tcp", "udp":
	default:
		return fail(fmt.Sprintf("protocol %q is not supported", proto))
	}
	var ip, host string
	i := strings.LastIndexByte(rest, ':')
	container := rest[i+1:]
	if i >= 0 {
		host = rest[:i]
		if j := strings.LastIndexByte(host, ':'); j >= 0 {
			ip, host = host[:j], host[j+1:]
		}
	}
	var addr netip.Addr
	if ip != "" {
		bare, bracketed := strings.CutPrefix(ip, "[")
		if bracketed {
			bare = strings.TrimSuffix(bare, "]")
		}
		var err error
		if addr, err = netip.ParseAddr(bare); err != nil || bracketed != addr.Is6() {
			return fail(fmt.Sprintf("%q is no IP address", ip))
		}
	}
	cFirst, cLast, err := portRange(container)
	if err != nil {
		return fail(err.Error())
	}
	var hFirst, hLast uint16
	if host == "0" {
		host = "" // any, too
	}
	if host != "" {
		if hFirst, hLast, err = portRange(host); err != nil {
			return fail(err.Error())
		}
		if hLast-hFirst != cLast-cFirst {
			return fail("the ranges differ in length")
		}
	}
	var ports []Port
	for n := range int(cLast-cFirst) + 1 {
		p := Port{HostIP: addr, Container: cFirst + uint16(n), Proto: proto}
		if host != "" {
			p.Host = hFirst + uint16(n)
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// portRange reads "80" or "80-90".
func portRange(s string) (first, last uint16, err error) {
	a, b, isRange := strings.Cut(s, "-")
	if first, err = portNumber(a); err != nil || !isRange {
		return first, first, err
	}
	if last, err = portNumber(b); err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, fmt.Errorf("range %q goes down", s)
	}
	return first, last, nil
}

func portNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port", s)
	}
	return uint16(n), nil
}
