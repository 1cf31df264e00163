// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

// assert creates the blocks anew in which leases live but which the API server
// lacks: somebody took the finalizer off, or etcd was restored from a backup.
// Until then another node could claim them. It returns when to try again.
func (c *Claimer) assert(ctx context.Context, v *view, st *claims, usage *Usage) (time.Duration, error) {
	if v.ending() || v.plan == nil {
		return 0, nil
	}
	var again time.Duration
	for prefix := range v.missing(usage) {
		owned, err := c.assertBlock(ctx, v, st, prefix)
		if err != nil {
			return 0, err
		}
		if !owned {
			again = conflictPause
		}
	}
	if len(st.conflict) > 0 && again == 0 {
		clear(st.conflict)
	}
	return again, nil
}

// missing are the blocks of this very Network that leases live in and that the
// node does not hold.
func (v *view) missing(usage *Usage) map[netip.Prefix]bool {
	out := map[netip.Prefix]bool{}
	for i := range usage.Leases {
		l := &usage.Leases[i]
		if l.NetworkUID == v.network.UID && v.blocks[l.Block] == nil && v.others[l.Block] == nil && v.plan.CheckBlock(l.Block) == nil {
			out[l.Block] = true
		}
	}
	return out
}

// assertBlock is false if the block is another node's.
func (c *Claimer) assertBlock(ctx context.Context, v *view, st *claims, prefix netip.Prefix) (bool, error) {
	name := addressing.BlockName(v.name, prefix)
	logger := log.FromContext(ctx).WithValues("network", v.name, "block", prefix)
	block := v.newBlock(c.node, prefix)
	err := c.client.Create(ctx, block)
	if apierrors.IsAlreadyExists(err) {
		block = &v1alpha1.IPBlock{}
		if err := c.live.Get(ctx, client.ObjectKey{Name: name}, block); err != nil {
			return false, fmt.Errorf("reading IPBlock %q, in which addresses are in use: %w", name, err)
		}
	} else if err != nil {
		return false, fmt.Errorf("asserting IPBlock %q, in which addresses are in use: %w", name, err)
	}
	switch {
	case block.Spec.NodeName == c.node && block.Spec.NodeUID == v.nodeUID:
		logger.Info("Asserted a block that the API server lacked while its addresses were in use")
		c.expect(st, block)
		if err := v.add(block); err != nil {
			return false, err
		}
		v.tell(c.manager)
		return true, nil
	case block.Spec.NodeName != c.node && !st.conflict[name]:
		st.conflict[name] = true
		c.metrics.claim(v.name, claimConflict)
		logger.Error(nil, "Pods of two nodes may have the same addresses: move the pods of one of them to another node", "otherNode", block.Spec.NodeName)
	}
	return false, nil
}
