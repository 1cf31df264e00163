// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// missingRoutes are those of an interface's routes that the pod lacks. Of two
// interfaces with a route to one destination only the first has it.
func (p *pod) missingRoutes(born netlink.Link, spec *Interface) (wrong []string, err error) {
	for _, r := range spec.Routes {
		want := nlRoute(born.Attrs().Index, r)
		found, err := dump(func() ([]netlink.Route, error) {
			return p.handle.RouteListFiltered(familyOf(r.To.Addr()), &netlink.Route{Table: unix.RT_TABLE_MAIN, Dst: want.Dst}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		})
		if err != nil {
			return nil, fmt.Errorf("listing routes of %s: %w", spec.Name, err)
		}
		stands := false
		for i := range found {
			stands = stands || found[i].LinkIndex != want.LinkIndex || found[i].Gw.Equal(want.Gw)
		}
		if !stands {
			wrong = append(wrong, "lacks the route to "+r.To.String())
		}
	}
	return wrong, nil
}
