// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"context"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/api/pluginconfig"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/capacity"
)

// stateKey is where PreFilter leaves what Filter, PreScore and Score need.
const stateKey fwk.StateKey = "PreFilter" + Name

// want is one network that the pod asks for, and how many addresses in it.
type want struct {
	*network
	demand    int
	unclaimed *unclaimed // of a Tight network; nil otherwise
	nics      *nicWant   // of a network whose interfaces take NICs; nil otherwise
	anchor    bool       // the pod's eth0 is on it with a fixed address, see fit
}

// wants are all that a pod asks for. They do not depend on other pods, so
// there are no PreFilterExtensions and a copy is as good as the original.
type wants []want

// Clone returns the state itself: it never changes.
func (w wants) Clone() fwk.StateData { return w }

// PreFilter reads the pod's networks. What is wrong on every node alike is
// answered here, once and with the cure.
func (pl *NetworkFit) PreFilter(_ context.Context, state fwk.CycleState, pod *v1.Pod, _ []fwk.NodeInfo) (*fwk.PreFilterResult, *fwk.Status) {
	asked := pl.sources.demands.of(pod)
	// A pod that is there already and waits for a resize keeps its networks.
	if asked == nil || resource.IsPodResizeDeferred(pod) {
		return nil, fwk.NewStatus(fwk.Skip)
	}
	found, refusal := pl.resolve(pod, asked)
	if refusal != "" {
		return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable, refusal)
	}
	state.Write(stateKey, found)
	return nil, nil
}

// PreFilterExtensions returns nil: Filter looks at the pods of the NodeInfo
// that it is given.
func (pl *NetworkFit) PreFilterExtensions() fwk.PreFilterExtensions { return nil }

// resolve finds the networks that a pod asks for, or says why it cannot have them.
func (pl *NetworkFit) resolve(pod *v1.Pod, asked *parsed) (wants, string) {
	if asked.err != nil {
		return nil, fmt.Sprintf("annotation %s: %v", v1alpha1.AnnotationNetworks, asked.err)
	}
	if pod.Spec.HostNetwork {
		return nil, fmt.Sprintf("annotation %s: a pod with hostNetwork has the node's own interfaces: remove one of the two", v1alpha1.AnnotationNetworks)
	}
	namespace, _ := lookup[*v1.Namespace](pl.sources.namespaces, pod.Namespace)
	found := make(wants, 0, len(asked.requests))
	for i := range asked.requests {
		request := &asked.requests[i]
		net, ok := lookup[*network](pl.sources.networks, request.Name)
		if !ok {
			return nil, fmt.Sprintf("network %q does not exist: create it, or correct annotation %s", request.Name, v1alpha1.AnnotationNetworks)
		}
		refusal := net.refuses(pod.Namespace, namespace)
		if refusal == "" && (net.sharesMAC || request.Tuned()) {
			refusal = pluginconfig.Refuses(&net.Spec, request)
		}
		if refusal != "" {
			return nil, refusal
		}
		if slices.ContainsFunc(found, func(w want) bool { return w.Name == request.Name }) {
			continue
		}
		if net.primaryNIC(asked) {
			return nil, fmt.Sprintf("network %q gives the pod a whole NIC, which cannot be its eth0: choose another ifname in annotation %s", request.Name, v1alpha1.AnnotationNetworks)
		}
		w := want{network: net, demand: capacity.Load(asked.demand).Of(request.Name), nics: pl.sources.nicWant(net, asked), anchor: anchors(asked, request.Name)}
		if net.tight {
			w.unclaimed = &unclaimed{}
		}
		found = append(found, w)
	}
	return found, pl.awaitsFixed(pod, asked)
}

// readWants returns what PreFilter left; nil if the pod asks for no network.
func readWants(state fwk.CycleState) wants {
	data, err := state.Read(stateKey)
	if err != nil {
		return nil
	}
	found, _ := data.(wants)
	return found
}
