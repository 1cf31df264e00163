// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

// view is what one look at a Network finds.
type view struct {
	name    string
	network *v1alpha1.Network // nil if there is none
	plan    *addressing.Plan  // nil if there is none to go by
	nodeUID types.UID
	vtep    netip.Addr // the node's tunnel address; invalid if it needs none, or it is not known
	mapped  bool       // the node's map names a NIC for it, and the node does not refuse it
	up      bool       // and that NIC is up
	blocks  map[netip.Prefix]*v1alpha1.IPBlock
	others  map[netip.Prefix]*v1alpha1.IPBlock // of a former node of this name
	demand  map[string]int
	// suspended blocks may be another node's, after a rollback, until reopens
	// has passed.
	suspended map[netip.Prefix]bool
	reopens   time.Duration
}

// look gathers all that is known of a Network.
func (c *Claimer) look(ctx context.Context, name string, st *claims) (*view, error) {
	v := &view{name: name, blocks: map[netip.Prefix]*v1alpha1.IPBlock{}, others: map[netip.Prefix]*v1alpha1.IPBlock{}}
	var err error
	if v.nodeUID, err = c.identity(ctx); err != nil {
		return nil, err
	}
	var network v1alpha1.Network
	switch err := c.client.Get(ctx, client.ObjectKey{Name: name}, &network); {
	case err == nil:
		v.network, v.plan = &network, st.planOf(&network)
	case !apierrors.IsNotFound(err):
		return nil, fmt.Errorf("reading Network %q: %w", name, err)
	}
	v.vtep = c.vtep(v.network)
	if err := c.lookAtOffer(ctx, v); err != nil {
		return nil, err
	}
	if err := c.lookAtBlocks(ctx, v, st); err != nil {
		return nil, err
	}
	v.demand, err = c.demand(ctx, name)
	return v, err
}

// identity is the Node's UID; the last known one while the Node is being
// registered anew.
func (c *Claimer) identity(ctx context.Context) (types.UID, error) {
	var node corev1.Node
	err := c.client.Get(ctx, client.ObjectKey{Name: c.node}, &node)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.nodeUID = node.UID
	case !apierrors.IsNotFound(err) || c.nodeUID == "":
		return "", fmt.Errorf("reading Node %q: %w", c.node, err)
	}
	return c.nodeUID, nil
}

// lookAtOffer reads from the node's own status whether its NICs back the Network.
func (c *Claimer) lookAtOffer(ctx context.Context, v *view) error {
	if v.network == nil {
		return nil
	}
	var offer v1alpha1.NodeNetwork
	if err := c.client.Get(ctx, client.ObjectKey{Name: c.node}, &offer); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("reading NodeNetwork %q: %w", c.node, err)
	}
	if slices.ContainsFunc(offer.Status.Refused, func(r v1alpha1.RefusedNetwork) bool { return r.Network == v.name }) {
		return nil
	}
	for i := range offer.Status.PhysicalNetworks {
		if physical := &offer.Status.PhysicalNetworks[i]; physical.Name == v.network.Spec.PhysicalNet {
			v.mapped, v.up = len(physical.Interfaces) > 0, physical.Ready
		}
	}
	return nil
}

// lookAtBlocks finds the node's blocks: those in the cache, and those that were
// created but have not come through the watch yet.
func (c *Claimer) lookAtBlocks(ctx context.Context, v *view, st *claims) error {
	var list v1alpha1.IPBlockList
	if err := c.client.List(ctx, &list); err != nil {
		return fmt.Errorf("listing the node's IPBlocks: %w", err)
	}
	for i := range list.Items {
		block := &list.Items[i]
		if block.Spec.NodeName != c.node || block.Spec.Network != v.name || st.rewound.gone[block.UID] {
			continue
		}
		c.seen(block)
		if err := v.add(block); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(st.eachExpected(c.clock.Now(), v.add)...)
}

// add enters a block that names this node.
func (v *view) add(block *v1alpha1.IPBlock) error {
	prefix, err := netip.ParsePrefix(string(block.Spec.CIDR))
	if err != nil {
		return fmt.Errorf("reading IPBlock %q: %w", block.Name, err)
	}
	if block.Spec.NodeUID != v.nodeUID {
		// Of those in which no lease lives, only the controller may say that
		// nothing of the former node does.
		v.others[prefix] = block
		return nil
	}
	v.blocks[prefix] = block
	return nil
}

// ending tells that nothing new may start on the Network.
func (v *view) ending() bool { return v.network == nil || v.network.DeletionTimestamp != nil }

// orphan tells that the block belongs to a Network that is no more.
func (v *view) orphan(block *v1alpha1.IPBlock) bool {
	return v.network == nil || block.Spec.NetworkUID != v.network.UID
}

// hindrance is why the node may not claim blocks of the Network, or empty.
// Tight is none: a pod that is bound without a block needs one.
func (v *view) hindrance() string {
	switch {
	case v.ending():
		return hintGone
	case v.plan == nil || !readyNow(v.network):
		return hintNotReady
	case !v.mapped || !v.up:
		return hintNotBacked
	}
	return ""
}

// awaited is what a pod without an address waits for while the node claims
// nothing, or empty.
func (v *view) awaited() string {
	if why := v.hindrance(); why != "" || !v.tight() {
		return why
	}
	return hintTight
}

// tight tells that the scheduler claims the Network's blocks, on demand.
func (v *view) tight() bool {
	return v.network != nil && apimeta.IsStatusConditionTrue(v.network.Status.Conditions, v1alpha1.ConditionTight)
}

// scarce tells that, as far as the controller counted, every block has a node.
func (v *view) scarce() bool {
	if v.network == nil {
		return false
	}
	count := &v.network.Status.Addresses
	return v.tight() || count.Capacity > 0 && count.Claimed >= count.Capacity
}

// readyNow tells whether the Network is Ready as its spec stands.
func readyNow(network *v1alpha1.Network) bool {
	ready := apimeta.FindStatusCondition(network.Status.Conditions, v1alpha1.ConditionReady)
	return ready != nil && ready.Status == metav1.ConditionTrue && network.Status.ObservedGeneration == network.Generation
}

// contested names a node on which addresses of this node's block are in use, or
// is empty.
func contested(block *v1alpha1.IPBlock) string {
	return block.Annotations[v1alpha1.AnnotationContestedBy]
}

// quarantined tells of a block that is the node's in the API, but may hold
// other nodes' pods.
func (v *view) quarantined(prefix netip.Prefix) bool {
	return v.suspended[prefix] || contested(v.blocks[prefix]) != ""
}

// opens tells of a block that it hands out addresses.
func (v *view) opens(prefix netip.Prefix) bool {
	block := v.blocks[prefix]
	return block.DeletionTimestamp == nil && !v.orphan(block) && !v.quarantined(prefix)
}

// tell passes the blocks on to the Manager.
func (v *view) tell(m *Manager) {
	var uid types.UID
	if v.network != nil {
		uid = v.network.UID
	}
	blocks := make([]Block, 0, len(v.blocks))
	for prefix, block := range v.blocks {
		blocks = append(blocks, Block{
			Prefix: prefix, UID: block.UID, Closed: !v.opens(prefix),
			Quarantined: block.DeletionTimestamp == nil && !v.orphan(block) && v.quarantined(prefix),
			// The scheduler may have bound a pod before it saw that the block is
			// given back, and there may be no other to claim.
			LastResort: v.scarce() && !v.ending() && !v.orphan(block) && !v.quarantined(prefix),
		})
	}
	m.SetBlocks(v.name, uid, v.plan, blocks)
}

// situation is the view as decide wants it.
func (v *view) situation(usage *Usage, g graces, now time.Time) *situation {
	s := &situation{
		now:       now,
		graces:    g,
		claimable: v.hindrance() == "",
		backed:    v.mapped,
		ending:    v.ending(),
		scarce:    v.scarce(),
		tight:     v.tight(),
		needed:    needs(v.demand, usage),
		displaced: displaced(v.demand, usage),
	}
	if v.plan != nil {
		s.watermark = watermark(v.plan.BlockSize())
	}
	for i := range usage.Blocks {
		u := &usage.Blocks[i]
		block := v.blocks[u.Prefix]
		if block == nil {
			continue
		}
		held := heldBlock{
			prefix: u.Prefix, leased: u.Leased, open: u.Open, used: u.Used, idleSince: u.IdleSince,
			orphan: v.orphan(block), contested: contested(block) != "",
		}
		if v.plan != nil && u.Open {
			held.capacity = v.plan.Capacity(u.Prefix)
		}
		if block.DeletionTimestamp != nil {
			held.deleted = u.ClosedSince
		}
		s.blocks = append(s.blocks, held)
	}
	return s
}
