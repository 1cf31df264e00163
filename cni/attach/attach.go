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

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/delegate"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// undoTimeout bounds what is done after the caller is gone.
const undoTimeout = 20 * time.Second

// prepare checks the pod's right and reserves its addresses: all or none.
func (s *Server) prepare(ctx context.Context, sandbox *wire.Sandbox, annotation string, npwg *wire.NPWG) (_ []wanted, err error) {
	if _, ok := s.sandbox(sandbox.ContainerID); ok {
		return nil, &wire.Error{Code: wire.CodeInvalidEnvironment, Msg: fmt.Sprintf("CNI_CONTAINERID %s has its networks already; DEL must come before another ADD", sandbox.ContainerID)}
	}
	prepared := false
	defer func() {
		if !prepared {
			s.nics.drop(sandbox.ContainerID)
		}
	}()
	all, err := s.admitBoth(ctx, sandbox, annotation, npwg)
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
		asks = append(asks, w.ask(sandbox))
	}
	if err := s.reserve(ctx, all, asks); err != nil {
		return err
	}
	return s.avoidTaken(ctx, sandbox, all, asks)
}

// ask is what is asked of the node's addresses for an interface.
func (w *wanted) ask(sandbox *wire.Sandbox) ipam.Ask {
	out := ipam.Ask{Network: w.network.Name, Owner: ipam.Owner{
		PodUID: sandbox.PodUID, PodNamespace: sandbox.PodNamespace, PodName: sandbox.PodName,
		ContainerID: sandbox.ContainerID, IfName: w.request.IfName, NetNS: sandbox.NetNS,
	}}
	if w.fixed.IsValid() {
		out.Fixed, out.NetworkUID, out.Anchor = w.fixed, w.network.UID, w.primary()
	}
	return out
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

// commit makes all interfaces or none, and returns the sandbox and its CNI
// result, of a version. A record of what is to be made is on disk before the first link.
func (s *Server) commit(ctx context.Context, sandbox *wire.Sandbox, all []wanted, network *wire.DefaultNetwork, version string) (*Sandbox, json.RawMessage, error) {
	if err := s.tidy(ctx, sandbox.NetNS, all); err != nil {
		return nil, nil, s.giveUp(ctx, sandbox, all, err)
	}
	planned, err := s.plan(ctx, sandbox, all, network)
	if err != nil {
		return nil, nil, s.giveUp(ctx, sandbox, all, err)
	}
	s.nics.drop(sandbox.ContainerID)
	s.tellNICs(planned)
	var made []link.Interface
	if err = s.ensureOverlays(ctx, all); err == nil {
		made, err = s.make(ctx, planned)
	}
	if err == nil {
		err = s.takeDefaults(ctx, sandbox.NetNS, all)
	}
	if err == nil {
		err = s.serveClusterIPs(ctx, planned, all)
	}
	var raw json.RawMessage
	if err == nil {
		raw, err = result(sandbox.NetNS, builtIn(all), planned.Interfaces, version)
	}
	attached := *planned
	attached.State = StateAttached
	if err == nil {
		err = s.remember(&attached)
	}
	if err != nil {
		undo := *planned
		// A NIC is looked for once more: it must come back.
		undo.Interfaces = slices.DeleteFunc(slices.Clone(undo.Interfaces), func(i link.Interface) bool {
			return i.NIC == nil && !slices.ContainsFunc(made, func(m link.Interface) bool { return m.Name == i.Name })
		})
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
	if err := s.standOn(sandbox.ContainerID, all); err != nil {
		return nil, err
	}
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

// make makes the host's path and the interfaces. It returns those that stand, or
// may: after an error too.
func (s *Server) make(ctx context.Context, sandbox *Sandbox) (made []link.Interface, err error) {
	if err := s.addPath(ctx, sandbox); err != nil {
		return nil, err
	}
	if sandbox.Path != nil {
		if err := s.mask(ctx); err != nil {
			return nil, err
		}
	}
	if len(sandbox.Interfaces) == 0 {
		return nil, ctx.Err()
	}
	if err := s.deps.PodLinks.Add(ctx, sandbox.NetNS, sandbox.Interfaces...); err != nil {
		return mayStand(sandbox.Interfaces, err), err
	}
	return sandbox.Interfaces, ctx.Err()
}

// mayStand are the interfaces that could not be made and may be there all the
// same. The pod may have others of these names that are its own.
func mayStand(all []link.Interface, err error) []link.Interface {
	var left *link.LeftError
	if !errors.As(err, &left) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(all), func(i link.Interface) bool { return !slices.Contains(left.Names, i.Name) })
}

// podNetworks finds a pod's annotations for a runtime that did not pass them. The
// cache may lag behind kubelet by a moment.
func (s *Server) podNetworks(ctx context.Context, sandbox *wire.Sandbox) (*wire.Response, error) {
	for try := 0; ; try++ {
		if annotations, ok := s.deps.Pods.Annotations(sandbox.PodNamespace, sandbox.PodName); ok {
			return &wire.Response{Networks: annotations[v1alpha1.AnnotationNetworks], NPWG: wire.NPWGOf(annotations)}, nil
		}
		if try == cacheTries {
			return nil, retry("pod %s/%s is not known to the agent yet", sandbox.PodNamespace, sandbox.PodName)
		}
		if err := s.pause(ctx, cachePoll); err != nil {
			return nil, err
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
