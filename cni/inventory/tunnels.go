// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"fmt"
	"net/netip"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/api/vxlan"
	"github.com/netplane/netplane/cni/link"
)

// resolveTunnels chooses, for each Network of plugin vxlan, the NIC and address
// that the node sends its frames from, and refuses the Networks for which there
// is none. A tunnel takes nothing of a NIC: it stands beside macvlans, bridges
// and the host's own traffic.
func resolveTunnels(s *Snapshot, in *Input, devices map[string]*link.Device) {
	var pods []netip.Prefix
	for i := range in.Networks {
		pods = append(pods, subnetsOf(&in.Networks[i].Spec)...)
	}
	for i := range in.Networks {
		n := &in.Networks[i]
		nics := s.parents[n.Spec.PhysicalNet]
		if n.Spec.Plugin != v1alpha1.PluginVXLAN || len(nics) == 0 {
			continue
		}
		tunnel, r := tunnelOf(n, nics, devices, pods, in.Unavailable)
		if r.reason != "" {
			s.refused[n.Name] = v1alpha1.RefusedNetwork{Network: n.Name, Reason: r.reason, Message: r.message}
			continue
		}
		s.tunnels[n.Name] = tunnel
	}
}

// tunnelOf takes the first NIC that will do; the refusal is the first one's.
func tunnelOf(n *v1alpha1.Network, nics []string, devices map[string]*link.Device, pods []netip.Prefix, unavailable map[string]bool) (link.Tunnel, refusal) {
	for _, kind := range []string{link.KindVXLAN, link.KindBridge, link.KindVeth} {
		if unavailable[kind] {
			return link.Tunnel{}, refusal{v1alpha1.ReasonPluginUnavailable, fmt.Sprintf("the node's kernel cannot make links of kind %s: load or build its module", kind)}
		}
	}
	settings, err := vxlan.SettingsOf(n)
	if err != nil {
		return link.Tunnel{}, refusal{} // the controller tells of it
	}
	var first refusal
	for _, nic := range nics {
		tunnel, r := tunnelOn(devices[nic], devices, n, settings, pods)
		if r.reason == "" {
			return tunnel, r
		}
		if first.reason == "" {
			first = r
		}
	}
	return link.Tunnel{}, first
}

// tunnelOn looks at one NIC. What is a port of a bridge or a bond has no
// addresses that anybody could send to: its master has them.
func tunnelOn(nic *link.Device, devices map[string]*link.Device, n *v1alpha1.Network, settings vxlan.Settings, pods []netip.Prefix) (link.Tunnel, refusal) {
	device := nic
	if master := devices[nic.Master]; master != nil {
		device = master
	}
	var ends []netip.Addr
	for _, end := range device.TunnelEnds {
		if !ownOnBridge(end, pods) {
			ends = append(ends, end.Addr())
		}
	}
	address, ok := settings.TunnelAddress(ends)
	if !ok {
		family := "IPv4 or IPv6"
		if settings.Underlay != vxlan.UnderlayAny {
			family = string(settings.Underlay)
		}
		return link.Tunnel{}, refusal{v1alpha1.ReasonNoTunnelAddress,
			fmt.Sprintf("%s has no %s address that a vxlan tunnel could end at: give it one, or switch IPv6 on, which makes a link-local one", device.Name, family)}
	}
	tunnel := link.Tunnel{Device: device.Name, Address: address, MTU: min(device.MTU, nic.MTU)}
	if limit := vxlan.MTU(tunnel.MTU, address); int(n.Spec.MTU) > limit {
		return link.Tunnel{}, refusal{v1alpha1.ReasonMTUExceedsInterface,
			fmt.Sprintf("spec.mtu %d is larger than %d, which the tunnel's headers leave of the %d of %s: lower it, or raise the NIC's", n.Spec.MTU, limit, tunnel.MTU, device.Name)}
	}
	return tunnel, refusal{}
}

// ownOnBridge says that an address is the node's own in a Network, which it has
// on a bridge while pods there have the Network on eth0 (link.Path).
func ownOnBridge(end netip.Prefix, pods []netip.Prefix) bool {
	if !end.IsSingleIP() {
		return false
	}
	for _, subnet := range pods {
		if subnet.Contains(end.Addr()) {
			return true
		}
	}
	return false
}

func subnetsOf(spec *v1alpha1.NetworkSpec) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range append([]v1alpha1.CIDR{spec.Subnet, spec.Subnet6}, spec.AdditionalSubnets...) {
		if prefix, err := netip.ParsePrefix(string(text)); err == nil {
			out = append(out, prefix)
		}
	}
	return out
}

// Tunnel is what the node sends a vxlan Network's frames from; false if the
// node cannot serve it.
func (s *Snapshot) Tunnel(network string) (link.Tunnel, bool) {
	if s == nil {
		return link.Tunnel{}, false
	}
	tunnel, ok := s.tunnels[network]
	return tunnel, ok
}
