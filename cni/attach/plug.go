// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/cni/link"
)

// Going is an interface on its way into a running pod, or out of it. Whoever
// finds one, because the agent died or a step failed, takes it away: it is none
// of the sandbox's Interfaces, but its address may be reserved and its link may
// be there.
type Going struct {
	// Asked is what the interface is, or was, made for.
	Asked podnetworks.Request `json:"asked"`
	// Interface is absent until its address is known: there is no link yet.
	Interface *link.Interface `json:"interface,omitempty"`
}

// links are all that may be in the pod's namespace.
func (s *Sandbox) links() []link.Interface {
	out := slices.Clone(s.Interfaces)
	for i := range s.Going {
		if s.Going[i].Interface != nil {
			out = append(out, *s.Going[i].Interface)
		}
	}
	return out
}

// clone is a copy whose lists can be changed: what others see of a sandbox
// never changes.
func (s *Sandbox) clone() *Sandbox {
	out := *s
	out.Interfaces, out.Asked = slices.Clone(s.Interfaces), slices.Clone(s.Asked)
	out.Going, out.Attachments = slices.Clone(s.Going), slices.Clone(s.Attachments)
	out.Plugged = slices.Clone(s.Plugged)
	return &out
}

// notePlugged is for CHECK.
func (s *Sandbox) notePlugged(name string) {
	if !slices.Contains(s.Plugged, name) {
		s.Plugged = append(s.Plugged, name)
	}
}

// without moves an interface to those that are going.
func (s *Sandbox) without(name string) *Sandbox {
	out := s.clone()
	at := slices.IndexFunc(out.Interfaces, func(i link.Interface) bool { return i.Name == name })
	asked := slices.IndexFunc(out.Asked, func(r podnetworks.Request) bool { return r.IfName == name })
	if at < 0 || asked < 0 {
		return out
	}
	gone := out.Interfaces[at]
	out.notePlugged(name)
	out.Going = append(out.Going, Going{Asked: out.Asked[asked], Interface: &gone})
	out.Interfaces = slices.Delete(out.Interfaces, at, at+1)
	out.Asked = slices.Delete(out.Asked, asked, asked+1)
	out.Attachments = slices.DeleteFunc(out.Attachments, func(a podnetworks.Attachment) bool { return a.Interface == name })
	return out
}

// plug adds one interface to a sandbox whose other interfaces it does not touch.
// The record tells of it before an address is reserved, and again before the
// link is made. It returns the sandbox as it is then, after an error too.
func (s *Server) plug(ctx context.Context, sandbox *Sandbox, request podnetworks.Request) (*Sandbox, error) {
	// By the time it returns, the record tells which NIC is taken.
	defer s.nics.drop(sandbox.ContainerID)
	all, err := s.admitAll(&sandbox.Sandbox, []podnetworks.Request{request})
	if err == nil && all[0].delegated() {
		err = invalid("network %q: %s", request.Name, madeWithPod)
	}
	if err != nil {
		return sandbox, err
	}
	going := sandbox.clone()
	going.Going = append(going.Going, Going{Asked: all[0].request})
	if err := s.remember(going); err != nil {
		return sandbox, err
	}
	going, err = s.readyLink(ctx, going, all)
	if err == nil {
		going, err = s.makeLink(ctx, going, all)
	}
	if err != nil {
		settled, undone := s.settle(ctx, going)
		return settled, errors.Join(err, undone)
	}
	if s.inPod(all) {
		s.deps.ClusterIPs.Notify()
	}
	s.report(going)
	s.tellNICs(going)
	return going, nil
}

// readyLink reserves the address of the last interface that is going, and says
// what it is to be. It returns the sandbox as it is then, after an error too.
func (s *Server) readyLink(ctx context.Context, sandbox *Sandbox, all []wanted) (*Sandbox, error) {
	if err := s.take(ctx, &sandbox.Sandbox, all); err != nil {
		return sandbox, err
	}
	s.parents.RLock()
	defer s.parents.RUnlock()
	designed, err := s.designAll(ctx, &sandbox.Sandbox, all)
	if err != nil {
		return sandbox, err
	}
	s.routePlugged(sandbox, &all[0], &designed.Interfaces[0])
	going := sandbox.clone()
	going.Going[len(going.Going)-1].Interface = &designed.Interfaces[0]
	if err := s.remember(going); err != nil {
		return sandbox, err
	}
	return going, nil
}

// makeLink makes the last interface that is going one of the sandbox's. It
// returns the sandbox as it is then, after an error too.
func (s *Server) makeLink(ctx context.Context, sandbox *Sandbox, all []wanted) (*Sandbox, error) {
	made := sandbox.clone()
	last := len(made.Going) - 1
	iface := *made.Going[last].Interface
	err := s.ensureOverlays(ctx, all)
	if err != nil {
		err = fmt.Errorf("interface %s: %w", iface.Name, err)
	} else {
		err = s.deps.PodLinks.Add(ctx, sandbox.NetNS, iface)
	}
	if err != nil {
		if iface.NIC == nil && len(mayStand([]link.Interface{iface}, err)) == 0 { // a NIC is looked for once more: it must come back
			// There is none of ours. The pod may have one of this name that is its own.
			made.Going[last].Interface = nil
		}
		return made, err
	}
	made.notePlugged(iface.Name)
	made.Going = made.Going[:last]
	made.Interfaces, made.Asked = append(made.Interfaces, iface), append(made.Asked, all[0].request)
	made.Attachments = append(made.Attachments, attachments(all, []link.Interface{iface})...)
	if err := s.remember(made); err != nil {
		return sandbox, err
	}
	s.announcer.add(sandbox.NetNS, iface)
	return made, nil
}

// unplug removes one interface.
func (s *Server) unplug(ctx context.Context, sandbox *Sandbox, name string) (*Sandbox, error) {
	going := sandbox.without(name)
	if err := s.remember(going); err != nil {
		return sandbox, err
	}
	settled, err := s.settle(ctx, going)
	s.report(settled)
	s.tellNICs(going)
	return settled, err
}

// settle takes away all that is going, although the caller may be gone: links
// first, so that no address is free that a link has. Every step may be repeated.
func (s *Server) settle(ctx context.Context, sandbox *Sandbox) (*Sandbox, error) {
	if len(sandbox.Going) == 0 {
		return sandbox, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	names := make([]string, len(sandbox.Going))
	for i := range sandbox.Going {
		going := &sandbox.Going[i]
		names[i] = going.Asked.IfName
		if going.Interface == nil {
			continue
		}
		if err := s.deps.PodLinks.Delete(ctx, sandbox.NetNS, *going.Interface); err != nil {
			return sandbox, err
		}
	}
	if err := s.deps.Addresses.Release(ctx, sandbox.ContainerID, names...); err != nil {
		return sandbox, err
	}
	settled := sandbox.clone()
	settled.Going = nil
	if err := s.remember(settled); err != nil {
		return sandbox, err
	}
	s.leaveOverlays(sandbox)
	s.leaveClusterIPs()
	return settled, nil
}
