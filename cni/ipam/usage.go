// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/v1alpha1"
)

// BlockUsage is the state of one block.
type BlockUsage struct {
	Block
	// Open blocks hand out addresses.
	Open bool
	// Leased and Free count its addresses.
	Leased, Free int
	// Used tells that it had a lease since this agent has known it.
	Used bool
	// IdleSince is when the last lease in it ended, or when it was first seen.
	IdleSince time.Time
	// ClosedSince is when it was first seen closed, or zero.
	ClosedSince time.Time
}

// Usage is a snapshot of what the node has of one Network.
type Usage struct {
	Blocks []BlockUsage
	Leases []Lease
	// Waiting counts, by pod UID, the addresses that pods wait for now.
	Waiting map[string]int
}

// Usage returns the state of one Network's blocks.
func (m *Manager) Usage(network string) Usage {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out Usage
	p := m.pools[network]
	if p == nil {
		return out
	}
	for _, b := range p.blocks {
		out.Blocks = append(out.Blocks, BlockUsage{
			Block: b.Block, Open: b.open(), Leased: b.leased, Used: b.used, Free: len(b.free),
			IdleSince: b.idleSince, ClosedSince: b.closed,
		})
	}
	slices.SortFunc(out.Blocks, func(a, b BlockUsage) int { return comparePrefix(a.Prefix, b.Prefix) })
	for _, lease := range p.leases {
		out.Leases = append(out.Leases, *lease)
	}
	sortLeases(out.Leases)
	out.Waiting = maps.Clone(p.waiting)
	return out
}

// count sorts the addresses by state, for the metric.
func (u *Usage) count() map[string]int {
	out := map[string]int{"used": 0, "free": 0, "closing": 0, "fixed": 0}
	open := func(address netip.Addr) bool {
		return slices.ContainsFunc(u.Blocks, func(b BlockUsage) bool { return b.Open && b.Prefix.Contains(address) })
	}
	for i := range u.Leases {
		switch l := &u.Leases[i]; {
		case l.Fixed:
			out["fixed"]++
		case open(l.Address):
			out["used"]++
		default:
			out["closing"]++
		}
	}
	for i := range u.Blocks {
		if u.Blocks[i].Open {
			out["free"] += u.Blocks[i].Free
		}
	}
	return out
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// Networks names the Networks that the node has anything of.
func (m *Manager) Networks() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.pools))
}

// Hint says why no further block of a Network can be claimed; empty if one can.
// It ends up in the errors of pods that wait in vain.
func (m *Manager) Hint(network, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pools[network]; p != nil {
		p.hint = text
	}
}

func (m *Manager) explain(network string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := &NoAddressError{Network: network}
	if p := m.pools[network]; p != nil {
		err.InUse, err.Blocks = p.inUse()
		err.Hint = p.hint
	}
	return err
}

// wait is what one Reserve waits for.
type wait struct {
	podUID string
	counts map[string]int // by network
}

// beginWait makes the Claimer see the addresses that one pod lacks: the pod
// may not be in its cache yet.
func (m *Manager) beginWait(asks []Ask, lack []string) *wait {
	w := &wait{podUID: asks[0].PodUID, counts: map[string]int{}}
	lacking := make(map[string]bool, len(lack))
	for _, network := range lack {
		lacking[network] = true
	}
	m.mu.Lock()
	for i := range asks {
		if network := asks[i].Network; lacking[network] && m.byOwner[asks[i].key()] == nil {
			w.counts[network]++
			m.pool(network).waiting[w.podUID]++
		}
	}
	m.mu.Unlock()
	for network := range lacking {
		m.notify(network, true)
	}
	return w
}

func (m *Manager) endWait(w *wait) {
	if w == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for network, count := range w.counts {
		p := m.pools[network]
		if p == nil {
			continue
		}
		if p.waiting[w.podUID] -= count; p.waiting[w.podUID] <= 0 {
			delete(p.waiting, w.podUID)
		}
		m.forgetIfEmpty(p)
	}
}

// heldKey groups held addresses; without a pod they count in any case.
type heldKey struct {
	network string
	podUID  types.UID
	fixed   bool
	address netip.Addr // of fixed ones: each has an entry of its own
	// quarantined ones are free, but closed.
	quarantined bool
}

// interfaceKey is one interface of a pod, over all its sandboxes.
type interfaceKey struct{ podUID, network, ifname string }

// Held counts the leased addresses that no living pod accounts for, for
// NodeNetwork.status.held: those of pods that do not live, and of the former
// sandboxes of pods that do; and the free addresses of blocks in quarantine.
// Other blocks that are closed are left out: nobody counts them as capacity.
func (m *Manager) Held(livingPods func(uid types.UID) bool) []v1alpha1.HeldAddresses {
	leases := m.accountable()
	newest := map[interfaceKey]*Lease{}
	for i := range leases {
		l := &leases[i]
		key := interfaceKey{l.PodUID, l.Network, l.IfName}
		if other := newest[key]; other == nil || other.Since.Before(l.Since) {
			newest[key] = l
		}
	}
	counts := map[heldKey]int32{}
	for i := range leases {
		l := &leases[i]
		uid := types.UID(l.PodUID)
		key := heldKey{network: l.Network, fixed: l.Fixed}
		if l.Fixed {
			key.address = l.Address
		}
		switch {
		case uid == "":
			counts[key]++
		case !livingPods(uid):
			key.podUID = uid
			counts[key]++
		case newest[interfaceKey{l.PodUID, l.Network, l.IfName}] != l:
			counts[key]++
		}
	}
	for network, free := range m.quarantined() {
		counts[heldKey{network: network, quarantined: true}] += free
	}
	out := make([]v1alpha1.HeldAddresses, 0, len(counts))
	for key, count := range counts {
		held := v1alpha1.HeldAddresses{Network: key.network, Count: count, PodUID: key.podUID, Fixed: key.fixed, Quarantined: key.quarantined}
		if key.address.IsValid() {
			held.Address = key.address.String()
		}
		out = append(out, held)
	}
	slices.SortFunc(out, func(a, b v1alpha1.HeldAddresses) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.PodUID, b.PodUID), compareBool(a.Fixed, b.Fixed), cmp.Compare(a.Address, b.Address), compareBool(a.Quarantined, b.Quarantined))
	})
	return out
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// accountable are the leases whose addresses others count as the node's. Before
// the blocks are known that is all of them.
func (m *Manager) accountable() []Lease {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Lease
	for _, p := range m.pools {
		for _, lease := range p.leases {
			if lease.Fixed || p.counts(lease.Address) {
				out = append(out, *lease)
			}
		}
	}
	sortLeases(out)
	return out
}
