// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"fmt"
	"slices"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// nicUse is how one NIC is shared out. The kernel gives a NIC to one receive
// handler: a NIC with macvlans cannot become a bridge port nor the reverse
// (EBUSY both ways), but a bridge takes macvlans on top.
type nicUse struct {
	device *link.Device
	bridge bool
	// lost: netplane made a bridge of the NIC, but the NIC is no port of it: it
	// was pulled out and has come back.
	lost bool
	// keeper, in macvlan mode, is what keeps the NIC from being bridged: the
	// oldest Network, the host's use of it or a macvlan of the host.
	keeper refusal
}

// refusal says why a Network cannot run on a NIC; the zero value is none.
type refusal struct{ reason, message string }

// resolveModes decides each NIC's mode by the oldest Network on it and refuses
// the Networks that no NIC of their physical network can serve. Networks that
// are being deleted count until they are gone: their pods are still attached.
func resolveModes(s *Snapshot, in *Input, devices map[string]*link.Device) {
	networks := slices.Clone(in.Networks)
	slices.SortFunc(networks, func(a, b v1alpha1.Network) int { return older(&a.ObjectMeta, &b.ObjectMeta) })
	uses := map[string]*nicUse{}
	for physical, nics := range s.parents {
		for _, nic := range nics {
			uses[nic] = useOf(devices[nic], physical, networks, in.Devices)
			s.bridged[nic] = uses[nic].bridge
			if uses[nic].lost {
				s.lost = append(s.lost, nic)
			}
		}
	}
	slices.Sort(s.lost)
	for i := range networks {
		n := &networks[i]
		if _, refused := s.refused[n.Name]; refused || !builtIn(n) || len(s.parents[n.Spec.PhysicalNet]) == 0 {
			continue
		}
		if r := refuse(n, s.parents[n.Spec.PhysicalNet], uses, in.Unavailable); r.reason != "" {
			s.refused[n.Name] = v1alpha1.RefusedNetwork{Network: n.Name, Reason: r.reason, Message: r.message}
		}
	}
}

// builtIn: only these two plugins share NICs in this release.
func builtIn(n *v1alpha1.Network) bool {
	return n.Spec.Plugin == v1alpha1.PluginMacvlan || n.Spec.Plugin == v1alpha1.PluginBridge
}

// useOf decides one NIC's mode: what the kernel has already, then what the
// host needs, then the oldest Network.
func useOf(d *link.Device, physical string, networks []v1alpha1.Network, all []link.Device) *nicUse {
	use := &nicUse{device: d}
	if d.Kind == link.KindBridge || d.MasterKind == link.KindBridge {
		use.bridge = true
		return use
	}
	if use.keeper = hostUse(d, all); use.keeper.reason != "" {
		return use
	}
	ours := link.BridgeName(d.Name)
	if slices.ContainsFunc(all, func(b link.Device) bool { return b.Name == ours && b.Kind == link.KindBridge }) {
		use.bridge, use.lost = true, true
		return use
	}
	for i := range networks {
		n := &networks[i]
		if n.Spec.PhysicalNet != physical || !builtIn(n) {
			continue
		}
		use.bridge = n.Spec.Plugin == v1alpha1.PluginBridge
		use.keeper = refusal{
			reason:  v1alpha1.ReasonPluginConflict,
			message: fmt.Sprintf("NIC %s is used by the older Network %s with plugin macvlan, and a NIC cannot be a macvlan parent and a bridge port at once: use plugin macvlan, or another physical network", d.Name, n.Name),
		}
		return use
	}
	return use
}

// hostUse says what of the host's would break if the NIC became a bridge port,
// or would keep the kernel from making it one.
func hostUse(d *link.Device, all []link.Device) refusal {
	if len(d.Addresses) > 0 {
		return refusal{v1alpha1.ReasonHostInterface, fmt.Sprintf("NIC %s carries the host's address %s, which would be lost in a bridge: use plugin macvlan, or a NIC without addresses", d.Name, d.Addresses[0])}
	}
	if d.DefaultRoute {
		return refusal{v1alpha1.ReasonHostInterface, fmt.Sprintf("NIC %s carries the host's default route, which would be lost in a bridge: use plugin macvlan, or another NIC", d.Name)}
	}
	if d.Master != "" {
		return refusal{v1alpha1.ReasonHostInterface, fmt.Sprintf("NIC %s is a port of %s (%s): map %s instead", d.Name, d.Master, d.MasterKind, d.Master)}
	}
	for i := range all {
		child := &all[i]
		shares := child.Kind == link.KindMacvlan || child.Kind == link.KindMacvtap || child.Kind == link.KindIPVLAN
		if shares && child.Parent == d.Name && !link.Own(child.Name) {
			return refusal{v1alpha1.ReasonPluginConflict, fmt.Sprintf("NIC %s carries the host's %s interface %s and so cannot be a bridge port: use plugin macvlan, or remove %s", d.Name, child.Kind, child.Name, child.Name)}
		}
	}
	return refusal{}
}

// refuse returns the reason of the first NIC if none can serve the Network.
func refuse(n *v1alpha1.Network, nics []string, uses map[string]*nicUse, unavailable map[string]bool) refusal {
	if r := unavailableKind(n, unavailable); r.reason != "" {
		return r
	}
	var first refusal
	for _, nic := range nics {
		r := uses[nic].refuse(n)
		if r.reason == "" {
			return refusal{}
		}
		if first.reason == "" {
			first = r
		}
	}
	return first
}

func (u *nicUse) refuse(n *v1alpha1.Network) refusal {
	if n.Spec.Plugin == v1alpha1.PluginBridge && !u.bridge {
		return u.keeper
	}
	if int(n.Spec.MTU) > u.device.MTU {
		return refusal{v1alpha1.ReasonMTUExceedsInterface, fmt.Sprintf("spec.mtu %d is larger than the %d of NIC %s: lower it, or raise the NIC's", n.Spec.MTU, u.device.MTU, u.device.Name)}
	}
	return refusal{}
}

func unavailableKind(n *v1alpha1.Network, unavailable map[string]bool) refusal {
	kinds := []string{link.KindMacvlan}
	if n.Spec.Plugin == v1alpha1.PluginBridge {
		kinds = []string{link.KindBridge, link.KindVeth}
	}
	for _, kind := range kinds {
		if unavailable[kind] {
			return refusal{v1alpha1.ReasonPluginUnavailable, fmt.Sprintf("the node's kernel cannot make links of kind %s: load or build its module", kind)}
		}
	}
	return refusal{}
}
