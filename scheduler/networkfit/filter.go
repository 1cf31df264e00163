// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"context"

	v1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/scheduler/capacity"
)

// Filter passes nodes that serve every network that the pod wants and have
// addresses for it. Only a lack that the end of another pod would cure is
// Unschedulable: for the rest it would be no use to preempt anyone.
func (pl *NetworkFit) Filter(_ context.Context, state fwk.CycleState, pod *v1.Pod, info fwk.NodeInfo) *fwk.Status {
	found := readWants(state)
	host := info.Node()
	offer, ok := lookup[*node](pl.sources.nodes, host.Name)
	if !ok {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, reasonNoAgent)
	}
	for i := range found {
		if reason := offer.lacks(found[i].network); reason != "" {
			return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, reason)
		}
	}
	load := offer.load(info, pl.sources)
	var full *want
	for i := range found {
		w := &found[i]
		switch pl.fit(w, load, pod, host) {
		case capacity.NoBlock:
			return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, w.reasons.noBlock)
		case capacity.TooFew:
			return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, w.reasons.tooFew)
		case capacity.Full:
			full = w
		}
	}
	if full != nil {
		return fwk.NewStatus(fwk.Unschedulable, full.reasons.full)
	}
	return nil
}

// fit tells whether the node has the addresses that one network needs.
func (pl *NetworkFit) fit(w *want, load capacity.Load, pod *v1.Pod, host *v1.Node) capacity.Fit {
	if w.plan == nil {
		return capacity.Fits
	}
	return pl.sources.supply(host, w.network).Fit(usedBy(load, pod, host.Name, w.Name, w.demand), w.demand)
}
