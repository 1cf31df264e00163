// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/netplane/netplane/api/pluginconfig"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// place is where Networks meet: a NIC without a tag, or with one. Frames of
// different tags never meet, so each place has its own mode.
type place struct {
	nic string
	tag int32
}

// spec is what pods' interfaces stand on there in bridge mode.
func (p place) spec() link.ParentSpec {
	return link.ParentSpec{NIC: p.nic, Tag: int(p.tag), Bridge: true}
}

// use is how one place is shared out. The kernel gives a device to one receive
// handler: one with macvlans cannot become a bridge port nor the reverse, and
// takes no ipvlans (EBUSY each time), but a bridge takes either on top.
type use struct {
	device *link.Device
	bridge bool
	// lost: netplane made a bridge over the device, but the device is no port of
	// it: the NIC was pulled out and has come back.
	lost bool
	// keeper, where the device is not bridged, is what keeps it from being so:
	// the oldest Network, the host's use of it or a macvlan of the host.
	keeper refusal
	// sharing is the plugin, macvlan or ipvlan, whose links stand on the device
	// or its bridge, and sharer who has decided that; both are empty if nobody.
	sharing, sharer string
	// first is the oldest Network of that plugin; alone says that its macvlans
	// are in passthru mode, which takes no others beside it.
	first string
	alone bool
}

// refusal says why a Network cannot run on a NIC; the zero value is none.
type refusal struct{ reason, message string }

// resolveModes decides each NIC's mode by the oldest Network on it and refuses
// the Networks that no NIC of their physical network can serve. Networks that
// are being deleted count until they are gone: their pods are still attached.
func resolveModes(s *Snapshot, in *Input, devices map[string]*link.Device) {
	networks := slices.Clone(in.Networks)
	slices.SortFunc(networks, func(a, b v1alpha1.Network) int { return older(&a.ObjectMeta, &b.ObjectMeta) })
	for physical, nics := range s.parents {
		for _, nic := range nics {
			for tag, on := range byTag(physical, networks) {
				at := place{nic, tag}
				s.uses[at] = useOf(deviceOf(devices[nic], tag, in.Devices), on, in.Devices)
				if s.uses[at].lost {
					s.lost = append(s.lost, at.spec())
				}
				if s.uses[at].stray(in.Devices) {
					s.stray = append(s.stray, at.spec())
				}
			}
		}
	}
	for _, list := range [][]link.ParentSpec{s.lost, s.stray} {
		slices.SortFunc(list, func(a, b link.ParentSpec) int {
			return cmp.Or(strings.Compare(a.NIC, b.NIC), cmp.Compare(a.Tag, b.Tag))
		})
	}
	for i := range networks {
		n := &networks[i]
		if _, refused := s.refused[n.Name]; refused || !sharesNIC(n) || len(s.parents[n.Spec.PhysicalNet]) == 0 {
			continue
		}
		if r := s.refuse(n, in.Unavailable); r.reason != "" {
			s.refused[n.Name] = v1alpha1.RefusedNetwork{Network: n.Name, Reason: r.reason, Message: r.message}
		}
	}
}

// sharesNIC: the plugins whose interfaces share NICs.
func sharesNIC(n *v1alpha1.Network) bool {
	switch n.Spec.Plugin {
	case v1alpha1.PluginMacvlan, v1alpha1.PluginBridge, v1alpha1.PluginIPVLAN:
		return true
	}
	return false
}

// byTag are the Networks that share the NICs of a physical network, in their
// order; those without a tag are always there.
func byTag(physical string, networks []v1alpha1.Network) map[int32][]*v1alpha1.Network {
	out := map[int32][]*v1alpha1.Network{0: nil}
	for i := range networks {
		if n := &networks[i]; n.Spec.PhysicalNet == physical && sharesNIC(n) {
			out[n.Spec.VLAN] = append(out[n.Spec.VLAN], n)
		}
	}
	return out
}

// deviceOf is the NIC itself, or its tagged device, which may have to be made yet.
func deviceOf(nic *link.Device, tag int32, all []link.Device) *link.Device {
	if tag == 0 {
		return nic
	}
	base := nic.Name
	if nic.MasterKind == link.KindBridge && !link.Own(nic.Master) {
		base = nic.Master
	}
	for i := range all {
		if d := &all[i]; d.Kind == link.KindVLAN && d.Parent == base && d.Tag == int(tag) {
			return d
		}
	}
	return &link.Device{Name: link.TaggedName(base, int(tag)), Kind: link.KindVLAN, Parent: base, Tag: int(tag), MTU: nic.MTU, Up: nic.Up}
}

// useOf decides one place's mode: what the kernel has already, then what the
// host needs, then the oldest Network.
func useOf(d *link.Device, networks []*v1alpha1.Network, all []link.Device) *use {
	u := &use{device: d}
	u.decideBridge(networks, all)
	u.decideSharing(networks, all)
	return u
}

// stray says whether our bridge over the device has another MTU than it.
func (u *use) stray(all []link.Device) bool {
	d := u.device
	return d.MasterKind == link.KindBridge && slices.ContainsFunc(all, func(b link.Device) bool {
		return b.Name == d.Master && link.Own(b.Name) && b.MTU != d.MTU
	})
}

func (u *use) decideBridge(networks []*v1alpha1.Network, all []link.Device) {
	d := u.device
	if d.Kind == link.KindBridge || d.MasterKind == link.KindBridge {
		u.bridge = true
		return
	}
	if u.keeper = hostUse(d, all); u.keeper.reason != "" {
		return
	}
	ours := link.BridgeName(d.Name)
	if slices.ContainsFunc(all, func(b link.Device) bool { return b.Name == ours && b.Kind == link.KindBridge }) {
		u.bridge, u.lost = true, true
		return
	}
	if len(networks) == 0 {
		return
	}
	oldest, plugin := networks[0], networks[0].Spec.Plugin
	u.bridge = plugin == v1alpha1.PluginBridge
	u.keeper = refusal{
		reason:  v1alpha1.ReasonPluginConflict,
		message: fmt.Sprintf("NIC %s is used by the older Network %s with plugin %s, and a NIC cannot be %s parent and a bridge port at once: use plugin %s, or another physical network", d.Name, oldest.Name, plugin, article(plugin), plugin),
	}
}

// decideSharing decides between macvlan and ipvlan, whose links are made on the
// device or on its bridge.
func (u *use) decideSharing(networks []*v1alpha1.Network, all []link.Device) {
	below := u.device.Name
	switch {
	case u.device.MasterKind == link.KindBridge:
		below = u.device.Master
	case u.bridge && u.device.Kind != link.KindBridge:
		below = link.BridgeName(below)
	}
	child := hostChild(below, all)
	if child != nil {
		u.sharing, u.sharer = pluginOf(child.Kind), "the host's "+child.Kind+" interface "+child.Name
	}
	for _, n := range networks {
		if n.Spec.Plugin == v1alpha1.PluginBridge || u.sharing != "" && n.Spec.Plugin != u.sharing {
			continue
		}
		if u.sharing == "" {
			u.sharing, u.sharer = n.Spec.Plugin, olderNetwork(n)
		}
		if u.first == "" {
			u.first = n.Name
			u.alone = child == nil && passthru(n)
		}
	}
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
	if child := hostChild(d.Name, all); child != nil {
		return refusal{v1alpha1.ReasonPluginConflict, fmt.Sprintf("NIC %s carries the host's %s interface %s and so cannot be a bridge port: use plugin %s, or remove %s", d.Name, child.Kind, child.Name, pluginOf(child.Kind), child.Name)}
	}
	return refusal{}
}

// hostChild finds a macvlan or ipvlan of the host's own on a device.
func hostChild(device string, all []link.Device) *link.Device {
	for i := range all {
		if child := &all[i]; pluginOf(child.Kind) != "" && child.Parent == device && !link.Own(child.Name) {
			return child
		}
	}
	return nil
}

// pluginOf is the plugin that takes the same receive handler as a kind of link.
func pluginOf(kind string) string {
	switch kind {
	case link.KindMacvlan, link.KindMacvtap:
		return v1alpha1.PluginMacvlan
	case link.KindIPVLAN:
		return v1alpha1.PluginIPVLAN
	}
	return ""
}

func olderNetwork(n *v1alpha1.Network) string { return "the older Network " + n.Name }

func article(plugin string) string {
	if plugin == v1alpha1.PluginIPVLAN {
		return "an " + plugin
	}
	return "a " + plugin
}

func passthru(n *v1alpha1.Network) bool {
	options, err := pluginconfig.Of(&n.Spec)
	return err == nil && n.Spec.Plugin == v1alpha1.PluginMacvlan && options.Mode == pluginconfig.ModePassthru
}

// refuse returns the reason of the first NIC if none can serve the Network.
func (s *Snapshot) refuse(n *v1alpha1.Network, unavailable map[string]bool) refusal {
	if r := unavailableKind(n, unavailable); r.reason != "" {
		return r
	}
	var first refusal
	for _, nic := range s.parents[n.Spec.PhysicalNet] {
		r := s.uses[place{nic, n.Spec.VLAN}].refuse(n)
		if r.reason == "" {
			return refusal{}
		}
		if first.reason == "" {
			first = r
		}
	}
	return first
}

func (u *use) refuse(n *v1alpha1.Network) refusal {
	d := u.device
	switch {
	case n.Spec.Plugin == v1alpha1.PluginBridge && !u.bridge:
		return u.keeper
	case n.Spec.Plugin != v1alpha1.PluginBridge && u.sharing != "" && n.Spec.Plugin != u.sharing:
		return refusal{v1alpha1.ReasonPluginConflict, fmt.Sprintf("NIC %s is used by %s with plugin %s, and a NIC takes no links of macvlan and ipvlan at once: use plugin %s, or another physical network", d.Name, u.sharer, u.sharing, u.sharing)}
	case passthru(n) && u.bridge:
		return refusal{v1alpha1.ReasonPluginConflict, fmt.Sprintf("NIC %s is a bridge or a port of one, and a macvlan in passthru mode needs the NIC for itself: choose another mode, or another physical network", d.Name)}
	case n.Spec.Plugin == v1alpha1.PluginMacvlan && (u.alone && u.first != n.Name || passthru(n) && u.sharer != olderNetwork(n)):
		return refusal{v1alpha1.ReasonPluginConflict, fmt.Sprintf("NIC %s is used by %s, and a macvlan in passthru mode takes no others beside it: choose another mode, or another physical network", d.Name, u.sharer)}
	case int(n.Spec.MTU) > d.MTU:
		return refusal{v1alpha1.ReasonMTUExceedsInterface, fmt.Sprintf("spec.mtu %d is larger than the %d of NIC %s: lower it, or raise the NIC's", n.Spec.MTU, d.MTU, d.Name)}
	}
	return refusal{}
}

// kindsOf are the kinds of links that a Network's interfaces are made of.
func kindsOf(n *v1alpha1.Network) []string {
	var out []string
	if n.Spec.VLAN != 0 {
		out = append(out, link.KindVLAN)
	}
	switch n.Spec.Plugin {
	case v1alpha1.PluginMacvlan:
		return append(out, link.KindMacvlan)
	case v1alpha1.PluginIPVLAN:
		return append(out, link.KindIPVLAN)
	case v1alpha1.PluginVXLAN:
		return append(out, link.KindVXLAN, link.KindBridge, link.KindVeth)
	case v1alpha1.PluginBridge:
		out = append(out, link.KindBridge, link.KindVeth)
		if options, err := pluginconfig.Of(&n.Spec); err == nil && options.SpoofCheck {
			out = append(out, link.NeedsIngress)
		}
		return out
	}
	return nil
}

func unavailableKind(n *v1alpha1.Network, unavailable map[string]bool) refusal {
	for _, kind := range kindsOf(n) {
		if unavailable[kind] && kind == link.NeedsIngress {
			return refusal{v1alpha1.ReasonPluginUnavailable, "the node's kernel lacks the ingress hook of nftables, which pluginConfig.spoofCheck needs: load or build it (NETFILTER_INGRESS, nf_tables_netdev)"}
		}
		if unavailable[kind] {
			return refusal{v1alpha1.ReasonPluginUnavailable, fmt.Sprintf("the node's kernel cannot make links of kind %s: load or build its module", kind)}
		}
	}
	return refusal{}
}
