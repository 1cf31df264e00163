// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"net/netip"
	"slices"
	"time"
)

// adoptWait is how long an agent waits for the block that the scheduler has
// created for a pod, before it claims one itself.
const adoptWait = time.Second

// maxWatermark bounds how many free addresses a node keeps ahead of need.
const maxWatermark = 8

// watermark is how many free addresses a node wants to have of a Network.
func watermark(blockSize int) int { return max(1, min(maxWatermark, blockSize/4)) }

// graces are the times for which things stay as they are.
type graces struct {
	idle   time.Duration // before a block that nobody needs is given back
	scarce time.Duration // the same where other nodes find no block
	unused time.Duration // the same, at least, for one that the scheduler has just created
	drain  time.Duration // before an empty block that is being deleted goes
}

// heldBlock is one block of the node, as decide sees it.
type heldBlock struct {
	prefix    netip.Prefix
	capacity  int
	leased    int
	open      bool      // hands out addresses
	used      bool      // had a lease at some time
	orphan    bool      // its Network is gone
	contested bool      // another node's pods are in it: nobody may get it now
	deleted   time.Time // when its deletionTimestamp was first seen, or zero
	idleSince time.Time
}

// situation is all that decides about the blocks of one Network.
type situation struct {
	now       time.Time
	graces    graces
	claimable bool      // the node may claim blocks
	backed    bool      // the node's NICs back the Network: one block stays warm
	ending    bool      // the Network is being deleted: nothing that is idle stays
	scarce    bool      // few unclaimed blocks are left, or none
	tight     bool      // the scheduler claims blocks on demand: none stays warm
	short     time.Time // since when pods that are bound here lack addresses, or zero
	watermark int
	needed    int // addresses of open blocks that pods have, or will ask for
	displaced int // addresses that pods have in blocks that others do not count as the node's
	blocks    []heldBlock
}

// decision is what to do now, and when to look again; 0 means at the next event.
type decision struct {
	claim    bool           // one more block
	lacks    bool           // one more block is needed, if not at once
	giveBack []netip.Prefix // to delete
	finish   []netip.Prefix // to take the finalizer off
	again    time.Duration
}

// decide is pure: claiming is done by whoever asks, one block at a time.
func decide(s *situation) decision {
	var d decision
	d.finishDeleted(s)
	for i := range s.blocks {
		if b := &s.blocks[i]; b.orphan && b.deleted.IsZero() && b.leased == 0 {
			d.giveBack = append(d.giveBack, b.prefix)
		}
	}
	held, free := s.held()
	if s.claimable && s.lacks(held, free) {
		// The scheduler creates a block before it binds the pod that needs it, but
		// the pod may come through its watch first.
		d.lacks = true
		d.claim = !s.tight || !d.wait(adoptWait-s.now.Sub(s.short))
		return d
	}
	d.giveSpare(s, held, free)
	return d
}

// lacks tells whether another block is needed. Of a Tight network that is so
// only for pods that are bound already: by another scheduler, or before a block
// of the node went.
func (s *situation) lacks(held, free int) bool {
	if s.tight {
		return free < 0
	}
	return held == 0 || s.shown(free) < s.watermark
}

// shown is how many free addresses the scheduler sees: it takes every pod on
// the node for one in the blocks that it counts. Of a Tight network it claims
// what it lacks itself.
func (s *situation) shown(free int) int {
	if s.tight {
		return free
	}
	return free - s.displaced
}

// noteShortage remembers since when pods lack addresses.
func (s *situation) noteShortage(since time.Time) time.Time {
	switch _, free := s.held(); {
	case free >= 0:
		s.short = time.Time{}
	case since.IsZero():
		s.short = s.now
	default:
		s.short = since
	}
	return s.short
}

// held counts the open blocks, and their addresses that nobody needs.
func (s *situation) held() (blocks, free int) {
	for i := range s.blocks {
		if s.blocks[i].open {
			blocks++
			free += s.blocks[i].capacity
		}
	}
	return blocks, free - s.needed
}

// finishDeleted lets empty blocks that are being deleted go. Where blocks are
// scarce those stay that a pod needs which was bound in this moment.
func (d *decision) finishDeleted(s *situation) {
	_, free := s.held()
	needed := s.scarce && !s.ending && free < 0
	for i := range s.blocks {
		b := &s.blocks[i]
		if b.deleted.IsZero() || b.leased > 0 || b.contested || needed && !b.orphan {
			continue
		}
		since := b.deleted
		if b.idleSince.After(since) {
			since = b.idleSince
		}
		if d.wait(s.graces.drain - s.now.Sub(since)) {
			continue
		}
		d.finish = append(d.finish, b.prefix)
	}
}

// giveSpare gives idle blocks back as long as what stays is enough not to claim
// again at once. The one that was idle for longest goes first.
func (d *decision) giveSpare(s *situation, held, free int) {
	keep, spare, grace := 0, 0, s.graces.idle
	if s.backed && !s.ending && !s.tight {
		keep, spare = 1, s.watermark
	}
	switch {
	case s.ending:
		grace = 0
	case s.scarce:
		grace = s.graces.scarce
	}
	idle := slices.Clone(s.blocks)
	slices.SortStableFunc(idle, func(a, b heldBlock) int { return a.idleSince.Compare(b.idleSince) })
	for i := range idle {
		b := &idle[i]
		if !b.open || b.leased > 0 || held <= keep {
			continue
		}
		rest := free - b.capacity
		if s.shown(rest) < spare {
			continue
		}
		least := grace
		if s.tight && !s.ending && !b.used {
			least = max(grace, s.graces.unused)
		}
		if d.wait(least - s.now.Sub(b.idleSince)) {
			continue
		}
		held, free = held-1, rest
		d.giveBack = append(d.giveBack, b.prefix)
	}
}

// wait notes to look again after rest, if that is in the future.
func (d *decision) wait(rest time.Duration) bool {
	if rest <= 0 {
		return false
	}
	if d.again == 0 || rest < d.again {
		d.again = rest
	}
	return true
}

// needs counts the addresses of a Network's open blocks that are spoken for: of
// every pod the larger of what it asks for (less what it has in blocks that are
// closed) and what it has and waits for, and every lease without a living pod.
func needs(demand map[string]int, usage *Usage) int {
	open := make([]netip.Prefix, 0, len(usage.Blocks))
	for i := range usage.Blocks {
		if usage.Blocks[i].Open {
			open = append(open, usage.Blocks[i].Prefix)
		}
	}
	inside, outside := map[string]int{}, map[string]int{}
	for i := range usage.Leases {
		l := &usage.Leases[i]
		if l.Fixed {
			continue // of no block
		}
		if slices.ContainsFunc(open, func(p netip.Prefix) bool { return p.Contains(l.Address) }) {
			inside[l.PodUID]++
		} else {
			outside[l.PodUID]++
		}
	}
	for podUID, count := range usage.Waiting {
		inside[podUID] += count
	}
	total := 0
	for podUID, count := range inside {
		total += max(count, demand[podUID]-outside[podUID])
	}
	for podUID, count := range demand {
		if _, counted := inside[podUID]; !counted {
			total += max(0, count-outside[podUID])
		}
	}
	return total
}

// displaced counts the addresses that pods which are bound here have in blocks
// that are not part of the node's capacity: those that are being deleted, and
// those that another node has.
func displaced(demand map[string]int, usage *Usage) int {
	counted := func(l *Lease) bool {
		return slices.ContainsFunc(usage.Blocks, func(b BlockUsage) bool {
			return b.Prefix.Contains(l.Address) && (b.Open || b.Quarantined)
		})
	}
	outside := map[string]int{}
	for i := range usage.Leases {
		if l := &usage.Leases[i]; !l.Fixed && !counted(l) {
			outside[l.PodUID]++
		}
	}
	total := 0
	for podUID, count := range outside {
		total += min(count, demand[podUID])
	}
	return total
}
