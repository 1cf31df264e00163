// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Link kinds (IFLA_INFO_KIND) that netplane tells apart. A NIC with a driver
// of its own has no kind; netlink calls it "device".
const (
	KindDevice  = "device"
	KindBridge  = "bridge"
	KindMacvlan = "macvlan"
	KindMacvtap = "macvtap"
	KindIPVLAN  = "ipvlan"
	KindVeth    = "veth"
	KindBond    = "bond"
	KindVLAN    = "vlan"
)

// NeedsIngress is asked of Supports like a kind: the ingress hook of nftables,
// for spoof checks.
const NeedsIngress = "nftables-ingress"

// dumpTries bounds the repetitions of a netlink dump that the kernel marks as
// interrupted (NLM_F_DUMP_INTR): links changed while it was being written.
const dumpTries = 10

// Device is one link of the host's namespace as the inventory sees it.
type Device struct {
	Name  string
	Index int
	// Kind is IFLA_INFO_KIND, or "device" for a NIC with a driver of its own.
	Kind string
	// MAC is the address in use, PermMAC the one burnt in (equal to MAC where
	// the kernel does not tell).
	MAC, PermMAC net.HardwareAddr
	MTU          int
	// Up means administratively up and operational: it carries traffic.
	Up       bool
	Ethernet bool
	Loopback bool
	// Master is the bridge or bond that it is a port of; "" if none.
	Master, MasterKind string
	// Parent is the link below a macvlan, ipvlan or vlan; "" if none.
	Parent string
	// Tag is the 802.1Q tag of a vlan; 0 for all others.
	Tag int
	// Made: netplane made it, for whatever name it has.
	Made bool
	// Addresses are the host's on this link, without link-local ones.
	Addresses []netip.Prefix
	// TunnelEnds are those that a tunnel may end at, link-local ones included, in
	// the kernel's order. Addresses that come and go by themselves, and those
	// that are being checked, are none.
	TunnelEnds []netip.Prefix
	// DefaultRoute: a default route of the host leaves through it.
	DefaultRoute bool
	// Sysfs is what only sysfs tells.
	Sysfs Hardware
	// InPod: the NIC itself is inside a pod, see NIC. No list of the kernel's
	// has it then.
	InPod bool
}

// Devices lists the links of one network namespace and tells when they change.
type Devices struct {
	handle *netlink.Handle
	ns     netns.NsHandle
	sysfs  Sysfs
}

// OpenDevices opens the namespace at nsPath, or the process's own if nsPath is
// empty. The sysfs must show that same namespace's links.
func OpenDevices(nsPath string, sysfs Sysfs) (*Devices, error) {
	ns, err := netns.Get()
	if nsPath != "" {
		ns, err = netns.GetFromPath(nsPath)
	}
	if err != nil {
		return nil, fmt.Errorf("opening network namespace %q: %w", nsPath, err)
	}
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return nil, fmt.Errorf("opening netlink socket: %w", err)
	}
	return &Devices{handle: handle, ns: ns, sysfs: sysfs}, nil
}

// Close frees the sockets; the Devices cannot be used after it.
func (d *Devices) Close() {
	d.handle.Close()
	_ = d.ns.Close()
}

// List returns all links by name.
func (d *Devices) List() ([]Device, error) {
	links, err := dump(d.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	addresses, ends, err := d.addresses()
	if err != nil {
		return nil, err
	}
	routed, err := d.defaultRouted()
	if err != nil {
		return nil, err
	}
	byIndex := make(map[int]netlink.Link, len(links))
	for _, l := range links {
		byIndex[l.Attrs().Index] = l
	}
	out := make([]Device, 0, len(links))
	for _, l := range links {
		dev := describe(l, byIndex)
		dev.Addresses, dev.TunnelEnds = addresses[dev.Index], ends[dev.Index]
		dev.DefaultRoute = routed[dev.Index]
		dev.Sysfs = d.sysfs.Hardware(dev.Name)
		out = append(out, dev)
	}
	slices.SortFunc(out, func(a, b Device) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func describe(l netlink.Link, byIndex map[int]netlink.Link) Device {
	a := l.Attrs()
	dev := Device{
		Name:     a.Name,
		Index:    a.Index,
		Kind:     l.Type(),
		MAC:      a.HardwareAddr,
		PermMAC:  a.PermHWAddr,
		MTU:      a.MTU,
		Up:       a.RawFlags&unix.IFF_UP != 0 && a.RawFlags&unix.IFF_RUNNING != 0,
		Ethernet: a.EncapType == "ether",
		Loopback: a.RawFlags&unix.IFF_LOOPBACK != 0,
		Tag:      tagOf(l),
		Made:     Own(a.Name) || a.Group == linkGroup,
	}
	if len(dev.PermMAC) == 0 || bytes.Equal(dev.PermMAC, make([]byte, len(dev.PermMAC))) {
		dev.PermMAC = dev.MAC
	}
	if master, ok := byIndex[a.MasterIndex]; ok && a.MasterIndex != 0 {
		dev.Master, dev.MasterKind = master.Attrs().Name, master.Type()
	}
	// A veth's "parent" is its peer, whose index counts in another namespace.
	if parent, ok := byIndex[a.ParentIndex]; ok && stacked(dev.Kind) {
		dev.Parent = parent.Attrs().Name
	}
	return dev
}

func stacked(kind string) bool {
	switch kind {
	case KindMacvlan, KindMacvtap, KindIPVLAN, KindVLAN:
		return true
	}
	return false
}

// addresses returns, by the index of the link, the addresses without link-local
// ones, and those that a tunnel may end at.
func (d *Devices) addresses() (all, ends map[int][]netip.Prefix, err error) {
	addrs, err := dump(func() ([]netlink.Addr, error) { return d.handle.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, nil, fmt.Errorf("listing addresses: %w", err)
	}
	all, ends = map[int][]netip.Prefix{}, map[int][]netip.Prefix{}
	for _, a := range addrs {
		if a.Scope == unix.RT_SCOPE_HOST || a.IPNet == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		ones, _ := a.Mask.Size()
		prefix := netip.PrefixFrom(ip.Unmap(), ones)
		if a.Flags&unfitForTunnels == 0 {
			ends[a.LinkIndex] = append(ends[a.LinkIndex], prefix)
		}
		if a.Scope != unix.RT_SCOPE_LINK {
			all[a.LinkIndex] = append(all[a.LinkIndex], prefix)
		}
	}
	for _, prefixes := range all {
		slices.SortFunc(prefixes, netip.Prefix.Compare)
	}
	return all, ends, nil
}

// unfitForTunnels: IFA_F_SECONDARY is IPv4's for further addresses of a subnet,
// which virtual router addresses mostly are, and is IFA_F_TEMPORARY of IPv6.
const unfitForTunnels = unix.IFA_F_SECONDARY | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED

func (d *Devices) defaultRouted() (map[int]bool, error) {
	out := map[int]bool{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) {
			return d.handle.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("listing routes: %w", err)
		}
		for i := range routes {
			markDefault(&routes[i], out)
		}
	}
	return out, nil
}

func markDefault(r *netlink.Route, out map[int]bool) {
	if r.Type != unix.RTN_UNICAST {
		return
	}
	if r.Dst != nil {
		if ones, _ := r.Dst.Mask.Size(); ones != 0 {
			return
		}
	}
	if r.LinkIndex != 0 {
		out[r.LinkIndex] = true
	}
	for _, hop := range r.MultiPath {
		out[hop.LinkIndex] = true
	}
}

// dump repeats a netlink dump until the kernel says that it is consistent.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		out, err := list()
		if err == nil || !errors.Is(err, netlink.ErrDumpInterrupted) || try == dumpTries {
			return out, err
		}
	}
}

// Supports says whether the kernel can make links of a kind, loading its
// module if need be. Nothing is made: the kernel looks the kind up before it
// validates the link's address, here a multicast one that most kinds refuse
// (rtnl_newlink in net/core/rtnetlink.c: EOPNOTSUPP against EADDRNOTAVAIL); for
// ipvlan there is a parent that does not exist (ENODEV).
func (d *Devices) Supports(kind string) (bool, error) {
	if kind == NeedsIngress {
		return supportsIngress(d.ns)
	}
	multicast := net.HardwareAddr{0x01, 0, 0, 0, 0, 0}
	attrs := netlink.LinkAttrs{Name: "np-probe", HardwareAddr: multicast, TxQLen: -1}
	var probe netlink.Link
	switch kind {
	case KindBridge:
		probe = &netlink.Bridge{LinkAttrs: attrs}
	case KindMacvlan:
		probe = &netlink.Macvlan{LinkAttrs: attrs}
	case KindVeth:
		probe = &netlink.Veth{LinkAttrs: attrs, PeerName: "np-probe-peer"}
	case KindIPVLAN:
		attrs.ParentIndex = math.MaxInt32
		probe = &netlink.IPVlan{LinkAttrs: attrs}
	default:
		probe = &netlink.GenericLink{LinkAttrs: attrs, LinkType: kind}
	}
	err := d.handle.LinkAdd(probe)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENODEV):
		return true, nil
	case err == nil:
		return true, d.handle.LinkDel(probe)
	}
	return false, fmt.Errorf("probing link kind %s: %w", kind, err)
}
