// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
	"k8s.io/klog/v2"
)

// tuneDevice keeps router advertisements of a Network from configuring the
// host, and makes link-local addresses usable at once.
func (l *Links) tuneDevice(ctx context.Context, device string) {
	v6 := "ipv6/conf/" + device + "/"
	err := l.setSysctls(l.ns, []sysctl{{v6 + "accept_ra", "0"}, {v6 + "accept_dad", "0"}})
	if err != nil {
		klog.FromContext(ctx).V(2).Info("Left a device as the kernel made it", "device", device, "err", err)
	}
}

// AddPath makes the host reach pods by its own device. It may be repeated, and
// adds to what the device has.
func (l *Links) AddPath(ctx context.Context, path Path) error {
	device, err := l.ensureDevice(ctx, path)
	if err != nil {
		return fmt.Errorf("making the host's way to pods on %s: %w", path.Device, explain(err, path.Parent))
	}
	for _, prefix := range path.Addresses {
		if err := l.host.AddrReplace(device, nlAddr(prefix)); err != nil {
			return fmt.Errorf("giving %s the node's address %s: %w", path.Device, prefix, explain(err, path.Device))
		}
	}
	for _, r := range path.Routes {
		if err := l.addHostRoute(device, r); err != nil {
			return err
		}
	}
	return nil
}

// ensureDevice makes the shim if the path has one, and lets the device forward:
// the pods' way to Services leads through it.
func (l *Links) ensureDevice(ctx context.Context, path Path) (netlink.Link, error) {
	device, err := l.host.LinkByName(path.Device)
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
	if err := l.setSysctls(l.ns, forwarding); err != nil {
		klog.FromContext(ctx).Error(err, "Services may be out of reach of pods with a Network on eth0: forwarding could not be switched on", "device", path.Device)
	}
	return device, l.host.LinkSetUp(device)
}

// addHostRoute refuses to take over another device's route: two Networks of
// one node then have the same addresses.
func (l *Links) addHostRoute(device netlink.Link, r HostRoute) error {
	route := &netlink.Route{LinkIndex: device.Attrs().Index, Dst: ipNet(single(r.To)), Src: r.Source.AsSlice(), Protocol: routeProtocol}
	if r.To.Is4() {
		route.Scope = netlink.SCOPE_LINK
	}
	// Most routes are new. Those that are there would have to be listed all.
	if err := l.host.RouteAdd(route); err == nil {
		return nil
	} else if !isExists(err) {
		return fmt.Errorf("adding the host's route to %s: %w", r.To, explain(err, device.Attrs().Name))
	}
	present, err := dump(func() ([]netlink.Route, error) {
		return l.host.RouteListFiltered(familyOf(r.To), &netlink.Route{Dst: route.Dst}, netlink.RT_FILTER_DST)
	})
	if err != nil {
		return fmt.Errorf("looking for a route to %s: %w", r.To, err)
	}
	for i := range present {
		if present[i].LinkIndex != route.LinkIndex && present[i].Protocol == routeProtocol {
			return fmt.Errorf("%s is reached by another device of this node: Networks whose pods have them on eth0 must not overlap", r.To)
		}
	}
	if err := l.host.RouteReplace(route); err != nil {
		return fmt.Errorf("adding the host's route to %s: %w", r.To, explain(err, device.Attrs().Name))
	}
	return nil
}

// RemovePath takes back addresses and routes, and a shim with its last user.
// What is gone already is no error.
func (l *Links) RemovePath(_ context.Context, path Path, last bool) error {
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
	for _, prefix := range path.Addresses {
		if err := l.host.AddrDel(device, nlAddr(prefix)); err != nil && !IsGone(err) {
			return fmt.Errorf("removing the node's address %s: %w", prefix, err)
		}
	}
	return nil
}
