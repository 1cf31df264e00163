// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// Modes of a macvlan (Interface.Mode), as ip(8) names them.
const (
	ModeBridge   = "bridge"
	ModeVEPA     = "vepa"
	ModePrivate  = "private"
	ModePassthru = "passthru"
)

// bearMacvlan makes a macvlan of the parent, which stays the host's.
func bearMacvlan(p *pod, spec *Interface) ([]*request, error) {
	_, mode, err := macvlanMode(spec.Mode)
	if err != nil {
		return nil, err
	}
	mac, err := net.ParseMAC(spec.MAC)
	if err != nil {
		return nil, err
	}
	parent, err := p.parent(spec)
	if err != nil {
		return nil, err
	}
	r, data := p.birth(spec, KindMacvlan, parent, mac)
	data.AddRtAttr(nl.IFLA_MACVLAN_MODE, nl.Uint32Attr(mode))
	return []*request{r}, nil
}

// macvlanMode is a mode as the library and as the kernel calls it.
func macvlanMode(name string) (netlink.MacvlanMode, uint32, error) {
	switch name {
	case "", ModeBridge:
		return netlink.MACVLAN_MODE_BRIDGE, nl.MACVLAN_MODE_BRIDGE, nil
	case ModeVEPA:
		return netlink.MACVLAN_MODE_VEPA, nl.MACVLAN_MODE_VEPA, nil
	case ModePrivate:
		return netlink.MACVLAN_MODE_PRIVATE, nl.MACVLAN_MODE_PRIVATE, nil
	case ModePassthru:
		return netlink.MACVLAN_MODE_PASSTHRU, nl.MACVLAN_MODE_PASSTHRU, nil
	}
	return 0, 0, fmt.Errorf("a macvlan has no mode %q", name)
}

func checkMacvlan(_ *pod, born netlink.Link, spec *Interface) []string {
	mode, _, err := macvlanMode(spec.Mode)
	if macvlan, ok := born.(*netlink.Macvlan); err == nil && ok && macvlan.Mode != mode {
		return []string{"is not in mode " + orDefault(spec.Mode, ModeBridge)}
	}
	return nil
}

func orDefault(mode, fallback string) string {
	if mode == "" {
		return fallback
	}
	return mode
}
