// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

// maxNamedPods bounds the pods that a conflict names.
const maxNamedPods = 3

// actionAssert is the action that events of conflicts name.
const actionAssert = "AssertBlock"

// setConflicts says which blocks of a Network other nodes have, by block. They
// are conflicts as long as leases live in them.
func (m *Manager) setConflicts(network string, with map[netip.Prefix]string) {
	m.mu.Lock()
	p := m.pools[network]
	changed := p != nil && !maps.Equal(p.conflicts, with)
	if p != nil {
		p.conflicts, p.assessed = with, true
	}
	m.mu.Unlock()
	if changed {
		m.notify(network, false)
	}
}

// Recall takes over the conflicts that the former agent of this node published,
// until the Claimer has looked at each Network itself: a report that went with
// the agent would have the other node open the block. Call it after Replay and
// before Conflicts is published.
func (m *Manager) Recall(published []v1alpha1.BlockConflict) {
	others := make(map[string]string, len(published))
	for i := range published {
		others[published[i].Block] = published[i].OtherNode
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pools {
		for _, lease := range p.leases {
			other := others[addressing.BlockName(p.network, lease.Block)]
			if other == "" || p.assessed {
				continue
			}
			if p.conflicts == nil {
				p.conflicts = map[netip.Prefix]string{}
			}
			p.conflicts[lease.Block] = other
		}
	}
}

// Conflicts lists the blocks, by name, that another node has although addresses
// are in use in them here, for NodeNetwork.status.conflicts. There are no more
// of them than fit there.
func (m *Manager) Conflicts() []v1alpha1.BlockConflict {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []v1alpha1.BlockConflict
	for _, p := range m.pools {
		out = append(out, p.conflictsNow()...)
	}
	slices.SortFunc(out, func(a, b v1alpha1.BlockConflict) int { return cmp.Compare(a.Block, b.Block) })
	return out[:min(len(out), v1alpha1.MaxBlockConflicts)]
}

func (m *Manager) conflictsOf(network string) []v1alpha1.BlockConflict {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pools[network]; p != nil {
		return p.conflictsNow()
	}
	return nil
}

func (p *pool) conflictsNow() []v1alpha1.BlockConflict {
	var out []v1alpha1.BlockConflict
	for prefix, other := range p.conflicts {
		conflict := v1alpha1.BlockConflict{Block: addressing.BlockName(p.network, prefix), OtherNode: other}
		var oldest *Lease
		for _, lease := range p.leases {
			if lease.aside() || !lease.keeps(prefix) {
				continue
			}
			if oldest == nil || lease.Since.Before(oldest.Since) {
				oldest = lease
			}
			conflict.Addresses++
			if lease.PodName != "" {
				conflict.Pods = append(conflict.Pods, lease.PodNamespace+"/"+lease.PodName)
			}
		}
		if oldest == nil {
			continue
		}
		slices.Sort(conflict.Pods)
		conflict.Pods = slices.Compact(conflict.Pods)
		conflict.Pods = conflict.Pods[:min(len(conflict.Pods), maxNamedPods)]
		conflict.Since = metav1.NewTime(oldest.Since).Rfc3339Copy()
		out = append(out, conflict)
	}
	return out
}

// quarantined counts, by network, the free addresses of blocks that others take
// for capacity though they are closed.
func (m *Manager) quarantined() map[string]int32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]int32{}
	for network, p := range m.pools {
		for _, b := range p.blocks {
			if b.Quarantined && len(b.free) > 0 {
				out[network] += int32(len(b.free))
			}
		}
	}
	return out
}

// noteConflicts tells the Manager, and the world once, of the blocks that other
// nodes have: those that could not be asserted, and those of this node that
// are contested.
func (c *Claimer) noteConflicts(ctx context.Context, v *view, st *claims) {
	with := map[netip.Prefix]string{}
	for prefix, lost := range st.lost {
		if lost.node != c.node {
			with[prefix] = lost.node
		}
	}
	for prefix, block := range v.blocks {
		if other := contested(block); other != "" {
			with[prefix] = other
		}
	}
	c.manager.setConflicts(v.name, with)
	told := st.told
	st.told = map[string]string{}
	for _, conflict := range c.manager.conflictsOf(v.name) {
		st.told[conflict.Block] = conflict.OtherNode
		if told[conflict.Block] != conflict.OtherNode {
			c.tellConflict(ctx, v, &conflict)
		}
	}
}

func (c *Claimer) tellConflict(ctx context.Context, v *view, conflict *v1alpha1.BlockConflict) {
	pods := strings.Join(conflict.Pods, ", ")
	c.metrics.claim(v.name, claimConflict)
	log.FromContext(ctx).Error(nil, "Pods of two nodes may have the same addresses: delete those of one of the nodes", "network", v.name,
		"block", conflict.Block, "otherNode", conflict.OtherNode, "addresses", conflict.Addresses, "since", conflict.Since, "pods", pods)
	if c.events != nil && v.network != nil {
		c.events.Eventf(v.network, nil, corev1.EventTypeWarning, v1alpha1.EventBlockConflict, actionAssert,
			"Nodes %s and %s both have IPBlock %s: %d addresses of it are in use on %s (pods %s). Delete them, or those on %s if they are younger: see status.conflicts of both NodeNetworks",
			c.node, conflict.OtherNode, conflict.Block, conflict.Addresses, c.node, pods, conflict.OtherNode)
	}
}
