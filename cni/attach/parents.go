// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/klog/v2"

	"github.com/netplane/netplane/cni/link"
)

// Parents are the host's devices that pods' interfaces stand on.
type Parents interface {
	// MTU returns the MTU of a NIC.
	MTU(device string) (int, error)
	// EnsureParent returns the device and makes what of it is missing.
	EnsureParent(ctx context.Context, spec link.ParentSpec) (link.Parent, error)
	// PruneParents removes what it made, but for the devices in use.
	PruneParents(ctx context.Context, used []string) error
}

// parent is what a pod's interface stands on: the NIC, its tagged device, or
// the bridge over either; it is made if there is none. The caller holds
// s.parents until the device is in a record, or of no use any more.
func (s *Server) parent(ctx context.Context, w *wanted) (link.Parent, error) {
	if w.overlay != "" {
		return link.Parent{Name: w.overlay, MTU: w.mtu}, nil // made once the sandbox is remembered
	}
	spec := link.ParentSpec{NIC: w.nic, Tag: int(w.network.Spec.VLAN), Bridge: w.bridged}
	if spec.Tag == 0 && !spec.Bridge && !w.sharesMAC() {
		return link.Parent{Name: w.nic, MTU: w.mtu}, nil
	}
	parent, err := s.deps.Parents.EnsureParent(ctx, spec)
	if err != nil {
		return link.Parent{}, fmt.Errorf("network %q: %w", w.network.Name, err)
	}
	return parent, nil
}

// pruneParents removes the bridges and tagged devices that no pod has stood on
// since the last look, and returns what is in use now. The pause spares a NIC
// the change when a pod is replaced by its successor. It gives way to an ADD,
// which may be about to use what looks idle.
func (s *Server) pruneParents(ctx context.Context, before []string) []string {
	if !s.parents.TryLock() {
		return before
	}
	defer s.parents.Unlock()
	used := s.usedDevices()
	if s.blind() {
		return used
	}
	if err := s.deps.Parents.PruneParents(ctx, slices.Concat(used, before)); err != nil {
		klog.FromContext(ctx).Error(err, "Kept a device that no pod needs")
	}
	return used
}

// Leave removes what no pod stands on, without the pause: an agent that gave the
// node its own CNI configuration back ends, and no other may follow. Run must
// have returned.
func (s *Server) Leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, otherTimeout)
	defer cancel()
	s.collectOnce(ctx, s.collectOnce(ctx, nil))
	s.pruneParents(ctx, nil)
	if err := s.reuntag(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Kept rules against VLAN tags that no pod needs")
	}
}

// reguard installs spoof checks that a firewall has flushed, and removes those
// that a sandbox of another run of the agent has left.
func (s *Server) reguard(ctx context.Context) error {
	interfaces := func() (out []link.Interface) {
		for _, sandbox := range s.snapshot() {
			out = append(out, sandbox.links()...)
		}
		return out
	}
	wants := slices.ContainsFunc(interfaces(), func(i link.Interface) bool { return i.SpoofCheck })
	if !wants && !s.guarding {
		return nil
	}
	if err := s.deps.HostLinks.RestoreGuards(ctx, interfaces); err != nil {
		return err
	}
	s.guarding = wants
	return nil
}

// reuntag makes the rules against VLAN tags anew, as long as a pod is on a bridge.
func (s *Server) reuntag(ctx context.Context) error {
	ports := func() bool {
		return slices.ContainsFunc(s.snapshot(), func(sandbox *Sandbox) bool {
			return slices.ContainsFunc(sandbox.links(), func(i link.Interface) bool { return i.HostEnd != "" })
		})
	}
	before := s.untagging
	s.untagging = ports()
	if !s.untagging && !before {
		return nil
	}
	return s.deps.HostLinks.KeepUntagged(ctx, ports)
}

// usedDevices lists the devices of the host that records tell of, and those that
// vxlan Networks stand on.
func (s *Server) usedDevices() []string {
	var out []string
	for _, sandbox := range s.snapshot() {
		for _, iface := range sandbox.links() {
			out = append(out, iface.Parent)
		}
		if sandbox.Path != nil {
			out = append(out, sandbox.Path.Device, sandbox.Path.Parent)
		}
	}
	if s.deps.Overlays != nil {
		out = append(out, s.deps.Overlays.Devices()...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
