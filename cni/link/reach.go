// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// behindHost is the metric of our routes to whole subnets: what the host knows
// of the same subnet by itself comes before it, an address on the NIC above all.
const behindHost = behindOthers

// reach has the host send to all of a Network's subnets by its own device, and
// not only to its own pods there: behind a Service stand those of other nodes,
// too. A subnet that the host reaches on a link of its own is left to that.
func (l *Links) reach(socket *conn, index int, subnets []SubnetRoute) error {
	listed := map[int][]netlink.Route{}
	var requests []*request
	for _, s := range subnets {
		family := familyOf(s.To.Addr())
		if _, ok := listed[family]; !ok {
			var err error
			if listed[family], err = l.hostRoutes(family); err != nil {
				return err
			}
		}
		if onOwnLink(listed[family], s.To) {
			if err := l.unreach(index, []SubnetRoute{s}); err != nil {
				return err
			}
			continue
		}
		if flags, ok := missing(listed[family], index, s); ok {
			requests = append(requests, addSubnetRoute(index, s, flags))
		}
	}
	if len(requests) == 0 {
		return nil
	}
	return socket.runAll(requests)
}

// onOwnLink says whether the host has an address in the subnet, or in a larger one
// around it: then it has a route there without a next hop, of the kernel's making
// or by a router's advertisement. What else leads to a larger range, such as a
// tunnel, does not mean the Network.
func onOwnLink(routes []netlink.Route, subnet netip.Prefix) bool {
	for i := range routes {
		r := &routes[i]
		if r.Dst == nil || r.Gw != nil || r.Via != nil || len(r.MultiPath) > 0 || r.Type != unix.RTN_UNICAST {
			continue
		}
		if r.Protocol != unix.RTPROT_KERNEL && r.Protocol != unix.RTPROT_RA {
			continue
		}
		if to := prefixOf(r.Dst); to.Bits() > 0 && to.Bits() <= subnet.Bits() && to.Contains(subnet.Addr()) {
			return true
		}
	}
	return false
}

// missing says whether our route to a subnet has to be made, and how. That of
// another device stays: two Networks then overlap, and the first has it.
func missing(routes []netlink.Route, index int, s SubnetRoute) (flags int, missing bool) {
	for i := range routes {
		r := &routes[i]
		if r.Dst == nil || prefixOf(r.Dst) != s.To || r.Priority != behindHost || r.Protocol != routeProtocol {
			continue
		}
		return unix.NLM_F_REPLACE, r.LinkIndex == index && !isSource(r, s.Source)
	}
	return unix.NLM_F_EXCL, true
}

func addSubnetRoute(index int, s SubnetRoute, flags int) *request {
	out := addRoute(index, unix.RT_TABLE_MAIN, Route{To: s.To})
	out.Flags = out.Flags&^unix.NLM_F_EXCL | uint16(flags)
	out.what = fmt.Sprintf("adding the host's route to %s", s.To)
	out.attr(unix.RTA_PREFSRC, s.Source.AsSlice())
	out.number(unix.RTA_PRIORITY, behindHost)
	return out
}

// unreach takes such routes back. What is gone already is no error.
func (l *Links) unreach(index int, subnets []SubnetRoute) error {
	for _, s := range subnets {
		route := &netlink.Route{LinkIndex: index, Dst: ipNet(s.To), Protocol: routeProtocol, Priority: behindHost}
		if s.To.Addr().Is4() {
			route.Scope = netlink.SCOPE_LINK
		}
		if err := l.host.RouteDel(route); err != nil && !IsGone(err) {
			return fmt.Errorf("removing the host's route to %s: %w", s.To, err)
		}
	}
	return nil
}
