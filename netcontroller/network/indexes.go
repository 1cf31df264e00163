// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// Names of the cache's indexes. They are this controller's own words, so that
// no other controller in the process defines the same index twice.
const (
	indexPodNetworks     = "network.podNetworks"
	indexBlockNetwork    = "network.blockNetwork"
	indexClaimNetwork    = "network.claimNetwork"
	indexPhysicalNet     = "network.physicalNet"
	indexPlugin          = "network.plugin"
	indexNodePhysicalNet = "network.nodePhysicalNet"
	indexNodeHeld        = "network.nodeHeld"
)

func setupIndexes(indexer client.FieldIndexer) error {
	ctx := context.Background() // registers only: nothing is read before the caches start
	for _, index := range []struct {
		object client.Object
		name   string
		keys   func(client.Object) []string
	}{
		{&corev1.Pod{}, indexPodNetworks, podNetworks},
		{&v1alpha1.IPBlock{}, indexBlockNetwork, blockNetwork},
		{&v1alpha1.IPClaim{}, indexClaimNetwork, claimNetwork},
		{&v1alpha1.Network{}, indexPhysicalNet, physicalNetworkOf},
		{&v1alpha1.Network{}, indexPlugin, pluginOf},
		{&v1alpha1.NodeNetwork{}, indexNodePhysicalNet, mappedPhysicalNetworks},
		{&v1alpha1.NodeNetwork{}, indexNodeHeld, heldNetworks},
	} {
		if err := indexer.IndexField(ctx, index.object, index.name, index.keys); err != nil {
			return fmt.Errorf("making the cache index %s: %w", index.name, err)
		}
	}
	return nil
}

// PodsOf lists the living pods bound to a node that ask for a network. The
// objects belong to the cache: they are read only. It needs the indexes that
// Setup makes.
func PodsOf(ctx context.Context, reader client.Reader, network string) ([]corev1.Pod, error) {
	var pods corev1.PodList
	err := reader.List(ctx, &pods, client.MatchingFields{indexPodNetworks: network}, client.UnsafeDisableDeepCopy)
	return pods.Items, err
}

// podNetworks are the networks on which a pod lives.
func podNetworks(object client.Object) []string {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return nil
	}
	return slices.Sorted(maps.Keys(Demand(pod)))
}

func blockNetwork(object client.Object) []string {
	block, ok := object.(*v1alpha1.IPBlock)
	if !ok {
		return nil
	}
	return []string{block.Spec.Network}
}

func claimNetwork(object client.Object) []string {
	claim, ok := object.(*v1alpha1.IPClaim)
	if !ok {
		return nil
	}
	return []string{claim.Spec.Network}
}

func physicalNetworkOf(object client.Object) []string {
	network, ok := object.(*v1alpha1.Network)
	if !ok {
		return nil
	}
	return []string{network.Spec.PhysicalNet}
}

func pluginOf(object client.Object) []string {
	network, ok := object.(*v1alpha1.Network)
	if !ok {
		return nil
	}
	return []string{network.Spec.Plugin}
}

func mappedPhysicalNetworks(object client.Object) []string {
	node, ok := object.(*v1alpha1.NodeNetwork)
	if !ok {
		return nil
	}
	names := make([]string, 0, len(node.Status.PhysicalNetworks))
	for i := range node.Status.PhysicalNetworks {
		names = append(names, node.Status.PhysicalNetworks[i].Name)
	}
	return names
}

func heldNetworks(object client.Object) []string {
	node, ok := object.(*v1alpha1.NodeNetwork)
	if !ok {
		return nil
	}
	var names []string
	for i := range node.Status.Held {
		if name := node.Status.Held[i].Network; !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
