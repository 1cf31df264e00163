// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"fmt"
	"net/netip"
	"slices"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// routers counts the interfaces of a pod by which packets leave its subnets.
type routers struct{ v4, v6 int }

func (r *routers) add(addr netip.Addr) {
	if addr.Is4() {
		r.v4++
	} else {
		r.v6++
	}
}

// several: an answer could leave by another interface than the one by which the
// question came.
func (r *routers) several(addr netip.Addr) bool {
	if addr.Is4() {
		return r.v4 > 1
	}
	return r.v6 > 1
}

// linkLocal are the IPv6 addresses that every interface has beside its own.
func linkLocal() netip.Prefix { return netip.MustParsePrefix("fe80::/64") }

// routeBySource has what leaves from an interface's addresses leave by it, in
// the families in which the pod has several interfaces with a router: those on
// Networks with a gateway, and eth0 whosever it is. The interfaces are those of
// all that are built in.
func routeBySource(all []wanted, interfaces []link.Interface, network *wire.DefaultNetwork) error {
	count, err := defaultRouters(network)
	if err != nil {
		return err
	}
	foreign := network != nil
	for i := range all {
		if all[i].delegated() && all[i].primary() { // what its plugin routes is not known
			foreign, count = true, routers{v4: 1, v6: 1}
		}
	}
	own := builtIn(all)
	for i := range own {
		for _, address := range interfaces[i].Addresses {
			if next, _ := own[i].nextHop(address.Addr()); next.IsValid() {
				count.add(address.Addr())
			}
		}
	}
	for i := range own {
		interfaces[i].Source = own[i].sourceRoutes(&interfaces[i], &count)
		if interfaces[i].Source != nil && foreign {
			interfaces[i].Source.Beside = podnetworks.PrimaryInterface
		}
	}
	return nil
}

// routePlugged does so for an interface that joins a running pod, where one other
// may have been the only way out until now. What is there stays as it is.
func (s *Server) routePlugged(sandbox *Sandbox, w *wanted, iface *link.Interface) {
	count := s.routersOf(sandbox)
	for _, address := range iface.Addresses {
		if next, _ := w.nextHop(address.Addr()); next.IsValid() {
			count.add(address.Addr())
		}
	}
	if iface.Source = w.sourceRoutes(iface, &count); iface.Source != nil {
		iface.Source.Beside = podnetworks.PrimaryInterface
	}
}

// routersOf counts the interfaces of a pod that have a router: eth0 by what it was
// told to have, those that netplane made by the gateways of their Networks.
func (s *Server) routersOf(sandbox *Sandbox) routers {
	var count routers
	for i := range sandbox.Attachments {
		a := &sandbox.Attachments[i]
		if a.Interface == podnetworks.PrimaryInterface {
			for _, gateway := range a.Gateway {
				if addr, err := netip.ParseAddr(gateway); err == nil {
					count.add(addr)
				}
			}
			continue
		}
		n, known := s.deps.Networks.Get(a.Name)
		if !known || n.Spec.Delegated() {
			continue
		}
		for _, text := range []v1alpha1.IP{n.Spec.Gateway, n.Spec.Gateway6} {
			gateway, err := netip.ParseAddr(string(text))
			if err != nil {
				continue
			}
			hasFamily := slices.ContainsFunc(a.IPs, func(ip string) bool {
				own, err := netip.ParseAddr(ip)
				return err == nil && sameFamily(own, gateway)
			})
			if hasFamily {
				count.add(gateway)
			}
		}
	}
	return count
}

// defaultRouters counts the cluster's eth0 where it has a router.
func defaultRouters(network *wire.DefaultNetwork) (routers, error) {
	var count routers
	if network == nil {
		return count, nil
	}
	parsed, err := current.NewResult(network.Result)
	if err != nil {
		return count, fmt.Errorf("reading the default network's result: %w", err)
	}
	from, err := current.GetResult(parsed)
	if err != nil {
		return count, fmt.Errorf("reading the default network's result: %w", err)
	}
	for _, ip := range from.IPs {
		routed := ip.Gateway != nil
		for _, r := range from.Routes {
			ones, _ := r.Dst.Mask.Size()
			routed = routed || ones == 0 && (r.Dst.IP.To4() != nil) == (ip.Address.IP.To4() != nil)
		}
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok && routed {
			count.add(addr.Unmap())
		}
	}
	count.v4, count.v6 = min(count.v4, 1), min(count.v6, 1)
	return count, nil
}

// sourceRoutes are all routes of an interface, in the families with several
// routers in which it has one; nil if there is no such family.
func (w *wanted) sourceRoutes(iface *link.Interface, count *routers) *link.SourceRoutes {
	var out []link.Route
	for _, address := range iface.Addresses {
		own := address.Addr()
		next, _ := w.nextHop(own)
		if !next.IsValid() || !count.several(own) {
			continue
		}
		out = append(out, link.Route{To: address.Masked()})
		if own.Is6() {
			out = append(out, link.Route{To: linkLocal()})
		}
		for _, r := range iface.Routes {
			if sameFamily(r.To.Addr(), own) && r.To.Bits() > 0 {
				out = append(out, r)
			}
		}
		out = append(out, link.Route{To: netip.PrefixFrom(zero(own), 0), Via: next})
	}
	if len(out) == 0 {
		return nil
	}
	return &link.SourceRoutes{Routes: out}
}
