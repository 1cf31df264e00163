// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"strings"

	"github.com/netplane/netplane/cni/link"
)

// isNIC decides which links stand in NodeNetwork.status.interfaces, and which
// of them nodeInterfaces can select by MAC, PCI address or driver.
//
// The rule: a NIC is an Ethernet link that could carry a physical network.
//   - a link with a device in sysfs (hardware, a virtual function, virtio);
//   - a bond, a VLAN or any other Ethernet link of a kind that is not made for
//     pods or tunnels;
//   - a veth named eth* or en*: the NICs of a node that is itself a container
//     (kind). All other veths are host ends of pods.
//
// Never: lo, our own links (link.Own), bridges, macvlans and their like (they
// share a NIC that is listed itself), dummies and tunnels. What the mapping
// names is listed in any case, by Resolve.
func isNIC(d *link.Device) bool {
	if d.Loopback || d.Made || link.Own(d.Name) {
		return false
	}
	if d.Sysfs.Physical {
		return d.Ethernet
	}
	switch d.Kind {
	case link.KindVeth:
		return strings.HasPrefix(d.Name, "eth") || strings.HasPrefix(d.Name, "en")
	case link.KindBridge, link.KindMacvlan, link.KindMacvtap, link.KindIPVLAN,
		"dummy", "ifb", "nlmon", "netkit", "tun", "vrf",
		"vxlan", "geneve", "bareudp", "wireguard", "openvswitch",
		"gre", "gretap", "erspan", "ip6gre", "ip6gretap", "ip6erspan", "ipip", "ip6tnl", "sit", "vti", "vti6":
		return false
	}
	return d.Ethernet
}

// selectable leaves out the ports of a bond, which share its MAC address:
// traffic goes through the bond.
func selectable(d *link.Device) bool {
	return isNIC(d) && (d.Master == "" || d.MasterKind == link.KindBridge)
}
