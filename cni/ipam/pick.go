// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"time"
)

// picked is an address taken off its free list, if it is of one.
type picked struct {
	lease *Lease
	block *block // nil for a fixed address
	from  freeAddr
}

func (p *picked) undo() {
	if p.block != nil {
		p.block.unpick(p.from)
	}
}

func values(fresh []picked) []Lease {
	out := make([]Lease, len(fresh))
	for i := range fresh {
		out[i] = *fresh[i].lease
	}
	return out
}

// pickAll finds a lease for every ask; fresh are those that are new. Undoing
// them, the last one first, restores the free lists.
func (m *Manager) pickAll(asks []Ask) (leases []Lease, fresh []picked, lack []string, err error) {
	now := m.clock.Now().UTC().Round(0)
	leases, fresh = make([]Lease, 0, len(asks)), make([]picked, 0, len(asks))
	for i := range asks {
		ask := &asks[i]
		if old, ok := m.byOwner[ask.key()]; ok {
			if old.Network != ask.Network {
				return nil, fresh, nil, fmt.Errorf("reserving an address of network %q: interface %s of container %s has an address of network %q still", ask.Network, ask.IfName, ask.ContainerID, old.Network)
			}
			if ask.Fixed.IsValid() && old.Address != ask.Fixed {
				return nil, fresh, nil, fmt.Errorf("reserving address %s of network %q: interface %s of container %s has %s still", ask.Fixed, ask.Network, ask.IfName, ask.ContainerID, old.Address)
			}
			leases = append(leases, *old)
			continue
		}
		if ask.Fixed.IsValid() && m.hesitate != nil {
			if why := m.hesitate(); why != "" {
				return nil, fresh, nil, fmt.Errorf("reserving address %s of network %q: %s", ask.Fixed, ask.Network, why)
			}
		}
		one, err := pickOne(m.pools[ask.Network], ask, now)
		if err != nil {
			return nil, fresh, nil, err
		}
		if one.lease == nil {
			lack = append(lack, ask.Network)
			continue
		}
		leases = append(leases, *one.lease)
		fresh = append(fresh, one)
	}
	return leases, fresh, lack, nil
}

// pickOne finds a lease for an interface that has none; it has no lease if the
// node lacks a block. p is nil if the node has nothing of the Network.
func pickOne(p *pool, ask *Ask, now time.Time) (picked, error) {
	if ask.Fixed.IsValid() {
		lease, err := fixedLease(p, ask, now)
		return picked{lease: lease}, err
	}
	if p == nil {
		return picked{}, nil
	}
	b, from, found := p.pick(now)
	if !found {
		return picked{}, nil
	}
	lease := &Lease{Owner: ask.Owner, Network: ask.Network, NetworkUID: p.uid, Address: from.address, Block: b.Prefix, Node: b.node, Since: now}
	return picked{lease, b, from}, nil
}

// FixedInUseError says that an interface of another sandbox has the fixed
// address still: of the pod's former sandbox, or of a pod of another UID whose
// DEL has not come. It is temporary: DEL or the Collector frees the address.
type FixedInUseError struct{ Lease Lease }

// Error names who has the address, and what frees it.
func (e *FixedInUseError) Error() string {
	return fmt.Sprintf("address %s of network %q is in use still by interface %s of pod %s/%s, container %s: it goes free with that container",
		e.Lease.Address, e.Lease.Network, e.Lease.IfName, e.Lease.PodNamespace, e.Lease.PodName, e.Lease.ContainerID)
}

// fixedLease makes the lease of a fixed address, of which the node keeps no free
// list: the IPClaim says that it is this pod's. It returns nil if the ask needs
// a block of the node and there is none. p is nil if the node has nothing of
// the Network.
func fixedLease(p *pool, ask *Ask, now time.Time) (*Lease, error) {
	lease := &Lease{Owner: ask.Owner, Network: ask.Network, NetworkUID: ask.NetworkUID, Address: ask.Fixed, Fixed: true, Since: now}
	if p != nil {
		if other := p.leases[ask.Fixed]; other != nil {
			return nil, &FixedInUseError{Lease: *other}
		}
	}
	if !ask.Anchor {
		return lease, nil
	}
	if p == nil {
		return nil, nil
	}
	b := p.anchor()
	if b == nil {
		return nil, nil
	}
	lease.Block, lease.Node = b.Prefix, b.node
	return lease, nil
}
