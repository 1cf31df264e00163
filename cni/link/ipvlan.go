// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// Modes of an ipvlan (Interface.Mode), as ip(8) names them.
const (
	ModeL2 = "l2"
	ModeL3 = "l3"
)

// bearIPVLAN makes an ipvlan of the parent. It has the parent's MAC: all
// ipvlans of a parent are one station to the switch.
func bearIPVLAN(p *pod, spec *Interface) ([]*request, error) {
	mode, err := ipvlanMode(spec.Mode)
	if err != nil {
		return nil, err
	}
	parent, err := p.parent(spec)
	if err != nil {
		return nil, err
	}
	r, data := p.birth(spec, KindIPVLAN, parent, nil)
	data.AddRtAttr(nl.IFLA_IPVLAN_MODE, nl.Uint16Attr(uint16(mode)))
	return []*request{r}, nil
}

func ipvlanMode(name string) (netlink.IPVlanMode, error) {
	switch name {
	case "", ModeL2:
		return netlink.IPVLAN_MODE_L2, nil
	case ModeL3:
		return netlink.IPVLAN_MODE_L3, nil
	}
	return 0, fmt.Errorf("an ipvlan has no mode %q", name)
}

func checkIPVLAN(_ *pod, born netlink.Link, spec *Interface) []string {
	mode, err := ipvlanMode(spec.Mode)
	if ipvlan, ok := born.(*netlink.IPVlan); err == nil && ok && ipvlan.Mode != mode {
		return []string{"is not in mode " + orDefault(spec.Mode, ModeL2)}
	}
	return nil
}
