// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"slices"
	"sync"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// NICs describes NICs of the host that are to be moved into pods, and mends
// those that came back.
type NICs interface {
	// NIC describes a NIC that is up and that the host does not use.
	NIC(name string) (link.NIC, error)
	// Mend gives NICs their names back that were taken when they came back.
	Mend(ctx context.Context) error
}

// takenNICs are those that an ADD under way has chosen, by name with the
// container ID. Those of sandboxes that have their interfaces stand in the
// sandboxes' records.
type takenNICs struct {
	mu sync.Mutex
	by map[string]string
	// below are, by container ID, the NICs that the interfaces of an ADD under way
	// are about to stand on.
	below map[string][]string
}

// drop forgets what an ADD has chosen: it failed, or its record says it.
func (t *takenNICs) drop(containerID string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.below, containerID)
	for nic, owner := range t.by {
		if owner == containerID {
			delete(t.by, nic)
		}
	}
}

// takeNIC chooses a NIC for the pod alone: the first that is free in the
// topology's order. Who has it chosen keeps it until drop, or until the record
// of the sandbox is gone; so no two pods ever get the same.
func (s *Server) takeNIC(w *wanted, topology Topology, containerID string) error {
	n := w.network
	if w.primary() {
		return invalid("network %q gives the pod a whole NIC, which cannot be its eth0: the node itself could not reach the pod; choose another ifname", n.Name)
	}
	if _, message, refused := topology.Refusal(n.Name); refused {
		return retry("this node cannot serve network %q: %s", n.Name, message)
	}
	s.nics.mu.Lock()
	defer s.nics.mu.Unlock()
	reason := retry("no NIC of this node that backs physical network %q is free for network %q", n.Spec.PhysicalNet, n.Name)
	used := s.usedNICs()
	for _, nics := range s.nics.below {
		used = append(used, nics...)
	}
	for _, device := range topology.Exclusive(n.Spec.PhysicalNet) {
		if _, chosen := s.nics.by[device.Name]; chosen || slices.Contains(used, device.Name) {
			continue
		}
		nic, err := s.deps.NICs.NIC(device.Name)
		if err != nil {
			reason = retry("network %q: %v", n.Name, err)
			continue
		}
		if int(n.Spec.MTU) > nic.MTU {
			reason = retry("mtu %d of network %q is larger than the %d of NIC %s", n.Spec.MTU, n.Name, nic.MTU, nic.Name)
			continue
		}
		nic.Hardware = device.Sysfs
		w.nic, w.exclusive, w.mtu = nic.Name, &nic, nic.MTU
		if n.Spec.MTU > 0 {
			w.mtu = int(n.Spec.MTU)
		}
		s.nics.by[nic.Name] = containerID
		return nil
	}
	return reason
}

// standOn keeps the NICs that interfaces are about to stand on from pods that want
// them whole, until the record tells of them: since the ADD was admitted, one may
// have been chosen.
func (s *Server) standOn(containerID string, all []wanted) error {
	s.nics.mu.Lock()
	defer s.nics.mu.Unlock()
	for i := range all {
		w := &all[i]
		if w.nic == "" || w.exclusive != nil {
			continue
		}
		if _, chosen := s.nics.by[w.nic]; chosen {
			return retry("network %q: NIC %s is being given to a pod whole", w.network.Name, w.nic)
		}
		s.nics.below[containerID] = append(s.nics.below[containerID], w.nic)
	}
	return nil
}

// takesNIC: each interface on the Network is a NIC of the node.
func takesNIC(n *v1alpha1.Network) bool { return n.Spec.Plugin == v1alpha1.PluginHostDevice }

// usedNICs names the NICs that sandboxes have, and those that interfaces of
// sandboxes stand on.
func (s *Server) usedNICs() []string {
	out := s.Parents()
	for _, nic := range s.NICsInPods() {
		out = append(out, nic.Name)
	}
	return out
}

// NICsInPods lists the NICs that pods have for themselves, also those on their
// way there and back.
func (s *Server) NICsInPods() []link.Device {
	var out []link.Device
	for _, sandbox := range s.snapshot() {
		for _, iface := range sandbox.links() {
			if iface.NIC != nil {
				out = append(out, iface.NIC.Device())
			}
		}
	}
	return out
}

// Parents names the host's links that pods' interfaces stand on, those below the
// tunnels of vxlan Networks too: NICs and bridges. A name may come more than once.
func (s *Server) Parents() []string {
	var out []string
	for _, sandbox := range s.snapshot() {
		for _, iface := range sandbox.links() {
			if iface.NIC == nil {
				out = append(out, iface.Parent)
			}
		}
	}
	if s.deps.Overlays != nil {
		out = append(out, s.deps.Overlays.Devices()...)
	}
	return out
}

// tellNICs tells the inventory if the sandbox has NICs of its own.
func (s *Server) tellNICs(sandbox *Sandbox) {
	if s.deps.NICsChanged != nil && slices.ContainsFunc(sandbox.links(), func(i link.Interface) bool { return i.NIC != nil }) {
		s.deps.NICsChanged()
	}
}
