// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// behindOthers is the metric of default routes that must not turn a pod's
// traffic: above all that kernel and plugins give by themselves.
const behindOthers = 1 << 20

// DemoteDefaults puts the default routes over an interface of a pod that another
// CNI plugin has made behind all others. They are not removed: that plugin's
// CHECK looks for them. It fails if there is no such interface.
func (l *Links) DemoteDefaults(ctx context.Context, netnsPath, name string) error {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	p, err := l.openPod(netnsPath)
	if err != nil {
		return err
	}
	defer p.close()
	found, err := p.handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("looking for what the plugin made: %w", err)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if err := p.demote(found.Attrs().Index, family); err != nil {
			return err
		}
	}
	return nil
}

func (p *pod) demote(index, family int) error {
	routes, err := dump(func() ([]netlink.Route, error) {
		return p.handle.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for i := range routes {
		old := &routes[i]
		isDefault := old.Dst == nil || prefixOf(old.Dst).Bits() == 0
		if !isDefault || old.LinkIndex != index || old.Type != unix.RTN_UNICAST || old.Priority >= behindOthers {
			continue
		}
		behind := *old
		behind.Priority = behindOthers
		if err := p.handle.RouteAdd(&behind); err != nil && !isExists(err) {
			return fmt.Errorf("putting a default route behind the others: %w", err)
		}
		if err := p.handle.RouteDel(old); err != nil && !IsGone(err) {
			return fmt.Errorf("removing a default route that nobody asked for: %w", err)
		}
	}
	return nil
}
