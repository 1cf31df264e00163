// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// Demand is how many addresses of which networks a pod accounts for, with 0 for
// one on which it has fixed ones only: nothing before it is bound and after it
// has finished, nothing for a pod in the host's network, and nothing for an
// annotation that cannot be read. Of a running pod that is given other networks
// it is the larger of what it asks for and what it has.
func Demand(pod *corev1.Pod) map[string]int {
	if pod.Spec.NodeName == "" || pod.Spec.HostNetwork || finished(pod) {
		return nil
	}
	return textsOf(pod).demand()
}

// texts are a pod's annotations netplane.io/networks and attached-networks.
type texts struct{ asked, attached string }

func textsOf(pod *corev1.Pod) texts {
	return texts{pod.Annotations[v1alpha1.AnnotationNetworks], pod.Annotations[v1alpha1.AnnotationAttached]}
}

func (t texts) demand() map[string]int {
	if t == (texts{}) {
		return nil
	}
	var asked []podnetworks.Use
	if requests, err := podnetworks.Parse(t.asked); err == nil {
		asked = podnetworks.Uses(requests)
	} // else no agent serves it; the scheduler and the agent say why
	attached, err := podnetworks.ParseAttached(t.attached)
	if err != nil {
		attached = nil // its agent writes it again
	}
	var demand map[string]int
	for _, use := range podnetworks.Taken(asked, attached) {
		if demand == nil {
			demand = map[string]int{}
		}
		demand[use.Network] = use.Addresses
	}
	return demand
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// used counts what living pods ask for, and what nodes hold for pods that are
// gone: an entry with a podUID counts only when that pod is not among them.
func used(f *Facts) int64 {
	name := f.Network.Name
	var total int64
	living := make(map[types.UID]bool, len(f.Pods))
	parsed := map[texts]int{} // pods of one workload share the annotations
	for i := range f.Pods {
		pod := &f.Pods[i]
		living[pod.UID] = true
		of := textsOf(pod)
		count, seen := parsed[of]
		if !seen {
			count = of.demand()[name]
			parsed[of] = count
		}
		total += int64(count)
	}
	for i := range f.Holders {
		for _, held := range f.Holders[i].Status.Held {
			if held.Network == name && !held.Fixed && (held.PodUID == "" || !living[held.PodUID]) {
				total += int64(held.Count)
			}
		}
	}
	return total
}

// claimed sums the capacity of the blocks that nodes hold and have not been
// asked to give back.
func claimed(plan *addressing.Plan, network *v1alpha1.Network, blocks []v1alpha1.IPBlock) int64 {
	var total int64
	for i := range blocks {
		block := &blocks[i]
		if block.Spec.NetworkUID != network.UID || !block.DeletionTimestamp.IsZero() {
			continue
		}
		if cidr, ok := blockOf(plan, block); ok {
			total += int64(plan.Capacity(cidr))
		}
	}
	return total
}

// unclaimed counts the blocks that a node could create now for a pod: one of an earlier
// Network of the same name, or one being given back, still has its name.
func unclaimed(plan *addressing.Plan, blocks []v1alpha1.IPBlock) int64 {
	left := plan.ServingBlockCount()
	for i := range blocks {
		if cidr, ok := blockOf(plan, &blocks[i]); ok && plan.Capacity(cidr) > 0 {
			left--
		}
	}
	return max(0, left)
}

func blockOf(plan *addressing.Plan, block *v1alpha1.IPBlock) (netip.Prefix, bool) {
	cidr, err := netip.ParsePrefix(string(block.Spec.CIDR))
	if err != nil || plan.CheckBlock(cidr) != nil {
		return netip.Prefix{}, false
	}
	return cidr, true
}

// CountNodes counts the nodes that back a physical network for a Network; an
// empty network counts them for the physical network itself. A node is ready
// if a NIC is up, its agent serves and it does not refuse the Network.
func CountNodes(physicalNet, network string, nodes []v1alpha1.NodeNetwork) v1alpha1.NodeCounts {
	var counts v1alpha1.NodeCounts
	for i := range nodes {
		node := &nodes[i]
		mapping := mappingOf(node, physicalNet)
		if mapping == nil {
			continue
		}
		counts.Total++
		if mapping.Ready && agentReady(node) && refusalOf(node, network) == nil {
			counts.Ready++
		}
	}
	return counts
}

// firstNode is the node with the least name that fits: messages name the same
// one every time, whatever the order of the cache.
func firstNode(nodes []v1alpha1.NodeNetwork, fits func(*v1alpha1.NodeNetwork) bool) *v1alpha1.NodeNetwork {
	var first *v1alpha1.NodeNetwork
	for i := range nodes {
		if node := &nodes[i]; fits(node) && (first == nil || node.Name < first.Name) {
			first = node
		}
	}
	return first
}

func mappingOf(node *v1alpha1.NodeNetwork, physicalNet string) *v1alpha1.NodePhysicalNetwork {
	for i := range node.Status.PhysicalNetworks {
		if node.Status.PhysicalNetworks[i].Name == physicalNet {
			return &node.Status.PhysicalNetworks[i]
		}
	}
	return nil
}

func refusalOf(node *v1alpha1.NodeNetwork, network string) *v1alpha1.RefusedNetwork {
	for i := range node.Status.Refused {
		if node.Status.Refused[i].Network == network {
			return &node.Status.Refused[i]
		}
	}
	return nil
}

func agentReady(node *v1alpha1.NodeNetwork) bool {
	return meta.IsStatusConditionTrue(node.Status.Conditions, v1alpha1.ConditionAgentReady)
}
