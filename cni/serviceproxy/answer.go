// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package serviceproxy

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// LabelServiceProxyName on a Service says whose it is (KEP-2447).
const LabelServiceProxyName = "service.kubernetes.io/service-proxy-name"

// Pod is a pod of this node as its Networks know it.
type Pod struct {
	// ID is that of the sandbox.
	ID, NetNS  string
	Interfaces []Interface
}

// Interface is one of a pod's, on a Network.
type Interface struct {
	Network, Name string
	// Addresses are the pod's on the Network, at most one of each family counts.
	Addresses []netip.Addr
}

// Place is where the node is.
type Place struct{ Node, Zone string }

// Cluster is what ClusterIPs depend on. Nothing of it is changed.
type Cluster struct {
	Services []*corev1.Service
	// Slices are those of EndpointSliceManagedBy, by Network.
	Slices map[string][]*discoveryv1.EndpointSlice
	// Elsewhere tells the networks whose endpoints kube-proxy balances to.
	Elsewhere func(network string) bool
	Place     Place
}

// Answer says who answers at which ClusterIP to pods that are on the same
// Networks. It does not change once made.
type Answer struct {
	balances map[link.Frontend]link.Balance
	// ways are the Networks by which ClusterIPs are reached that are reached in
	// no other way.
	ways map[netip.Addr]string
}

// Answer decides for pods on these Networks, all of which are InPod. A Service
// counts as soon as there is a slice of it on one of them, be it without
// endpoints: then the controller has found nothing against it.
func (c *Cluster) Answer(networks []string) *Answer {
	out := &Answer{balances: map[link.Frontend]link.Balance{}, ways: map[netip.Addr]string{}}
	bySvc := map[types.NamespacedName][]*discoveryv1.EndpointSlice{}
	for _, network := range networks {
		for _, slice := range c.Slices[network] {
			key := types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
			bySvc[key] = append(bySvc[key], slice)
		}
	}
	for _, svc := range c.Services {
		owned := bySvc[types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}]
		if len(owned) == 0 || !ours(svc) {
			continue
		}
		named := namedBy(svc, owned)
		for _, text := range clusterIPs(svc) {
			if address, err := netip.ParseAddr(text); err == nil {
				out.add(c, svc, address, networks, named, owned)
			}
		}
	}
	return out
}

// namedBy tells on which networks a port is, and whether the Service itself says
// so. Slices outlive its annotation: while kube-controller-manager takes over, and
// while the annotation cannot be read.
func namedBy(svc *corev1.Service, owned []*discoveryv1.EndpointSlice) func(*corev1.ServicePort) (networks []string, told bool) {
	named, err := podnetworks.ParseService(svc.Annotations[v1alpha1.AnnotationNetworks])
	if err == nil {
		var ports []string
		for i := range svc.Spec.Ports {
			ports = append(ports, svc.Spec.Ports[i].Name)
		}
		err = named.CheckPorts(ports)
	}
	return func(port *corev1.ServicePort) ([]string, bool) {
		if err == nil {
			return named.ForPort(port.Name), true
		}
		var out []string
		for _, slice := range owned {
			if portOf(slice, port) != nil {
				out = append(out, slice.Labels[v1alpha1.LabelNetwork])
			}
		}
		slices.Sort(out)
		return slices.Compact(out), false
	}
}

// ours: the Service is not left to a proxy of another name.
func ours(svc *corev1.Service) bool {
	name, named := svc.Labels[LabelServiceProxyName]
	return svc.Spec.Type != corev1.ServiceTypeExternalName && (!named || name == v1alpha1.IsolatedServiceProxyName)
}

func clusterIPs(svc *corev1.Service) []string {
	if len(svc.Spec.ClusterIPs) > 0 {
		return svc.Spec.ClusterIPs
	}
	return []string{svc.Spec.ClusterIP}
}

// add decides about the ports of one ClusterIP.
func (a *Answer) add(c *Cluster, svc *corev1.Service, address netip.Addr, networks []string, named func(*corev1.ServicePort) ([]string, bool), owned []*discoveryv1.EndpointSlice) {
	alone := true // nobody but us serves any of its ports
	way := ""
	for i := range svc.Spec.Ports {
		port := &svc.Spec.Ports[i]
		var mine []string
		all, told := named(port)
		elsewhere := !told
		for _, network := range all {
			elsewhere = elsewhere || c.Elsewhere(network)
			if slices.Contains(networks, network) {
				mine = append(mine, network)
			}
		}
		alone = alone && !elsewhere
		balance := link.Balance{Backends: c.backends(svc, port, address, mine, owned), Sticky: stickiness(svc)}
		if elsewhere && len(balance.Backends) == 0 {
			continue // kube-proxy answers
		}
		if way == "" && len(mine) > 0 {
			way = mine[0]
		}
		a.balances[link.Frontend{Address: address, Protocol: protocol(port.Protocol), Port: uint16(port.Port)}] = balance
	}
	if alone && way != "" {
		a.ways[address] = way
	}
}

// stickiness is how long connections stick to a backend. A pod is one client, so
// that the client's address plays no part.
func stickiness(svc *corev1.Service) time.Duration {
	if svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if config := svc.Spec.SessionAffinityConfig; config != nil && config.ClientIP != nil && config.ClientIP.TimeoutSeconds != nil {
		seconds = *config.ClientIP.TimeoutSeconds
	}
	return time.Duration(seconds) * time.Second
}

func protocol(p corev1.Protocol) uint8 {
	switch p {
	case corev1.ProtocolUDP:
		return unix.IPPROTO_UDP
	case corev1.ProtocolSCTP:
		return unix.IPPROTO_SCTP
	}
	return unix.IPPROTO_TCP
}

// For are the rules of one pod: what answers, and the ways to ClusterIPs by its
// own interfaces.
func (a *Answer) For(pod *Pod) *link.ClusterIPs {
	out := &link.ClusterIPs{Balances: a.balances, Routes: make(map[netip.Addr]link.ClusterIPRoute, len(a.ways))}
	for to, network := range a.ways {
		for i := range pod.Interfaces {
			iface := &pod.Interfaces[i]
			at := slices.IndexFunc(iface.Addresses, func(own netip.Addr) bool { return own.Is4() == to.Is4() })
			if iface.Network == network && at >= 0 {
				out.Routes[to] = link.ClusterIPRoute{Interface: iface.Name, Source: iface.Addresses[at]}
				break
			}
		}
	}
	return out
}

// after gives backends the places that they have in former, so that little
// changes in the kernel.
func (a *Answer) after(former *Answer) *Answer {
	if former == nil {
		return a
	}
	for front, balance := range a.balances {
		balance.Backends = arrange(former.balances[front].Backends, balance.Backends)
		a.balances[front] = balance
	}
	return a
}

// arrange lists want so that as few as possible are at another place than in
// former. Neither has one twice.
func arrange(former, want []netip.AddrPort) []netip.AddrPort {
	out := make([]netip.AddrPort, len(want))
	wanted := make(map[netip.AddrPort]bool, len(want))
	for _, b := range want {
		wanted[b] = true
	}
	var others []netip.AddrPort
	for i, b := range former {
		if !wanted[b] {
			continue
		}
		delete(wanted, b)
		if i < len(out) {
			out[i] = b
		} else {
			others = append(others, b)
		}
	}
	for _, b := range want {
		if wanted[b] {
			others = append(others, b)
		}
	}
	for i := range out {
		if !out[i].IsValid() {
			out[i], others = others[0], others[1:]
		}
	}
	return out
}

func compareAddrPorts(a, b netip.AddrPort) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Port(), b.Port()))
}
