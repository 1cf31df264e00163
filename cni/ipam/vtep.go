// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/netplane/netplane/api/v1alpha1"
)

// LookAgain has every Network looked at that the node has anything of: tunnel
// addresses may have changed. It never blocks.
func (c *Claimer) LookAgain() { c.pokeAll() }

// vtep is the node's tunnel address in a Network.
func (c *Claimer) vtep(network *v1alpha1.Network) netip.Addr {
	if network == nil || network.Spec.Plugin != v1alpha1.PluginVXLAN || c.tunnel == nil {
		return netip.Addr{}
	}
	return c.tunnel(network.Name)
}

// amendTunnels writes the node's tunnel address into the blocks that lack it:
// those that the scheduler made, and all of them when the NIC's address is
// another. While the NIC has none, the last one stays.
func (c *Claimer) amendTunnels(ctx context.Context, v *view) error {
	if !v.vtep.IsValid() {
		return nil
	}
	want := v1alpha1.IP(v.vtep.String())
	var failed []error
	for prefix, block := range v.blocks {
		if block.Spec.VTEP == want || v.orphan(block) || v.quarantined(prefix) {
			continue
		}
		amended := block.DeepCopy()
		amended.Spec.VTEP = want
		err := c.client.Patch(ctx, amended, client.MergeFromWithOptions(block, client.MergeFromWithOptimisticLock{}))
		switch {
		case apierrors.IsConflict(err), apierrors.IsNotFound(err): // the event that tells of it brings us back
		case err != nil:
			failed = append(failed, fmt.Errorf("writing the node's tunnel address into IPBlock %q: %w", block.Name, err))
		default:
			log.FromContext(ctx).Info("Wrote the node's tunnel address into a block", "network", v.name, "block", prefix, "vtep", want)
			v.blocks[prefix] = amended
		}
	}
	return errors.Join(failed...)
}
