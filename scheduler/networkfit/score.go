// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"context"

	v1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/scheduler/config"
)

// PreScore spares pods without networks the scoring; it is run for them, too.
func (pl *NetworkFit) PreScore(_ context.Context, state fwk.CycleState, _ *v1.Pod, _ []fwk.NodeInfo) *fwk.Status {
	if len(readWants(state)) == 0 {
		return fwk.NewStatus(fwk.Skip)
	}
	return nil
}

// Score rates a node from 0 to 100 by the most utilised of the requested
// networks, in addresses or NICs, with the pod placed. A network's utilisation counts in proportion
// to its weight; the heaviest that the pod asks for counts in full. The score
// depends on this node alone, which is what lets pods with one signature share
// their scores (see SignPod).
func (pl *NetworkFit) Score(_ context.Context, state fwk.CycleState, pod *v1.Pod, info fwk.NodeInfo) (int64, *fwk.Status) {
	host := info.Node()
	seen := pl.sources.view(host)
	if seen.node == nil {
		return fwk.MinScore, nil // gone since Filter; binding will show
	}
	load, found := pl.load(state, seen, info), readWants(state)
	var worst, heaviest float64
	for i := range found {
		w := &found[i]
		weight := float64(pl.args.ScoringStrategy.Weight(w.Name))
		if w.nics != nil {
			used := w.nics.usedBy(load, pod, host.Name)
			worst = max(worst, weight*w.nicsOf(seen.node).Utilisation(used, w.nics.demand))
			heaviest = max(heaviest, weight)
		}
		if w.plan == nil {
			continue
		}
		used := usedBy(load, pod, host.Name, w.Name, w.demand)
		worst = max(worst, weight*seen.offer(w.network).supply.Utilisation(used, w.demand))
		heaviest = max(heaviest, weight)
	}
	if heaviest > 0 {
		worst /= heaviest
	}
	if pl.args.ScoringStrategy.Type == config.LeastUtilized {
		worst = 1 - worst
	}
	return int64(worst * float64(fwk.MaxScore)), nil
}

// ScoreExtensions returns nil: scores are absolute.
func (pl *NetworkFit) ScoreExtensions() fwk.ScoreExtensions { return nil }
