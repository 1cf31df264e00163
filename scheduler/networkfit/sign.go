// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"context"
	"slices"

	v1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/scheduler/capacity"
)

// signature is what feasibility and score follow from. The framework makes a
// key of it, in JSON, for each pod that enters the queue.
type signature struct {
	Namespace string          `json:"namespace,omitempty"`
	Networks  capacity.Demand `json:"networks,omitempty"` // ordered, so that pods that are alike have one text
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
	if slices.ContainsFunc(asked.requests, func(r podnetworks.Request) bool { return r.Fixed() }) {
		return nil, fwk.NewStatus(fwk.Unschedulable, "the pod asks for addresses of its own")
	}
	// A Network may admit some namespaces only.
	return []fwk.SignFragment{{Key: signKey, Value: signature{Namespace: pod.Namespace, Networks: asked.demand}}}, nil
}

// signKey names our part of a pod's signature.
const signKey = "netplane.io/Pod.Networks()"
