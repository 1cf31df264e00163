// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net/netip"
)

// Interface is one interface of a pod as it is to be. It is kept on disk, so
// that it can be checked and removed after a restart.
type Interface struct {
	// Name in the pod.
	Name string `json:"name"`
	// Kind is KindMacvlan or KindIPVLAN, KindVeth for a port of a bridge, or
	// KindHostDevice.
	Kind string `json:"kind"`
	// Mode of a macvlan (bridge, vepa, private, passthru) or an ipvlan (l2,
	// l3); empty is bridge or l2.
	Mode string `json:"mode,omitempty"`
	// Parent is the host's device: what the macvlan stands on, or the bridge.
	Parent string `json:"parent"`
	// HostEnd is the name of a veth's other end.
	HostEnd string `json:"hostEnd,omitempty"`
	// NIC, of KindHostDevice, is what the interface was in the host. Its name is
	// Parent.
	NIC *NIC `json:"nic,omitempty"`
	// Isolated keeps a port of a bridge from all others that are isolated, too.
	Isolated bool `json:"isolated,omitempty"`
	// SpoofCheck drops what a port of a bridge sends from addresses not its own.
	SpoofCheck bool `json:"spoofCheck,omitempty"`
	// MAC of an ipvlan or a macvlan in passthru mode is the parent's.
	MAC string `json:"mac"`
	MTU int    `json:"mtu"`
	// Addresses with the prefix length of their subnet.
	Addresses []netip.Prefix `json:"addresses"`
	Routes    []Route        `json:"routes,omitempty"`
	// Source, if set, has what leaves from the addresses leave by the interface.
	Source *SourceRoutes `json:"source,omitempty"`
	// Sysctls are made before it goes up.
	Sysctls []Sysctl `json:"sysctls,omitempty"`
	// TakeDefault removes the default routes that other interfaces gave the
	// pod; Keep are destinations that go on using them (Services).
	TakeDefault bool           `json:"takeDefault,omitempty"`
	Keep        []netip.Prefix `json:"keep,omitempty"`
}

// ParentSpec is what a Network's interfaces are to stand on.
type ParentSpec struct {
	NIC string
	// Tag is the 802.1Q tag; 0 is the NIC itself.
	Tag int
	// Bridge asks for the bridge over it.
	Bridge bool
}

// Parent is a device of the host that interfaces of pods can stand on.
type Parent struct {
	Name string
	MTU  int
	MAC  string
}

// Route is one route of a pod's interface.
type Route struct {
	To netip.Prefix `json:"to"`
	// Via is the next hop; the zero value means on-link.
	Via netip.Addr `json:"via,omitzero"`
}

// String is the route as ip(8) names it.
func (r Route) String() string {
	if r.Via.IsValid() {
		return fmt.Sprintf("route to %s via %s", r.To, r.Via)
	}
	return fmt.Sprintf("route to %s", r.To)
}

// Path is how the host itself reaches pods whose eth0 is on a Network: the
// node's own addresses on a device of the host, and a route to each pod.
type Path struct {
	// Device is a bridge, or the shim: a macvlan of the host on Parent, because
	// a macvlan's parent cannot talk to its children.
	Device string `json:"device"`
	// Parent is set for a shim.
	Parent string `json:"parent,omitempty"`
	MTU    int    `json:"mtu,omitempty"`
	// Addresses are the node's own, as /32 or /128.
	Addresses []netip.Prefix `json:"addresses"`
	Routes    []HostRoute    `json:"routes"`
	// Reach are whole subnets of the Network, with its pods on other nodes.
	Reach []SubnetRoute `json:"-"`
}

// SubnetRoute is the host's route to a subnet of a Network.
type SubnetRoute struct {
	To netip.Prefix
	// Source is one of the node's own addresses on the device.
	Source netip.Addr
}

// HostRoute is the host's route to one pod address.
type HostRoute struct {
	To netip.Addr `json:"to"`
	// Source is the node's own address of the same family.
	Source netip.Addr `json:"source"`
}

// Masquerade says that what leaves a Network through the host takes the host's
// address: nobody outside knows a way back to the Network. So does what the host
// sends into the Network after it has given it another destination, as it does
// for Services: the answer must come back by the host, which knows the former one.
type Masquerade struct {
	// Device is the Network's own in the host; what leaves by it stays inside.
	Device string
	// Subnets are all of the Network's, both families.
	Subnets []netip.Prefix
	// Sources are the node's own addresses on the device, one of each family.
	Sources []netip.Addr
	// Local are addresses of pods of this node that send what is for outside the
	// Network to the host: they see who asks, as no translation is needed.
	Local []netip.Prefix
}
