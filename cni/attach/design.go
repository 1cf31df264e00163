// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// circumstances is what an interface's design depends on beside its Network.
type circumstances struct {
	containerID string
	// parent is what the interface stands on.
	parent link.Parent
	// services are the ranges of ClusterIPs.
	services []netip.Prefix
	// pods are the ranges of the cluster's own pod addresses.
	pods []netip.Prefix
	// elsewhere are addresses of the families in which another interface of the
	// pod was asked to have the default route, and has one.
	elsewhere []netip.Addr
}

// primary: the interface is the pod's eth0, whose address is the pod IP.
func (w *wanted) primary() bool { return w.request.IfName == podnetworks.PrimaryInterface }

// design says what the interface is to be. It changes nothing.
func (w *wanted) design(c *circumstances) link.Interface {
	out := link.Interface{
		Name: w.request.IfName, Kind: link.KindMacvlan, Mode: w.options.Mode, Parent: c.parent.Name,
		MAC: w.request.MAC, MTU: w.mtu, Addresses: w.plan.Interface(w.lease.Address),
	}
	if w.network.Spec.MTU == 0 && c.parent.MTU < out.MTU {
		out.MTU = c.parent.MTU // an administrator's tagged device or bridge
	}
	if w.request.MTU > 0 {
		out.MTU = min(out.MTU, w.request.MTU)
	}
	if out.MAC == "" {
		out.MAC = w.plan.MAC(w.lease.Address).String()
	}
	if w.exclusive != nil {
		out.Kind, out.NIC, out.MAC = link.KindHostDevice, w.exclusive, cmp.Or(w.request.MAC, w.exclusive.MAC)
	}
	if w.sharesMAC() {
		out.MAC = c.parent.MAC
	}
	switch w.network.Spec.Plugin {
	case v1alpha1.PluginBridge, v1alpha1.PluginVXLAN:
		out.Kind, out.HostEnd = link.KindVeth, link.HostEndName(c.containerID, w.request.IfName)
		out.Isolated, out.SpoofCheck = w.options.Isolated, w.options.SpoofCheck
	case v1alpha1.PluginIPVLAN:
		out.Kind = link.KindIPVLAN
	}
	out.Sysctls = w.sysctls()
	out.Routes = append(w.onLink(out.Addresses), w.networkRoutes(out.Addresses)...)
	out.Routes = append(out.Routes, w.defaults(c, out.Addresses)...)
	if w.request.DefaultRoute && !w.primary() {
		out.TakeDefault, out.Keep = true, slices.Concat(c.services, c.pods)
	}
	return out
}

// sysctls are the Network's settings and the pod's own, which come before them.
func (w *wanted) sysctls() []link.Sysctl {
	var out []link.Sysctl
	for _, s := range w.network.Spec.Sysctls {
		if _, own := w.request.Sysctls[string(s.Name)]; !own {
			out = append(out, link.Sysctl{Name: string(s.Name), Value: s.Value})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.request.Sysctls)) {
		out = append(out, link.Sysctl{Name: name, Value: w.request.Sysctls[name]})
	}
	return out
}

// onLink are the Network's other subnets: one physical network carries all.
func (w *wanted) onLink(addresses []netip.Prefix) []link.Route {
	var out []link.Route
	for _, subnet := range w.plan.Subnets() {
		connected := slices.ContainsFunc(addresses, func(a netip.Prefix) bool { return a.Masked() == subnet })
		if !connected {
			out = append(out, link.Route{To: subnet})
		}
	}
	return out
}

// networkRoutes are Network.spec.routes of the families that the interface has.
// The CRD holds them to be well formed.
func (w *wanted) networkRoutes(addresses []netip.Prefix) []link.Route {
	var out []link.Route
	for _, r := range w.network.Spec.Routes {
		to, err := netip.ParsePrefix(string(r.To))
		if err != nil || !hasFamily(addresses, to.Addr()) {
			continue
		}
		via, _ := netip.ParseAddr(string(r.Via))
		out = append(out, link.Route{To: to, Via: via})
	}
	return out
}

// defaults are the default routes and, on eth0, the way to Services: it leads
// over the node, where kube-proxy translates.
func (w *wanted) defaults(c *circumstances, addresses []netip.Prefix) []link.Route {
	var out []link.Route
	for _, address := range addresses {
		own := address.Addr()
		elsewhere := slices.ContainsFunc(c.elsewhere, func(a netip.Addr) bool { return sameFamily(a, own) })
		wantsDefault := w.request.DefaultRoute || w.primary() && !elsewhere
		next, node := w.nextHop(own)
		if wantsDefault && next.IsValid() {
			out = append(out, link.Route{To: netip.PrefixFrom(zero(own), 0), Via: next})
		}
		if !node.IsValid() || wantsDefault && next == node {
			continue
		}
		for _, services := range c.services {
			if sameFamily(services.Addr(), own) {
				out = append(out, link.Route{To: services, Via: node})
			}
		}
	}
	return out
}

// nextHop is where packets from one of the interface's addresses leave the
// network: the gateway or, on eth0 without one, the node; invalid if nowhere.
// node is the node's own address, on eth0.
func (w *wanted) nextHop(own netip.Addr) (next, node netip.Addr) {
	gateway, gateway6 := w.plan.Gateway()
	for _, g := range []netip.Addr{gateway, gateway6} {
		if sameFamily(g, own) {
			next = g
		}
	}
	for _, n := range w.nodeAddresses() {
		if sameFamily(n, own) && w.primary() {
			node = n
		}
	}
	if !next.IsValid() {
		next = node
	}
	return next, node
}

// routedFamilies names the families in which the Network has a gateway by the
// address of each; of a delegate's Network without subnet both count.
func (w *wanted) routedFamilies() []netip.Addr {
	if w.plan == nil {
		return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	gateway, gateway6 := w.plan.Gateway()
	return []netip.Addr{gateway, gateway6}
}

// path is the host's way to the pod, for an interface that is its eth0.
func (w *wanted) path(iface *link.Interface) *NodePath {
	out := &NodePath{Network: w.network.Name, Subnets: w.plan.Subnets()}
	out.Device = iface.Parent
	if iface.Kind == link.KindMacvlan {
		out.Device, out.Parent, out.MTU = link.ShimName(w.network.Name, iface.Parent), iface.Parent, w.mtu
	}
	for _, node := range w.nodeAddresses() {
		out.Addresses = append(out.Addresses, netip.PrefixFrom(node, node.BitLen()))
		for _, address := range iface.Addresses {
			if !sameFamily(address.Addr(), node) {
				continue
			}
			out.Routes = append(out.Routes, link.HostRoute{To: address.Addr(), Source: node})
			if next, _ := w.nextHop(address.Addr()); next == node {
				out.Local = append(out.Local, w.blockOf(address.Addr()))
			}
		}
	}
	return out
}

// blockOf is the part of a subnet that holds one of the interface's addresses and
// is this node's. That of a fixed address is of no block.
func (w *wanted) blockOf(own netip.Addr) netip.Prefix {
	block := w.lease.Block
	if !block.Contains(w.lease.Address) {
		return netip.PrefixFrom(own, own.BitLen())
	}
	// The IPv6 address of a pair ends in the IPv4 one.
	free := block.Addr().BitLen() - block.Bits()
	return netip.PrefixFrom(own, own.BitLen()-free).Masked()
}

func sameFamily(a, b netip.Addr) bool {
	return a.IsValid() && b.IsValid() && a.Is4() == b.Is4()
}

func hasFamily(addresses []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return sameFamily(p.Addr(), addr) })
}

func zero(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
