// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"slices"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/api/vxlan"
	"github.com/netplane/netplane/cni/link"
)

// Overlays keeps the node's segments of Networks of plugin vxlan.
type Overlays interface {
	// Ensure makes the bridge that the Network's pods are plugged to.
	Ensure(ctx context.Context, network *v1alpha1.Network) error
	// Notify says that pods were unplugged. It must not block.
	Notify()
	// Devices are what segments send from: NICs, or the bridges over them.
	Devices() []string
}

// OverlayBridges lists the bridges of vxlan Networks that sandboxes are, or are
// about to be, plugged to; nil as long as the sandboxes are not read.
func (s *Server) OverlayBridges() []string {
	s.mu.Lock()
	loaded := s.loaded
	s.mu.Unlock()
	if !loaded {
		return nil
	}
	out := []string{}
	for _, sandbox := range s.snapshot() {
		for _, iface := range sandbox.links() {
			bridge := iface.Parent
			if link.IsOverlayBridge(bridge) && !slices.Contains(out, bridge) {
				out = append(out, bridge)
			}
		}
	}
	return out
}

// chooseTunnel is chooseNIC for a Network of plugin vxlan, whose interfaces
// stand on a bridge of its own.
func (w *wanted) chooseTunnel(topology Topology) error {
	n := w.network
	tunnel, ok := topology.Tunnel(n.Name)
	if !ok {
		return retry("no NIC of this node backs physical network %q of network %q", n.Spec.PhysicalNet, n.Name)
	}
	w.nic, w.overlay, w.mtu = tunnel.Device, link.OverlayBridge(string(n.UID)), vxlan.MTU(tunnel.MTU, tunnel.Address)
	if int(n.Spec.MTU) > w.mtu {
		return retry("mtu %d of network %q is larger than %d, which the tunnel leaves of the %d of NIC %s", n.Spec.MTU, n.Name, w.mtu, tunnel.MTU, tunnel.Device)
	}
	if n.Spec.MTU > 0 {
		w.mtu = int(n.Spec.MTU)
	}
	return nil
}

// ensureOverlays makes the segments that a sandbox needs. The sandbox is
// remembered already, so that none of them is removed again.
func (s *Server) ensureOverlays(ctx context.Context, all []wanted) error {
	for i := range all {
		if all[i].overlay == "" {
			continue
		}
		if s.deps.Overlays == nil {
			return invalid("network %q: this agent makes no interfaces of plugin vxlan", all[i].network.Name)
		}
		if err := s.deps.Overlays.Ensure(ctx, all[i].network); err != nil {
			return err
		}
	}
	return nil
}

// leaveOverlays has the segments looked at that a sandbox was on.
func (s *Server) leaveOverlays(sandbox *Sandbox) {
	onOne := func(i link.Interface) bool { return link.IsOverlayBridge(i.Parent) }
	if s.deps.Overlays != nil && slices.ContainsFunc(sandbox.links(), onOne) {
		s.deps.Overlays.Notify()
	}
}
