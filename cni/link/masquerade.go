// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names in the kernel's ruleset (`nft list table inet netplane`).
const (
	nftTable = "netplane"
	nftChain = "postrouting"
)

// SetMasquerade replaces all rules in one transaction; no Network at all
// removes the table.
func (l *Links) SetMasquerade(_ context.Context, networks []Masquerade) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(l.ns)))
	if err != nil {
		return fmt.Errorf("opening nftables socket: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: nftTable}
	conn.AddTable(table) // so that it can be deleted
	conn.DelTable(table)
	if len(networks) > 0 {
		conn.AddTable(table)
		chain := conn.AddChain(&nftables.Chain{
			Name: nftChain, Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		for _, n := range networks {
			for _, subnet := range n.Subnets {
				conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: masqueradeRule(n, subnet)})
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("writing nftables table %s: %w", nftTable, err)
	}
	return nil
}

// masqueradeRule matches what comes from subnet and leaves the Network. With
// br_netfilter, frames that the Network's own bridge forwards pass the chain
// too, and must not be touched: hence the condition on the device.
func masqueradeRule(n Masquerade, subnet netip.Prefix) []expr.Any {
	proto, source, dest, multicast := byte(unix.NFPROTO_IPV4), uint32(12), uint32(16), netip.MustParsePrefix("224.0.0.0/4")
	if subnet.Addr().Is6() {
		proto, source, dest, multicast = unix.NFPROTO_IPV6, 8, 24, netip.MustParsePrefix("ff00::/8")
	}
	device := make([]byte, unix.IFNAMSIZ)
	copy(device, n.Device)
	rule := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: device},
	}
	rule = append(rule, matchPrefix(source, expr.CmpOpEq, subnet)...)
	for _, inside := range append([]netip.Prefix{multicast}, n.Subnets...) {
		if inside.Addr().Is4() == subnet.Addr().Is4() {
			rule = append(rule, matchPrefix(dest, expr.CmpOpNeq, inside)...)
		}
	}
	return append(rule, &expr.Masq{})
}

// matchPrefix compares the address at an offset of the IP header.
func matchPrefix(offset uint32, op expr.CmpOp, prefix netip.Prefix) []expr.Any {
	bits := prefix.Addr().BitLen()
	size := uint32(bits / 8)
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: net.CIDRMask(prefix.Bits(), bits), Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: 1, Data: prefix.Masked().Addr().AsSlice()},
	}
}
