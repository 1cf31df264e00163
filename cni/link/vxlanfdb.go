// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Forwards lists the table of a segment's vxlan device.
func (l *Links) Forwards(bridge string) ([]Forward, error) {
	device, err := l.host.LinkByName(overlayDeviceName(bridge))
	if err != nil {
		return nil, fmt.Errorf("looking for the vxlan device of %s: %w", bridge, err)
	}
	// The kernel dumps the tables of all devices, those of bridges included.
	entries, err := dump(func() ([]netlink.Neigh, error) { return l.host.NeighList(device.Attrs().Index, unix.AF_BRIDGE) })
	if err != nil {
		return nil, fmt.Errorf("listing the table of %s: %w", device.Attrs().Name, err)
	}
	var out []Forward
	for i := range entries {
		e := &entries[i]
		vtep, ok := netip.AddrFromSlice(e.IP)
		if !ok || e.Flags&netlink.NTF_SELF == 0 || len(e.HardwareAddr) != 6 {
			continue
		}
		out = append(out, Forward{MAC: [6]byte(e.HardwareAddr), VTEP: vtep.Unmap()})
	}
	return out, nil
}

// ChangeForwards adds entries to the table of a segment's vxlan device and
// takes others away. An entry of a MAC replaces the one that the MAC had.
func (l *Links) ChangeForwards(ctx context.Context, bridge, underlay string, add, remove []Forward) error {
	if len(add)+len(remove) == 0 {
		return nil
	}
	device, err := l.host.LinkByName(overlayDeviceName(bridge))
	if err != nil {
		return fmt.Errorf("looking for the vxlan device of %s: %w", bridge, err)
	}
	out, err := l.host.LinkByName(underlay)
	if err != nil {
		return fmt.Errorf("looking for %s: %w", underlay, err)
	}
	socket, err := nl.GetNetlinkSocketAt(l.ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink socket: %w", err)
	}
	defer socket.Close()
	t := table{socket: &nl.SocketHandle{Socket: socket}, device: device.Attrs().Index, underlay: out.Attrs().Index}
	for i := range add {
		if err := errors.Join(ctx.Err(), t.add(&add[i])); err != nil {
			return fmt.Errorf("forwarding %x to %s: %w", add[i].MAC, add[i].VTEP, err)
		}
	}
	for i := range remove {
		err := t.change(unix.RTM_DELNEIGH, 0, &remove[i])
		if errors.Is(err, unix.ENOENT) {
			err = nil
		}
		if err := errors.Join(ctx.Err(), err); err != nil {
			return fmt.Errorf("no longer forwarding %x to %s: %w", remove[i].MAC, remove[i].VTEP, err)
		}
	}
	return nil
}

// table writes to one vxlan device's.
type table struct {
	socket           *nl.SocketHandle
	device, underlay int
}

func (t *table) add(f *Forward) error {
	if f.MAC == [6]byte{} {
		return t.change(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_APPEND, f)
	}
	return t.change(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, f)
}

// change names the device to send by in the entry (NDA_IFINDEX, `via` of
// bridge(8)), which the netlink library's Neigh cannot: without it the kernel
// refuses to send to a link-local address, and sends to any other by the
// host's routes, which may lead to another physical network.
func (t *table) change(kind, flags int, f *Forward) error {
	request := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: t.socket}
	request.AddData(&netlink.Ndmsg{
		Family: unix.AF_BRIDGE, Index: uint32(t.device), State: netlink.NUD_PERMANENT | netlink.NUD_NOARP, Flags: netlink.NTF_SELF,
	})
	request.AddData(nl.NewRtAttr(netlink.NDA_LLADDR, f.MAC[:]))
	request.AddData(nl.NewRtAttr(netlink.NDA_DST, f.VTEP.AsSlice()))
	request.AddData(nl.NewRtAttr(netlink.NDA_IFINDEX, nl.Uint32Attr(uint32(t.underlay))))
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
