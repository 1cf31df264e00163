// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/delegate"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// undoTimeout bounds what is done after the caller is gone.
const undoTimeout = 20 * time.Second

// prepare checks the pod's right and reserves its addresses: all or none.
func (s *Server) prepare(ctx context.Context, sandbox *wire.Sandbox, annotation string) (_ []wanted, err error) {
	if _, ok := s.sandbox(sandbox.ContainerID); ok {
		return nil, retry("sandbox %s has its networks already; DEL must come before another ADD", sandbox.ContainerID)
	}
	prepared := false
	defer func() {
		if !prepared {
			s.nics.drop(sandbox.ContainerID)
		}
	}()
	all, err := s.admit(sandbox, annotation)
	if err != nil {
		return nil, err
	}
	if err := s.findFixed(ctx, sandbox, all); err != nil {
		return nil, err
	}
	if err := s.takeAddresses(ctx, sandbox, all); err != nil {
		return nil, s.release(ctx, sandbox, err)
	}
	prepared = true
	return all, nil
}

// take finds and reserves the addresses of interfaces. After an error some may
// be reserved.
func (s *Server) take(ctx context.Context, sandbox *wire.Sandbox, all []wanted) error {
	if err := s.findFixed(ctx, sandbox, all); err != nil {
		return err
	}
	return s.takeAddresses(ctx, sandbox, all)
}

func (s *Server) takeAddresses(ctx context.Context, sandbox *wire.Sandbox, all []wanted) error {
	asks := make([]ipam.Ask, 0, len(all))
	for i := range all {
		w := &all[i]
		if w.plan == nil {
			continue
		}
		ask := ipam.Ask{Network: w.network.Name, Owner: ipam.Owner{
			PodUID: sandbox.PodUID, PodNamespace: sandbox.PodNamespace, PodName: sandbox.PodName,
			ContainerID: sandbox.ContainerID, IfName: w.request.IfName, NetNS: sandbox.NetNS,
		}}
		if w.fixed.IsValid() {
			ask.Fixed, ask.NetworkUID, ask.Anchor = w.fixed, w.network.UID, w.primary()
		}
		asks = append(asks, ask)
	}
	if err := s.reserve(ctx, all, asks); err != nil {
		return err
	}
	return s.avoidTaken(ctx, sandbox, all, asks)
}

// reserve gives every interface an address; those that have one keep it.
func (s *Server) reserve(ctx context.Context, all []wanted, asks []ipam.Ask) error {
	if len(asks) == 0 {
		return nil
	}
	leases, err := s.deps.Addresses.Reserve(ctx, asks)
	if err != nil {
		return retry("%v", err)
	}
	for i := range all {
		if all[i].plan == nil {
			continue
		}
		at := slices.IndexFunc(leases, func(l ipam.Lease) bool { return l.IfName == all[i].request.IfName })
		if at < 0 {
			return fmt.Errorf("no address was reserved for %s", all[i].request.IfName)
		}
		all[i].lease = leases[at]
	}
	return nil
}

// release gives addresses back for which no link was made, and returns cause.
func (s *Server) release(ctx context.Context, sandbox *wire.Sandbox, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	s.nics.drop(sandbox.ContainerID)
	return errors.Join(cause, s.deps.Addresses.Release(ctx, sandbox.ContainerID))
}

// commit makes all interfaces or none, and returns the sandbox and its CNI
// result. A record of what is to be made is on disk before the first link.
func (s *Server) commit(ctx context.Context, sandbox *wire.Sandbox, all []wanted, network *wire.DefaultNetwork) (*Sandbox, json.RawMessage, error) {
	planned, err := s.plan(ctx, sandbox, all, network)
	if err != nil {
		return nil, nil, s.release(ctx, sandbox, err)
	}
	s.nics.drop(sandbox.ContainerID)
	s.tellNICs(planned)
	made := 0
	if err = s.ensureOverlays(ctx, all); err == nil {
		made, err = s.make(ctx, planned)
	}
	var raw json.RawMessage
	if err == nil {
		raw, err = result(sandbox.NetNS, builtIn(all), planned.Interfaces)
	}
	attached := *planned
	attached.State = StateAttached
	if err == nil {
		err = s.remember(&attached)
	}
	if err != nil {
		undo := *planned
		if made < len(planned.Interfaces) && planned.Interfaces[made].NIC != nil {
			made++ // to look once more for a NIC: it must come back
		}
		undo.Interfaces = planned.Interfaces[:made]
		return nil, nil, errors.Join(err, s.undo(ctx, &undo))
	}
	return &attached, raw, nil
}

// plan designs the interfaces and writes the record of them. From then on the
// record keeps the devices that they stand on.
func (s *Server) plan(ctx context.Context, sandbox *wire.Sandbox, all []wanted, network *wire.DefaultNetwork) (*Sandbox, error) {
	s.parents.RLock()
	defer s.parents.RUnlock()
	planned, err := s.designAll(ctx, sandbox, all)
	if err != nil {
		return nil, err
	}
	if err := routeBySource(all, planned.Interfaces, network); err != nil {
		return nil, err
	}
	if planned.Attachments, err = defaultAttachments(network); err != nil {
		return nil, err
	}
	planned.Attachments = append(planned.Attachments, allAttachments(all, planned.Interfaces)...)
	return planned, s.remember(planned)
}

// designAll says what all interfaces are to be. It makes bridges and tagged
// devices: they belong to the NIC, not to the pod, and go when no pod stands
// on them.
func (s *Server) designAll(ctx context.Context, sandbox *wire.Sandbox, all []wanted) (*Sandbox, error) {
	out := &Sandbox{Sandbox: *sandbox, State: StateAttaching, Since: s.deps.Clock.Now(), Delegates: delegatedNames(all)}
	services := s.deps.ServiceCIDRs()
	for i := range all {
		w := &all[i]
		out.Asked = append(out.Asked, w.request)
		if w.delegated() {
			continue
		}
		parent, err := s.parent(ctx, w)
		if err != nil {
			return nil, err
		}
		c := circumstances{containerID: sandbox.ContainerID, parent: parent, services: services, pods: s.config.PodCIDRs}
		for j := range all {
			if j != i && all[j].request.DefaultRoute {
				c.elsewhere = append(c.elsewhere, all[j].routedFamilies()...)
			}
		}
		iface := w.design(&c)
		out.Interfaces = append(out.Interfaces, iface)
		if w.primary() {
			out.Path = w.path(&iface)
		}
	}
	return out, nil
}

// report has the pod's annotations say what the sandbox has.
func (s *Server) report(sandbox *Sandbox) {
	s.deps.Reporter.Attached(sandbox.Pod(), types.UID(sandbox.PodUID), sandbox.ContainerID, sandbox.Attachments, sandbox.uses())
}

// make makes the host's path and the interfaces; it returns how many of the
// interfaces stand.
func (s *Server) make(ctx context.Context, sandbox *Sandbox) (made int, err error) {
	if err := s.tidy(ctx, sandbox); err != nil {
		return 0, err
	}
	if err := s.addPath(ctx, sandbox); err != nil {
		return 0, err
	}
	if sandbox.Path != nil {
		if err := s.mask(ctx); err != nil {
			return 0, err
		}
	}
	for i := range sandbox.Interfaces {
		if err := s.deps.PodLinks.Add(ctx, sandbox.NetNS, sandbox.Interfaces[i]); err != nil {
			return i, fmt.Errorf("interface %s: %w", sandbox.Interfaces[i].Name, err)
		}
	}
	return len(sandbox.Interfaces), ctx.Err()
}

// undo detaches although the caller may be gone.
func (s *Server) undo(ctx context.Context, sandbox *Sandbox) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return s.detach(ctx, sandbox)
}

// detach removes what a sandbox has, in reverse. Its addresses are free for
// others only after no link has them. Every step may be repeated.
func (s *Server) detach(ctx context.Context, sandbox *Sandbox) error {
	for _, iface := range slices.Backward(sandbox.links()) {
		if err := s.deps.PodLinks.Delete(ctx, sandbox.NetNS, iface); err != nil {
			return err
		}
	}
	if err := s.removePath(ctx, sandbox); err != nil {
		return err
	}
	s.deps.Reporter.Detached(types.UID(sandbox.PodUID), sandbox.ContainerID)
	if err := s.deps.Addresses.Release(ctx, sandbox.ContainerID); err != nil {
		return fmt.Errorf("releasing addresses: %w", err)
	}
	if err := s.forget(sandbox.ContainerID); err != nil {
		return err
	}
	s.leaveOverlays(sandbox)
	s.plugs.forget(sandbox.ContainerID)
	if sandbox.Path == nil {
		return nil
	}
	// A rule too many harms nobody; the next change drops it.
	if err := s.mask(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Kept a masquerade rule that nobody needs")
	}
	return nil
}

// del is DEL: it never fails for what is gone.
func (s *Server) del(ctx context.Context, sandbox *wire.Sandbox) error {
	unlock, err := s.busy.lock(ctx, sandbox.ContainerID)
	if err != nil {
		return err
	}
	defer unlock()
	record, ok := s.sandbox(sandbox.ContainerID)
	if ok {
		return s.detach(ctx, record)
	}
	if err := s.deps.Addresses.Release(ctx, sandbox.ContainerID); err != nil {
		return fmt.Errorf("releasing addresses: %w", err)
	}
	return s.forget(sandbox.ContainerID) // a record that could not be read
}

// gc is GC: what the runtime does not know any more goes. A sandbox in the
// middle of its ADD is not in anybody's list yet and is left alone.
func (s *Server) gc(ctx context.Context, valid []string) error {
	var failed []error
	for _, sandbox := range s.snapshot() {
		if sandbox.State != StateAttached || slices.Contains(valid, sandbox.ContainerID) {
			continue
		}
		klog.FromContext(ctx).Info("Removing a sandbox that the runtime does not know", "pod", sandbox.Pod(), "containerID", sandbox.ContainerID)
		failed = append(failed, s.del(ctx, &sandbox.Sandbox))
	}
	return errors.Join(failed...)
}

// podNetworks finds a pod's annotation for a runtime that did not pass it. The
// cache may lag behind kubelet by a moment.
func (s *Server) podNetworks(ctx context.Context, sandbox *wire.Sandbox) (string, error) {
	for try := 0; ; try++ {
		if annotations, ok := s.deps.Pods.Annotations(sandbox.PodNamespace, sandbox.PodName); ok {
			return annotations[v1alpha1.AnnotationNetworks], nil
		}
		if try == cacheTries {
			return "", retry("pod %s/%s is not known to the agent yet", sandbox.PodNamespace, sandbox.PodName)
		}
		if err := s.pause(ctx, cachePoll); err != nil {
			return "", err
		}
	}
}

// pause waits, unless ctx ends before.
func (s *Server) pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.deps.Clock.After(d):
		return nil
	}
}

// cacheTries and cachePoll bound the wait for what the cache is about to show.
const (
	cacheTries = 20
	cachePoll  = 100 * time.Millisecond
)

var (
	_ PodLinks  = (*link.Links)(nil)
	_ HostLinks = (*link.Links)(nil)
	_ Parents   = (*link.Links)(nil)
	_ Prober    = (*link.Links)(nil)
	_ Foreign   = (*link.Links)(nil)
	_ NICs      = (*link.Links)(nil)
	_ PodLinks  = (*link.Fake)(nil)
	_ HostLinks = (*link.Fake)(nil)
	_ Parents   = (*link.Fake)(nil)
	_ Prober    = (*link.Fake)(nil)
	_ Foreign   = (*link.Fake)(nil)
	_ NICs      = (*link.Fake)(nil)
	_ Addresses = (*ipam.Manager)(nil)
	_ Delegates = (*delegate.Library)(nil)
)
