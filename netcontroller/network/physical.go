// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

// EvaluatePhysical computes a PhysicalNetwork's whole status from the
// NodeNetworks that map a NIC to it.
func EvaluatePhysical(physical *v1alpha1.PhysicalNetwork, nodes []v1alpha1.NodeNetwork) v1alpha1.PhysicalNetworkStatus {
	counts := CountNodes(physical.Name, "", nodes)
	condition := metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, ObservedGeneration: physical.Generation,
	}
	switch {
	case counts.Total == 0:
		condition.Reason = v1alpha1.ReasonNoInterface
		condition.Message = "no node maps a NIC to it: name one in the node's map file or in spec.nodeInterfaces"
	case counts.Ready == 0:
		condition.Reason = v1alpha1.ReasonInterfacesDown
		condition.Message = downMessage(physical.Name, nodes)
	default:
		condition.Status = metav1.ConditionTrue
		condition.Reason = v1alpha1.ReasonNodesReady
		condition.Message = "at least one node backs it with a NIC that is up"
	}
	return v1alpha1.PhysicalNetworkStatus{
		ObservedGeneration: physical.Generation,
		Conditions:         []metav1.Condition{condition},
		Nodes:              counts,
	}
}

// downMessage tells NICs that are down from agents that are.
func downMessage(name string, nodes []v1alpha1.NodeNetwork) string {
	node := firstNode(nodes, func(n *v1alpha1.NodeNetwork) bool {
		mapping := mappingOf(n, name)
		return mapping != nil && mapping.Ready
	})
	if node != nil {
		return fmt.Sprintf("NICs are up, but no agent serves on their nodes: see the agent's pod on node %s", node.Name)
	}
	return "nodes map NICs to it, but none of them is up"
}
