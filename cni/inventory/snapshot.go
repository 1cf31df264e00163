// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// Snapshot is the node's inventory at one moment. It does not change; a nil
// Snapshot is a node without any NIC.
type Snapshot struct {
	interfaces       []v1alpha1.NodeInterfaceStatus
	physicalNetworks []v1alpha1.NodePhysicalNetwork
	parents          map[string][]string
	uses             map[place]*use
	exclusive        map[string][]*link.Device
	refused          map[string]v1alpha1.RefusedNetwork
	tunnels          map[string]link.Tunnel
	lost, stray      []link.ParentSpec
	warnings         []string
}

// Parents returns the NICs of a physical network that interfaces of pods may
// stand on and that are there, those that are up first. It is empty if the node does not back it.
func (s *Snapshot) Parents(physicalNet string) []string {
	if s == nil {
		return nil
	}
	return slices.Clone(s.parents[physicalNet])
}

// Exclusive returns the NICs of a physical network that pods may have for
// themselves, the last of the mapping first; those inside pods are among them.
func (s *Snapshot) Exclusive(physicalNet string) []link.Device {
	if s == nil {
		return nil
	}
	var out []link.Device
	for _, nic := range slices.Backward(s.exclusive[physicalNet]) {
		out = append(out, *nic)
	}
	return out
}

// Refusal says why the node cannot serve a Network although its NICs back the
// physical network.
func (s *Snapshot) Refusal(network string) (reason, message string, refused bool) {
	if s == nil {
		return "", "", false
	}
	r, refused := s.refused[network]
	return r.Reason, r.Message, refused
}

// Bridged says whether a NIC, or its tagged device, is or is to be a port of a
// bridge (or is one itself) for a Network: macvlans are then made on the bridge.
// The refusal is empty if the NIC can serve the Network.
func (s *Snapshot) Bridged(nic string, n *v1alpha1.Network) (bridged bool, refusal string) {
	if s == nil {
		return false, "the node's NICs are not known yet"
	}
	u, known := s.uses[place{nic, n.Spec.VLAN}]
	if !known {
		return false, fmt.Sprintf("the node has not looked at NIC %s with VLAN %d yet", nic, n.Spec.VLAN)
	}
	return u.bridge, u.refuse(n).message
}

// Refused lists the refused Networks by name.
func (s *Snapshot) Refused() []v1alpha1.RefusedNetwork {
	if s == nil {
		return nil
	}
	var out []v1alpha1.RefusedNetwork
	for _, name := range slices.Sorted(maps.Keys(s.refused)) {
		out = append(out, s.refused[name])
	}
	return out
}

// fill writes what the snapshot knows into a status.
func (s *Snapshot) fill(status *v1alpha1.NodeNetworkStatus) {
	status.Interfaces = s.interfaces
	status.PhysicalNetworks = s.physicalNetworks
	status.Refused = s.Refused()
	status.Mapped = mapped(s.physicalNetworks)
}

// mapped is the mappings in one line: phy-net0=eth1,phy-net1=eth2(InterfaceDown).
func mapped(physical []v1alpha1.NodePhysicalNetwork) string {
	parts := make([]string, 0, len(physical))
	for i := range physical {
		p := &physical[i]
		part := p.Name + "=" + strings.Join(p.Interfaces, "+")
		if !p.Ready {
			part += "(" + p.Reason + ")"
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ",")
}

func (s *Snapshot) physical(name string) (v1alpha1.NodePhysicalNetwork, bool) {
	if s == nil {
		return v1alpha1.NodePhysicalNetwork{}, false
	}
	for _, p := range s.physicalNetworks {
		if p.Name == name {
			return p, true
		}
	}
	return v1alpha1.NodePhysicalNetwork{}, false
}

// PhysicalNetworks lists the mappings in force by name.
func (s *Snapshot) PhysicalNetworks() []v1alpha1.NodePhysicalNetwork {
	if s == nil {
		return nil
	}
	return slices.Clone(s.physicalNetworks)
}
