// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2/ktesting"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/api/v1alpha1"
)

// What goes free of a Tight network is any node's to have.
func TestHintsOfATightNetwork(t *testing.T) {
	tight := makeNetwork("data", aTightNetwork)
	plenty := makeNetwork("data", aTightNetwork, func(n *v1alpha1.Network) { n.Status.Conditions = nil }, setReady(metav1.ConditionTrue, v1alpha1.ReasonReady, ""))
	elsewhere := makePod("other", "data")
	elsewhere.Spec.NodeName = "bare"
	block := makeBlock("data", "bare", 0)
	for name, test := range map[string]struct {
		network  *network
		pod      string
		resource string
		action   fwk.ActionType
		old, new any
		want     fwk.QueueingHint
	}{
		"the network becomes Tight":             {tight, "data", "networks.v1alpha1.netplane.io", fwk.Update, plenty, tight, fwk.Queue},
		"the network stays Tight":               {tight, "data", "networks.v1alpha1.netplane.io", fwk.Update, tight, tight, fwk.QueueSkip},
		"the network is no longer Tight":        {plenty, "data", "networks.v1alpha1.netplane.io", fwk.Update, tight, plenty, fwk.QueueSkip},
		"a block goes":                          {tight, "data", "ipblocks.v1alpha1.netplane.io", fwk.Delete, block, nil, fwk.Queue},
		"a block went unseen":                   {tight, "data", "ipblocks.v1alpha1.netplane.io", fwk.Delete, cache.DeletedFinalStateUnknown{Obj: block}, nil, fwk.Queue},
		"a block goes where agents claim ahead": {plenty, "data", "ipblocks.v1alpha1.netplane.io", fwk.Delete, block, nil, fwk.QueueSkip},
		"a block of another network goes":       {tight, "management", "ipblocks.v1alpha1.netplane.io", fwk.Delete, block, nil, fwk.QueueSkip},
		"a pod goes, or its binding fails":      {tight, "data", "AssignedPod", fwk.Delete, elsewhere, nil, fwk.Queue},
		"a pod goes where agents claim ahead":   {plenty, "data", "AssignedPod", fwk.Delete, elsewhere, nil, fwk.QueueSkip},
	} {
		t.Run(name, func(t *testing.T) {
			pl := newPlugin(t, test.network, makeNode("n", up("data")), makeNode("bare", nil))
			events, err := pl.EventsToRegister(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			logger, _ := ktesting.NewTestContext(t)
			for _, event := range events {
				if string(event.Event.Resource) != test.resource || event.Event.ActionType&test.action == 0 {
					continue
				}
				got, err := event.QueueingHintFn(logger, makePod("p", test.pod), stored(test.old), stored(test.new))
				if err != nil || got != test.want {
					t.Errorf("hint %v (error %v), want %v", got, err, test.want)
				}
				return
			}
			t.Errorf("no hint is registered for %s", test.resource)
		})
	}
}

// tightNodes and tightBlocks are those of a tightCluster.
const tightNodes, tightBlocks = 5000, 1024

// tightCluster has nodes that share a /16, of which the first have so many blocks.
func tightCluster(t testing.TB, claimed int) (*NetworkFit, []*nodeInfo) {
	t.Helper()
	net := makeNetwork("data", func(n *v1alpha1.Network) {
		n.Spec.BlockSize = 64
		meta.SetStatusCondition(&n.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionTight, Status: metav1.ConditionTrue})
	})
	objects := []any{net}
	lister := &snapshot{infos: map[string]*nodeInfo{}}
	infos := make([]*nodeInfo, 0, tightNodes)
	for i := range tightNodes {
		name := fmt.Sprint("node-", i)
		objects = append(objects, makeNode(name, up("data")))
		lister.infos[name] = newNodeInfo(name)
		infos = append(infos, lister.infos[name])
	}
	i := 0
	for prefix := range net.plan.Candidates("first") {
		if i == claimed {
			break
		}
		w := &tight{api: &fakeAPI{blocks: map[string]*v1alpha1.IPBlock{}}}
		objects = append(objects, w.claimedBy(fmt.Sprint("node-", i), prefix))
		i++
	}
	pl := newPlugin(t, objects...)
	pl.handle, pl.blocks = lister, &fakeAPI{blocks: map[string]*v1alpha1.IPBlock{}}
	return pl, infos
}

// 5,000 nodes and 1,024 blocks: whatever nodes the pods are pinned to, each
// gets a place as long as there are blocks.
func TestBlocksGoToTheNodesThatNeedThem(t *testing.T) {
	pl, infos := tightCluster(t, 0)
	placed := 0
	for i := range tightBlocks + 10 {
		info := infos[i*tightNodes/(tightBlocks+10)]
		pod, state := makePod(fmt.Sprint("p", i), "data"), newCycleState()
		pl.PreFilter(t.Context(), state, pod, nil)
		if status := pl.Filter(t.Context(), state, pod, info); !status.IsSuccess() {
			continue
		}
		if status := pl.Reserve(t.Context(), state, pod, info.node.Name); !status.IsSuccess() {
			t.Fatalf("pod %d passes Filter, but not Reserve: %v", i, answerOf(status))
		}
		if status := pl.PreBind(t.Context(), state, pod, info.node.Name); !status.IsSuccess() {
			t.Fatalf("pod %d: %v", i, answerOf(status))
		}
		info.set(int64(i+2), pod)
		placed++
	}
	if placed != tightBlocks {
		t.Errorf("%d pods were placed, want %d", placed, tightBlocks)
	}
}

// One operation is one pod that is offered 5,000 nodes, most of which lack a block.
func BenchmarkFilterOfATightNetwork(b *testing.B) {
	pl, infos := tightCluster(b, 512)
	for i := range 100 { // on their way
		pod, state := makePod(fmt.Sprint("p", i), "data"), newCycleState()
		pl.PreFilter(b.Context(), state, pod, nil)
		pl.Reserve(b.Context(), state, pod, infos[1000+i].node.Name)
	}
	pod := makePod("p", "data")
	b.ReportAllocs()
	for b.Loop() {
		state := newCycleState()
		pl.PreFilter(b.Context(), state, pod, nil)
		for _, info := range infos {
			if status := pl.Filter(b.Context(), state, pod, info); !status.IsSuccess() {
				b.Fatal(status)
			}
		}
	}
}

func BenchmarkReserve(b *testing.B) {
	pl, infos := tightCluster(b, 512)
	pod, state := makePod("p", "data"), newCycleState()
	pl.PreFilter(b.Context(), state, pod, nil)
	var there []*v1.Pod
	for i := range 50 {
		there = append(there, makePod(fmt.Sprint("q", i), ""))
	}
	infos[4000].set(2, there...)
	b.ReportAllocs()
	for b.Loop() {
		pl.Reserve(b.Context(), state, pod, "node-4000")
		pl.Unreserve(b.Context(), state, pod, "node-4000")
	}
}
