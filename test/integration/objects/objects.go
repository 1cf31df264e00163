// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package objects makes the objects that the integration tests create: as the
// one writes them who does in a cluster, and none of them with a fault.
package objects

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

// Node is ready and has room for 110 pods, which kubelet's default is. Unlike
// that of other kinds its status is kept when it is created.
func Node(name string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
		Status: corev1.NodeStatus{
			Allocatable: corev1.ResourceList{
				corev1.ResourcePods:   resource.MustParse("110"),
				corev1.ResourceCPU:    resource.MustParse("8"),
				corev1.ResourceMemory: resource.MustParse("8Gi"),
			},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}
}

// NodeNetworkStatus is of a node whose agent is ready, with a NIC that is up for
// each physical network.
func NodeNetworkStatus(physical ...string) v1alpha1.NodeNetworkStatus {
	var out v1alpha1.NodeNetworkStatus
	meta.SetStatusCondition(&out.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionAgentReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAgentPodReady,
	})
	for _, name := range physical {
		out.PhysicalNetworks = append(out.PhysicalNetworks, v1alpha1.NodePhysicalNetwork{
			Name: name, Interfaces: []string{"eth1"}, Ready: true, Reason: v1alpha1.ReasonInterfaceUp,
		})
	}
	return out
}

// Block is the block cidr of a Network in the hands of a node. It has no
// finalizer, so that it goes as soon as it is deleted.
func Block(network *v1alpha1.Network, cidr, node string, nodeUID types.UID) *v1alpha1.IPBlock {
	return &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{Name: addressing.BlockName(network.Name, netip.MustParsePrefix(cidr))},
		Spec: v1alpha1.IPBlockSpec{
			Network: network.Name, NetworkUID: network.UID, CIDR: v1alpha1.CIDR(cidr), NodeName: node, NodeUID: nodeUID,
		},
	}
}
