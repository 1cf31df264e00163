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
			Facts{Finalizer: true, NodeGone: true, GoneFor: 20 * time.Second, QuietFor: 20 * time.Second}, Keep, 40 * time.Second,
		},
		"a node that is gone loses its blocks": {
			Facts{Finalizer: true, NodeGone: true, GoneFor: grace, QuietFor: grace}, Delete, 0,
		},
		"deleted, but pods of the node were seen a moment ago": {
			Facts{Deleted: true, Finalizer: true, NodeGone: true, GoneFor: time.Hour, QuietFor: 10 * time.Second}, Keep, 50 * time.Second,
		},
		"deleted and quiet for the grace": {
			Facts{Deleted: true, Finalizer: true, NodeGone: true, GoneFor: grace, QuietFor: grace}, Release, 0,
		},
		"deleted by somebody before the grace is over": {
			Facts{Deleted: true, Finalizer: true, NodeGone: true}, Keep, grace,
		},
		"another's finalizer is not ours to remove": {
			Facts{Deleted: true, NodeGone: true, GoneFor: grace, QuietFor: grace}, Keep, 0,
		},
		"an unknown Network makes nothing quicker when the node is gone": {
			Facts{Finalizer: true, NodeGone: true, Network: NetworkUnknown}, Keep, grace,
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
	heldFixed := func(network string) *v1alpha1.NodeNetwork {
		n := held(network)
		n.Status.Held[0].Fixed = true
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
		"a pod from before the Node registered anew": {block(false), pod("worker", deleted), nil, deleted.Add(time.Hour), true},
		"a pod of the Node that registered anew":     {block(false), pod("worker", deleted), nil, deleted.Add(-time.Hour), false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := InUse(tt.block, tt.pods, tt.node, tt.after); got != tt.want {
				t.Errorf("InUse = %t, want %t", got, tt.want)
			}
		})
	}
}
