// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"context"

	v1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"
)

// signature is what feasibility and score follow from. Go's JSON encoder,
// which makes the key of it, sorts the members of a map.
type signature struct {
	Namespace string         `json:"namespace,omitempty"`
	Networks  map[string]int `json:"networks,omitempty"`
}

// SignPod lets pods that are alike be scheduled in a batch (KEP-5598): pods
// without networks are all alike. One plugin that cannot sign would switch
// batching off for its whole profile.
//
// The contract is that a pod's placement does not change what others may have
// on other nodes. The blocks of a Tight network are shared by all nodes, but
// whether a network is Tight does not follow from the pod. Such pods are signed
// none the less: the framework asks Filter about the node that it takes from
// the pod before, so that the worst is a node that is not the best one.
func (pl *NetworkFit) SignPod(_ context.Context, pod *v1.Pod) ([]fwk.SignFragment, *fwk.Status) {
	asked := pl.sources.demands.of(pod)
	if asked == nil {
		return []fwk.SignFragment{{Key: signKey, Value: signature{}}}, nil
	}
	if asked.err != nil || pod.Spec.HostNetwork {
		return nil, fwk.NewStatus(fwk.Unschedulable, "the pod's networks are malformed")
	}
	networks := make(map[string]int, len(asked.requests))
	for i := range asked.requests {
		if asked.requests[i].Fixed() {
			return nil, fwk.NewStatus(fwk.Unschedulable, "the pod asks for addresses of its own")
		}
		networks[asked.requests[i].Name]++
	}
	// A Network may admit some namespaces only.
	return []fwk.SignFragment{{Key: signKey, Value: signature{Namespace: pod.Namespace, Networks: networks}}}, nil
}

// signKey names our part of a pod's signature.
const signKey = "netplane.io/Pod.Networks()"
