// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"net/netip"

	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/ipclaims"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/wire"
)

// findFixed finds the fixed addresses that the pod asks for. The scheduler has
// seen the pod's IPClaims before it bound the pod, but the controller notes the
// node in them only then: the wait for it is short, and nobody else's.
func (s *Server) findFixed(ctx context.Context, sandbox *wire.Sandbox, all []wanted) error {
	for i := range all {
		w := &all[i]
		for try := 0; w.request.Fixed() && !w.fixed.IsValid() && try < cacheTries && s.claimOf(sandbox, w) == nil; try++ {
			if err := s.pause(ctx, cachePoll); err != nil {
				return err
			}
		}
		if err := s.findFixedNow(sandbox, w); err != nil {
			return err
		}
	}
	return nil
}

// findFixedNow is findFixed without a wait.
func (s *Server) findFixedNow(sandbox *wire.Sandbox, w *wanted) error {
	if !w.request.Fixed() || w.fixed.IsValid() {
		return nil
	}
	claim := s.claimOf(sandbox, w)
	if claim == nil {
		return retry("network %q: no IPClaim gives pod %s/%s its fixed address on this node yet: see kubectl get ipclaims, and the pod's events",
			w.network.Name, sandbox.PodNamespace, sandbox.PodName)
	}
	return w.take(claim)
}

// claimOf is the claim that gives this pod, on this node, what it asks for. The
// annotation alone gives nothing: a tenant writes it.
func (s *Server) claimOf(sandbox *wire.Sandbox, w *wanted) *v1alpha1.IPClaim {
	for _, claim := range s.deps.Claims.OfPod(types.UID(sandbox.PodUID)) {
		ofNetwork := claim.Spec.NetworkUID == "" || claim.Spec.NetworkUID == w.network.UID
		if ofNetwork && ipclaims.Holds(claim, sandbox.PodNamespace, sandbox.PodName, types.UID(sandbox.PodUID), &w.request) {
			return claim
		}
	}
	return nil
}

// take makes the claim's address the interface's.
func (w *wanted) take(claim *v1alpha1.IPClaim) error {
	addr, err := netip.ParseAddr(string(claim.Spec.Address))
	if err != nil {
		return invalid("IPClaim %q: spec.address: %v", claim.Name, err)
	}
	if err := w.plan.CheckFixed(addr); err != nil {
		return retry("IPClaim %q: spec.address: %v", claim.Name, err)
	}
	w.fixed = addr
	return nil
}
