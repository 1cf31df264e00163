// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Numbers of source-based routing in a pod (`ip rule`, `ip route show table N`).
const (
	// sourceTables + an interface's index is its table. Below are the numbers
	// that people like to use, and those of the kernel.
	sourceTables = 1000
	// sourcePriority is between the tables local (0) and main (32766).
	sourcePriority = 1000
)

// SourceRoutes has what leaves from an interface's own addresses leave by that
// interface: the answer to who came in by it, whatever the pod's main routes.
type SourceRoutes struct {
	// Routes are all of the interface's, its subnets and its default routes
	// included, in the families in which it is done.
	Routes []Route `json:"routes"`
	// Beside is an interface that others made, which gets a table of its own
	// with the routes that it has; empty for none.
	Beside string `json:"beside,omitempty"`
}

func (s *SourceRoutes) has(addr netip.Addr) bool {
	return slices.ContainsFunc(s.Routes, func(r Route) bool { return r.To.Addr().Is4() == addr.Is4() })
}

// sourcesOf asks for the routes of the interface's table, and has what leaves from
// its addresses go there.
func sourcesOf(index int, spec *Interface) []*request {
	if spec.Source == nil {
		return nil
	}
	table := sourceTables + index
	out := routeRequests(index, table, spec.Source.Routes)
	for _, address := range spec.Addresses {
		if spec.Source.has(address.Addr()) {
			out = append(out, addRule(address.Addr(), table))
		}
	}
	return out
}

// routeBeside gives the cluster's own interface a table, unless it has one: its
// default route may be gone by then.
func (p *pod) routeBeside(source *SourceRoutes) error {
	if source.Beside == "" {
		return nil
	}
	beside, err := p.handle.LinkByName(source.Beside)
	if IsGone(err) {
		return nil // the cluster's network calls it otherwise
	}
	if err != nil {
		return fmt.Errorf("looking for %s: %w", source.Beside, err)
	}
	index := beside.Attrs().Index
	addresses, err := p.globalAddresses(beside)
	if err != nil {
		return err
	}
	rules, err := p.sourceRules(sourceTables + index)
	if err != nil {
		return err
	}
	for _, address := range addresses {
		if !source.has(address) || slices.Contains(rules, address) {
			continue
		}
		if err := p.copyRoutes(beside, familyOf(address)); err != nil {
			return err
		}
		rule := addRule(address, sourceTables+index)
		if err := p.inside.run([]*request{rule}); err != nil {
			return err
		}
		if err := rule.failure(); err != nil {
			return err
		}
	}
	return nil
}

func (p *pod) globalAddresses(of netlink.Link) ([]netip.Addr, error) {
	addrs, err := dump(func() ([]netlink.Addr, error) { return p.handle.AddrList(of, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("listing addresses of %s: %w", of.Attrs().Name, err)
	}
	var out []netip.Addr
	for i := range addrs {
		if addrs[i].Scope == unix.RT_SCOPE_UNIVERSE && addrs[i].IPNet != nil {
			out = append(out, prefixOf(addrs[i].IPNet).Addr())
		}
	}
	return out, nil
}

// copyRoutes copies an interface's routes from the main table to its own.
func (p *pod) copyRoutes(from netlink.Link, family int) error {
	index := from.Attrs().Index
	routes, err := p.mainRoutes(family)
	if err != nil {
		return fmt.Errorf("for %s: %w", from.Attrs().Name, err)
	}
	for _, onLink := range []bool{true, false} {
		for i := range routes {
			route := routes[i]
			if route.LinkIndex != index || route.Type != unix.RTN_UNICAST || onLink != (route.Gw == nil) {
				continue
			}
			route.Table, route.Protocol = sourceTables+index, routeProtocol
			if err := p.handle.RouteAdd(&route); err != nil && !isExists(err) {
				return fmt.Errorf("copying route to %s to table %d: %w", route.Dst, route.Table, err)
			}
		}
	}
	return nil
}

// sourceRules lists the addresses that are directed to a table.
func (p *pod) sourceRules(table int) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := dump(func() ([]netlink.Rule, error) { return p.handle.RuleList(family) })
		if err != nil {
			return nil, fmt.Errorf("listing rules: %w", err)
		}
		for i := range rules {
			if rules[i].Table == table && rules[i].Src != nil {
				out = append(out, prefixOf(rules[i].Src).Addr())
			}
		}
	}
	return out, nil
}

func (p *pod) wrongSources(born netlink.Link, spec *Interface) ([]string, error) {
	if spec.Source == nil {
		return nil, nil
	}
	index := born.Attrs().Index
	routes, err := p.routesOf(sourceTables + index)
	if err != nil {
		return nil, err
	}
	var wrong []string
	for _, r := range spec.Source.Routes {
		if !slices.ContainsFunc(routes, func(have netlink.Route) bool { return isRoute(&have, index, r) }) {
			wrong = append(wrong, fmt.Sprintf("lacks the %s in table %d", r, sourceTables+index))
		}
	}
	rules, err := p.sourceRules(sourceTables + index)
	if err != nil {
		return nil, err
	}
	for _, address := range spec.Addresses {
		if spec.Source.has(address.Addr()) && !slices.Contains(rules, address.Addr()) {
			wrong = append(wrong, fmt.Sprintf("lacks the rule from %s to table %d", address.Addr(), sourceTables+index))
		}
	}
	return wrong, nil
}

// dropSources asks for an interface's rules to go; its routes go with it.
func dropSources(index int, spec *Interface) []*request {
	if spec.Source == nil {
		return nil
	}
	var out []*request
	for _, address := range spec.Addresses {
		if spec.Source.has(address.Addr()) {
			out = append(out, deleteRule(address.Addr(), sourceTables+index))
		}
	}
	return out
}
