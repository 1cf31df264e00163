// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"net"

	"github.com/vishvananda/netlink"
)

// createMacvlan makes a macvlan of the parent, which stays the host's.
func createMacvlan(p *pod, spec *Interface) error {
	mac, err := net.ParseMAC(spec.MAC)
	if err != nil {
		return err
	}
	parent, err := p.parent(spec)
	if err != nil {
		return err
	}
	return p.addInside(spec, parent, mac, func(attrs netlink.LinkAttrs) netlink.Link {
		return &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}
	})
}
