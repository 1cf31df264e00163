// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// behindOthers is the metric of default routes that must not turn a pod's
// traffic: above all that kernel and plugins give by themselves.
const behindOthers = 1 << 20

// Adopted is what an interface is that another CNI plugin has made.
type Adopted struct {
	MAC string
	MTU int
}

// Adopt tells of an interface of a pod that another CNI plugin has made, and puts
// the default routes over one beside eth0 behind all others. They are not removed:
// that plugin's CHECK looks for them. It fails if there is no such interface.
func (l *Links) Adopt(ctx context.Context, netnsPath, name string, beside bool) (Adopted, error) {
	var out Adopted
	return out, l.inPod(ctx, l.changes, netnsPath, func(p *pod) error {
		found, err := p.handle.LinkByName(name)
		if err != nil {
			return fmt.Errorf("looking for what the plugin made: %w", err)
		}
		a := found.Attrs()
		out = Adopted{MAC: a.HardwareAddr.String(), MTU: a.MTU}
		if !beside {
			return nil
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			if err := p.demote(a.Index, family); err != nil {
				return err
			}
		}
		return nil
	})
}

// TakeDefault makes these routers over an interface that another CNI plugin has
// made the pod's only default routes of their families. What is in keep goes on
// by the former ones.
func (l *Links) TakeDefault(ctx context.Context, netnsPath, name string, hops []netip.Addr, keep []netip.Prefix) error {
	return l.inPod(ctx, l.changes, netnsPath, func(p *pod) error {
		found, err := p.handle.LinkByName(name)
		if err != nil {
			return fmt.Errorf("looking for what the plugin made: %w", err)
		}
		index := found.Attrs().Index
		spec := Interface{Name: name, TakeDefault: true, Keep: keep}
		for _, hop := range hops {
			spec.Routes = append(spec.Routes, Route{To: everywhere(hop), Via: hop})
			if err := p.demote(index, familyOf(hop)); err != nil {
				return err
			}
		}
		return p.addRoutes(index, &spec)
	})
}

func everywhere(like netip.Addr) netip.Prefix {
	if like.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func (p *pod) demote(index, family int) error {
	routes, err := p.mainRoutes(family)
	if err != nil {
		return err
	}
	for i := range routes {
		old := &routes[i]
		if !isDefault(old) || old.LinkIndex != index || old.Priority >= behindOthers {
			continue
		}
		behind := *old
		behind.Priority = behindOthers
		err := p.handle.RouteAdd(&behind)
		if isExists(err) { // that of another interface; its own metric keeps it
			behind.Priority += index
			err = p.handle.RouteAdd(&behind)
		}
		if err != nil && !isExists(err) {
			return fmt.Errorf("putting a default route behind the others: %w", err)
		}
		if err := p.handle.RouteDel(old); err != nil && !IsGone(err) {
			return fmt.Errorf("removing a default route that nobody asked for: %w", err)
		}
	}
	return nil
}
