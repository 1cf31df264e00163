// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"context"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/capacity"
)

// EventsToRegister names what can make a pod schedulable that the plugin has
// rejected. The hints run under the scheduling queue's lock, for each such pod
// and event; they err towards Queue.
func (pl *NetworkFit) EventsToRegister(context.Context) ([]fwk.ClusterEventWithHint, error) {
	return []fwk.ClusterEventWithHint{
		// A NIC comes back or is mapped, an agent becomes ready, what was held goes free.
		{Event: changes(nodeNetworks()), QueueingHintFn: pl.afterNodeNetwork},
		// A Network is created, becomes ready, admits another namespace, grows.
		{Event: changes(networks()), QueueingHintFn: pl.afterNetwork},
		// An agent has claimed a block.
		{Event: changes(ipBlocks()), QueueingHintFn: pl.afterIPBlock},
		// A block of a Tight network goes: another node may have it.
		{Event: goes(ipBlocks()), QueueingHintFn: pl.afterIPBlockDeleted},
		// The controller hands the pod its fixed address, or says why not yet.
		{Event: changes(ipClaims()), QueueingHintFn: pl.afterIPClaim},
		// A namespace gets the labels that a Network's namespaceSelector asks for.
		{Event: changes(namespaces()), QueueingHintFn: pl.afterNamespace},
		// A pod leaves and its addresses and NICs with it. If its sandbox outlives it, the
		// agent reports them as held, and the event of their release comes later.
		{Event: fwk.ClusterEvent{Resource: fwk.AssignedPod, ActionType: fwk.Delete}, QueueingHintFn: pl.afterPodDeleted},
		// The annotation is corrected. There is no narrower action for annotations.
		{Event: fwk.ClusterEvent{Resource: fwk.TargetPod, ActionType: fwk.Update}, QueueingHintFn: pl.afterOwnUpdate},
		// The NodeNetwork may have been there before the Node.
		{Event: fwk.ClusterEvent{Resource: fwk.Node, ActionType: fwk.Add}, QueueingHintFn: pl.afterNode},
	}, nil
}

// changes are additions and updates of a resource. An object that was deleted
// and made anew while a watch was interrupted arrives as an update.
func changes(resource schema.GroupVersionResource) fwk.ClusterEvent {
	return fwk.ClusterEvent{Resource: eventResource(resource), ActionType: fwk.Add | fwk.Update}
}

// goes are the deletions of a resource.
func goes(resource schema.GroupVersionResource) fwk.ClusterEvent {
	return fwk.ClusterEvent{Resource: eventResource(resource), ActionType: fwk.Delete}
}

func eventResource(resource schema.GroupVersionResource) fwk.EventResource {
	return fwk.EventResource(resource.Resource + "." + resource.Version + "." + resource.Group)
}

// afterNodeNetwork queues a pod if the node serves all that the pod wants, and
// did not before or now has more free addresses or NICs.
func (pl *NetworkFit) afterNodeNetwork(logger klog.Logger, pod *v1.Pod, oldObj, newObj any) (fwk.QueueingHint, error) {
	before, after, err := objects[*node](oldObj, newObj)
	asked := pl.sources.demands.of(pod)
	if err != nil || asked == nil {
		return fwk.Queue, err
	}
	gained := false
	for i := range asked.requests {
		net, ok := lookup[*network](pl.sources.networks, asked.requests[i].Name)
		if !ok || after.lacks(net).cause != nothing {
			return fwk.QueueSkip, nil
		}
		gained = gained || before == nil || before.lacks(net).cause != nothing || after.holds(net.Name) < before.holds(net.Name) ||
			pl.sources.gainsNIC(before, after, net)
	}
	return hint(logger, gained, pod, "NodeNetwork", after.name), nil
}

// afterNode queues a pod if the Node's NodeNetwork is there already and serves
// all that the pod wants; if it comes later, afterNodeNetwork does.
func (pl *NetworkFit) afterNode(logger klog.Logger, pod *v1.Pod, oldObj, newObj any) (fwk.QueueingHint, error) {
	_, after, err := objects[*v1.Node](oldObj, newObj)
	asked := pl.sources.demands.of(pod)
	if err != nil || asked == nil {
		return fwk.Queue, err
	}
	return hint(logger, pl.serves(after.Name, asked), pod, "Node", after.Name), nil
}

// serves tells whether a node serves all that is asked for, whatever addresses
// there are. If it comes to do so later, that is an event of its own.
func (pl *NetworkFit) serves(name string, asked *parsed) bool {
	offer, ok := lookup[*node](pl.sources.nodes, name)
	for i := range asked.requests {
		net, exists := lookup[*network](pl.sources.networks, asked.requests[i].Name)
		ok = ok && exists && offer.lacks(net).cause == nothing
	}
	return ok
}

// afterNetwork queues a pod if a Network that it wants has become usable or
// Tight, or has another spec. Counters in its status are refreshed all the time and
// change nothing.
func (pl *NetworkFit) afterNetwork(logger klog.Logger, pod *v1.Pod, oldObj, newObj any) (fwk.QueueingHint, error) {
	before, after, err := objects[*network](oldObj, newObj)
	if err != nil {
		return fwk.Queue, err
	}
	gained := pl.asksFor(pod, after.Name) && after.unusable == "" &&
		(before == nil || before.unusable != "" || before.edition != after.edition || after.tight && !before.tight)
	return hint(logger, gained, pod, "Network", after.Name), nil
}

// afterIPBlock queues a pod if a node that serves it has a block more: a new
// one, or that of its Node before it registered anew.
func (pl *NetworkFit) afterIPBlock(logger klog.Logger, pod *v1.Pod, oldObj, newObj any) (fwk.QueueingHint, error) {
	before, after, err := objects[*block](oldObj, newObj)
	if err != nil {
		return fwk.Queue, err
	}
	gained := pl.asksFor(pod, after.networkName()) && !after.leaving && (before == nil || before.uid != after.uid || before.node != after.node) &&
		pl.serves(after.nodeName(), pl.sources.demands.of(pod))
	return hint(logger, gained, pod, "IPBlock", after.name), nil
}

// afterIPBlockDeleted queues the pods that want an address of a Tight network.
// Of other networks the agents claim the block, which is an event of its own.
func (pl *NetworkFit) afterIPBlockDeleted(logger klog.Logger, pod *v1.Pod, oldObj, _ any) (fwk.QueueingHint, error) {
	_, deleted, err := objects[*block](nil, oldObj)
	if err != nil {
		return fwk.Queue, err
	}
	pl.sources.changed(deleted) // an informer that listed anew has not said so, see inventories
	gained := pl.asksFor(pod, deleted.networkName()) && pl.isTight(deleted.networkName())
	return hint(logger, gained, pod, "IPBlock", deleted.name), nil
}

// afterNamespace queues a pod if a Network that it wants admits its namespace now.
func (pl *NetworkFit) afterNamespace(logger klog.Logger, pod *v1.Pod, oldObj, newObj any) (fwk.QueueingHint, error) {
	before, after, err := objects[*v1.Namespace](oldObj, newObj)
	asked := pl.sources.demands.of(pod)
	if err != nil || asked == nil {
		return fwk.Queue, err
	}
	gained := false
	for i := range asked.requests {
		net, ok := lookup[*network](pl.sources.networks, asked.requests[i].Name)
		gained = gained || ok && pod.Namespace == after.Name && net.refuses(after.Name, after) == "" && net.refuses(after.Name, before) != ""
	}
	return hint(logger, gained, pod, "Namespace", after.Name), nil
}

// afterPodDeleted queues a pod if the one that is gone had what it wants: there,
// or of a Tight network anywhere, for a pod that was to be bound is reported as
// deleted if it was not, and the block that it was promised goes to any node.
func (pl *NetworkFit) afterPodDeleted(logger klog.Logger, pod *v1.Pod, oldObj, _ any) (fwk.QueueingHint, error) {
	_, deleted, err := objects[*v1.Pod](nil, oldObj)
	if err != nil {
		return fwk.Queue, err
	}
	gained := slices.ContainsFunc(pl.sources.demands.taken(deleted), func(freed capacity.Count) bool {
		wanted := freed.Addresses > 0 && pl.asksFor(pod, freed.Network) || pl.wantsNICOf(pod, freed.Network)
		return wanted && (pl.isTight(freed.Network) || pl.serves(deleted.Spec.NodeName, pl.sources.demands.of(pod)))
	})
	return hint(logger, gained, pod, "Pod", klog.KObj(deleted).String()), nil
}

func (pl *NetworkFit) afterOwnUpdate(logger klog.Logger, pod *v1.Pod, oldObj, newObj any) (fwk.QueueingHint, error) {
	before, after, err := objects[*v1.Pod](oldObj, newObj)
	if err != nil || before == nil {
		return fwk.Queue, err
	}
	changed := before.Annotations[v1alpha1.AnnotationNetworks] != after.Annotations[v1alpha1.AnnotationNetworks]
	return hint(logger, changed, pod, "Pod", klog.KObj(after).String()), nil
}

func (pl *NetworkFit) isTight(name string) bool {
	net, ok := lookup[*network](pl.sources.networks, name)
	return ok && net.tight
}

// asksFor tells whether a pod wants a network.
func (pl *NetworkFit) asksFor(pod *v1.Pod, network string) bool {
	asked := pl.sources.demands.of(pod)
	if asked == nil {
		return false
	}
	for i := range asked.requests {
		if asked.requests[i].Name == network {
			return true
		}
	}
	return false
}

// hint makes the answer and tells it.
func hint(logger klog.Logger, queue bool, pod *v1.Pod, kind, name string) fwk.QueueingHint {
	answer := fwk.QueueSkip
	if queue {
		answer = fwk.Queue
	}
	logger.V(5).Info("Decided on a rejected pod", "plugin", Name, "pod", klog.KObj(pod), "hint", answer, "kind", kind, "name", name)
	return answer
}

// objects types the objects of an event; before is nil for an addition. A
// deleted object whose last state was missed arrives in a wrapper.
func objects[T any](oldObj, newObj any) (before, after T, err error) {
	if unknown, ok := newObj.(cache.DeletedFinalStateUnknown); ok {
		newObj = unknown.Obj
	}
	after, ok := newObj.(T)
	if !ok {
		return before, after, fmt.Errorf("event with a %T", newObj)
	}
	if oldObj == nil {
		return before, after, nil
	}
	before, ok = oldObj.(T)
	if !ok {
		return before, after, fmt.Errorf("event with a %T", oldObj)
	}
	return before, after, nil
}
