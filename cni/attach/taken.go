// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// maxTaken bounds the addresses that are tried for one interface. When so many
// in a row belong to others, the subnet is not the cluster's.
const maxTaken = 4

// avoidTaken replaces addresses that hosts outside the cluster have, where the
// Network wants that found out. Nothing was sent from them yet. After an error
// the addresses are still reserved.
func (s *Server) avoidTaken(ctx context.Context, sandbox *wire.Sandbox, all []wanted, asks []ipam.Ask) error {
	var todo []*wanted
	for i := range all {
		// Nobody outside the cluster is on the segment of an overlay.
		if all[i].network.Spec.ConflictDetection == v1alpha1.ConflictDetectionProbe && !all[i].delegated() && all[i].overlay == "" {
			todo = append(todo, &all[i])
		}
	}
	for try := 1; len(todo) > 0; try++ {
		answers, err := s.probeAll(ctx, todo)
		if err != nil {
			return err
		}
		var again []*wanted
		for i, w := range todo {
			if answers[i] == nil {
				continue
			}
			if err := s.putAside(ctx, sandbox, w, answers[i], try == maxTaken); err != nil {
				return err
			}
			again = append(again, w)
		}
		if todo = again; len(todo) == 0 {
			return nil
		}
		if err := s.reserve(ctx, all, asks); err != nil {
			return err
		}
	}
	return nil
}

// probeAll asks for the addresses of all interfaces at once; it returns for
// each the first answer, or nil.
func (s *Server) probeAll(ctx context.Context, todo []*wanted) ([]*link.Answer, error) {
	answers, failed := make([]*link.Answer, len(todo)), make([]error, len(todo))
	var group sync.WaitGroup
	for i, w := range todo {
		group.Go(func() { answers[i], failed[i] = s.probe(ctx, w) })
	}
	group.Wait()
	return answers, errors.Join(failed...)
}

func (s *Server) probe(ctx context.Context, w *wanted) (*link.Answer, error) {
	s.parents.RLock()
	defer s.parents.RUnlock()
	parent, err := s.parent(ctx, w)
	if err != nil {
		return nil, err
	}
	var addresses []netip.Addr
	for _, prefix := range w.plan.Interface(w.lease.Address) {
		addresses = append(addresses, prefix.Addr())
	}
	answers, err := s.deps.Prober.Probe(ctx, parent.Name, addresses)
	if err != nil {
		return nil, retry("network %q: looking for other hosts with address %s: %v", w.network.Name, w.lease.Address, err)
	}
	if len(answers) == 0 {
		return nil, nil
	}
	return &answers[0], nil
}

// putAside tells of an address that another host has and takes it from the
// interface. It fails if the interface can have no other.
func (s *Server) putAside(ctx context.Context, sandbox *wire.Sandbox, w *wanted, answer *link.Answer, last bool) error {
	pod := types.NamespacedName{Namespace: sandbox.PodNamespace, Name: sandbox.PodName}
	note := fmt.Sprintf("network %q: address %s is in use by a host outside the cluster, with MAC %s", w.network.Name, answer.Address, answer.MAC)
	klog.FromContext(ctx).Info("A host outside the cluster has an address of a network", "network", w.network.Name, "address", answer.Address, "mac", answer.MAC)
	s.deps.Taken.AddressTaken(pod, types.UID(sandbox.PodUID), note)
	if w.lease.Fixed {
		return retry("%s; it is fixed, so that the pod waits until that host gives it up", note)
	}
	if err := s.deps.Addresses.PutAside(w.lease); err != nil {
		return err
	}
	if last {
		return retry("%s, as were the %d tried before: give the subnet to the cluster alone, or name what others use in spec.excludeRanges", note, maxTaken-1)
	}
	return nil
}
