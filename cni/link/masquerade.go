// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

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
			for _, exprs := range rulesOf(&n) {
				conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("writing nftables table %s: %w", nftTable, err)
	}
	return nil
}

// rulesOf are a Network's rules. With br_netfilter, frames that the Network's own
// bridge forwards pass the chain too, and must not be touched: hence the
// conditions on the device and on what was translated.
func rulesOf(n *Masquerade) [][]expr.Any {
	var out [][]expr.Any
	for _, subnet := range n.Subnets {
		f := fieldsOf(subnet.Addr())
		leaves := append(f.leaving(n.Device, expr.CmpOpNeq), matchPrefix(f.source, expr.CmpOpEq, subnet)...)
		outward := slices.Clone(leaves)
		for _, inside := range append([]netip.Prefix{f.multicast}, n.Subnets...) {
			if sameFamily(inside.Addr(), subnet.Addr()) {
				outward = append(outward, matchPrefix(f.dest, expr.CmpOpNeq, inside)...)
			}
		}
		// Where the host itself has an address in the subnet, what it sends there may
		// leave by that device.
		translated := append(leaves, translatedDestination()...)
		out = append(out, append(outward, &expr.Masq{}), append(translated, &expr.Masq{}))
	}
	for _, source := range n.Sources {
		out = append(out, inwardRules(n, source)...)
	}
	return out
}

// inwardRules are those for what enters the Network with a translated
// destination. What comes from the Network itself would be answered directly,
// and by other nodes' pods all would.
func inwardRules(n *Masquerade, source netip.Addr) [][]expr.Any {
	f := fieldsOf(source)
	into := func(to netip.Prefix) []expr.Any {
		rule := append(f.leaving(n.Device, expr.CmpOpEq), matchPrefix(f.dest, expr.CmpOpEq, to)...)
		return append(rule, translatedDestination()...)
	}
	take := []expr.Any{
		&expr.Immediate{Register: 1, Data: source.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.proto), RegAddrMin: 1},
	}
	var within, local, all [][]expr.Any
	for _, to := range n.Subnets {
		if !sameFamily(to.Addr(), source) {
			continue
		}
		for _, from := range n.Subnets {
			if sameFamily(from.Addr(), source) {
				within = append(within, slices.Concat(into(to), matchPrefix(f.source, expr.CmpOpEq, from), take))
			}
		}
		all = append(all, append(into(to), take...))
	}
	for _, to := range n.Local {
		if sameFamily(to.Addr(), source) {
			local = append(local, append(into(to), &expr.Verdict{Kind: expr.VerdictAccept}))
		}
	}
	return slices.Concat(within, local, all)
}

func sameFamily(a, b netip.Addr) bool { return a.Is4() == b.Is4() }

// ipFields are the places in a family's header.
type ipFields struct {
	proto        byte
	source, dest uint32
	multicast    netip.Prefix
}

func fieldsOf(like netip.Addr) ipFields {
	if like.Is4() {
		return ipFields{unix.NFPROTO_IPV4, 12, 16, netip.MustParsePrefix("224.0.0.0/4")}
	}
	return ipFields{unix.NFPROTO_IPV6, 8, 24, netip.MustParsePrefix("ff00::/8")}
}

// leaving matches packets of the family that leave, or do not leave, by a device.
func (f *ipFields) leaving(device string, op expr.CmpOp) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, device)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.proto}},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: name},
	}
}

// destinationTranslated is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const destinationTranslated = 1 << 5

// translatedDestination is `ct status dnat`.
func translatedDestination() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, destinationTranslated), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
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
