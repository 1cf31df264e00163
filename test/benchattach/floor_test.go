// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchattach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// floorBridge is the bridge of the floor's pods.
const floorBridge = "floor"

// linkGroup is the group of all links of a pod, by which they are removed at once.
const linkGroup = 4711

// floor makes the same links by bare requests to the kernel, as few and as
// complete as they can be: every link is born in its place, with its name,
// index, addresses and master; nothing is looked up, checked, noted, announced
// or undone, and no process is started.
type floor struct {
	shape          shape
	host           *nl.SocketHandle
	bridge, parent int
	serial         atomic.Uint32
}

func newFloor(b *testing.B, s shape) way {
	b.Helper()
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE)
	must(b, err)
	b.Cleanup(socket.Close)
	err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: floorBridge, TxQLen: -1}})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		b.Fatal(err)
	}
	bridge, err := netlink.LinkByName(floorBridge)
	must(b, err)
	must(b, netlink.LinkSetUp(bridge))
	parent, err := netlink.LinkByName(nicPlain)
	must(b, err)
	return &floor{shape: s, host: &nl.SocketHandle{Socket: socket}, bridge: bridge.Attrs().Index, parent: parent.Attrs().Index}
}

// first is the index of a pod's eth0; lo has 1.
const first = 2

func (f *floor) add(p *pod) error {
	ns, err := netns.GetFromPath(p.netns)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	inside, err := open(ns)
	if err != nil {
		return err
	}
	defer inside.Close()
	serial := f.serial.Add(1)
	for i := range f.shape.interfaces {
		mac := net.HardwareAddr{0x02, byte(i), 0, 0, byte(serial >> 8), byte(serial)}
		if i == 0 {
			err = f.veth(int(ns), serial, mac)
		} else {
			err = f.macvlan(int(ns), i, mac)
		}
		if err == nil {
			err = f.configure(inside, i, serial)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", ifName(i), err)
		}
	}
	return nil
}

// del removes all links of a pod by one request.
func (f *floor) del(p *pod) error {
	ns, err := netns.GetFromPath(p.netns)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	inside, err := open(ns)
	if err != nil {
		return err
	}
	defer inside.Close()
	req := request(inside, unix.RTM_DELLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(number(unix.IFLA_GROUP, linkGroup))
	return execute(req)
}

func (f *floor) veth(ns int, serial uint32, mac net.HardwareAddr) error {
	req := request(f.host, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	up := nl.NewIfInfomsg(unix.AF_UNSPEC)
	up.Flags, up.Change = unix.IFF_UP, unix.IFF_UP
	req.AddData(up)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(fmt.Sprintf("floor%x", serial))))
	req.AddData(number(unix.IFLA_MTU, 1500))
	req.AddData(number(unix.IFLA_MASTER, uint32(f.bridge)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, []byte("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	end := nl.NewIfInfomsg(unix.AF_UNSPEC)
	end.Index = first
	peer.AddChild(end)
	for _, attr := range born(ns, 0, mac) {
		peer.AddChild(attr)
	}
	req.AddData(info)
	return execute(req)
}

func (f *floor) macvlan(ns, i int, mac net.HardwareAddr) error {
	req := request(f.host, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	end := nl.NewIfInfomsg(unix.AF_UNSPEC)
	end.Index = int32(first + i)
	req.AddData(end)
	for _, attr := range born(ns, i, mac) {
		req.AddData(attr)
	}
	req.AddData(number(unix.IFLA_LINK, uint32(f.parent)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, []byte("macvlan"))
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_MACVLAN_MODE, nl.Uint32Attr(nl.MACVLAN_MODE_BRIDGE))
	req.AddData(info)
	return execute(req)
}

// born are the attributes of a pod's end of an interface.
func born(ns, i int, mac net.HardwareAddr) []*nl.RtAttr {
	return []*nl.RtAttr{
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(ifName(i))), number(unix.IFLA_MTU, 1500), number(unix.IFLA_GROUP, linkGroup),
		nl.NewRtAttr(unix.IFLA_ADDRESS, mac), number(unix.IFLA_NET_NS_FD, uint32(ns)),
	}
}

// configure gives an interface its addresses, sets it up, and sends what eth0
// has no other route for to the gateway.
func (f *floor) configure(inside *nl.SocketHandle, i int, serial uint32) error {
	var addresses, gateways []netip.Addr
	addresses = append(addresses, netip.AddrFrom4([4]byte{10, byte(200 + i), byte(serial >> 8), byte(serial)}))
	gateways = append(gateways, netip.AddrFrom4([4]byte{10, byte(200 + i), 255, 254}))
	if f.shape.dual {
		addresses = append(addresses, netip.AddrFrom16([16]byte{0: 0xfd, 7: byte(i), 14: byte(serial >> 8), 15: byte(serial)}))
		gateways = append(gateways, netip.AddrFrom16([16]byte{0: 0xfd, 7: byte(i), 14: 255, 15: 254}))
	}
	index := first + i
	for _, address := range addresses {
		req := request(inside, unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
		msg := nl.NewIfAddrmsg(family(address))
		msg.Index, msg.Prefixlen = uint32(index), 16
		req.AddData(msg)
		if address.Is6() {
			msg.Prefixlen, msg.Flags = 64, unix.IFA_F_NODAD
		}
		req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, address.AsSlice()))
		if err := execute(req); err != nil {
			return fmt.Errorf("address %s: %w", address, err)
		}
	}
	req := request(inside, unix.RTM_NEWLINK, 0)
	up := nl.NewIfInfomsg(unix.AF_UNSPEC)
	up.Index, up.Flags, up.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	req.AddData(up)
	if err := execute(req); err != nil || i > 0 {
		return err
	}
	for _, gateway := range gateways {
		req := request(inside, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
		msg := nl.NewRtMsg()
		msg.Family = uint8(family(gateway))
		req.AddData(msg)
		req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, gateway.AsSlice()))
		req.AddData(number(unix.RTA_OIF, uint32(index)))
		if err := execute(req); err != nil {
			return fmt.Errorf("route by %s: %w", gateway, err)
		}
	}
	return nil
}

func open(ns netns.NsHandle) (*nl.SocketHandle, error) {
	socket, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	return &nl.SocketHandle{Socket: socket}, nil
}

func request(socket *nl.SocketHandle, kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: socket}
	return req
}

func execute(req *nl.NetlinkRequest) error {
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func number(kind int, value uint32) *nl.RtAttr {
	return nl.NewRtAttr(kind, binary.NativeEndian.AppendUint32(nil, value))
}

func family(address netip.Addr) int {
	if address.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
