// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks our routes in the kernel's tables (rtm_protocol; free in
// iproute2's rt_protos).
const routeProtocol = 110

// routeRequests asks for routes of one interface, on-link ones first: the next
// hops of the others may lie there. Those that are there already stay.
func routeRequests(index, table int, routes []Route) []*request {
	var out []*request
	for _, onLink := range []bool{true, false} {
		for _, r := range routes {
			if onLink != r.Via.IsValid() {
				out = append(out, addRoute(index, table, r))
			}
		}
	}
	return out
}

// addRoutes gives a pod the routes of one interface.
func (p *pod) addRoutes(index int, spec *Interface) error {
	former, err := p.dropDefaults(index, spec)
	if err != nil {
		return err
	}
	if err := p.inside.runAll(routeRequests(index, unix.RT_TABLE_MAIN, spec.Routes)); err != nil {
		return err
	}
	return p.keepServices(former, spec.Keep)
}

// dropDefaults removes the default routes of other interfaces, in the families
// in which this one brings its own and is to take over, and returns them.
func (p *pod) dropDefaults(index int, spec *Interface) ([]netlink.Route, error) {
	var dropped []netlink.Route
	for _, r := range spec.Routes {
		if r.To.Bits() != 0 || !spec.TakeDefault {
			continue
		}
		family := familyOf(r.To.Addr())
		routes, err := p.mainRoutes(family)
		if err != nil {
			return nil, err
		}
		for i := range routes {
			old := &routes[i]
			if !isDefault(old) || old.LinkIndex == index {
				continue
			}
			if err := p.handle.RouteDel(old); err != nil && !IsGone(err) {
				return nil, fmt.Errorf("removing the former default route: %w", err)
			}
			old.Family = family
			dropped = append(dropped, *old)
		}
	}
	return dropped, nil
}

func isDefault(r *netlink.Route) bool {
	return (r.Dst == nil || prefixOf(r.Dst).Bits() == 0) && r.Type == unix.RTN_UNICAST
}

// mainRoutes lists the main table of the pod, each route with one next hop.
func (p *pod) mainRoutes(family int) ([]netlink.Route, error) {
	routes, err := dump(func() ([]netlink.Route, error) {
		return p.handle.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	return singleHops(routes), nil
}

// singleHops takes apart what the kernel tells of together: two IPv6 routes to one
// destination with the same metric, of two plugins for instance, are one to it. Of
// the flags only onlink is one to ask for: it refuses others that it tells itself
// (RTNH_F_LINKDOWN, fib_create_info in net/ipv4/fib_semantics.c).
func singleHops(routes []netlink.Route) []netlink.Route {
	out := make([]netlink.Route, 0, len(routes))
	for i := range routes {
		whole := routes[i]
		whole.Flags &= unix.RTNH_F_ONLINK
		if len(whole.MultiPath) == 0 {
			out = append(out, whole)
			continue
		}
		for _, hop := range whole.MultiPath {
			one := whole
			one.MultiPath, one.LinkIndex, one.Gw, one.Via = nil, hop.LinkIndex, hop.Gw, hop.Via
			one.Encap, one.Flags = hop.Encap, hop.Flags&unix.RTNH_F_ONLINK
			out = append(out, one)
		}
	}
	return out
}

// keepServices sends the destinations that must not follow the new default
// route by the former one, which may have had no next hop.
func (p *pod) keepServices(former []netlink.Route, keep []netip.Prefix) error {
	for i := range former {
		old := &former[i]
		for _, to := range keep {
			if old.Family != familyOf(to.Addr()) {
				continue
			}
			route := &netlink.Route{LinkIndex: old.LinkIndex, Dst: ipNet(to), Gw: old.Gw, Scope: old.Scope, Flags: old.Flags, Protocol: routeProtocol}
			if err := p.handle.RouteAdd(route); err != nil && !isExists(err) {
				return fmt.Errorf("keeping the route to %s: %w", to, err)
			}
		}
	}
	return nil
}
