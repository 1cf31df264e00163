// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/capacity"
)

// node is a NodeNetwork as it is stored, with what follows from it alone.
type node struct {
	*v1alpha1.NodeNetwork

	agentReady bool
	nicCounts  []capacity.NICs // of each of Status.PhysicalNetworks
}

func newNode(object *v1alpha1.NodeNetwork) *node {
	return &node{
		NodeNetwork: object,
		agentReady:  meta.IsStatusConditionTrue(object.Status.Conditions, v1alpha1.ConditionAgentReady),
		nicCounts:   countNICs(&object.Status),
	}
}

// load counts what is in use on the node if it has the pods of info.
func (n *node) load(info fwk.NodeInfo, sources *Sources) capacity.Load {
	var load capacity.Load
	there := info.GetPods()
	for _, pod := range there {
		load.AddPod(sources.demands.taken(pod.GetPod()))
	}
	load.AddHeld(n.Status.Held, func(uid types.UID) bool {
		// A pod that has just ended may still be in the NodeInfo.
		return sources.podExists(uid) || slices.ContainsFunc(there, func(pod fwk.PodInfo) bool { return pod.GetPod().UID == uid })
	})
	return load
}

// supply counts what a node holds of a network.
func (s *Sources) supply(name string, uid types.UID, net *network) capacity.Supply {
	var supply capacity.Supply
	blocks, err := s.blocks.ByIndex(indexBlocksByNode, name)
	if err != nil {
		return supply // the index exists since NewSources
	}
	for _, obj := range blocks {
		if block, ok := obj.(*v1alpha1.IPBlock); ok {
			supply.AddBlock(net.plan, net.UID, uid, block)
		}
	}
	return supply
}

// lack is why a node cannot take a pod; the zero value is that it can.
type lack struct {
	cause  cause
	reason string
}

// lacks says why the node does not serve the network whatever addresses there are.
func (n *node) lacks(net *network) lack {
	if !n.agentReady {
		return lack{noAgent, reasonNoAgent}
	}
	backing := n.physical(net.Spec.PhysicalNet)
	if backing == nil || backing.Reason == v1alpha1.ReasonInterfaceNotFound {
		return lack{noNIC, net.reasons.noNIC}
	}
	for i := range n.Status.Refused {
		if n.Status.Refused[i].Network == net.Name {
			return lack{refused, net.reasons.refused + n.Status.Refused[i].Reason}
		}
	}
	// A NIC inside a pod is not up on the node, but still one that a pod has.
	if !backing.Ready && (!net.takesNIC() || n.nics(net.Spec.PhysicalNet) == 0) {
		return lack{down, net.reasons.down}
	}
	return lack{}
}

func (n *node) physical(name string) *v1alpha1.NodePhysicalNetwork {
	for i := range n.Status.PhysicalNetworks {
		if n.Status.PhysicalNetworks[i].Name == name {
			return &n.Status.PhysicalNetworks[i]
		}
	}
	return nil
}

// held is the number of a network's addresses in the node's blocks that the
// agent holds for nobody.
func (n *node) held(network string) int {
	var sum int
	for i := range n.Status.Held {
		if n.Status.Held[i].Network == network && !n.Status.Held[i].Fixed {
			sum += int(n.Status.Held[i].Count)
		}
	}
	return sum
}

// usedBy is what others than the pod itself take of a network on the node. A
// pod counts itself where it is on the node already.
func usedBy(load capacity.Load, pod *v1.Pod, nodeName, network string, demand int) int {
	if pod.Spec.NodeName == nodeName {
		return load.Of(network) - demand
	}
	return load.Of(network)
}
