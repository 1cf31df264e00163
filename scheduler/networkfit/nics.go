// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/capacity"
)

// Each interface on a Network with the plugin host-device is a whole NIC of
// the physical network, and all such Networks on one physical network share
// its NICs. So NICs are counted by physical network, addresses by Network.
//
// There is no count of NICs to keep: such an interface has one address, of a
// block or fixed, and one NIC, for as long as its sandbox is there, so the NICs
// in use are the load in interfaces of these Networks. Which Networks these are
// is looked up once for a pod that asks for one; other pods cost nothing.
//
// Which NICs pods may have is the agent's decision (NodeNetwork
// status.physicalNetworks[].exclusive): never one that other Networks or the
// host use.

// nicWant is what a pod asks for of the NICs of one physical network.
type nicWant struct {
	networks []string // all that share the NICs
	demand   int      // over all of them
	alone    bool     // one interface is all that a node has room for
}

// takesNIC tells whether each interface on the network is a NIC of the node.
func (n *network) takesNIC() bool { return n.Spec.Plugin == v1alpha1.PluginHostDevice }

// nicsOf indexes the Networks that take NICs by their physical network.
func nicsOf(obj any) ([]string, error) {
	net, ok := obj.(*network)
	if !ok || !net.takesNIC() {
		return nil, nil
	}
	return []string{net.Spec.PhysicalNet}, nil
}

// sharing names the Networks that take NICs of a physical network.
func (s *Sources) sharing(physical string) []string {
	names, err := s.networks.IndexKeys(indexNICs, physical)
	if err != nil {
		return nil // the index exists since NewSources
	}
	return names
}

// primaryNIC names a request for a NIC of the node as the pod's eth0: the node
// itself could not reach such a pod, so that no agent gives one.
func (n *network) primaryNIC(asked *parsed) bool {
	primary := podnetworks.Primary(asked.requests)
	return n.takesNIC() && primary != nil && primary.Name == n.Name
}

// nicWant is nil for a network that takes no NICs.
func (s *Sources) nicWant(net *network, asked *parsed) *nicWant {
	want := &nicWant{networks: []string{net.Name}, alone: net.alone}
	switch {
	case net.takesNIC():
		want.networks = s.sharing(net.Spec.PhysicalNet)
	case !net.alone:
		return nil
	}
	want.demand = want.among(capacity.Load(asked.demand))
	return want
}

// among is the number of NICs in a load.
func (w *nicWant) among(load capacity.Load) int {
	sum := 0
	for _, name := range w.networks {
		sum += load.Interfaces(name)
	}
	return sum
}

// usedBy is what others than the pod itself take of the NICs, see usedBy.
func (w *nicWant) usedBy(load capacity.Load, pod *v1.Pod, nodeName string) int {
	if pod.Spec.NodeName == nodeName {
		return w.among(load) - w.demand
	}
	return w.among(load)
}

// fitNICs decides whether the node has the NICs that one network needs.
func (w *want) fitNICs(offer *node, load capacity.Load, pod *v1.Pod) capacity.Fit {
	if w.nics == nil {
		return capacity.Fits
	}
	return w.nicsOf(offer).Fit(w.nics.usedBy(load, pod, offer.name), w.nics.demand)
}

// nicsOf is how many interfaces the node's NICs have room for.
func (w *want) nicsOf(offer *node) capacity.NICs {
	if w.nics.alone {
		return 1
	}
	return offer.backing(w.Spec.PhysicalNet).nics
}

// countNICs counts the NICs of a physical network that can serve a pod: of those
// that pods may have, the ones that are up, and the ones that are inside pods, of
// which the node cannot see the state.
func countNICs(status *v1alpha1.NodeNetworkStatus, by *v1alpha1.NodePhysicalNetwork) capacity.NICs {
	var count capacity.NICs
	for i := range status.Interfaces {
		nic := &status.Interfaces[i]
		if (nic.State == v1alpha1.OperStateUp || nic.InUse) && slices.Contains(by.Exclusive, nic.Name) {
			count++
		}
	}
	return count
}

// gainsNIC tells whether a node has a NIC more for a network, or one that it
// held for nobody has gone free.
func (s *Sources) gainsNIC(before, after *node, net *network) bool {
	if !net.takesNIC() {
		return net.alone && after.interfacesHeld(net.Name) < before.interfacesHeld(net.Name)
	}
	physical := net.Spec.PhysicalNet
	return after.backing(physical).nics > before.backing(physical).nics ||
		slices.ContainsFunc(s.sharing(physical), func(name string) bool { return after.interfacesHeld(name) < before.interfacesHeld(name) })
}

// wantsNICOf tells whether a pod asks for a NIC of the kind that a pod on a
// network has.
func (pl *NetworkFit) wantsNICOf(pod *v1.Pod, name string) bool {
	net, ok := lookup[*network](pl.sources.networks, name)
	if ok && net.alone {
		return pl.asksFor(pod, name)
	}
	return ok && net.takesNIC() &&
		slices.ContainsFunc(pl.sources.sharing(net.Spec.PhysicalNet), func(other string) bool { return pl.asksFor(pod, other) })
}
