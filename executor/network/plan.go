package network

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// plan chooses a new bridge's subnet and MTU by the host's routes.
func plan(o Options) (subnet netip.Prefix, mtu int, err error) {
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return netip.Prefix{}, 0, fmt.Errorf("list routes: %w", err)
	}
	var taken []netip.Prefix
	mtu = 1500
	for _, r := range routes {
		dst := prefixOf(r.Dst)
		if dst.Bits() > 0 {
			taken = append(taken, dst)
			continue
		}
		// Steps send what the way out can carry: many networks lose the
		// messages that would tell them to send less.
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			if m := link.Attrs().MTU; m >= 576 {
				mtu = min(mtu, m)
			}
		}
	}
	if o.Subnet.IsValid() {
		if !o.Subnet.Addr().Is4() || o.Subnet.Bits() > 29 || o.Subnet.Bits() < 8 {
			return netip.Prefix{}, 0, fmt.Errorf("subnet %s: want an IPv4 subnet between /8 and /29", o.Subnet)
		}
		return o.Subnet.Masked(), mtu, nil
	}
	// A name server that is reached by the default route must stay so.
	if conf, err := os.ReadFile(resolvConf); err == nil {
		for _, a := range parseResolv(conf).servers {
			if a.Is4() {
				taken = append(taken, netip.PrefixFrom(a, 32))
			}
		}
	}
	subnet, ok := chooseSubnet(taken)
	if !ok {
		return netip.Prefix{}, 0, fmt.Errorf("every private subnet tried overlaps a route of this host: configure one")
	}
	return subnet, mtu, nil
}

// chooseSubnet is the first candidate that overlaps none of taken. Candidates
// are of /20, about four thousand endpoints, from private ranges that others'
// defaults leave alone. A route so wide that it can only be a default route cut
// in pieces (0.0.0.0/1) takes nothing.
func chooseSubnet(taken []netip.Prefix) (netip.Prefix, bool) {
	for _, pool := range []netip.Prefix{
		netip.MustParsePrefix("10.213.0.0/16"),
		netip.MustParsePrefix("172.30.0.0/16"),
		netip.MustParsePrefix("192.168.192.0/18"),
		netip.MustParsePrefix("10.64.0.0/16"),
	} {
	next:
		for i := range 1 << (20 - pool.Bits()) {
			c := netip.PrefixFrom(nth(pool.Addr(), i<<12), 20)
			for _, t := range taken {
				if t.Bits() >= 8 && t.Overlaps(c) {
					continue next
				}
			}
			return c, true
		}
	}
	return netip.Prefix{}, false
}
