// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"net/netip"
	"slices"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/serviceproxy"
)

// ClusterIPs keeps the rules by which pods on Networks with serviceProxy InPod
// reach Services.
type ClusterIPs interface {
	// Ensure writes a pod's rules.
	Ensure(ctx context.Context, pod serviceproxy.Pod) error
	// Notify says that a pod got an interface, Left that one lost some or is gone.
	// They must not block.
	Notify()
	Left()
}

// ServicePods lists the pods that are, or are about to be, on Networks; nil as
// long as the sandboxes are not read.
func (s *Server) ServicePods() []serviceproxy.Pod {
	s.mu.Lock()
	loaded := s.loaded
	s.mu.Unlock()
	if !loaded {
		return nil
	}
	out := []serviceproxy.Pod{}
	for _, sandbox := range s.snapshot() {
		out = append(out, sandbox.servicePod())
	}
	return out
}

// servicePod is the sandbox by its interfaces on Networks, those of delegates
// included.
func (s *Sandbox) servicePod() serviceproxy.Pod {
	out := serviceproxy.Pod{ID: s.ContainerID, NetNS: s.NetNS}
	for i := range s.Attachments {
		a := &s.Attachments[i]
		if !slices.ContainsFunc(s.Asked, func(r podnetworks.Request) bool {
			return r.IfName == a.Interface && r.Name == a.Name && ofNetwork(&r)
		}) {
			continue
		}
		iface := serviceproxy.Interface{Network: a.Name, Name: a.Interface}
		for _, text := range a.IPs {
			if address, err := netip.ParseAddr(text); err == nil {
				iface.Addresses = append(iface.Addresses, address)
			}
		}
		out.Interfaces = append(out.Interfaces, iface)
	}
	return out
}

// serveClusterIPs writes the rules of a sandbox that is being made, before its
// containers run.
func (s *Server) serveClusterIPs(ctx context.Context, sandbox *Sandbox, all []wanted) error {
	if !s.inPod(all) {
		return nil
	}
	return s.deps.ClusterIPs.Ensure(ctx, sandbox.servicePod())
}

// inPod tells whether one of the Networks has its ClusterIPs served in pods.
func (s *Server) inPod(all []wanted) bool {
	return s.deps.ClusterIPs != nil && slices.ContainsFunc(all, func(w wanted) bool {
		return w.network.Spec.ServiceProxy == v1alpha1.ServiceProxyInPod
	})
}

// leaveClusterIPs has the rules looked at when a pod lost interfaces.
func (s *Server) leaveClusterIPs() {
	if s.deps.ClusterIPs != nil {
		s.deps.ClusterIPs.Left()
	}
}
