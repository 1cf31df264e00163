// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/addressing"
)

// coolDown is how long a freed address goes behind all others: neighbours and
// conntrack entries may still speak of the pod that had it. It only orders: an
// address that is the last one left is handed out at once.
const coolDown = time.Minute

// Block is an IPBlock that this node holds.
type Block struct {
	Prefix netip.Prefix
	// UID is the IPBlock's.
	UID types.UID
	// Closed blocks serve the leases in them and hand out nothing more.
	Closed bool
	// Quarantined blocks are closed for now, and others take them for part of the
	// node's capacity: their free addresses are held.
	Quarantined bool
	// LastResort makes an exception of a closed block: until it is sealed it
	// serves a pod for which no other block has an address.
	LastResort bool
}

// freeAddr is an address of a block that nobody has.
type freeAddr struct {
	address netip.Addr
	freed   time.Time // zero if nobody had it since the block came
}

// block is the state of one block.
type block struct {
	Block
	drained   bool // closed by the claimer, which is about to delete it
	sealed    bool // closed for good by the claimer, which is about to let it go
	free      []freeAddr
	node      netip.Addr // the node's own address in the block, see shareOut
	odd       bool       // it, or free, is not what the plan alone would say
	leased    int
	used      bool      // had a lease at some time
	idleSince time.Time // when leased became 0, or the block came
	closed    time.Time // when the block was first seen closed
}

func (b *block) open() bool { return !b.Closed && !b.drained && !b.sealed }

// lingers tells that the block is the node's still, though it is being deleted.
func (b *block) lingers() bool { return b.Closed && b.LastResort && !b.sealed }

// noteClosed keeps when the block was closed by this node's own clock: the API
// server's may differ.
func (b *block) noteClosed(now time.Time) {
	if !b.Closed {
		b.closed = time.Time{}
	} else if b.closed.IsZero() {
		b.closed = now
	}
}

// pool is what the node has of one Network.
type pool struct {
	network string
	uid     types.UID
	plan    *addressing.Plan
	known   bool // the claimer has told of the blocks at least once
	blocks  map[netip.Prefix]*block
	leases  map[netip.Addr]*Lease
	waiting map[string]int // pod UID -> addresses that a Reserve waits for
	hint    string
	// conflicts names the nodes that have blocks in which leases live here.
	conflicts map[netip.Prefix]string
	assessed  bool    // the claimer has told of conflicts at least once
	cooling   cooling // the Manager's
}

func newPool(network string, cooling cooling) *pool {
	return &pool{
		network: network,
		cooling: cooling,
		blocks:  map[netip.Prefix]*block{},
		leases:  map[netip.Addr]*Lease{},
		waiting: map[string]int{},
	}
}

// empty pools are forgotten.
func (p *pool) empty() bool { return len(p.blocks)+len(p.leases)+len(p.waiting) == 0 }

// setBlocks brings the pool to these blocks and tells whether any of them is
// new, closed or gone.
func (p *pool) setBlocks(uid types.UID, plan *addressing.Plan, blocks []Block, now time.Time) bool {
	replan, changed := p.plan != plan, !p.known
	p.uid, p.plan, p.known = uid, plan, true
	wanted := make(map[netip.Prefix]bool, len(blocks))
	for _, next := range blocks {
		wanted[next.Prefix] = true
		b := p.blocks[next.Prefix]
		if b == nil || b.UID != next.UID {
			p.addBlock(next, now)
			changed = true
			continue
		}
		changed = changed || b.Block != next
		if b.Closed && !next.Closed {
			// A deletion is never taken back, but an API server that was restored
			// from a backup does not know of it.
			b.drained, b.sealed = false, false
		}
		b.Block = next
		b.noteClosed(now)
		if replan {
			p.refill(b)
		}
	}
	for prefix := range p.blocks {
		if !wanted[prefix] {
			delete(p.blocks, prefix)
			changed = true
		}
	}
	return changed
}

func (p *pool) addBlock(next Block, now time.Time) {
	b := &block{Block: next, idleSince: now}
	for _, lease := range p.leases {
		if lease.keeps(next.Prefix) {
			b.leased++
			b.used = true
		}
	}
	b.noteClosed(now)
	p.refill(b)
	p.blocks[next.Prefix] = b
}

// refill makes the free list what the plan allows, less the leases, and keeps
// the order of what was free before. What was freed a moment ago comes last.
func (p *pool) refill(b *block) {
	shared := p.shareOut(b)
	allowed := shared.pods
	b.node, b.odd = shared.node, shared.odd
	spare := make(map[netip.Addr]bool, len(allowed))
	for _, address := range allowed {
		spare[address] = p.leases[address] == nil
	}
	free := make([]freeAddr, 0, len(allowed))
	for _, f := range b.free {
		if spare[f.address] {
			free = append(free, f)
			spare[f.address] = false
		}
	}
	for _, address := range allowed {
		if spare[address] {
			free = append(free, freeAddr{address: address, freed: p.cooling[addrKey{p.network, address}]})
		}
	}
	slices.SortStableFunc(free, func(a, b freeAddr) int { return a.freed.Compare(b.freed) })
	b.free = free
}

// counts tells whether others take the address for part of the node's capacity.
func (p *pool) counts(address netip.Addr) bool {
	for prefix, b := range p.blocks {
		if prefix.Contains(address) && (!b.Closed || b.Quarantined) {
			return true
		}
	}
	return !p.known
}

// pick takes an address off the free lists. Among the addresses that have
// cooled down it prefers the busiest block, so that the others become idle and
// can be given back; among the rest the one that was freed first.
func (p *pool) pick(now time.Time) (*block, freeAddr, bool) {
	best := p.best((*block).open, now)
	if best == nil {
		best = p.best((*block).lingers, now)
	}
	if best == nil {
		return nil, freeAddr{}, false
	}
	first := best.free[0]
	best.free = best.free[1:]
	return best, first, true
}

// best is the block to take an address of, among those that qualify.
func (p *pool) best(qualifies func(*block) bool, now time.Time) *block {
	var best *block
	for _, b := range p.blocks {
		if qualifies(b) && len(b.free) > 0 && (best == nil || before(b, best, now)) {
			best = b
		}
	}
	return best
}

func before(a, b *block, now time.Time) bool {
	af, bf := a.free[0].freed, b.free[0].freed
	aHot, bHot := now.Sub(af) < coolDown, now.Sub(bf) < coolDown
	if aHot != bHot {
		return bHot
	}
	if aHot && !af.Equal(bf) {
		return af.Before(bf)
	}
	return cmp.Or(cmp.Compare(b.leased, a.leased), a.Prefix.Addr().Compare(b.Prefix.Addr())) < 0
}

// unpick undoes pick.
func (b *block) unpick(f freeAddr) { b.free = append([]freeAddr{f}, b.free...) }

// attach enters a lease. A block of a former Network of the same name may
// overlap one of today's, which is why every block is looked at.
func (p *pool) attach(lease *Lease) {
	p.leases[lease.Address] = lease
	for prefix, b := range p.blocks {
		if lease.keeps(prefix) {
			b.leased++
			b.used = true
		}
	}
}

// detach removes a lease; its address goes to the end of its block's free list.
func (p *pool) detach(lease *Lease, now time.Time) {
	delete(p.leases, lease.Address)
	for prefix, b := range p.blocks {
		if !lease.keeps(prefix) {
			continue
		}
		b.leased--
		if b.leased == 0 {
			b.idleSince = now
		}
		if p.allows(b, lease.Address) {
			b.free = append(b.free, freeAddr{address: lease.Address, freed: now})
		}
	}
	p.resettle(lease.Node, now)
}

// anchor is an open block of the node, the busiest one: the others can be given
// back.
func (p *pool) anchor() *block {
	var best *block
	for _, b := range p.blocks {
		if b.open() && (best == nil || cmp.Or(cmp.Compare(b.leased, best.leased), best.Prefix.Addr().Compare(b.Prefix.Addr())) > 0) {
			best = b
		}
	}
	return best
}

// allows tells whether a pod may have the address under the plan of today.
func (p *pool) allows(b *block, address netip.Addr) bool {
	if b.odd {
		return slices.Contains(p.shareOut(b).pods, address)
	}
	return p.plan != nil && p.plan.Serves(b.Prefix, address)
}

// inUse counts the leases, and the blocks that are held.
func (p *pool) inUse() (leases, blocks int) {
	for _, b := range p.blocks {
		if b.open() {
			leases += b.leased
			blocks++
		}
	}
	return leases, blocks
}
