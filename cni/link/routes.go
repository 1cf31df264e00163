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

// addRoutes gives a pod the routes of one interface, on-link ones first: the
// next hops of the others may lie there.
func (p *pod) addRoutes(born netlink.Link, spec *Interface) error {
	var former []netlink.Route
	if spec.TakeDefault {
		var err error
		if former, err = p.dropDefaults(born.Attrs().Index, spec); err != nil {
			return err
		}
	}
	for _, onLink := range []bool{true, false} {
		for _, r := range spec.Routes {
			if onLink == r.Via.IsValid() {
				continue
			}
			if err := p.handle.RouteAdd(nlRoute(born.Attrs().Index, r)); err != nil && !isExists(err) {
				return fmt.Errorf("adding route to %s: %w", r.To, explain(err, spec.Parent))
			}
		}
	}
	return p.keepServices(former, spec.Keep)
}

func nlRoute(index int, r Route) *netlink.Route {
	route := &netlink.Route{LinkIndex: index, Dst: ipNet(r.To), Protocol: routeProtocol}
	if r.Via.IsValid() {
		route.Gw = r.Via.AsSlice()
	} else if r.To.Addr().Is4() {
		route.Scope = netlink.SCOPE_LINK
	}
	return route
}

// dropDefaults removes the default routes of other interfaces, in the families
// in which this one brings its own, and returns them.
func (p *pod) dropDefaults(index int, spec *Interface) ([]netlink.Route, error) {
	var dropped []netlink.Route
	for _, r := range spec.Routes {
		if r.To.Bits() != 0 {
			continue
		}
		family := familyOf(r.To.Addr())
		routes, err := dump(func() ([]netlink.Route, error) {
			return p.handle.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("listing routes: %w", err)
		}
		for i := range routes {
			old := &routes[i]
			isDefault := old.Dst == nil || prefixOf(old.Dst).Bits() == 0
			if !isDefault || old.LinkIndex == index || old.Type != unix.RTN_UNICAST {
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
