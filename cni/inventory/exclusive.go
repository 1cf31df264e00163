// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// Pods tells what pods have of the host's links.
type Pods interface {
	// NICsInPods are the NICs that pods have for themselves.
	NICsInPods() []link.Device
	// Parents names the links that pods' interfaces stand on.
	Parents() []string
}

// withPods adds the NICs inside pods to the links of the host, in place of
// whatever is there of theirs: a link that took the name, or the NIC itself on
// its way under another one.
func withPods(host, inPods []link.Device) []link.Device {
	if len(inPods) == 0 {
		return host
	}
	out := slices.DeleteFunc(slices.Clone(host), func(d link.Device) bool {
		return slices.ContainsFunc(inPods, func(nic link.Device) bool { return d.Name == nic.Name || sameHardware(&d, &nic) })
	})
	return append(out, inPods...)
}

func sameHardware(a, b *link.Device) bool {
	if !a.Sysfs.Physical || !b.Sysfs.Physical {
		return false
	}
	return a.Sysfs.PCIAddress == b.Sysfs.PCIAddress && len(a.PermMAC) > 0 && bytes.Equal(a.PermMAC, b.PermMAC)
}

func isExclusive(n *v1alpha1.Network) bool { return n.Spec.Plugin == v1alpha1.PluginHostDevice }

// sharesNICs: interfaces on the Network stand on a NIC that others use, too.
func sharesNICs(n *v1alpha1.Network) bool {
	switch n.Spec.Plugin {
	case v1alpha1.PluginMacvlan, v1alpha1.PluginBridge, v1alpha1.PluginIPVLAN, v1alpha1.PluginVXLAN:
		return true
	}
	return false
}

// division is how the NICs of one physical network are shared out between the
// Networks whose interfaces stand on a NIC, and those that give NICs to pods.
type division struct {
	shared, exclusive []string
	// sharing and taking are the oldest Networks of either kind; nil if there is none.
	sharing, taking *v1alpha1.Network
}

// divide keeps NICs of the two kinds of Networks apart. The rule: with Networks
// of both kinds, the first NIC that the node has, in the mapping's order, is
// for the sharing ones, and all others are for pods. Of a single NIC the oldest
// Network decides. Networks must be in the order of their age.
func divide(physical string, nics []string, networks []v1alpha1.Network, devices map[string]*link.Device) division {
	var d division
	for i := range networks {
		n := &networks[i]
		switch {
		case n.Spec.PhysicalNet != physical:
		case isExclusive(n) && d.taking == nil:
			d.taking = n
		case sharesNICs(n) && d.sharing == nil:
			d.sharing = n
		}
	}
	there := slices.DeleteFunc(slices.Clone(nics), func(nic string) bool { return devices[nic] == nil })
	switch {
	case d.taking == nil:
		d.shared = there
	case d.sharing == nil:
		d.exclusive = there
	case len(there) == 1 && older(&d.taking.ObjectMeta, &d.sharing.ObjectMeta) < 0:
		d.exclusive = there
	case len(there) > 0:
		d.shared, d.exclusive = there[:1], there[1:]
	}
	return d
}

// resolveExclusive divides the NICs, and says of which Networks none is left.
// It comes before resolveModes, which sees the shared ones only.
func resolveExclusive(s *Snapshot, in *Input, devices map[string]*link.Device) {
	networks := slices.Clone(in.Networks)
	slices.SortFunc(networks, func(a, b v1alpha1.Network) int { return older(&a.ObjectMeta, &b.ObjectMeta) })
	for i := range s.physicalNetworks {
		p := &s.physicalNetworks[i]
		d := divide(p.Name, p.Interfaces, networks, devices)
		// A NIC may still be inside a pod of a Network that is gone by now.
		inHost := slices.DeleteFunc(slices.Clone(d.shared), func(nic string) bool { return devices[nic].InPod })
		s.parents[p.Name] = upFirst(inHost, devices)
		var usable []*link.Device
		var unusable refusal
		for _, nic := range d.exclusive {
			if r := exclusiveUse(devices[nic], in); r.reason != "" {
				unusable = cmp.Or(unusable, r)
				continue
			}
			usable = append(usable, devices[nic])
			p.Exclusive = append(p.Exclusive, nic)
		}
		s.exclusive[p.Name] = usable
		for j := range networks {
			n := &networks[j]
			var r refusal
			switch {
			case n.Spec.PhysicalNet != p.Name || len(d.shared)+len(d.exclusive) == 0:
			case isExclusive(n):
				r = d.refuseTaking(n, usable, unusable)
			case sharesNICs(n):
				r = d.refuseSharing(inHost, devices)
			}
			if r.reason != "" {
				s.refused[n.Name] = v1alpha1.RefusedNetwork{Network: n.Name, Reason: r.reason, Message: r.message}
			}
		}
	}
}

// refuseTaking: a Network of whole NICs needs one that is not shared, and takes
// any of them.
func (d *division) refuseTaking(n *v1alpha1.Network, usable []*link.Device, unusable refusal) refusal {
	if len(d.exclusive) == 0 {
		return refusal{v1alpha1.ReasonPluginConflict, fmt.Sprintf("NIC %s is the node's only one, and the older Network %s with plugin %s is on it: map another NIC, or use another physical network", d.shared[0], d.sharing.Name, d.sharing.Spec.Plugin)}
	}
	for _, nic := range usable {
		if int(n.Spec.MTU) > nic.MTU {
			return refusal{v1alpha1.ReasonMTUExceedsInterface, fmt.Sprintf("spec.mtu %d is larger than the %d of NIC %s: lower it, or raise the NIC's", n.Spec.MTU, nic.MTU, nic.Name)}
		}
	}
	if len(usable) == 0 {
		return unusable
	}
	return refusal{}
}

// refuseSharing: the one NIC for the sharing Networks must be in the host, and
// it must be up where others being up would make the node look well.
func (d *division) refuseSharing(inHost []string, devices map[string]*link.Device) refusal {
	switch {
	case len(d.shared) == 0:
		return refusal{v1alpha1.ReasonPluginConflict, fmt.Sprintf("NIC %s is the node's only one, and the older Network %s with plugin host-device gives it to pods: map another NIC, or use another physical network", d.exclusive[0], d.taking.Name)}
	case len(inHost) == 0:
		return refusal{v1alpha1.ReasonPluginConflict, fmt.Sprintf("NIC %s is inside a pod of a Network with plugin host-device: it is free for others when that pod is gone", d.shared[0])}
	}
	if len(d.exclusive) == 0 || slices.ContainsFunc(inHost, func(nic string) bool { return devices[nic].Up }) {
		return refusal{}
	}
	return refusal{v1alpha1.ReasonInterfaceDown, fmt.Sprintf("NIC %s is down, and the other NICs of the physical network are kept for Network %s with plugin host-device", inHost[0], d.taking.Name)}
}

// exclusiveUse says why pods cannot have a NIC for themselves: something stands
// on it, which would be cut off.
func exclusiveUse(d *link.Device, in *Input) refusal {
	host := func(format string, args ...any) refusal {
		return refusal{v1alpha1.ReasonHostInterface, fmt.Sprintf("NIC %s "+format+", which it would lose with the NIC inside a pod: map another NIC", append([]any{d.Name}, args...)...)}
	}
	switch {
	case d.InPod:
		return refusal{}
	case len(d.Addresses) > 0:
		return host("carries the host's address %s", d.Addresses[0])
	case d.DefaultRoute:
		return host("carries the host's default route")
	case d.Master != "":
		return host("is a port of the host's %s %s", d.MasterKind, d.Master)
	case d.Kind == link.KindBridge:
		return host("is a bridge of the host, with its ports")
	case slices.Contains(in.Parents, d.Name):
		return refusal{v1alpha1.ReasonPluginConflict, fmt.Sprintf("interfaces of pods on another Network stand on NIC %s: it is free when those pods are gone", d.Name)}
	}
	for i := range in.Devices {
		if child := &in.Devices[i]; child.Parent == d.Name {
			return refusal{v1alpha1.ReasonPluginConflict, fmt.Sprintf("NIC %s carries the host's %s interface %s: remove that, or map another NIC", d.Name, child.Kind, child.Name)}
		}
	}
	return refusal{}
}
