// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// adopt takes over the blocks of a former Node of this node's name in which
// leases live. The journal does not survive a boot, so that a lease in such a
// block means that the machine has run on: its Node was deleted and registered
// anew. Blocks without leases may belong to another machine that had the name;
// they are the controller's to release.
//
// See docs/design/0004-nodes-that-go.md.
func (c *Claimer) adopt(ctx context.Context, v *view) error {
	if len(v.others) == 0 {
		return nil
	}
	leased := map[netip.Prefix]bool{}
	usage := c.manager.Usage(v.name)
	for i := range usage.Leases {
		l := &usage.Leases[i]
		if block := v.others[l.Block]; block != nil && block.Spec.NetworkUID == l.NetworkUID {
			leased[l.Block] = true
		}
	}
	if len(leased) == 0 {
		return nil
	}
	// The cache may be older than the block.
	var node corev1.Node
	err := c.live.Get(ctx, client.ObjectKey{Name: c.node}, &node)
	if apierrors.IsNotFound(err) || err == nil && node.UID != v.nodeUID {
		return nil // the event that tells of it brings us back
	}
	if err != nil {
		return fmt.Errorf("reading Node %q: %w", c.node, err)
	}
	for prefix := range leased {
		if err := c.adoptBlock(ctx, v, prefix); err != nil {
			return err
		}
	}
	return nil
}

func (c *Claimer) adoptBlock(ctx context.Context, v *view, prefix netip.Prefix) error {
	former := v.others[prefix]
	block := former.DeepCopy()
	block.Spec.NodeUID = v.nodeUID
	err := c.client.Patch(ctx, block, client.MergeFromWithOptions(former, client.MergeFromWithOptimisticLock{}))
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // likewise
	}
	if err != nil {
		return fmt.Errorf("adopting IPBlock %q: %w", former.Name, err)
	}
	c.metrics.claim(v.name, claimAdopted)
	log.FromContext(ctx).Info("Adopted a block whose addresses are in use: the Node was registered anew",
		"network", v.name, "block", prefix, "formerNodeUID", former.Spec.NodeUID)
	delete(v.others, prefix)
	return v.add(block)
}
