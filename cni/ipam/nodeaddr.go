// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"net/netip"
	"slices"
	"time"
)

// By its plan, a block's first usable address is the node's own. But the plan of
// a living Network changes, with excludeRanges and gateway, and then the first
// usable address may be a pod's already, or the node's address become usable for
// pods while it is configured on the host. So the node keeps the address that it
// has in a block until the last lease in it ends; each lease records it.

// share is how the addresses of a block are shared out.
type share struct {
	node netip.Addr   // the node's own
	pods []netip.Addr // those that pods may have, in order
	odd  bool         // they are not what the plan alone would say
}

// shareOut decides which address of a block is the node's own.
func (p *pool) shareOut(b *block) share {
	if p.plan == nil || p.plan.CheckBlock(b.Prefix) != nil {
		return share{}
	}
	first, ok := p.plan.NodeAddress(b.Prefix)
	if !ok {
		return share{}
	}
	pods := slices.Collect(p.plan.PodAddresses(b.Prefix))
	nodes := p.nodeAddresses(b)
	if p.leases[first] == nil && (len(nodes) == 0 || len(nodes) == 1 && nodes[first]) {
		return share{node: first, pods: pods}
	}
	usable := slices.Concat([]netip.Addr{first}, pods)
	own := p.ownAddress(usable, nodes)
	if !slices.Contains(usable, own) {
		usable = pods // not more than scheduler and controller count on
	}
	return share{node: own, odd: true, pods: slices.DeleteFunc(usable, func(address netip.Addr) bool {
		_, taken := nodes[address]
		return taken || address == own
	})}
}

// ownAddress is the one that the block's leases go with, or else the first
// usable one that no pod has.
func (p *pool) ownAddress(usable []netip.Addr, nodes map[netip.Addr]bool) netip.Addr {
	for address, mine := range nodes {
		if mine {
			return address
		}
	}
	for _, address := range usable {
		if p.leases[address] == nil {
			return address
		}
	}
	return netip.Addr{}
}

// nodeAddresses are the node's addresses within a block that leases go with:
// true for those of the block's own leases, false for those of the leases of a
// former Network of the same name, whose blocks may overlap.
func (p *pool) nodeAddresses(b *block) map[netip.Addr]bool {
	var out map[netip.Addr]bool
	for _, lease := range p.leases {
		if !lease.Node.IsValid() || !b.Prefix.Contains(lease.Node) {
			continue
		}
		if out == nil {
			out = map[netip.Addr]bool{}
		}
		out[lease.Node] = out[lease.Node] || lease.Block == b.Prefix && lease.NetworkUID == p.uid
	}
	return out
}

// resettle looks again at the blocks in which the node's address is not what
// the plan says, after a lease has ended that went with node. If that is a pod's
// from now on, it cools down like any other.
func (p *pool) resettle(node netip.Addr, now time.Time) {
	for _, b := range p.blocks {
		if !b.odd {
			continue
		}
		if b.Prefix.Contains(node) {
			p.cooling[addrKey{p.network, node}] = now
		}
		p.refill(b)
	}
}
