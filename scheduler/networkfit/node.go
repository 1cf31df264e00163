// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"sync/atomic"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/capacity"
)

// node is a NodeNetwork as it is stored, with what was last counted on it.
type node struct {
	*v1alpha1.NodeNetwork

	agentReady bool
	counted    atomic.Pointer[counted]
}

// counted is the load of a node at one generation of its NodeInfo. The
// generation is unique to a set of pods, also in simulations
// (k8s.io/kubernetes pkg/scheduler/framework/types.go, nextGeneration); the
// NodeNetwork's own changes make a new node. Whether the pod of a held entry
// exists is not part of the key: when such a pod goes, it leaves the NodeInfo
// that it was counted in, too, and the generation changes.
type counted struct {
	generation int64
	load       capacity.Load
}

func newNode(object *v1alpha1.NodeNetwork) *node {
	return &node{
		NodeNetwork: object,
		agentReady:  meta.IsStatusConditionTrue(object.Status.Conditions, v1alpha1.ConditionAgentReady),
	}
}

// load is what is in use on the node if it has the pods of info.
func (n *node) load(info fwk.NodeInfo, sources *Sources) capacity.Load {
	generation := info.GetGeneration()
	if last := n.counted.Load(); last != nil && last.generation == generation {
		return last.load
	}
	load := capacity.Load{}
	for _, pod := range info.GetPods() {
		load.AddPod(sources.demands.taken(pod.GetPod()))
	}
	load.AddHeld(n.Status.Held, sources.podExists)
	n.counted.Store(&counted{generation: generation, load: load})
	return load
}

// supply is what the node holds of a network.
func (s *Sources) supply(node *v1.Node, net *network) capacity.Supply {
	var supply capacity.Supply
	blocks, err := s.blocks.ByIndex(indexBlocksByNode, node.Name)
	if err != nil {
		return supply // the index exists since NewSources
	}
	for _, obj := range blocks {
		if block, ok := obj.(*v1alpha1.IPBlock); ok {
			supply.AddBlock(net.plan, net.UID, node.UID, block)
		}
	}
	return supply
}

// lacks says why the node does not serve the network whatever addresses there
// are; it is empty if it does.
func (n *node) lacks(net *network) string {
	if !n.agentReady {
		return reasonNoAgent
	}
	backing := n.physical(net.Spec.PhysicalNet)
	if backing == nil || backing.Reason == v1alpha1.ReasonInterfaceNotFound {
		return net.reasons.noNIC
	}
	for i := range n.Status.Refused {
		if n.Status.Refused[i].Network == net.Name {
			return net.reasons.refused + n.Status.Refused[i].Reason
		}
	}
	if !backing.Ready {
		return net.reasons.down
	}
	return ""
}

func (n *node) physical(name string) *v1alpha1.NodePhysicalNetwork {
	for i := range n.Status.PhysicalNetworks {
		if n.Status.PhysicalNetworks[i].Name == name {
			return &n.Status.PhysicalNetworks[i]
		}
	}
	return nil
}

// held is the number of a network's addresses that the agent holds for nobody.
func (n *node) held(network string) int {
	var sum int
	for i := range n.Status.Held {
		if n.Status.Held[i].Network == network {
			sum += int(n.Status.Held[i].Count)
		}
	}
	return sum
}

// usedBy is what others than the pod itself take of a network on the node. A
// pod counts itself where it is on the node already.
func usedBy(load capacity.Load, pod *v1.Pod, nodeName, network string, demand int) int {
	if pod.Spec.NodeName == nodeName {
		return load[network] - demand
	}
	return load[network]
}
