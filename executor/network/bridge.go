package network

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// bridge is one that exists.
type bridge struct {
	index int
	mtu   int
	addr  netip.Prefix // its own address, and its subnet's length
}

// ourMAC tells our bridges from others' devices of the same name: unlike an
// alias it is there from the moment the device is. It is a locally
// administered address that spells "build". That all bridges have the same
// does no harm, since each is its own network.
var ourMAC = net.HardwareAddr{0x02, 'b', 'u', 'i', 'l', 'd'}

// ensureBridge returns the bridge, made and its table filled where that is
// still to do. The caller holds the lock; used says that endpoints are on it.
func ensureBridge(o Options, used bool) (bridge, error) {
	link, err := netlink.LinkByName(o.Name)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		return makeBridge(o)
	case err != nil:
		return bridge{}, fmt.Errorf("look up device %s: %w", o.Name, err)
	}
	if !ours(link) {
		return bridge{}, fmt.Errorf("device %s is there already and is not a bridge of ours: remove it or choose another name", o.Name)
	}
	br := bridge{index: link.Attrs().Index, mtu: link.Attrs().MTU}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, unix.AF_INET) })
	if err != nil {
		return bridge{}, fmt.Errorf("list addresses of %s: %w", o.Name, err)
	}
	if len(addrs) == 1 {
		br.addr = prefixOf(addrs[0].IPNet)
	}
	wanted := !o.Subnet.IsValid() || br.addr.Masked() == o.Subnet.Masked()
	up := link.Attrs().Flags&net.FlagUp != 0
	if br.addr.IsValid() && wanted && up {
		// A reload of the host's firewall may have flushed all tables.
		there, err := tableExists(o.Name)
		if err == nil && !there {
			err = errors.Join(makeTable(o.Name, br.addr.Masked()), openFirewall(o.Name))
		}
		return br, err
	}
	if used {
		return bridge{}, fmt.Errorf("bridge %s has addresses %v and is in use: cannot change it", o.Name, addrs)
	}
	// Half-made by a process that was killed, or of another configuration.
	if err := netlink.LinkDel(link); err != nil {
		return bridge{}, fmt.Errorf("remove bridge %s: %w", o.Name, err)
	}
	return makeBridge(o)
}

func ours(link netlink.Link) bool {
	return link.Type() == "bridge" && bytes.Equal(link.Attrs().HardwareAddr, ourMAC)
}

// makeBridge makes bridge and table. The address comes last: a bridge that has
// one is complete.
func makeBridge(o Options) (_ bridge, err error) {
	subnet, mtu, err := plan(o)
	if err != nil {
		return bridge{}, err
	}
	off := false
	link := &netlink.Bridge{
		LinkAttrs: netlink.LinkAttrs{
			Name: o.Name, MTU: mtu, HardwareAddr: ourMAC, Flags: net.FlagUp, TxQLen: -1,
			Group: group(o.Name),
		},
		MulticastSnooping: &off,
	}
	if err := netlink.LinkAdd(link); err != nil {
		return bridge{}, fmt.Errorf("make bridge %s: %w", o.Name, err)
	}
	defer func() {
		if err != nil {
			_ = netlink.LinkDel(link) // that it could not be set up is what is told
		}
	}()
	// Nothing of ours speaks IPv6 on the bridge; a link-local address would
	// only show the host's services to the steps.
	if err := setSysctl("net/ipv6/conf/"+o.Name+"/disable_ipv6", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return bridge{}, err
	}
	// It stays on, as with Docker: others may rely on it by the time we leave.
	if err := setSysctl("net/ipv4/ip_forward", "1"); err != nil {
		return bridge{}, fmt.Errorf("%w (set it as root with: sysctl -w net.ipv4.ip_forward=1)", err)
	}
	if err := makeTable(o.Name, subnet); err != nil {
		return bridge{}, err
	}
	if err := openFirewall(o.Name); err != nil {
		return bridge{}, err
	}
	addr := netip.PrefixFrom(nth(subnet.Addr(), 1), subnet.Bits())
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return bridge{}, fmt.Errorf("set address %s of %s: %w", addr, o.Name, err)
	}
	return bridge{index: link.Index, mtu: mtu, addr: addr}, nil
}

// removeBridge removes the bridge, if it is ours, and the devices of endpoints
// that have ended and that the kernel has not come round to.
func removeBridge(name string) error {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var mine []netlink.Link
	alone := true // nobody else uses the number of our group
	for _, l := range links {
		a := l.Attrs()
		switch {
		case a.Name == name && ours(l):
			mine = append(mine, l)
		case strings.HasPrefix(a.Name, devicePrefix) && a.Group == group(name):
			mine = append(mine, l)
		case a.Group == group(name):
			alone = false
		}
	}
	if len(mine) == 0 {
		return nil
	}
	if alone {
		// All in one request: the kernel waits some 30 ms for each.
		req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group(name))))
		_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	} else {
		for _, l := range mine {
			err = errors.Join(err, netlink.LinkDel(l))
		}
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove bridge %s: %w", name, err)
	}
	return nil
}

// group is the number that bridge and ports have in common (ip-link(8),
// group): a hash, so that others hardly use it, and never the default 0.
func group(bridge string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(bridge))
	return h.Sum32() | 1<<31
}

// connect joins the namespace to the lease's bridge.
func connect(l *lease, ns *os.File) error {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{
			Name: deviceName(l.addr), MTU: l.bridge.mtu, TxQLen: -1,
			Group: group(l.state.options.Name),
		},
		PeerName: "eth0",
		// Made from the address: who has the address again has the same, and
		// no neighbour's table is out of date.
		PeerHardwareAddr: append(net.HardwareAddr{0x02, 'b'}, l.addr.AsSlice()...),
		PeerNamespace:    netlink.NsFd(ns.Fd()),
		PeerTxQLen:       -1,
	}
	err = host.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) {
		// Its namespace has ended, and the kernel has not come round to it.
		if err := removeDevice(l.addr); err != nil {
			return err
		}
		err = host.LinkAdd(veth)
	}
	if err != nil {
		return fmt.Errorf("make veth pair %s: %w", veth.Name, err)
	}
	if err := host.LinkSetMasterByIndex(veth, l.bridge.index); err != nil {
		return fmt.Errorf("put %s on its bridge: %w", veth.Name, err)
	}
	return inNetNS(ns, func() error {
		eth0, err := configure(l)
		if err != nil {
			return err
		}
		if err := host.LinkSetUp(veth); err != nil {
			return fmt.Errorf("set %s up: %w", veth.Name, err)
		}
		own, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer own.Close()
		return errors.Join(settle(host, veth.Index), settle(host, l.bridge.index), settle(own, eth0))
	})
}

// settle waits for a device to carry frames. That a cable has been plugged in
// the kernel notices a moment later, and what is sent before then is lost: an
// ARP request, say, that is repeated only after a second.
func settle(h *netlink.Handle, index int) error {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		link, err := h.LinkByIndex(index) // since Linux 6.8 this makes the kernel notice
		if err != nil {
			return fmt.Errorf("look up a device: %w", err)
		}
		if link.Attrs().OperState == netlink.OperUp || time.Now().After(end) {
			return nil
		}
	}
}

// configure gives eth0 of the calling thread's namespace the lease's address.
func configure(l *lease) (index int, err error) {
	if err := setSysctl("net/ipv6/conf/eth0/disable_ipv6", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return 0, fmt.Errorf("look up eth0: %w", err)
	}
	addr := netip.PrefixFrom(l.addr, l.bridge.addr.Bits())
	if err := netlink.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return 0, fmt.Errorf("set address %s: %w", addr, err)
	}
	if err := netlink.LinkSetUp(eth0); err != nil {
		return 0, fmt.Errorf("set eth0 up: %w", err)
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: l.bridge.addr.Addr().AsSlice()}); err != nil {
		return 0, fmt.Errorf("set default route: %w", err)
	}
	return eth0.Attrs().Index, nil
}

// deviceName is the host's end of an endpoint's veth pair.
func deviceName(a netip.Addr) string { return fmt.Sprintf(devicePrefix+"%x", a.As4()) }

const devicePrefix = "bld"

// removeDevice removes an endpoint's veth pair. One that is not there is no
// error.
func removeDevice(a netip.Addr) error {
	link, err := netlink.LinkByName(deviceName(a))
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", deviceName(a), err)
	}
	return nil
}

// allowHairpin lets frames out of the endpoint's bridge port that came in by it.
func allowHairpin(a netip.Addr) error {
	link, err := netlink.LinkByName(deviceName(a))
	if err == nil {
		err = netlink.LinkSetHairpin(link, true)
	}
	if err != nil {
		return fmt.Errorf("set hairpin mode of %s: %w", deviceName(a), err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
