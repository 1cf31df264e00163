// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestDemandOfAPod(t *testing.T) {
	tests := map[string]struct {
		pod  corev1.Pod
		want map[string]int
	}{
		"one interface each":                {aPod("p", "management@eth0,data@eth1"), map[string]int{"management": 1, "data": 1}},
		"two of one network":                {aPod("p", "data,data"), map[string]int{"data": 2}},
		"a fixed address is of no block":    {aPod("p", `[{"name":"data","ips":["10.20.254.1"]}]`), map[string]int{"data": 0}},
		"not bound":                         {aPod("p", "data", func(p *corev1.Pod) { p.Spec.NodeName = "" }), nil},
		"succeeded":                         {aPod("p", "data", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }), nil},
		"failed":                            {aPod("p", "data", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), nil},
		"being deleted still has it":        {aPod("p", "data", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: epoch} }), map[string]int{"data": 1}},
		"in the host's network":             {aPod("p", "data", func(p *corev1.Pod) { p.Spec.HostNetwork = true }), nil},
		"an annotation that cannot be read": {aPod("p", "data@averylongifname99"), nil},
		"no annotation":                     {aPod("p", "", func(p *corev1.Pod) { p.Annotations = nil }), nil},
		"has what it asks for":              {aPod("p", "data", has("data=1")), map[string]int{"data": 1}},
		"has less":                          {aPod("p", "data,data,backup", has("data=1")), map[string]int{"data": 2, "backup": 1}},
		"has more":                          {aPod("p", "data", has("data=2,management=0+1")), map[string]int{"data": 2, "management": 0}},
		"was stripped":                      {aPod("p", "", func(p *corev1.Pod) { delete(p.Annotations, v1alpha1.AnnotationNetworks) }, has("data=2")), map[string]int{"data": 2}},
		"asks for what cannot be read now":  {aPod("p", "data@averylongifname99", has("data=2")), map[string]int{"data": 2}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Demand(&tt.pod)); diff != "" {
				t.Errorf("demand (-want +got):\n%s", diff)
			}
		})
	}
}

func has(attached string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		metav1.SetMetaDataAnnotation(&p.ObjectMeta, v1alpha1.AnnotationAttached, attached)
	}
}

func TestAddressCounts(t *testing.T) {
	network := aNetwork("data") // 16 blocks of 16; the first and the last lose one address more
	status := Evaluate(facts(network, func(f *Facts) {
		f.Blocks = []v1alpha1.IPBlock{
			aBlock("data", "10.10.0.16/28"),
			aBlock("data", "10.10.0.32/28"),
			aBlock("data", "10.10.0.48/28", func(b *v1alpha1.IPBlock) { b.DeletionTimestamp = &metav1.Time{Time: epoch} }),
			aBlock("data", "10.10.0.64/28", func(b *v1alpha1.IPBlock) { b.Spec.NetworkUID = "an earlier Network" }),
			aBlock("data", "10.99.0.0/28"),
			aBlock("data", "no CIDR"),
		}
		f.Pods = []corev1.Pod{aPod("one", "data"), aPod("two", "data,data@eth1"), aPod("three", "data")}
		f.Holders = []v1alpha1.NodeNetwork{
			aNode("worker", holds("data", 2, ""), holds("data", 4, "a pod that is gone"), holds("data", 8, "one-uid"), holds("other", 16, ""), func(n *v1alpha1.NodeNetwork) {
				n.Status.Held = append(n.Status.Held, v1alpha1.HeldAddresses{Network: "data", Count: 32, PodUID: "gone", Fixed: true})
			}),
		}
	}))
	want := v1alpha1.AddressCounts{Capacity: 16*15 - 2, Claimed: 2 * 15, Used: 4 + 2 + 4}
	if diff := cmp.Diff(want, status.Addresses); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

func TestNodeCounts(t *testing.T) {
	elsewhere := func(n *v1alpha1.NodeNetwork) { n.Status.PhysicalNetworks[0].Name = "phy-net1" }
	nodes := []v1alpha1.NodeNetwork{
		aNode("up"), aNode("nic-down", nicDown), aNode("agent-down", agentDown), aNode("elsewhere", elsewhere),
		aNode("refuses", refuses("data", v1alpha1.ReasonPluginConflict, "")),
		aNode("refuses-another", refuses("other", v1alpha1.ReasonPluginConflict, "")),
	}
	if diff := cmp.Diff(v1alpha1.NodeCounts{Ready: 2, Total: 5}, CountNodes("phy-net0", "data", nodes)); diff != "" {
		t.Errorf("for a Network (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(v1alpha1.NodeCounts{Ready: 3, Total: 5}, CountNodes("phy-net0", "", nodes)); diff != "" {
		t.Errorf("for the PhysicalNetwork (-want +got):\n%s", diff)
	}
}

func TestPhysicalNetworkReadiness(t *testing.T) {
	physical := &v1alpha1.PhysicalNetwork{ObjectMeta: metav1.ObjectMeta{Name: "phy-net0", Generation: 2}}
	tests := map[string]struct {
		nodes           []v1alpha1.NodeNetwork
		status          metav1.ConditionStatus
		reason, message string
	}{
		"a node backs it": {
			[]v1alpha1.NodeNetwork{aNode("a", nicDown), aNode("b")}, "True", "NodesReady", "at least one node backs it with a NIC that is up",
		},
		"mapped nowhere": {
			nil, "False", "NoInterface", "no node maps a NIC to it: name one in the node's map file or in spec.nodeInterfaces",
		},
		"down everywhere": {
			[]v1alpha1.NodeNetwork{aNode("a", nicDown)}, "False", "InterfacesDown", "nodes map NICs to it, but none of them is up",
		},
		"up, but without an agent": {
			[]v1alpha1.NodeNetwork{aNode("b", agentDown), aNode("a", agentDown)}, "False", "InterfacesDown",
			"NICs are up, but no agent serves on their nodes: see the agent's pod on node a",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := meta.FindStatusCondition(EvaluatePhysical(physical, tt.nodes).Conditions, v1alpha1.ConditionReady)
			want := &metav1.Condition{
				Type: v1alpha1.ConditionReady, Status: tt.status, Reason: tt.reason, Message: tt.message, ObservedGeneration: 2,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Ready (-want +got):\n%s", diff)
			}
		})
	}
}
