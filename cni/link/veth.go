// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"k8s.io/klog/v2"
)

// Bounds of the wait for a bridge port to forward, see announceVeth.
const (
	portWait = time.Second
	portPoll = time.Millisecond
)

// createVeth makes the host's end the primary link, so that the pod's end is
// born in the pod and the host's can be a port of the bridge.
func createVeth(p *pod, spec *Interface) error {
	mac, err := net.ParseMAC(spec.MAC)
	if err != nil {
		return err
	}
	bridge, err := p.parent(spec)
	if err != nil {
		return err
	}
	if stale, err := p.host.LinkByName(spec.HostEnd); err == nil {
		if err := p.host.LinkDel(stale); err != nil {
			return fmt.Errorf("removing %s of an earlier attempt: %w", spec.HostEnd, err)
		}
	}
	// The host's end has the bridge's MTU: the bridge takes the smallest of its
	// ports (br_mtu_auto_adjust in net/bridge/br_if.c), and a pod on a Network of
	// smaller MTU would shrink what all others stand on.
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: spec.HostEnd, MTU: bridge.Attrs().MTU, TxQLen: -1},
		PeerName:  spec.Name, PeerHardwareAddr: mac, PeerMTU: uint32(spec.MTU), PeerTxQLen: -1, PeerNamespace: netlink.NsFd(p.ns),
	}
	if err := p.host.LinkAdd(veth); err != nil {
		return err
	}
	end, err := p.host.LinkByName(spec.HostEnd)
	if err == nil {
		// A port has no use for addresses of its own.
		_ = p.setSysctls(p.Links.ns, []sysctl{{"ipv6/conf/" + spec.HostEnd + "/disable_ipv6", "1"}})
		err = p.connect(spec, end, bridge)
	}
	if err != nil {
		return errors.Join(err, p.remove(spec))
	}
	return nil
}

// connect makes the host's end a port, which is restricted before it is up.
func (p *pod) connect(spec *Interface, end, bridge netlink.Link) error {
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

// announceVeth repeats the announcement of a veth: the first one, at up, comes
// before the kernel's linkwatch has let the bridge port forward, and is
// dropped there. Setting the MAC, here to what it is, makes the kernel
// announce again (NETDEV_CHANGEADDR).
func announceVeth(ctx context.Context, p *pod, born netlink.Link, spec *Interface) error {
	deadline := time.Now().Add(portWait)
	for {
		end, err := p.host.LinkByName(spec.HostEnd)
		if err != nil {
			return fmt.Errorf("looking for the host's end: %w", err)
		}
		if end.Attrs().OperState == netlink.OperUp {
			break
		}
		if time.Now().After(deadline) {
			klog.FromContext(ctx).Info("The bridge port does not forward yet; neighbours learn of the interface late", "port", spec.HostEnd, "bridge", spec.Parent)
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(portPoll):
		}
	}
	mac, err := net.ParseMAC(spec.MAC)
	if err != nil {
		return err
	}
	if err := p.handle.LinkSetHardwareAddr(born, mac); err != nil {
		return fmt.Errorf("announcing: %w", err)
	}
	return nil
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
