// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Check says in what an interface differs from spec: in anything that Add gave
// it. What it has beyond that is the pod's affair.
func (l *Links) Check(ctx context.Context, netnsPath string, spec Interface) error {
	return l.inPod(ctx, l.changes, netnsPath, func(p *pod) error { return p.check(&spec) })
}

func (p *pod) check(spec *Interface) error {
	born, err := p.handle.LinkByName(spec.Name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", spec.Name, err)
	}
	wrong := wrongAttributes(born, spec)
	for _, look := range []func(netlink.Link, *Interface) ([]string, error){p.wrongAddresses, p.wrongRoutes, p.wrongSources, p.wrongSysctls} {
		more, err := look(born, spec)
		if err != nil {
			return fmt.Errorf("interface %s: %w", spec.Name, err)
		}
		wrong = append(wrong, more...)
	}
	if kind, _ := makerOf(spec.Kind); kind.check != nil {
		wrong = append(wrong, kind.check(p, born, spec)...)
	}
	if len(wrong) > 0 {
		return fmt.Errorf("interface %s %s", spec.Name, strings.Join(wrong, ", "))
	}
	return nil
}

func wrongAttributes(born netlink.Link, spec *Interface) []string {
	var wrong []string
	attrs := born.Attrs()
	if kind := spec.linkKind(); born.Type() != kind {
		wrong = append(wrong, fmt.Sprintf("is a %s, not a %s", born.Type(), kind))
	}
	if attrs.HardwareAddr.String() != strings.ToLower(spec.MAC) {
		wrong = append(wrong, fmt.Sprintf("has MAC %s, not %s", attrs.HardwareAddr, spec.MAC))
	}
	if attrs.MTU != spec.MTU {
		wrong = append(wrong, fmt.Sprintf("has MTU %d, not %d", attrs.MTU, spec.MTU))
	}
	if attrs.RawFlags&unix.IFF_UP == 0 {
		wrong = append(wrong, "is down")
	}
	return wrong
}

func (p *pod) wrongAddresses(born netlink.Link, spec *Interface) ([]string, error) {
	addrs, err := dump(func() ([]netlink.Addr, error) { return p.handle.AddrList(born, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	var wrong []string
	for _, prefix := range spec.Addresses {
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return prefixOf(a.IPNet) == prefix }) {
			wrong = append(wrong, "lacks address "+prefix.String())
		}
	}
	return wrong, nil
}

func (p *pod) wrongRoutes(born netlink.Link, spec *Interface) ([]string, error) {
	routes, err := p.routesOf(unix.RT_TABLE_MAIN)
	if err != nil {
		return nil, err
	}
	var wrong []string
	for _, r := range spec.Routes {
		has := slices.ContainsFunc(routes, func(have netlink.Route) bool {
			if !leadsTo(&have, r.To) {
				return false
			}
			// Of two interfaces that bring a route to one destination the first has it.
			elsewhere := have.LinkIndex != born.Attrs().Index && (r.To.Bits() > 0 || !spec.TakeDefault)
			return elsewhere || isRoute(&have, born.Attrs().Index, r)
		})
		if !has {
			wrong = append(wrong, "lacks the "+r.String())
		}
	}
	return wrong, nil
}

// routesOf lists one table, both families.
func (p *pod) routesOf(table int) ([]netlink.Route, error) {
	var out []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) {
			return p.handle.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("listing routes: %w", err)
		}
		for i := range routes {
			if routes[i].Dst == nil { // some versions of the library tell a default route so
				routes[i].Dst = ipNet(netip.PrefixFrom(unspecified(family), 0))
			}
		}
		out = append(out, singleHops(routes)...)
	}
	return out, nil
}

func unspecified(family int) netip.Addr {
	if family == netlink.FAMILY_V4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func leadsTo(have *netlink.Route, to netip.Prefix) bool {
	return have.Type == unix.RTN_UNICAST && prefixOf(have.Dst) == to
}

// isRoute compares what a pod's route has with what Add gave it.
func isRoute(have *netlink.Route, index int, want Route) bool {
	return have.LinkIndex == index && leadsTo(have, want.To) &&
		(want.Via.IsValid() && have.Gw.Equal(want.Via.AsSlice()) || !want.Via.IsValid() && have.Gw == nil)
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones)
}
