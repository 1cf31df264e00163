// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// KindVXLAN is the link kind of a tunnel's end.
const KindVXLAN = "vxlan"

// Tunnel is what a node sends tunnelled frames from: a device of the host that
// is on a physical network, one of its addresses, and its MTU.
type Tunnel struct {
	Device  string
	Address netip.Addr
	MTU     int
}

// Overlay is one VXLAN segment on this host: a bridge, to which pods are
// plugged as to any other, and the vxlan device that is its port to the other
// nodes.
type Overlay struct {
	// Bridge is of OverlayBridge; the vxlan device's name follows from it.
	Bridge string
	VNI    uint32
	// Port is the UDP port.
	Port uint16
	// Tunnel is the device and address that frames are sent from.
	Tunnel Tunnel
	// MTU of bridge and vxlan device.
	MTU int
}

// Forward is one entry of a vxlan device's table: frames to MAC go to the node
// at VTEP. The zero MAC stands for what is for everybody and for addresses
// without an entry; it goes to all VTEPs that have such an entry.
type Forward struct {
	MAC  [6]byte
	VTEP netip.Addr
}

// EnsureOverlay makes bridge and vxlan device, or makes them as they are to be:
// a vxlan device of other parameters is made anew, which cuts pods off for a
// moment, while they stay plugged to the bridge. It returns true if the vxlan
// device is new, and so forwards nothing yet.
func (l *Links) EnsureOverlay(ctx context.Context, o Overlay) (made bool, err error) {
	_, leave, err := l.changes.enter(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	bridge, err := l.overlayBridge(ctx, &o)
	if err != nil {
		return false, fmt.Errorf("making bridge %s: %w", o.Bridge, explain(err, o.Tunnel.Device))
	}
	made, err = l.overlayDevice(ctx, &o, bridge)
	if err != nil {
		return false, fmt.Errorf("making the vxlan device of bridge %s: %w", o.Bridge, err)
	}
	return made, nil
}

// overlayBridge pins the bridge's MAC: left to itself, the kernel would take
// another one whenever a port comes or goes.
func (l *Links) overlayBridge(ctx context.Context, o *Overlay) (netlink.Link, error) {
	bridge, err := l.host.LinkByName(o.Bridge)
	if err != nil {
		mac := make(net.HardwareAddr, 6)
		if _, err := rand.Read(mac); err != nil {
			return nil, err
		}
		mac[0] = mac[0]&^1 | 2 // unicast, locally administered
		made := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: o.Bridge, MTU: o.MTU, HardwareAddr: mac, TxQLen: -1}}
		if err := l.host.LinkAdd(made); err != nil && !isExists(err) {
			return nil, err
		}
		l.tuneDevice(ctx, o.Bridge)
		if bridge, err = l.host.LinkByName(o.Bridge); err != nil {
			return nil, err
		}
		klog.FromContext(ctx).Info("Made the bridge of a vxlan network", "bridge", o.Bridge)
	}
	if bridge.Attrs().MTU != o.MTU {
		if err := l.host.LinkSetMTU(bridge, o.MTU); err != nil {
			return nil, err
		}
	}
	return bridge, l.host.LinkSetUp(bridge)
}

func (l *Links) overlayDevice(ctx context.Context, o *Overlay, bridge netlink.Link) (made bool, err error) {
	underlay, err := l.host.LinkByName(o.Tunnel.Device)
	if err != nil {
		return false, fmt.Errorf("looking for %s: %w", o.Tunnel.Device, err)
	}
	name := overlayDeviceName(o.Bridge)
	device, err := l.host.LinkByName(name)
	if err == nil && !o.is(device, underlay.Attrs().Index) {
		klog.FromContext(ctx).Info("Making a vxlan device anew that has other parameters", "device", name, "vni", o.VNI, "address", o.Tunnel.Address)
		if err := l.host.LinkDel(device); err != nil && !IsGone(err) {
			return false, fmt.Errorf("removing %s, which has other parameters: %w", name, err)
		}
		device = nil
	}
	if err != nil || device == nil {
		if device, err = l.makeVXLAN(ctx, o, name, underlay); err != nil {
			return false, err
		}
		made = true
	}
	if device.Attrs().MTU != o.MTU {
		if err := l.host.LinkSetMTU(device, o.MTU); err != nil {
			return made, fmt.Errorf("setting the MTU of %s to %d: %w", name, o.MTU, err)
		}
	}
	if device.Attrs().MasterIndex != bridge.Attrs().Index {
		if err := l.host.LinkSetMaster(device, bridge); err != nil {
			return made, fmt.Errorf("making %s a port of %s: %w", name, o.Bridge, err)
		}
	}
	if err := l.host.LinkSetUp(device); err != nil {
		return made, fmt.Errorf("setting %s up: %w", name, explain(err, o.Tunnel.Device))
	}
	return made, nil
}

// makeVXLAN makes a device that learns nothing: what it knows follows from the
// API, so that no frame can turn an address to another node.
func (l *Links) makeVXLAN(ctx context.Context, o *Overlay, name string, underlay netlink.Link) (netlink.Link, error) {
	err := l.host.LinkAdd(&netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: name, MTU: o.MTU, TxQLen: -1},
		VxlanId:   int(o.VNI), Port: int(o.Port), SrcAddr: o.Tunnel.Address.AsSlice(), VtepDevIndex: underlay.Attrs().Index,
		Learning: false, UDPCSum: true,
	})
	switch {
	case isExists(err):
		return nil, fmt.Errorf("another vxlan device of this host has VNI %d on UDP port %d: %w", o.VNI, o.Port, err)
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("a program of this host has UDP port %d: %w", o.Port, err)
	case err != nil:
		return nil, explain(err, o.Tunnel.Device)
	}
	// A bridge port has no use for addresses of its own.
	if err := l.setSysctls([]sysctl{{"ipv6/conf/" + name + "/disable_ipv6", "1"}}); err != nil {
		klog.FromContext(ctx).V(2).Info("Left a device as the kernel made it", "device", name, "err", err)
	}
	return l.host.LinkByName(name)
}

// is says that a link is the vxlan device that it is to be; what can be changed
// on a living device is not compared.
func (o *Overlay) is(l netlink.Link, underlay int) bool {
	v, ok := l.(*netlink.Vxlan)
	if !ok {
		return false
	}
	local, _ := netip.AddrFromSlice(v.SrcAddr)
	return v.VxlanId == int(o.VNI) && v.Port == int(o.Port) && v.VtepDevIndex == underlay &&
		local.Unmap() == o.Tunnel.Address && !v.Learning
}

// Overlays lists the bridges of all segments that netplane made on this host,
// also of those of which only one link is left.
func (l *Links) Overlays() ([]string, error) {
	all, err := dump(l.host.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	seen := map[string]bool{}
	var out []string
	for _, one := range all {
		if bridge, ok := overlayOf(one.Attrs().Name); ok && !seen[bridge] {
			seen[bridge] = true
			out = append(out, bridge)
		}
	}
	return out, nil
}

// RemoveOverlay removes a segment's links; what is gone already is no error.
func (l *Links) RemoveOverlay(_ context.Context, bridge string) error {
	for _, name := range []string{overlayDeviceName(bridge), bridge} {
		found, err := l.host.LinkByName(name)
		if err == nil {
			err = l.host.LinkDel(found)
		}
		if err != nil && !IsGone(err) {
			return fmt.Errorf("removing %s: %w", name, err)
		}
	}
	return nil
}
