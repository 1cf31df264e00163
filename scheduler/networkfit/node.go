// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/capacity"
)

// node is a NodeNetwork as it is stored: what is read of it, and what follows
// from it alone.
type node struct {
	name       string
	version    string // resourceVersion, by which informers tell changes from resyncs
	agentReady bool
	backings   []backing
	refused    []v1alpha1.RefusedNetwork // without their messages
	held       []v1alpha1.HeldAddresses
}

// backing is how a node backs one physical network.
type backing struct {
	physical string
	nics     capacity.NICs // that the node can give to pods, whoever has them now
	found    bool          // there is a NIC
	ready    bool          // and it is up
}

func newNode(object *v1alpha1.NodeNetwork) *node {
	status := &object.Status
	n := &node{
		name: object.Name, version: object.ResourceVersion,
		agentReady: meta.IsStatusConditionTrue(status.Conditions, v1alpha1.ConditionAgentReady),
		backings:   make([]backing, len(status.PhysicalNetworks)),
		refused:    slices.Clone(status.Refused),
		held:       slices.Clone(status.Held),
	}
	for i := range status.PhysicalNetworks {
		by := &status.PhysicalNetworks[i]
		n.backings[i] = backing{physical: shared(by.Name), nics: countNICs(status, by), found: by.Reason != v1alpha1.ReasonInterfaceNotFound, ready: by.Ready}
	}
	for i := range n.refused {
		n.refused[i] = v1alpha1.RefusedNetwork{Network: shared(n.refused[i].Network), Reason: shared(n.refused[i].Reason)}
	}
	for i := range n.held {
		n.held[i].Network = shared(n.held[i].Network)
	}
	return n
}

// GetObjectMeta returns a copy of what the informers' machinery asks for.
func (n *node) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Name: n.name, ResourceVersion: n.version}
}

// load counts what is in use on the node if it has the pods of info.
func (n *node) load(info fwk.NodeInfo, sources *Sources) capacity.Load {
	var load capacity.Load
	there := info.GetPods()
	for _, pod := range there {
		load.AddPod(sources.demands.taken(pod.GetPod()))
	}
	load.AddHeld(n.held, func(uid types.UID) bool {
		// A pod that has just ended may still be in the NodeInfo.
		return sources.podExists(uid) || slices.ContainsFunc(there, func(pod fwk.PodInfo) bool { return pod.GetPod().UID == uid })
	})
	return load
}

// blocksOf are the blocks that name a node, of whichever networks.
func (s *Sources) blocksOf(node string) []*block {
	objects, err := s.blocks.ByIndex(indexBlocksByNode, node)
	if err != nil || len(objects) == 0 {
		return nil // the index exists since NewSources
	}
	blocks := make([]*block, 0, len(objects))
	for _, obj := range objects {
		if b, ok := obj.(*block); ok {
			blocks = append(blocks, b)
		}
	}
	return blocks
}

// supplyOf counts what a Node with this UID holds of a network.
func supplyOf(net *network, node types.UID, blocks []*block) capacity.Supply {
	var supply capacity.Supply
	for _, b := range blocks {
		supply.AddBlock(net.plan, net.UID, node, b.supplies())
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
	by := n.backing(net.Spec.PhysicalNet)
	if !by.found {
		return lack{noNIC, net.reasons.noNIC}
	}
	for i := range n.refused {
		if n.refused[i].Network == net.Name {
			return lack{refused, net.reasons.refused + n.refused[i].Reason}
		}
	}
	// A NIC inside a pod need not be up on the node, but is still one that a pod has.
	if !by.ready && (!net.takesNIC() || by.nics == 0) {
		return lack{down, net.reasons.down}
	}
	return lack{}
}

// backing is the zero value for a physical network that the node does not back.
func (n *node) backing(physical string) backing {
	for i := range n.backings {
		if n.backings[i].physical == physical {
			return n.backings[i]
		}
	}
	return backing{}
}

// holds is the number of a network's addresses in the node's blocks that the
// agent holds for nobody.
func (n *node) holds(network string) int {
	var sum int
	for i := range n.held {
		if n.held[i].Network == network && !n.held[i].Fixed {
			sum += int(n.held[i].Count)
		}
	}
	return sum
}

// interfacesHeld counts those with fixed addresses, too, and not the addresses
// that no interface has.
func (n *node) interfacesHeld(network string) int {
	var sum int
	for i := range n.held {
		if n.held[i].Network == network && !n.held[i].Quarantined {
			sum += int(n.held[i].Count)
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
