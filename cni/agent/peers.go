// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/inventory"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/overlay"
)

// peers implements overlay.Blocks with one cache for each Network: the agent
// holds other nodes' blocks only of the vxlan Networks that have a pod here.
type peers struct{ mgr ctrl.Manager }

func (p peers) Follow(ctx context.Context, network string, changed func()) (func() ([]*v1alpha1.IPBlock, bool), error) {
	fill, err := followApart(ctx, p.mgr, &v1alpha1.IPBlock{}, cache.ByObject{
		Field: fields.OneTermEqualSelector(v1alpha1.FieldIPBlockNetwork, network), Transform: slimBlock,
	}, nil, changed)
	if err != nil {
		return nil, fmt.Errorf("following the blocks of network %q: %w", network, err)
	}
	return func() ([]*v1alpha1.IPBlock, bool) {
		var list v1alpha1.IPBlockList
		known := fill(&list)
		return pointers(list.Items), known
	}, nil
}

// slimBlock keeps what says whose a block is and where its node is.
func slimBlock(obj any) (any, error) {
	if block, ok := obj.(*v1alpha1.IPBlock); ok {
		return &v1alpha1.IPBlock{
			ObjectMeta: metav1.ObjectMeta{Name: block.Name, UID: block.UID, ResourceVersion: block.ResourceVersion},
			Spec:       block.Spec,
		}, nil
	}
	return obj, nil
}

// makeOverlays makes what keeps the segments of vxlan Networks.
func (a *agent) makeOverlays(opts *options) {
	reader := a.mgr.GetClient()
	a.overlays = overlay.New(opts.nodeName, overlay.Deps{
		Links: a.links, Blocks: peers{a.mgr},
		Networks: func() []v1alpha1.Network {
			var list v1alpha1.NetworkList
			if err := reader.List(context.Background(), &list); err != nil {
				return nil
			}
			return list.Items
		},
		Tunnel: func(network string) (link.Tunnel, bool) { return a.inventory.Current().Tunnel(network) },
		Used:   func() []string { return a.server.OverlayBridges() },
	})
}

// tunnelAddress is what the node's blocks of a vxlan Network are told of.
func tunnelAddress(current *inventory.Snapshot, network string) netip.Addr {
	tunnel, _ := current.Tunnel(network)
	return tunnel.Address
}
