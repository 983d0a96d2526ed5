package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The table of a bridge, in the words of nft(8), with one published port:
//
//	table ip build0 {
//	  chain postrouting {
//	    type nat hook postrouting priority srcnat
//	    ip saddr SUBNET oifname != "build0" masquerade
//	    ip saddr SUBNET oifname "build0" ct status dnat masquerade
//	  }
//	  chain forward {
//	    type filter hook forward priority filter
//	    oifname != "build0" accept
//	    iifname "build0" accept
//	    ct state established,related accept
//	    ct status dnat accept
//	    drop
//	  }
//	  chain prerouting {
//	    type nat hook prerouting priority dstnat
//	    fib daddr type local tcp dport 8080 dnat to ADDRESS:80 comment "ADDRESS"
//	  }
//	  chain output {
//	    type nat hook output priority dstnat
//	    ip daddr != 127.0.0.0/8 fib daddr type local tcp dport 8080 dnat to ADDRESS:80 comment "ADDRESS"
//	  }
//	}
//
// The chain forward lets in only what was asked for: forwarding is on for the
// whole host, and a neighbour could send to the subnet directly. Loopback is
// left to proxy.go, since letting the kernel route 127.0.0.0/8 to the bridge
// opens the host's own loopback services to it.
//
// An accept here cannot overrule a drop in another table. firewall.go has the
// one exception that is made for Docker's.
const (
	chainPrerouting = "prerouting"
	chainOutput     = "output"
)

func table(name string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: name}
}

func tableExists(name string) (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	_, err = c.ListTableOfFamily(name, nftables.TableFamilyIPv4)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up nftables table %s: %w", name, err)
	}
	return true, nil
}

// makeTable makes the table without ports, in place of one that is there.
func makeTable(bridge string, subnet netip.Prefix) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := table(bridge)
	// Adding first makes the deletion work whether the table is there or not;
	// the kernel takes all of it or nothing.
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)

	chain := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Table: t, Name: name, Type: typ, Hooknum: hook, Priority: prio})
	}
	rule := func(ch *nftables.Chain, parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: join(parts...)})
	}
	post := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	rule(post, inSubnet(offsetSrc, subnet, true), device(expr.MetaKeyOIFNAME, bridge, false), []expr.Any{&expr.Masq{}})
	rule(post, inSubnet(offsetSrc, subnet, true), device(expr.MetaKeyOIFNAME, bridge, true), translated(), []expr.Any{&expr.Masq{}})

	fwd := chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	rule(fwd, device(expr.MetaKeyOIFNAME, bridge, false), verdict(expr.VerdictAccept))
	rule(fwd, device(expr.MetaKeyIIFNAME, bridge, true), verdict(expr.VerdictAccept))
	rule(fwd, conntrack(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
	rule(fwd, translated(), verdict(expr.VerdictAccept))
	rule(fwd, verdict(expr.VerdictDrop))

	chain(chainPrerouting, nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	chain(chainOutput, nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	if err := c.Flush(); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) {
			return fmt.Errorf("make nftables table %s: %w (the kernel lacks nf_tables with NAT: use --network host)", bridge, err)
		}
		return fmt.Errorf("make nftables table %s: %w", bridge, err)
	}
	return nil
}

// removeTable removes the table. One that is not there is no error.
func removeTable(name string) error {
	there, err := tableExists(name)
	if err != nil || !there {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.DelTable(table(name))
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove nftables table %s: %w", name, err)
	}
	return nil
}

// addRules forwards ports to an endpoint.
func addRules(bridge string, to netip.Addr, ports []Port) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := table(bridge)
	for _, p := range ports {
		if p.HostIP.IsValid() && (!p.HostIP.Is4() || p.HostIP.IsLoopback()) {
			continue // the proxy's alone
		}
		for _, name := range []string{chainPrerouting, chainOutput} {
			var match []expr.Any
			if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
				match = inSubnet(offsetDst, netip.PrefixFrom(p.HostIP, 32), true)
			} else {
				match = local()
			}
			if name == chainOutput {
				match = join(inSubnet(offsetDst, netip.MustParsePrefix("127.0.0.0/8"), false), match)
			}
			c.AddRule(&nftables.Rule{
				Table:    t,
				Chain:    &nftables.Chain{Table: t, Name: name},
				Exprs:    join(match, port(p.Proto, p.Host), dnat(to, p.Container)),
				UserData: userdata.AppendString(nil, userdata.TypeComment, to.String()),
			})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("publish ports: %w", err)
	}
	return nil
}

// removeRules removes the rules of the endpoints whose address drop is true
// of. A table that is not there has none.
func removeRules(bridge string, drop func(netip.Addr) bool) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := table(bridge)
	n := 0
	for _, name := range []string{chainPrerouting, chainOutput} {
		rules, err := c.GetRules(t, &nftables.Chain{Table: t, Name: name})
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list port rules: %w", err)
		}
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			a, err := netip.ParseAddr(comment)
			if err != nil || !drop(a) {
				continue
			}
			if err := c.DelRule(r); err != nil {
				return fmt.Errorf("remove port rule: %w", err)
			}
			n++
		}
	}
	if n == 0 {
		return nil
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove port rules: %w", err)
	}
	return nil
}

// forgetFlows makes the kernel forget the UDP flows that were forwarded to an
// endpoint: they would go on to be, whoever has the port next.
func forgetFlows(a netip.Addr) error {
	f := &netlink.ConntrackFilter{}
	if err := f.AddProtocol(unix.IPPROTO_UDP); err != nil {
		return err
	}
	if err := f.AddIP(netlink.ConntrackReplySrcIP, a.AsSlice()); err != nil {
		return err
	}
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, f)
	return err
}

// Offsets of the addresses in the IPv4 header (RFC 791, 3.1).
const (
	offsetSrc = 12
	offsetDst = 16
)

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func op(equal bool) expr.CmpOp {
	if equal {
		return expr.CmpOpEq
	}
	return expr.CmpOpNeq
}

func inSubnet(offset uint32, p netip.Prefix, in bool) []expr.Any {
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, ^uint32(0)<<(32-p.Bits()))
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op(in), Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

func device(key expr.MetaKey, name string, is bool) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op(is), Register: 1, Data: padded},
	}
}

func conntrack(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// translated matches connections whose destination a rule has changed
// (IPS_DST_NAT of nf_conntrack_common.h).
func translated() []expr.Any { return conntrack(expr.CtKeySTATUS, 1<<5) }

// local matches packets to an address of this host.
func local() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func port(proto string, n uint16) []expr.Any {
	number := byte(unix.IPPROTO_TCP)
	if proto == "udp" {
		number = unix.IPPROTO_UDP
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(n)},
	}
}

func dnat(to netip.Addr, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
	}
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }
