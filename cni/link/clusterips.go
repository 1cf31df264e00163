// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// Frontend is one port of a ClusterIP.
type Frontend struct {
	Address netip.Addr
	// Protocol is unix.IPPROTO_TCP, UDP or SCTP.
	Protocol uint8
	Port     uint16
}

// Balance says who answers at a Frontend, each new connection at random.
type Balance struct {
	// Backends are of the Frontend's family, none twice; without any, connections
	// are refused at once. Their order is that of their slots in the kernel: a
	// list in which the others keep their places is written the quickest.
	Backends []netip.AddrPort
	// Sticky has the pod's connections go to the same backend until none was
	// opened for so long; 0 is never. The kernel counts in whole milliseconds.
	Sticky time.Duration
}

// ClusterIPRoute is the way that the kernel is told a ClusterIP lies: it is what
// gives a connection its source address, before its destination is replaced.
type ClusterIPRoute struct {
	Interface string
	// Source is the interface's own address of the family.
	Source netip.Addr
}

// ClusterIPs are those that a pod reaches by rules of its own. They do not
// change once handed over.
type ClusterIPs struct {
	Balances map[Frontend]Balance
	Routes   map[netip.Addr]ClusterIPRoute
}

// Empty tells whether a pod needs no rules.
func (c *ClusterIPs) Empty() bool { return c == nil || len(c.Balances)+len(c.Routes) == 0 }

// clusterIPProtocol marks the routes to ClusterIPs in a pod, beside those of
// routeProtocol, which belong to an interface.
const clusterIPProtocol = 111

// SetClusterIPs changes a pod's rules from had to want in one transaction, so
// that each connection finds either. A nil had means that it is not known what
// the pod has: then everything is replaced, and connections that stick to a
// backend stick to it still. After an error nothing is known either.
func (l *Links) SetClusterIPs(ctx context.Context, netnsPath string, had, want *ClusterIPs) error {
	return l.inPod(ctx, l.changes, netnsPath, func(p *pod) error {
		// A ClusterIP that comes has its route before its rules, one that goes after.
		if err := p.routeClusterIPs(ctx, had, want, true); err != nil {
			return err
		}
		if err := p.balance(had, want); err != nil {
			return err
		}
		if err := p.routeClusterIPs(ctx, had, want, false); err != nil {
			return err
		}
		if err := p.forgetFlows(had, want); err != nil {
			// UDP senders that go on without a pause wait for an answer in vain.
			klog.FromContext(ctx).Error(err, "Connections to endpoints that are gone were kept", "netns", netnsPath)
		}
		return nil
	})
}

// routeClusterIPs adds the routes that are missing, or removes those that nobody
// wants. A pod that has lost the interface has hurt itself alone.
func (p *pod) routeClusterIPs(ctx context.Context, had, want *ClusterIPs, add bool) error {
	present, err := p.presentRoutes(had)
	if err != nil {
		return err
	}
	if !add {
		for _, to := range slices.SortedFunc(maps.Keys(present), netip.Addr.Compare) {
			if _, wanted := want.Routes[to]; wanted {
				continue
			}
			err := p.handle.RouteDel(&netlink.Route{Dst: ipNet(single(to)), Protocol: clusterIPProtocol, Table: unix.RT_TABLE_MAIN, Scope: unix.RT_SCOPE_NOWHERE})
			if err != nil && !IsGone(err) {
				return fmt.Errorf("removing the route to ClusterIP %s: %w", to, err)
			}
		}
		return nil
	}
	indexes := map[string]int{}
	for _, to := range slices.SortedFunc(maps.Keys(want.Routes), netip.Addr.Compare) {
		way := want.Routes[to]
		if present[to] == way {
			continue
		}
		if _, looked := indexes[way.Interface]; !looked {
			device, err := p.handle.LinkByName(way.Interface)
			if err != nil && !IsGone(err) {
				return fmt.Errorf("looking for %s: %w", way.Interface, err)
			}
			if err == nil {
				indexes[way.Interface] = device.Attrs().Index
			}
		}
		route := &netlink.Route{LinkIndex: indexes[way.Interface], Dst: ipNet(single(to)), Src: way.Source.AsSlice(), Protocol: clusterIPProtocol}
		if to.Is4() {
			route.Scope = netlink.SCOPE_LINK
		}
		if route.LinkIndex == 0 {
			continue
		}
		if err := p.handle.RouteReplace(route); err != nil {
			if !IsGone(err) && !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("adding the route to ClusterIP %s: %w", to, err)
			}
			klog.FromContext(ctx).V(2).Info("A pod has no way to a ClusterIP: its interface is down or has lost its address", "clusterIP", to, "interface", way.Interface, "err", err)
		}
	}
	return nil
}

// presentRoutes are those of had, or else those that the pod turns out to have.
func (p *pod) presentRoutes(had *ClusterIPs) (map[netip.Addr]ClusterIPRoute, error) {
	if had != nil {
		return had.Routes, nil
	}
	out := map[netip.Addr]ClusterIPRoute{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) {
			return p.handle.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN, Protocol: clusterIPProtocol}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return nil, fmt.Errorf("listing routes: %w", err)
		}
		for i := range routes {
			if routes[i].Dst != nil {
				out[prefixOf(routes[i].Dst).Addr()] = ClusterIPRoute{}
			}
		}
	}
	return out, nil
}

// forgetFlows has the kernel forget which backend a UDP flow goes to, where that
// is none any more, and which flows it did not translate at all: a sender that
// never pauses would keep them alive for ever. TCP and SCTP have an end.
func (p *pod) forgetFlows(had, want *ClusterIPs) error {
	changed := changedUDP(had, want)
	if len(changed) == 0 {
		return nil
	}
	stale := staleFlows(func(f Frontend, backend netip.AddrPort) bool {
		_, looked := changed[f]
		return looked && !slices.Contains(want.Balances[f].Backends, backend)
	})
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := p.handle.ConntrackDeleteFilters(netlink.ConntrackTable, family, stale); err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("removing flows: %w", err)
		}
	}
	return nil
}

// changedUDP are the UDP frontends that lost a backend, that come or that go; all
// that are wanted if it is not known what was.
func changedUDP(had, want *ClusterIPs) map[Frontend]struct{} {
	out := map[Frontend]struct{}{}
	for f, now := range want.Balances {
		if f.Protocol != unix.IPPROTO_UDP {
			continue
		}
		var before Balance
		if had != nil {
			before = had.Balances[f]
		}
		gone := func(b netip.AddrPort) bool { return !slices.Contains(now.Backends, b) }
		if had == nil || len(before.Backends) == 0 && len(now.Backends) > 0 || slices.ContainsFunc(before.Backends, gone) {
			out[f] = struct{}{}
		}
	}
	if had == nil {
		return out
	}
	for f := range had.Balances {
		if _, stays := want.Balances[f]; f.Protocol == unix.IPPROTO_UDP && !stays {
			out[f] = struct{}{}
		}
	}
	return out
}

// staleFlows tells by a flow's frontend and who answers it.
type staleFlows func(Frontend, netip.AddrPort) bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to, ok1 := netip.AddrFromSlice(flow.Forward.DstIP)
	answers, ok2 := netip.AddrFromSlice(flow.Reverse.SrcIP)
	if !ok1 || !ok2 || flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	return s(Frontend{Address: to.Unmap(), Protocol: flow.Forward.Protocol, Port: flow.Forward.DstPort},
		netip.AddrPortFrom(answers.Unmap(), flow.Reverse.SrcPort))
}
