// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"iter"
	"net/netip"
	"sync"

	"github.com/netplane/netplane/api/addressing"
)

// inventories remember which blocks exist of each Network that is Tight, so
// that a pod that needs one does not have to read all.
//
// As with views, the index functions of the blocks' store note what changes
// while the store holds its lock. Whoever asks reads from the store what was
// noted since the last time, so he sees what the store shows. What an informer
// has lost while it listed anew is noted by the handler of Sources, and by the
// hint that wakes the pods which wait for it; until then it counts as existing.
type inventories struct {
	mu     sync.Mutex // taken with the store's lock held, so nothing is waited for under it
	byName map[string]*inventory
}

// inventory is what is remembered of one Network.
type inventory struct {
	// noted are the blocks that may have come or gone. The inventories' lock guards it.
	noted map[string]netip.Prefix

	mu sync.Mutex // guards the rest; is held while the store is read
	// The Network that the blocks are of.
	edition  edition
	existing *addressing.BlockSet
}

// note has the block looked up before its Network's inventory is used again.
// Nothing is noted of Networks that nobody has asked about.
func (i *inventories) note(b *block) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if kept := i.byName[b.networkName()]; kept != nil {
		kept.noted[b.name] = b.cidr
	}
}

// forget drops what is remembered of a Network that is not Tight any more.
func (i *inventories) forget(network string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.byName, network)
}

// of returns a Network's inventory, an empty one if there was none.
func (i *inventories) of(network string) *inventory {
	i.mu.Lock()
	defer i.mu.Unlock()
	kept := i.byName[network]
	if kept == nil {
		kept = &inventory{noted: map[string]netip.Prefix{}}
		if i.byName == nil {
			i.byName = map[string]*inventory{}
		}
		i.byName[network] = kept
	}
	return kept
}

// takeNotes returns what was noted, which the caller has to look up.
func (i *inventories) takeNotes(kept *inventory) map[string]netip.Prefix {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(kept.noted) == 0 {
		return nil
	}
	noted := kept.noted
	kept.noted = map[string]netip.Prefix{}
	return noted
}

// withExisting calls use with the Network's blocks that the informer shows. By
// name of the Network, and whether they serve or not: those of an earlier
// Network and those that are being given back have their names still. The set
// must not be used afterwards.
func (s *Sources) withExisting(net *network, use func(*addressing.BlockSet)) {
	kept := s.inventories.of(net.Name)
	kept.mu.Lock()
	defer kept.mu.Unlock()
	noted := s.inventories.takeNotes(kept) // before the store is read
	if kept.existing == nil || kept.edition != net.edition {
		kept.edition, kept.existing = net.edition, s.listExisting(net)
	} else {
		for name, cidr := range noted {
			if s.shown(name) {
				kept.existing.Add(cidr)
			} else {
				kept.existing.Remove(cidr)
			}
		}
	}
	use(kept.existing)
}

// listExisting reads all blocks.
func (s *Sources) listExisting(net *network) *addressing.BlockSet {
	existing := net.plan.NewBlockSet()
	for _, obj := range s.blocks.List() {
		if b, ok := obj.(*block); ok && b.networkName() == net.Name {
			existing.Add(b.cidr)
		}
	}
	return existing
}

// shown tells whether a block of this name exists, whoever's it is.
func (s *Sources) shown(name string) bool {
	_, exists, err := s.blocks.GetByKey(name)
	return exists && err == nil
}

// unclaimed yields the blocks of a Network that the informer does not show, in
// the order in which the node is to try them. While it is read, others that
// ask about the same Network wait.
func (s *Sources) unclaimed(net *network, node string) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		s.withExisting(net, func(existing *addressing.BlockSet) { existing.Candidates(node)(yield) })
	}
}

// claimable counts the addresses of blocks that can be claimed now.
func (s *Sources) claimable(net *network) int64 {
	promised := s.claims.promised(net.UID, s.shown) // first: what it drops the informer shows
	var left int64
	s.withExisting(net, func(existing *addressing.BlockSet) {
		left = existing.Left()
		for _, prefix := range promised {
			if !existing.Has(prefix) && net.plan.CheckBlock(prefix) == nil {
				left -= int64(net.plan.Capacity(prefix))
			}
		}
	})
	return left
}
