package network

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// A packet that one table accepts another can still drop, and where Docker or
// ufw is installed, iptables' table "filter" drops what is forwarded. So the
// bridge gets two rules there, as these programs give their own bridges:
//
//	iptables -I DOCKER-USER -i build0 -j ACCEPT
//	iptables -I DOCKER-USER -o build0 -j ACCEPT
//
// in DOCKER-USER, which Docker leaves to others, or else in FORWARD. What may
// come in is still limited by the chain forward of our own table. Firewalls
// that are not iptables on nf_tables are left alone: they have to let build0
// through themselves.

// openFirewall adds the rules, where forwarding is dropped.
func openFirewall(bridge string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	ch, err := dropsForwarded(c)
	if err != nil || ch == nil {
		return err
	}
	// Once: a process killed in here may have added them before.
	if err := closeFirewall(bridge); err != nil {
		return err
	}
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		c.InsertRule(&nftables.Rule{
			Table: ch.Table,
			Chain: ch,
			Exprs: []expr.Any{
				&expr.Meta{Key: key, Register: 1},
				// With its NUL and without padding, as iptables has it: it has
				// to be able to list its own table.
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte(bridge), 0)},
				&expr.Counter{},
				&expr.Verdict{Kind: expr.VerdictAccept},
			},
			UserData: userdata.AppendString(nil, userdata.TypeComment, firewallComment(bridge)),
		})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("let %s through the host's firewall: %w", bridge, err)
	}
	return nil
}

// closeFirewall removes the rules.
func closeFirewall(bridge string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	n := 0
	for _, chain := range []string{"DOCKER-USER", "FORWARD"} {
		ch := &nftables.Chain{Table: filterTable(), Name: chain}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			continue // no such chain
		}
		for _, r := range rules {
			if comment, _ := userdata.GetString(r.UserData, userdata.TypeComment); comment == firewallComment(bridge) {
				if err := c.DelRule(r); err != nil {
					return err
				}
				n++
			}
		}
	}
	if n == 0 {
		return nil
	}
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the rules for %s from the host's firewall: %w", bridge, err)
	}
	return nil
}

func filterTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"}
}

func firewallComment(bridge string) string { return "network " + bridge }

// dropsForwarded is the chain to add to where iptables' policy is to drop, or
// nil.
func dropsForwarded(c *nftables.Conn) (*nftables.Chain, error) {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	var forward, docker *nftables.Chain
	for _, ch := range chains {
		if ch.Table.Name != "filter" {
			continue
		}
		switch ch.Name {
		case "FORWARD":
			if ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
				forward = ch
			}
		case "DOCKER-USER":
			docker = ch
		}
	}
	if forward != nil && docker != nil {
		return docker, nil
	}
	return forward, nil
}
