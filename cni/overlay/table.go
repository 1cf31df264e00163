// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package overlay keeps the node's VXLAN segments: one for each Network of
// plugin vxlan that a pod here is on. The agent makes one Manager. It makes a
// segment's links with the first pod, follows the Network's IPBlocks from then
// on, and has the vxlan device forward to the nodes that hold them.
//
// A Table and what changes between two of them are pure.
package overlay

import (
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// Table says behind which tunnel address the addresses of each block of other
// nodes are.
type Table map[netip.Prefix]netip.Addr

// View is from where a Network's blocks are looked at.
type View struct {
	// Node is this node's name: what it holds itself is behind no tunnel.
	Node string
	// NetworkUID tells the Network's blocks from those of a former one.
	NetworkUID types.UID
	// Local is this node's own tunnel address; those of the other family are
	// out of its reach.
	Local netip.Addr
}

// Desired is the table that follows from a Network's blocks. Strangers are the
// tunnel addresses that this node cannot send to, sorted.
func (v *View) Desired(blocks []*v1alpha1.IPBlock) (table Table, strangers []netip.Addr) {
	table = make(Table, len(blocks))
	for _, block := range blocks {
		spec := &block.Spec
		if spec.NodeName == v.Node || spec.NetworkUID != v.NetworkUID || spec.VTEP == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(string(spec.CIDR))
		if err != nil {
			continue // the CRD holds it to be well formed
		}
		vtep, err := netip.ParseAddr(string(spec.VTEP))
		switch {
		case err != nil:
		case vtep.Is4() != v.Local.Is4() || vtep.IsLinkLocalUnicast() && !v.Local.IsLinkLocalUnicast() || vtep == v.Local:
			strangers = append(strangers, vtep)
		default:
			table[prefix] = vtep
		}
	}
	slices.SortFunc(strangers, netip.Addr.Compare)
	return table, slices.Compact(strangers)
}

// Changes are what turns one table of a vxlan device into another. Adding comes
// first: an entry that is added replaces the one that its MAC had.
type Changes struct{ Add, Remove []link.Forward }

// Diff compares tables block by block: what it costs beside that are the
// addresses of the blocks that differ.
func Diff(have, want Table, plan *addressing.Plan) Changes {
	var c Changes
	for block, vtep := range want {
		if have[block] != vtep {
			c.Add = appendMACs(c.Add, block, vtep, plan)
		}
	}
	for block, vtep := range have {
		if _, still := want[block]; !still {
			c.Remove = appendMACs(c.Remove, block, vtep, plan)
		}
	}
	before, after := have.peers(), want.peers()
	for vtep := range after {
		if !before[vtep] {
			c.Add = append(c.Add, link.Forward{VTEP: vtep})
		}
	}
	for vtep := range before {
		if !after[vtep] {
			c.Remove = append(c.Remove, link.Forward{VTEP: vtep})
		}
	}
	return c
}

// Repair compares a table with what a device was found to have.
func Repair(found []link.Forward, want Table, plan *addressing.Plan) Changes {
	var c Changes
	missing := map[link.Forward]bool{}
	for _, f := range Diff(nil, want, plan).Add {
		missing[f] = true
	}
	macs := make(map[[6]byte]bool, len(missing))
	for f := range missing {
		macs[f.MAC] = true
	}
	for _, f := range found {
		switch {
		case missing[f]:
			delete(missing, f)
		case f.MAC != [6]byte{} && macs[f.MAC]: // will be replaced
		default:
			c.Remove = append(c.Remove, f)
		}
	}
	c.Add = slices.Collect(maps.Keys(missing))
	return c
}

// peers are the nodes that what is for everybody goes to.
func (t Table) peers() map[netip.Addr]bool {
	out := make(map[netip.Addr]bool, len(t))
	for _, vtep := range t {
		out[vtep] = true
	}
	return out
}

// appendMACs adds an entry for each address of a block, in use or not: the MAC
// follows from the address, so nobody has to tell. The node's own address in
// the block has none of these MACs; what is for it goes to all peers.
func appendMACs(out []link.Forward, block netip.Prefix, vtep netip.Addr, plan *addressing.Plan) []link.Forward {
	out = slices.Grow(out, plan.BlockSize())
	for addr := block.Addr(); block.Contains(addr); addr = addr.Next() {
		out = append(out, link.Forward{MAC: [6]byte(plan.MAC(addr)), VTEP: vtep})
	}
	return out
}
