// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// bearVeth makes the host's end the primary link, so that the pod's end is born
// in the pod and the host's can be a port of the bridge.
func bearVeth(p *pod, spec *Interface) ([]*request, error) {
	mac, err := net.ParseMAC(spec.MAC)
	if err != nil {
		return nil, err
	}
	bridge, err := p.parent(spec)
	if err != nil {
		return nil, err
	}
	r := newRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "")
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	r.AddData(msg)
	r.attr(unix.IFLA_IFNAME, nl.ZeroTerminated(spec.HostEnd))
	// The host's end has the bridge's MTU: the bridge takes the smallest of its
	// ports (br_mtu_auto_adjust in net/bridge/br_if.c), and a pod on a Network of
	// smaller MTU would shrink what all others stand on.
	r.number(unix.IFLA_MTU, uint32(bridge.Attrs().MTU))
	if !spec.restricted() {
		msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
		r.number(unix.IFLA_MASTER, uint32(bridge.Attrs().Index))
	}
	peer := r.info(KindVeth).AddRtAttr(nl.VETH_INFO_PEER, nil)
	peer.AddChild(nl.NewIfInfomsg(unix.AF_UNSPEC))
	for _, attr := range p.born(spec, mac) {
		peer.AddChild(attr)
	}
	// A port has no use for addresses of its own.
	return []*request{r, withoutLinkLocal(spec.HostEnd)}, nil
}

// restricted: the port is not open to all that the pod may send.
func (i *Interface) restricted() bool { return i.SpoofCheck || i.Isolated }

// connectVeth makes the host's end a port, which is restricted before it is up.
func connectVeth(p *pod, spec *Interface) error {
	if !spec.restricted() {
		return nil // it is one since its birth
	}
	bridge, err := p.parent(spec)
	if err != nil {
		return err
	}
	end, err := p.host.LinkByName(spec.HostEnd)
	if err != nil {
		return err
	}
	if spec.SpoofCheck {
		if err := p.guard(spec); err != nil {
			return err
		}
	}
	if err := p.host.LinkSetMaster(end, bridge); err != nil {
		return err
	}
	if spec.Isolated {
		if err := p.host.LinkSetIsolated(end, true); err != nil {
			return fmt.Errorf("isolating the port: %w", err)
		}
	}
	return p.host.LinkSetUp(end)
}

// checkVeth looks at the port.
func checkVeth(p *pod, _ netlink.Link, spec *Interface) []string {
	end, err := p.host.LinkByName(spec.HostEnd)
	if err != nil {
		return []string{"has lost its end in the host: " + err.Error()}
	}
	var wrong []string
	if spec.Isolated {
		if port, err := p.host.LinkGetProtinfo(end); err != nil || !port.Isolated {
			wrong = append(wrong, "is not isolated")
		}
	}
	if spec.SpoofCheck {
		if guards, err := p.guards(); err != nil || !slices.Contains(guards, spec.HostEnd) {
			wrong = append(wrong, "has no spoof check")
		}
	}
	return wrong
}

// cleanVeth is for what stays of a veth whose pod's end could not be found.
func cleanVeth(l *Links, spec *Interface) error {
	if err := removeHostEnd(l, spec); err != nil || !spec.SpoofCheck {
		return err
	}
	return l.unguard(spec)
}

// removeHostEnd is for a veth whose pod's end could not be found.
func removeHostEnd(l *Links, spec *Interface) error {
	if spec.HostEnd == "" {
		return nil
	}
	end, err := l.host.LinkByName(spec.HostEnd)
	if err == nil {
		err = l.host.LinkDel(end)
	}
	if err != nil && !IsGone(err) {
		return fmt.Errorf("removing host end %s: %w", spec.HostEnd, err)
	}
	return nil
}
