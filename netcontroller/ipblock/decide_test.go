// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipblock

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestDecide(t *testing.T) {
	const grace = time.Minute
	tests := map[string]struct {
		facts Facts
		want  Action
		wait  time.Duration
	}{
		"a living node's block is its agent's": {
			Facts{Finalizer: true}, Keep, 0,
		},
		"a living node's block of an unknown Network is asked back": {
			Facts{Finalizer: true, Network: NetworkUnknown}, Delete, 0,
		},
		"a living node's block of a Network that goes is asked back": {
			Facts{Finalizer: true, Network: NetworkTerminating}, Delete, 0,
		},
		"a living node's agent alone releases it": {
			Facts{Deleted: true, Finalizer: true, Network: NetworkUnknown}, Keep, 0,
		},
		"a node that has just gone may come back": {
			Facts{Finalizer: true, NodeGone: true, QuietFor: 20 * time.Second}, Keep, 40 * time.Second,
		},
		"a node that is gone loses its blocks": {
			Facts{Finalizer: true, NodeGone: true, QuietFor: grace}, Delete, 0,
		},
		"a node that is gone keeps the blocks of pods that stand": {
			Facts{Finalizer: true, NodeGone: true, InUse: true}, Keep, grace,
		},
		"deleted, but pods of the node stand": {
			Facts{Deleted: true, Finalizer: true, NodeGone: true, InUse: true}, Keep, grace,
		},
		"deleted, but pods of the node were seen a moment ago": {
			Facts{Deleted: true, Finalizer: true, NodeGone: true, QuietFor: 10 * time.Second}, Keep, 50 * time.Second,
		},
		"deleted and quiet for the grace": {
			Facts{Deleted: true, Finalizer: true, NodeGone: true, QuietFor: grace}, Release, 0,
		},
		"deleted by somebody before the grace is over": {
			Facts{Deleted: true, Finalizer: true, NodeGone: true}, Keep, grace,
		},
		"another's finalizer is not ours to remove": {
			Facts{Deleted: true, NodeGone: true, QuietFor: grace}, Keep, 0,
		},
		"an unknown Network makes nothing quicker when the node is gone": {
			Facts{Finalizer: true, NodeGone: true, Network: NetworkUnknown}, Keep, grace,
		},
		"a fenced node loses its blocks at once": {
			Facts{Finalizer: true, Fenced: true}, Delete, 0,
		},
		"nobody is left on a fenced node to release them": {
			Facts{Deleted: true, Finalizer: true, Fenced: true}, Release, 0,
		},
		"a fenced node's pods stand still": {
			Facts{Finalizer: true, Fenced: true, InUse: true}, Keep, 5 * time.Second,
		},
		"another's finalizer on a fenced node's block": {
			Facts{Deleted: true, Fenced: true}, Keep, 0,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.facts.Grace = grace
			if got, wait := Decide(tt.facts); got != tt.want || wait != tt.wait {
				t.Errorf("Decide = %v after %s, want %v after %s", got, wait, tt.want, tt.wait)
			}
		})
	}
}

func TestContester(t *testing.T) {
	report := func(node string, blocks ...string) v1alpha1.NodeNetwork {
		out := v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: node}}
		for _, block := range blocks {
			out.Status.Conflicts = append(out.Status.Conflicts, v1alpha1.BlockConflict{Block: block})
		}
		return out
	}
	tests := map[string]struct {
		reports []v1alpha1.NodeNetwork
		want    string
	}{
		"nobody":                          {nil, ""},
		"another node":                    {[]v1alpha1.NodeNetwork{report("worker2", "data.x", "data.b")}, "worker2"},
		"its own node's answer":           {[]v1alpha1.NodeNetwork{report("worker", "data.b")}, ""},
		"two nodes":                       {[]v1alpha1.NodeNetwork{report("worker3", "data.b"), report("worker", "data.b"), report("worker2", "data.b")}, "worker2"},
		"a node that reports another one": {[]v1alpha1.NodeNetwork{report("worker2", "data.x")}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			block := &v1alpha1.IPBlock{ObjectMeta: metav1.ObjectMeta{Name: "data.b"}, Spec: v1alpha1.IPBlockSpec{NodeName: "worker"}}
			if got := Contester(block, tt.reports); got != tt.want {
				t.Errorf("Contester = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestInUse(t *testing.T) {
	deleted := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	block := func(gone bool) *v1alpha1.IPBlock {
		b := &v1alpha1.IPBlock{Spec: v1alpha1.IPBlockSpec{Network: "data", NodeName: "worker"}}
		if gone {
			b.DeletionTimestamp = &metav1.Time{Time: deleted}
		}
		return b
	}
	pod := func(node string, made time.Time) []corev1.Pod {
		return []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(made)}, Spec: corev1.PodSpec{NodeName: node}}}
	}
	held := func(network string) *v1alpha1.NodeNetwork {
		return &v1alpha1.NodeNetwork{Status: v1alpha1.NodeNetworkStatus{Held: []v1alpha1.HeldAddresses{{Network: network, Count: 1}}}}
	}
	agent := func(ready metav1.ConditionStatus) *v1alpha1.NodeNetwork {
		return &v1alpha1.NodeNetwork{Status: v1alpha1.NodeNetworkStatus{
			Conditions: []metav1.Condition{{Type: v1alpha1.ConditionAgentReady, Status: ready}},
		}}
	}
	heldFixed := func(network string) *v1alpha1.NodeNetwork {
		n := held(network)
		n.Status.Held[0].Fixed = true
		return n
	}
	quarantined := func(network string) *v1alpha1.NodeNetwork {
		n := held(network)
		n.Status.Held[0].Quarantined = true
		return n
	}
	tests := map[string]struct {
		block *v1alpha1.IPBlock
		pods  []corev1.Pod
		node  *v1alpha1.NodeNetwork
		after time.Time
		want  bool
	}{
		"nothing":                                    {block(true), nil, nil, time.Time{}, false},
		"a pod on the node":                          {block(false), pod("worker", deleted), nil, time.Time{}, true},
		"a pod on another node":                      {block(false), pod("worker2", deleted), nil, time.Time{}, false},
		"a pod from before the deletion":             {block(true), pod("worker", deleted.Add(-time.Hour)), nil, time.Time{}, true},
		"a pod that the agent met at the same time":  {block(true), pod("worker", deleted.Add(time.Second)), nil, time.Time{}, true},
		"a pod from long after the deletion":         {block(true), pod("worker", deleted.Add(time.Hour)), nil, time.Time{}, false},
		"an address that the agent holds":            {block(true), nil, held("data"), time.Time{}, true},
		"an address held in another network":         {block(true), nil, held("management"), time.Time{}, false},
		"a fixed address that the agent holds":       {block(true), nil, heldFixed("data"), time.Time{}, false},
		"free addresses of another, closed block":    {block(true), nil, quarantined("data"), time.Time{}, false},
		"a pod from before the Node registered anew": {block(false), pod("worker", deleted), nil, deleted.Add(time.Hour), true},
		"a pod of the Node that registered anew":     {block(false), pod("worker", deleted), agent("True"), deleted.Add(-time.Hour), false},
		"the Node that registered anew has no agent": {block(false), nil, nil, deleted, true},
		"the agent there does not serve yet":         {block(false), nil, agent("False"), deleted, true},
		"the agent there serves":                     {block(false), nil, agent("True"), deleted, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := InUse(tt.block, tt.pods, tt.node, tt.after); got != tt.want {
				t.Errorf("InUse = %t, want %t", got, tt.want)
			}
		})
	}
}

func TestABlockInWhichAnotherNodesPodsLiveIsInUse(t *testing.T) {
	block := &v1alpha1.IPBlock{Spec: v1alpha1.IPBlockSpec{Network: "data", NodeName: "worker"}}
	if InUse(block, nil, nil, time.Time{}) {
		t.Error("a block of a node that is gone is in use though nobody has pods in it")
	}
	metav1.SetMetaDataAnnotation(&block.ObjectMeta, v1alpha1.AnnotationContestedBy, "worker2")
	if !InUse(block, nil, nil, time.Time{}) {
		t.Error("a block that another node contests is free")
	}
}

func TestFenced(t *testing.T) {
	node := func(ready corev1.ConditionStatus, taint string) *corev1.Node {
		out := &corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: taint, Effect: corev1.TaintEffectNoExecute}}}}
		if ready != "" {
			out.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
		}
		return out
	}
	tests := map[string]struct {
		node *corev1.Node
		want bool
	}{
		"out of service, and silent":     {node("Unknown", "node.kubernetes.io/out-of-service"), true},
		"out of service, and not ready":  {node("False", "node.kubernetes.io/out-of-service"), true},
		"out of service, never heard of": {node("", "node.kubernetes.io/out-of-service"), true},
		"out of service, they say":       {node("True", "node.kubernetes.io/out-of-service"), false},
		"silent, and nobody has vouched": {node("Unknown", "node.kubernetes.io/unreachable"), false},
		"not ready, and nobody vouched":  {node("False", "node.kubernetes.io/not-ready"), false},
		"as it should be":                {node("True", "dedicated"), false},
		"an old taint of a similar name": {node("False", "node.kubernetes.io/out-of-disk"), false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Fenced(tt.node); got != tt.want {
				t.Errorf("Fenced = %t, want %t", got, tt.want)
			}
		})
	}
}
