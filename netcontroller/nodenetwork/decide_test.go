// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package nodenetwork

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

func aNode(ready corev1.ConditionStatus) *corev1.Node {
	return &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}}
}

func anAgent(name string, ready corev1.ConditionStatus, change ...func(*corev1.Pod)) corev1.Pod {
	p := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "netplane-system", Name: name},
		Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}},
	}
	for _, f := range change {
		f(&p)
	}
	return p
}

func going(p *corev1.Pod) { now := metav1.Now(); p.DeletionTimestamp = &now }

func crashing(p *corev1.Pod) {
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: "agent", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
	}}
}

func TestAgentReady(t *testing.T) {
	const (
		yes = metav1.ConditionTrue
		no  = metav1.ConditionFalse
	)
	tests := map[string]struct {
		node    *corev1.Node
		pods    []corev1.Pod
		status  metav1.ConditionStatus
		reason  string
		message string
	}{
		"ready": {
			aNode("True"), []corev1.Pod{anAgent("a", "True")}, yes, "AgentPodReady", "the agent serves",
		},
		"no pod": {
			aNode("True"), nil, no, "NoAgentPod", "no agent pod runs on the node: see the tolerations of DaemonSet netplane-agent and the node's taints",
		},
		"pod not ready": {
			aNode("True"), []corev1.Pod{anAgent("a", "False")}, no, "AgentPodNotReady", "agent pod netplane-system/a is not Ready: read its log",
		},
		"pod crashing": {
			aNode("True"), []corev1.Pod{anAgent("a", "False", crashing)}, no, "AgentPodNotReady",
			"agent pod netplane-system/a is not Ready: container agent waits: CrashLoopBackOff",
		},
		"a pod that goes does not count, though it still says Ready": {
			aNode("True"), []corev1.Pod{anAgent("a", "True", going)}, no, "AgentPodNotReady",
			"agent pod netplane-system/a is not Ready: it is being deleted",
		},
		"the new pod of a rolling DaemonSet serves": {
			aNode("True"), []corev1.Pod{anAgent("a", "True", going), anAgent("b", "True")}, yes, "AgentPodReady", "the agent serves",
		},
		"the new pod of a rolling DaemonSet is named": {
			aNode("True"), []corev1.Pod{anAgent("a", "False", going), anAgent("b", "False")}, no, "AgentPodNotReady",
			"agent pod netplane-system/b is not Ready: read its log",
		},
		"the Node is not Ready, whatever the pod last said": {
			aNode("Unknown"), []corev1.Pod{anAgent("a", "True")}, no, "AgentPodNotReady", "the Node is not Ready",
		},
		"the Node is gone": {
			nil, []corev1.Pod{anAgent("a", "True")}, no, "NoAgentPod", "the Node is gone",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			want := metav1.Condition{Type: v1alpha1.ConditionAgentReady, Status: tt.status, Reason: tt.reason, Message: tt.message}
			if diff := cmp.Diff(want, EvaluateAgent(tt.node, tt.pods)); diff != "" {
				t.Errorf("condition (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWantedLabels(t *testing.T) {
	n := &v1alpha1.NodeNetwork{Status: v1alpha1.NodeNetworkStatus{PhysicalNetworks: []v1alpha1.NodePhysicalNetwork{
		{Name: "phy-net0", Interfaces: []string{"eth1"}, Ready: true, Reason: v1alpha1.ReasonInterfaceUp},
		{Name: "phy-net1", Interfaces: []string{"eth2", "eth3"}, Reason: v1alpha1.ReasonInterfaceDown},
		{Name: "absent", Interfaces: []string{"eth9"}, Reason: v1alpha1.ReasonInterfaceNotFound},
		{Name: "empty"},
		{Name: "odd", Interfaces: []string{"@eth0:1"}, Ready: true},
	}}}
	want := map[string]string{
		"physical.netplane.io/phy-net0": "eth1",
		"physical.netplane.io/phy-net1": "eth2",
		"physical.netplane.io/odd":      "eth0_1",
	}
	if diff := cmp.Diff(want, WantedLabels(n)); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if got := WantedLabels(nil); len(got) != 0 {
		t.Errorf("labels of a node without a NodeNetwork = %v, want none", got)
	}
}

func TestLabelChanges(t *testing.T) {
	eth2 := "eth2"
	have := map[string]string{
		"physical.netplane.io/right": "eth1", "physical.netplane.io/wrong": "eth1", "physical.netplane.io/old": "eth1",
		"kubernetes.io/hostname": "worker",
	}
	want := map[string]string{"physical.netplane.io/right": "eth1", "physical.netplane.io/wrong": "eth2", "physical.netplane.io/new": "eth2"}
	changes := map[string]*string{"physical.netplane.io/wrong": &eth2, "physical.netplane.io/new": &eth2, "physical.netplane.io/old": nil}
	if diff := cmp.Diff(changes, LabelChanges(have, want)); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	if got := LabelChanges(want, want); len(got) != 0 {
		t.Errorf("changes of labels that are right = %v, want none", got)
	}
}
