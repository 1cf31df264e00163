// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// tuneDevice keeps router advertisements of a Network from configuring the
// host, and makes link-local addresses usable at once.
func (l *Links) tuneDevice(ctx context.Context, device string) {
	v6 := "ipv6/conf/" + device + "/"
	err := l.setSysctls([]sysctl{{v6 + "accept_ra", "0"}, {v6 + "accept_dad", "0"}})
	if err != nil {
		klog.FromContext(ctx).V(2).Info("Left a device as the kernel made it", "device", device, "err", err)
	}
}

// AddPath makes the host reach pods by its own device. It may be repeated, and
// adds to what the device has.
func (l *Links) AddPath(ctx context.Context, path Path) error {
	socket, leave, err := l.changes.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	device, err := l.ensureDevice(ctx, socket, path)
	if err != nil {
		return fmt.Errorf("making the host's way to pods on %s: %w", path.Device, explain(err, path.Parent))
	}
	index := device.Attrs().Index
	var requests, routes []*request
	if device.Attrs().RawFlags&unix.IFF_UP == 0 {
		requests = append(requests, setUp(index))
	}
	for _, prefix := range path.Addresses {
		own := addAddress(index, prefix)
		own.mayExist = true // since the first pod
		requests = append(requests, own)
	}
	for _, r := range path.Routes {
		routes = append(routes, addHostRoute(index, r, unix.NLM_F_EXCL))
	}
	if err := socket.run(append(requests, routes...)); err != nil {
		return err
	}
	for _, r := range requests {
		if err := r.failure(); err != nil {
			return fmt.Errorf("making %s the host's way to pods: %w", path.Device, explain(err, path.Device))
		}
	}
	var present []HostRoute
	for i, r := range routes {
		if isExists(r.err) { // most are new; those that are there would have to be listed all
			present = append(present, path.Routes[i])
			continue
		}
		if err := r.failure(); err != nil {
			return explain(err, path.Device)
		}
	}
	if err := l.takeHostRoutes(socket, index, present); err != nil {
		return explain(err, path.Device)
	}
	if err := l.reach(socket, index, path.Reach); err != nil {
		return explain(err, path.Device)
	}
	return nil
}

// ensureDevice makes the shim if the path has one, and lets the device forward:
// the pods' way to Services leads through it.
func (l *Links) ensureDevice(ctx context.Context, socket *conn, path Path) (netlink.Link, error) {
	found, err := socket.find([]string{path.Device})
	if err != nil {
		return nil, err
	}
	device, err := found[0].link()
	if err != nil && path.Parent != "" {
		parent, err := l.host.LinkByName(path.Parent)
		if err != nil {
			return nil, err
		}
		shim := &netlink.Macvlan{
			LinkAttrs: netlink.LinkAttrs{Name: path.Device, ParentIndex: parent.Attrs().Index, MTU: path.MTU, TxQLen: -1},
			Mode:      netlink.MACVLAN_MODE_BRIDGE,
		}
		if err := l.host.LinkAdd(shim); err != nil {
			return nil, err
		}
		l.tuneDevice(ctx, path.Device)
		if device, err = l.host.LinkByName(path.Device); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	forwarding := []sysctl{{"ipv4/conf/" + path.Device + "/forwarding", "1"}}
	if hasIPv6(path.Addresses) {
		forwarding = append(forwarding, sysctl{"ipv6/conf/" + path.Device + "/forwarding", "1"})
	}
	if err := l.setSysctls(forwarding); err != nil {
		klog.FromContext(ctx).Error(err, "Services may be out of reach of pods with a Network on eth0: forwarding could not be switched on", "device", path.Device)
	}
	return device, nil
}

func addHostRoute(index int, r HostRoute, flags int) *request {
	out := addRoute(index, unix.RT_TABLE_MAIN, Route{To: single(r.To)})
	out.Flags = out.Flags&^unix.NLM_F_EXCL | uint16(flags)
	out.what, out.mayExist = fmt.Sprintf("adding the host's route to %s", r.To), false
	out.attr(unix.RTA_PREFSRC, r.Source.AsSlice())
	return out
}

// takeHostRoutes makes the host's routes to pods what they should be, but takes
// none of another device: two Networks of one node then have the same addresses.
func (l *Links) takeHostRoutes(socket *conn, index int, wanted []HostRoute) error {
	listed := map[int][]netlink.Route{}
	var instead []*request
	for _, r := range wanted {
		family := familyOf(r.To)
		if _, ok := listed[family]; !ok {
			var err error
			if listed[family], err = l.hostRoutes(family); err != nil {
				return err
			}
		}
		right := false
		for i := range listed[family] {
			have := &listed[family][i]
			if have.Dst == nil || prefixOf(have.Dst) != single(r.To) || have.Protocol != routeProtocol {
				continue
			}
			if have.LinkIndex != index {
				return fmt.Errorf("%s is reached by another device of this node: Networks whose pods have them on eth0 must not overlap", r.To)
			}
			right = right || isSource(have, r.Source)
		}
		if !right {
			instead = append(instead, addHostRoute(index, r, unix.NLM_F_REPLACE))
		}
	}
	if len(instead) == 0 {
		return nil
	}
	return socket.runAll(instead)
}

// hostRoutes lists the routes of the host's main table.
func (l *Links) hostRoutes(family int) ([]netlink.Route, error) {
	routes, err := dump(func() ([]netlink.Route, error) {
		return l.host.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("listing the host's routes: %w", err)
	}
	return routes, nil
}

func isSource(route *netlink.Route, want netip.Addr) bool {
	source, ok := netip.AddrFromSlice(route.Src)
	return ok && source.Unmap() == want
}

// RemovePath takes back addresses and routes, and a shim with its last user.
// What is gone already is no error.
func (l *Links) RemovePath(ctx context.Context, path Path, last bool) error {
	_, leave, err := l.removals.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	device, err := l.host.LinkByName(path.Device)
	if IsGone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for %s: %w", path.Device, err)
	}
	if last && path.Parent != "" {
		if err := l.host.LinkDel(device); err != nil && !IsGone(err) {
			return fmt.Errorf("removing %s: %w", path.Device, err)
		}
		return nil
	}
	for _, r := range path.Routes {
		route := &netlink.Route{LinkIndex: device.Attrs().Index, Dst: ipNet(single(r.To)), Protocol: routeProtocol}
		if r.To.Is4() {
			route.Scope = netlink.SCOPE_LINK
		}
		if err := l.host.RouteDel(route); err != nil && !IsGone(err) {
			return fmt.Errorf("removing the host's route to %s: %w", r.To, err)
		}
	}
	if err := l.unreach(device.Attrs().Index, path.Reach); err != nil {
		return err
	}
	for _, prefix := range path.Addresses {
		if err := l.host.AddrDel(device, nlAddr(prefix)); err != nil && !IsGone(err) {
			return fmt.Errorf("removing the node's address %s: %w", prefix, err)
		}
	}
	return nil
}
