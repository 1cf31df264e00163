// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"context"
	"fmt"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/scheduler/capacity"
)

// unclaimed is what is left to claim of a Tight network, as one pod finds it.
// It is counted when the first node lacks addresses, for all nodes alike, so
// that nodes do not queue for the claims' lock. A block that arrives meanwhile
// may be counted twice; its event is played to the pod that Reserve then turns
// down.
//
// Placing one pod changes it for the next on every node. Pods are signed all the
// same (see SignPod): the framework runs Filter again on the node that it
// takes from the pod before (KEP-5598), and Reserve decides.
type unclaimed struct {
	once      sync.Once
	addresses int64
	onTheWay  map[string]int // addresses, by node
}

// claimable tells whether blocks can be claimed on demand for what a pod lacks
// on a node. A Network that is not Tight answers no at once: its agents claim
// ahead.
func (pl *NetworkFit) claimable(w *want, node string, have capacity.Supply, used int) bool {
	if w.unclaimed == nil || pl.blocks == nil {
		return false
	}
	left := w.unclaimed
	left.once.Do(func() {
		left.onTheWay = pl.sources.claims.onTheWay(w.network, pl.sources.shown)
		left.addresses = pl.sources.claimable(w.network)
	})
	return int64(used+w.demand-have.Addresses-left.onTheWay[node]) <= max(0, left.addresses)
}

// Reserve promises the node the blocks of Tight networks that the pod lacks
// there. It is quick and changes memory only: a pod group's cycle calls it for
// every member and every placement that it tries, and takes it all back.
func (pl *NetworkFit) Reserve(_ context.Context, state fwk.CycleState, pod *v1.Pod, nodeName string) *fwk.Status {
	found := readWants(state)
	for i := range found {
		w := &found[i]
		if w.unclaimed == nil || pl.blocks == nil || w.demand == 0 {
			continue
		}
		info, err := pl.handle.SnapshotSharedLister().NodeInfos().Get(nodeName)
		if err != nil {
			return fwk.AsStatus(fmt.Errorf("finding node %q in the snapshot: %w", nodeName, err))
		}
		if !pl.sources.claims.reserve(pl.needOf(w, pod, info)) {
			return fwk.NewStatus(fwk.Unschedulable, w.reasons.full)
		}
	}
	return nil
}

// Unreserve takes back what Reserve has promised, and may be called for pods
// for which it has promised nothing.
func (pl *NetworkFit) Unreserve(_ context.Context, state fwk.CycleState, pod *v1.Pod, nodeName string) {
	for _, w := range readWants(state) {
		if w.unclaimed != nil {
			pl.sources.claims.release(w.UID, nodeName, pod.UID)
		}
	}
}

// PostBind has the pod forgotten as soon as it is sure to be among the node's pods.
func (pl *NetworkFit) PostBind(_ context.Context, state fwk.CycleState, pod *v1.Pod, nodeName string) {
	for _, w := range readWants(state) {
		if w.unclaimed != nil {
			pl.sources.claims.bound(w.UID, nodeName, pod.UID)
		}
	}
}

// needOf says what a pod lacks of a network on a node. Within a pod group's
// cycle the pod itself is among the node's pods already.
func (pl *NetworkFit) needOf(w *want, pod *v1.Pod, info fwk.NodeInfo) *need {
	host := info.Node()
	there := map[types.UID]bool{pod.UID: true}
	var used capacity.Load
	for _, other := range info.GetPods() {
		if p := other.GetPod(); p.UID != pod.UID {
			there[p.UID] = true
			used.AddPod(pl.sources.demands.taken(p))
		}
	}
	if offer, ok := lookup[*node](pl.sources.nodes, host.Name); ok {
		used.AddHeld(offer.held, func(uid types.UID) bool { return there[uid] || pl.sources.podExists(uid) })
	}
	return &need{
		network:   w.network,
		node:      host,
		pod:       pod.UID,
		demand:    w.demand,
		lack:      used.Of(w.Name) + w.demand - supplyOf(w.network, host.UID, pl.sources.blocksOf(host.Name)).Addresses,
		counted:   func(uid types.UID) bool { return there[uid] || !pl.sources.podExists(uid) },
		shown:     pl.sources.shown,
		unclaimed: pl.sources.unclaimed(w.network, host.Name),
	}
}
