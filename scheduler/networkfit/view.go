// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"sync"
	"sync/atomic"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/scheduler/capacity"
)

// views remember, node by node, what was found out about it, so that Filter
// mostly compares two numbers. Nodes share no lock: neither here, nor that of
// the informers' stores, which is taken only where something has changed.
//
// A view is good for one version of its node. The version rises with each
// change of the node's NodeNetwork and of the blocks that name the node. It is
// the index functions that raise it (changedNode, Sources.changedBlock): a store calls
// them for the old and for the new object, while it holds its lock, so whoever
// sees the change in the store sees the new version, too, and no handler that
// might lag is needed. With one exception: when an informer lists anew it
// replaces its store's content, and the index functions are not called for
// what is gone (client-go tools/cache, threadSafeMap.Replace). The handler of
// Sources does that; it may lag, as the deletion itself may, and wakes nobody.
type views struct {
	byNode sync.Map // string -> *slot
	count  atomic.Int64
}

// maxViews bounds how many nodes are remembered, those that are long gone included.
const maxViews = 1 << 16

// slot is where the newest view of one node is kept.
type slot struct {
	version atomic.Uint64
	newest  atomic.Pointer[view]
}

// of finds the slot of a node. A slot may be forgotten at any moment: a new
// one is empty, and enters the map before the stores are read for it.
func (v *views) of(name string) *slot {
	if known, ok := v.byNode.Load(name); ok {
		return known.(*slot)
	}
	if v.count.Add(1) > maxViews {
		v.byNode.Clear()
		v.count.Store(1)
	}
	made, _ := v.byNode.LoadOrStore(name, &slot{})
	return made.(*slot)
}

// changed makes the view of a node stale.
func (v *views) changed(name string) {
	if known, ok := v.byNode.Load(name); ok {
		known.(*slot).version.Add(1)
	}
}

// changedNode is an index function that indexes nothing.
func (v *views) changedNode(obj any) ([]string, error) {
	if n, ok := obj.(*node); ok {
		v.changed(n.name)
	}
	return nil, nil
}

// view is one version of a node as the plugin sees it.
type view struct {
	version uint64
	uid     types.UID // of the Node: blocks of an older one of its name do not serve
	node    *node     // nil if there is no NodeNetwork
	blocks  []*block  // that name the node
	offers  atomic.Pointer[[]offer]
	counted atomic.Pointer[counted]
}

// offer is what a node offers of one network, whoever is on the node.
type offer struct {
	edition edition
	lack    lack
	supply  capacity.Supply
}

// counted is the load of a node at one generation of its NodeInfo. The
// generation is unique to a set of pods, also when preemption is simulated
// (k8s.io/kubernetes pkg/scheduler/framework/types.go, nextGeneration); for
// pod groups see NetworkFit.load.
// Whether the pod of a held entry exists is not part of the key: when such a
// pod goes, it leaves the NodeInfo that it was counted in, too, and the
// generation changes.
type counted struct {
	generation int64
	load       capacity.Load
}

// view returns what is known of a node.
func (s *Sources) view(host *v1.Node) *view {
	place := s.views.of(host.Name)
	version := place.version.Load() // before the stores are read: a view may be newer than its version, never older
	if newest := place.newest.Load(); newest != nil && newest.version == version && newest.uid == host.UID {
		return newest
	}
	fresh := &view{version: version, uid: host.UID}
	if fresh.node, _ = lookup[*node](s.nodes, host.Name); fresh.node != nil {
		fresh.blocks = s.blocksOf(host.Name)
	}
	place.newest.Store(fresh)
	return fresh
}

// offer returns what the node, which has a NodeNetwork, offers of a network.
func (v *view) offer(net *network) *offer {
	var others []offer
	if known := v.offers.Load(); known != nil {
		others = *known
	}
	for i := range others {
		if others[i].edition == net.edition {
			return &others[i]
		}
	}
	found := make([]offer, 1, len(others)+1)
	found[0] = offer{edition: net.edition, lack: v.node.lacks(net)}
	if net.plan != nil {
		found[0].supply = supplyOf(net, v.uid, v.blocks)
	}
	for i := range others {
		if others[i].edition.uid != net.UID {
			found = append(found, others[i])
		}
	}
	// Of two that do this at once one's work is lost, and done again.
	v.offers.Store(&found)
	return &found[0]
}

// load is what is in use on the node if it has the pods of info. While a pod
// group is tried as a whole nothing is remembered: its members enter the
// snapshot, and leave it, without a new generation (k8s.io/kubernetes
// pkg/scheduler/backend/cache/snapshot.go, AssumePod).
func (pl *NetworkFit) load(state fwk.CycleState, seen *view, info fwk.NodeInfo) capacity.Load {
	if state.IsPodGroupSchedulingCycle() {
		return seen.node.load(info, pl.sources)
	}
	return seen.load(info, pl.sources)
}

// load remembers what is in use on the node if it has the pods of info.
func (v *view) load(info fwk.NodeInfo, sources *Sources) capacity.Load {
	generation := info.GetGeneration()
	if last := v.counted.Load(); last != nil && last.generation == generation {
		return last.load
	}
	load := v.node.load(info, sources)
	v.counted.Store(&counted{generation: generation, load: load})
	return load
}
