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
// addresses, and NICs where it wants them whole, for it. Only a lack that the end of another pod would cure is
// Unschedulable: for the rest it would be no use to preempt anyone. It runs for
// each node and pod: where the node has not changed since the last pod, it
// takes no lock and allocates nothing to pass it.
func (pl *NetworkFit) Filter(_ context.Context, state fwk.CycleState, pod *v1.Pod, info fwk.NodeInfo) *fwk.Status {
	found, host := readWants(state), info.Node()
	seen := pl.sources.view(host)
	if seen.node == nil {
		return pl.reject(fwk.UnschedulableAndUnresolvable, lack{noAgent, reasonNoAgent})
	}
	for i := range found {
		if offered := seen.offer(found[i].network); offered.lack.cause != nothing {
			return pl.reject(fwk.UnschedulableAndUnresolvable, offered.lack)
		}
	}
	load := pl.load(state, seen, info)
	var short lack
	for i := range found {
		w := &found[i]
		addresses, nics := pl.fit(w, seen, load, pod, host.Name), w.fitNICs(seen.node, load, pod)
		switch {
		case nics == capacity.TooFew:
			return pl.reject(fwk.UnschedulableAndUnresolvable, lack{tooFewNICs, w.reasons.tooFewNICs})
		case addresses == capacity.NoBlock:
			return pl.reject(fwk.UnschedulableAndUnresolvable, lack{noBlock, w.reasons.noBlock})
		case addresses == capacity.TooFew:
			return pl.reject(fwk.UnschedulableAndUnresolvable, lack{tooFew, w.reasons.tooFew})
		case nics == capacity.Full:
			short = lack{noFreeNIC, w.reasons.noFreeNIC}
		case addresses == capacity.Full:
			short = lack{full, w.reasons.full}
		}
	}
	if short.cause != nothing {
		return pl.reject(fwk.Unschedulable, short)
	}
	return nil
}

// reject answers and counts a node that cannot take the pod.
func (pl *NetworkFit) reject(code fwk.Code, why lack) *fwk.Status {
	pl.metrics.filtered[why.cause].Add(1)
	return fwk.NewStatus(code, why.reason)
}

// fit is the one place that decides whether the node has the addresses that
// one network needs. A pod whose eth0 has a fixed address is reached by way of
// the node's own address in the network, which is the first of a block. Of a
// Tight network the agent claims one when it needs it.
func (pl *NetworkFit) fit(w *want, seen *view, load capacity.Load, pod *v1.Pod, nodeName string) capacity.Fit {
	if w.plan == nil {
		return capacity.Fits
	}
	supply, used := seen.offer(w.network).supply, usedBy(load, pod, nodeName, w.Name, w.demand)
	if w.anchor && !w.tight && supply.Blocks == 0 {
		return capacity.NoBlock
	}
	answer := supply.Fit(used, w.demand)
	if answer != capacity.Fits && pl.claimable(w, nodeName, supply, used) {
		return capacity.Fits
	}
	return answer
}
