// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// guardTable is the kernel's table of spoof checks (`nft list table netdev
// netplane`): a chain for each guarded port, named as the port, at its ingress.
// There the kernel has taken a VLAN tag off already and no bridge has seen the
// frame.
func guardTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyNetdev, Name: nftTable}
}

func guardChain(port string) *nftables.Chain {
	return &nftables.Chain{
		Name: port, Table: guardTable(), Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter, Device: port,
	}
}

// Places in frames and packets: Ethernet II, RFC 826, RFC 791, RFC 8200, RFC 4861.
const (
	etherSource, etherType  = 6, 12
	arpSenderMAC, arpSender = 8, 14
	ipv4Source, ipv6Source  = 12, 8
	ndTarget                = 8
	icmpv6Advertisement     = 136
)

// guard lets a port pass only what has the MAC and one of the addresses of its
// pod. What an attempt before left is replaced.
func (l *Links) guard(spec *Interface) error {
	if err := l.unguard(spec); err != nil {
		return err
	}
	rules, err := guardRules(spec)
	if err != nil {
		return err
	}
	conn, err := l.nft()
	if err != nil {
		return err
	}
	conn.AddTable(guardTable())
	chain := conn.AddChain(guardChain(spec.HostEnd))
	for _, exprs := range rules {
		conn.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: exprs})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("installing the spoof check of %s: %w", spec.HostEnd, err)
	}
	return nil
}

// unguard removes the rules of a port; the kernel may have done so with the port.
func (l *Links) unguard(spec *Interface) error {
	conn, err := l.nft()
	if err != nil {
		return err
	}
	conn.DelChain(guardChain(spec.HostEnd))
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing the spoof check of %s: %w", spec.HostEnd, err)
	}
	return nil
}

func (l *Links) nft() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(int(l.ns)))
	if err != nil {
		return nil, fmt.Errorf("opening nftables socket: %w", err)
	}
	return conn, nil
}

// supportsIngress makes an empty chain and takes it away in one transaction.
func supportsIngress(ns netns.NsHandle) (bool, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return false, fmt.Errorf("opening nftables socket: %w", err)
	}
	chain := guardChain("lo")
	chain.Table.Name += "-probe"
	conn.AddTable(chain.Table)
	conn.AddChain(chain)
	conn.DelChain(chain)
	conn.DelTable(chain.Table)
	switch err := conn.Flush(); {
	case err == nil:
		return true, nil
	// No such family, chain type or hook; EPROTONOSUPPORT: no nftables at all.
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPROTONOSUPPORT):
		return false, nil
	default:
		return false, fmt.Errorf("probing the ingress hook of nftables: %w", err)
	}
}

// guards lists the ports that have rules.
func (l *Links) guards() ([]string, error) {
	conn, err := l.nft()
	if err != nil {
		return nil, err
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, fmt.Errorf("listing nftables chains: %w", err)
	}
	var out []string
	for _, c := range chains {
		if c.Table.Name == nftTable {
			out = append(out, c.Name)
		}
	}
	return out, nil
}

// RestoreGuards installs the spoof checks that are missing, as after a firewall
// has flushed all rules, and removes those of interfaces that are not there.
// It asks for the interfaces after it has looked what there is: what is made
// meanwhile is known by then, and keeps its rules.
func (l *Links) RestoreGuards(ctx context.Context, interfaces func() []Interface) error {
	present, err := l.guards()
	if err != nil {
		return err
	}
	var wanted []string
	var failed []error
	for _, spec := range interfaces() {
		if !spec.SpoofCheck {
			continue
		}
		wanted = append(wanted, spec.HostEnd)
		if _, err := l.host.LinkByName(spec.HostEnd); err != nil || slices.Contains(present, spec.HostEnd) {
			continue
		}
		failed = append(failed, l.guard(&spec))
		klog.FromContext(ctx).Info("Installed a spoof check that was missing", "port", spec.HostEnd)
	}
	for _, port := range present {
		if !slices.Contains(wanted, port) {
			failed = append(failed, l.unguard(&Interface{HostEnd: port}))
		}
	}
	return errors.Join(failed...)
}

// guardRules drop what is not the pod's own: another source MAC; ARP and
// neighbour advertisements for others; IP packets from others. Of IPv6 the pod
// also has the link-local address that follows from its MAC, and none yet while
// it looks for duplicates. All else, frames with a VLAN tag too, is dropped.
func guardRules(spec *Interface) ([][]expr.Any, error) {
	mac, err := net.ParseMAC(spec.MAC)
	if err != nil {
		return nil, err
	}
	accept, drop := &expr.Verdict{Kind: expr.VerdictAccept}, &expr.Verdict{Kind: expr.VerdictDrop}
	rules := [][]expr.Any{append(field(expr.PayloadBaseLLHeader, etherSource, expr.CmpOpNeq, mac), drop)}
	own6 := []netip.Addr{linkLocal(mac)}
	for _, prefix := range spec.Addresses {
		address := prefix.Addr()
		if address.Is6() {
			own6 = append(own6, address)
			continue
		}
		for _, sender := range []netip.Addr{address, netip.IPv4Unspecified()} { // RFC 5227 probes
			rule := append(ofType(unix.ETH_P_ARP), field(expr.PayloadBaseNetworkHeader, arpSenderMAC, expr.CmpOpEq, mac)...)
			rule = append(rule, field(expr.PayloadBaseNetworkHeader, arpSender, expr.CmpOpEq, sender.AsSlice())...)
			rules = append(rules, append(rule, accept))
		}
		rules = append(rules, append(append(ofType(unix.ETH_P_IP), field(expr.PayloadBaseNetworkHeader, ipv4Source, expr.CmpOpEq, address.AsSlice())...), accept))
	}
	if hasIPv6(spec.Addresses) {
		forged := append(ofType(unix.ETH_P_IPV6),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}})
		forged = append(forged, field(expr.PayloadBaseTransportHeader, 0, expr.CmpOpEq, []byte{icmpv6Advertisement})...)
		for _, address := range own6 {
			forged = append(forged, field(expr.PayloadBaseTransportHeader, ndTarget, expr.CmpOpNeq, address.AsSlice())...)
		}
		rules = append(rules, append(forged, drop))
		for _, address := range append(own6, netip.IPv6Unspecified()) {
			rules = append(rules, append(append(ofType(unix.ETH_P_IPV6), field(expr.PayloadBaseNetworkHeader, ipv6Source, expr.CmpOpEq, address.AsSlice())...), accept))
		}
	}
	return append(rules, []expr.Any{drop}), nil
}

// field compares bytes of a frame.
func field(base expr.PayloadBase, offset uint32, op expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))},
		&expr.Cmp{Op: op, Register: 1, Data: data},
	}
}

// ofType compares the EtherType in the frame; nftables shows that of the tag
// there if the kernel has taken one off (nft_payload_copy_vlan).
func ofType(protocol uint16) []expr.Any {
	return field(expr.PayloadBaseLLHeader, etherType, expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, protocol))
}

// linkLocal is the address that the kernel makes of a MAC (RFC 4291, appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	out := [16]byte{0: 0xfe, 1: 0x80, 11: 0xff, 12: 0xfe}
	copy(out[8:11], mac[:3])
	copy(out[13:], mac[3:6])
	out[8] ^= 2
	return netip.AddrFrom16(out)
}
