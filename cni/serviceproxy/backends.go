// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package serviceproxy

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"

	"github.com/netplane/netplane/api/v1alpha1"
)

// candidate is an endpoint that could answer at a port.
type candidate struct {
	to       netip.AddrPort
	endpoint *discoveryv1.Endpoint
}

func (c *candidate) ready() bool { return ptr.Deref(c.endpoint.Conditions.Ready, true) }

// lingers: it is about to end, and answers still (KEP-1669).
func (c *candidate) lingers() bool {
	conditions := &c.endpoint.Conditions
	return ptr.Deref(conditions.Serving, false) && ptr.Deref(conditions.Terminating, false)
}

// backends are those that answer at a port of a ClusterIP to pods on networks,
// sorted.
func (c *Cluster) backends(svc *corev1.Service, port *corev1.ServicePort, address netip.Addr, networks []string, owned []*discoveryv1.EndpointSlice) []netip.AddrPort {
	var all []candidate
	for _, slice := range owned {
		if slice.AddressType == familyOf(address) && slices.Contains(networks, slice.Labels[v1alpha1.LabelNetwork]) {
			all = append(all, candidates(slice, port)...)
		}
	}
	if ptr.Deref(svc.Spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster) == corev1.ServiceInternalTrafficPolicyLocal {
		all = slices.DeleteFunc(all, func(e candidate) bool { return ptr.Deref(e.endpoint.NodeName, "") != c.Place.Node })
	}
	return addresses(c.Place.choose(all))
}

func familyOf(address netip.Addr) discoveryv1.AddressType {
	if address.Is4() {
		return discoveryv1.AddressTypeIPv4
	}
	return discoveryv1.AddressTypeIPv6
}

// candidates are a slice's endpoints for a port. Only the first address of an
// endpoint counts, as for kube-proxy.
func candidates(slice *discoveryv1.EndpointSlice, port *corev1.ServicePort) []candidate {
	at := portOf(slice, port)
	if at == nil {
		return nil
	}
	var out []candidate
	for i := range slice.Endpoints {
		endpoint := &slice.Endpoints[i]
		if len(endpoint.Addresses) == 0 {
			continue
		}
		address, err := netip.ParseAddr(endpoint.Addresses[0])
		if err == nil && familyOf(address) == slice.AddressType {
			out = append(out, candidate{netip.AddrPortFrom(address, uint16(*at)), endpoint})
		}
	}
	return out
}

// portOf is the number that a Service's port has in a slice; nil if none.
func portOf(slice *discoveryv1.EndpointSlice, port *corev1.ServicePort) *int32 {
	for i := range slice.Ports {
		p := &slice.Ports[i]
		if ptr.Deref(p.Name, "") == port.Name && ptr.Deref(p.Protocol, corev1.ProtocolTCP) == cmp.Or(port.Protocol, corev1.ProtocolTCP) {
			return p.Port
		}
	}
	return nil
}

// choose takes those that are ready, of them the nearest if all say for whom they
// are; or else those that end but answer still.
func (p Place) choose(all []candidate) []candidate {
	ready := slices.DeleteFunc(slices.Clone(all), func(c candidate) bool { return !c.ready() })
	if len(ready) == 0 {
		return slices.DeleteFunc(all, func(c candidate) bool { return !c.lingers() })
	}
	near := func(told, forUs func(*discoveryv1.EndpointHints) bool) []candidate {
		var out []candidate
		for _, c := range ready {
			if c.endpoint.Hints == nil || !told(c.endpoint.Hints) {
				return nil
			}
			if forUs(c.endpoint.Hints) {
				out = append(out, c)
			}
		}
		return out
	}
	onNode := near(
		func(h *discoveryv1.EndpointHints) bool { return len(h.ForNodes) > 0 },
		func(h *discoveryv1.EndpointHints) bool {
			return slices.ContainsFunc(h.ForNodes, func(n discoveryv1.ForNode) bool { return n.Name == p.Node })
		})
	if len(onNode) > 0 {
		return onNode
	}
	inZone := near(
		func(h *discoveryv1.EndpointHints) bool { return len(h.ForZones) > 0 },
		func(h *discoveryv1.EndpointHints) bool {
			return slices.ContainsFunc(h.ForZones, func(z discoveryv1.ForZone) bool { return z.Name == p.Zone })
		})
	if len(inZone) > 0 {
		return inZone
	}
	return ready
}

func addresses(all []candidate) []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(all))
	for _, c := range all {
		out = append(out, c.to)
	}
	slices.SortFunc(out, compareAddrPorts)
	return slices.Compact(out)
}
