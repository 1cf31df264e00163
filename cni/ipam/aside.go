// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"
)

// asideFor is how long an address is kept from pods after a host outside the
// cluster answered for it. The next pod that gets it asks again.
const asideFor = 5 * time.Minute

// asideContainer owns the leases of addresses that are put aside. It is no
// container's ID, and has no namespace that could go.
const asideContainer = "put-aside"

func (l *Lease) aside() bool { return l.ContainerID == asideContainer }

// PutAside ends a lease because a host outside the cluster has its address, and
// keeps the address from everybody for five minutes, also over a restart. Until
// then it counts as held. A lease that has ended already is left alone; a fixed
// address cannot be put aside, as its pod can have no other.
func (m *Manager) PutAside(lease Lease) error {
	if lease.Fixed {
		return fmt.Errorf("putting address %s of network %q aside: it is fixed", lease.Address, lease.Network)
	}
	m.mu.Lock()
	done, err := m.putAsideLocked(&lease)
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("putting address %s of network %q aside: %w", lease.Address, lease.Network, err)
	}
	if done {
		m.foreign.add(lease.Network)
		m.notify(lease.Network, false)
	}
	return nil
}

func (m *Manager) putAsideLocked(lease *Lease) (bool, error) {
	if m.journal == nil {
		return false, ErrNotReplayed
	}
	if now := m.byOwner[lease.key()]; now == nil || !sameLease(now, lease) {
		return false, nil
	}
	aside := &Lease{
		Owner:   Owner{ContainerID: asideContainer, IfName: lease.Network + "/" + lease.Address.String()},
		Network: lease.Network, NetworkUID: lease.NetworkUID, Address: lease.Address, Block: lease.Block,
		Since: m.clock.Now().UTC().Round(0),
	}
	// One record does both: who reads it drops the address's former owner.
	if err := m.journal.append(record{Op: opLease, Leases: []Lease{*aside}}); err != nil {
		return false, err
	}
	m.leave(lease)
	m.byOwner[aside.key()] = aside
	m.byContainer[asideContainer] = append(m.byContainer[asideContainer], aside)
	m.pools[lease.Network].leases[aside.Address] = aside
	return true, nil
}

// endAside gives addresses that were put aside to pods again when time is up.
func (m *Manager) endAside(ctx context.Context) {
	now := m.clock.Now()
	m.endAsides(ctx, func(lease *Lease) bool { return now.Sub(lease.Since) >= asideFor })
}

// endAsidesOf does so at once for a Network that goes: what is put aside would
// keep its blocks, and thereby the Network, for nobody.
func (m *Manager) endAsidesOf(ctx context.Context, network string) {
	m.endAsides(ctx, func(lease *Lease) bool { return lease.Network == network })
}

func (m *Manager) endAsides(ctx context.Context, which func(*Lease) bool) {
	ended, err := m.release(func(lease *Lease) bool { return lease.aside() && which(lease) })
	if err != nil {
		klog.FromContext(ctx).Error(err, "Addresses that were put aside stay so until the next look")
	}
	for i := range ended {
		klog.FromContext(ctx).V(2).Info("An address that was put aside may be used again", "network", ended[i].Network, "address", ended[i].Address)
	}
}
