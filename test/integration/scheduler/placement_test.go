// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestPodsLandWhereTheirNetworksAre(t *testing.T) {
	w := newWorld(t)
	w.node("both-1", "phy-net0", "phy-net1")
	w.node("one", "phy-net0")
	w.node("both-2", "phy-net0", "phy-net1")
	management, data := w.network("management", "phy-net0", "10.10.0.0/16"), w.network("data", "phy-net1", "10.20.0.0/16")
	for i, node := range []string{"both-1", "one", "both-2"} {
		for j := range 2 {
			w.block(management, node, fmt.Sprintf("10.10.%d.%d/29", i+1, 8*j))
			w.block(data, node, fmt.Sprintf("10.20.%d.%d/29", i+1, 8*j)) // also where no NIC is: a block alone is not enough
		}
	}
	for i := range 20 {
		w.pod(fmt.Sprintf("p-%d", i), "- {name: management, ifname: eth0}\n- {name: data, ifname: eth1}")
	}
	eventually(t, func() string {
		if placed, pending := w.count(); placed != 20 {
			return fmt.Sprintf("%d pods are bound and %d pending", placed, pending)
		}
		return ""
	})
	on := map[string]int{}
	for _, node := range w.bound() {
		on[node]++
	}
	if on["one"] != 0 || on["both-1"] < 8 || on["both-2"] < 8 {
		t.Errorf("pods by node: %v; want about 10 on each of both-1 and both-2, which are alike, and none on one, which has no NIC for data", on)
	}
}

func TestPodsWithoutNetworksNeedNothingOfOurs(t *testing.T) {
	w := newWorld(t)
	w.node("plain")
	w.awaitBound(w.pod("p", ""))
}

func TestNoMorePodsThanAddresses(t *testing.T) {
	w := newWorld(t)
	w.node("a", "phy-net1")
	w.node("b", "phy-net1")
	w.node("c", "phy-net0")
	small := w.network("small", "phy-net1", "10.30.0.0/24")
	w.block(small, "a", "10.30.0.8/29")
	w.block(small, "b", "10.30.0.16/29")
	const addresses = 7 + 7
	for i := range addresses + 5 {
		w.pod(fmt.Sprintf("p-%d", i), "small")
	}
	settled := func() string {
		if placed, pending := w.count(); placed != addresses {
			return fmt.Sprintf("%d pods are bound and %d pending, want %d bound", placed, pending, addresses)
		}
		return ""
	}
	eventually(t, settled)
	var victims []string
	for name, node := range w.bound() {
		if node == "" {
			w.awaitPending(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}, `2 node(s) had no free address in network "small"`)
			w.awaitPending(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}, `1 node(s) had no NIC for network "small"`)
		} else if len(victims) < 2 {
			victims = append(victims, name)
		}
	}
	if complaint := settled(); complaint != "" {
		t.Fatal(complaint)
	}

	for _, name := range victims {
		if err := api.Delete(t.Context(), &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.namespace}}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() string {
		if placed, pending := w.count(); placed != addresses || pending != 3 {
			return fmt.Sprintf("after two pods were deleted %d are bound and %d pending, want %d and 3", placed, pending, addresses)
		}
		return ""
	})
}

func TestAHigherPriorityTakesAnAddress(t *testing.T) {
	w := newWorld(t)
	w.create(&schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "urgent"}, Value: 1000})
	w.node("a", "phy-net1")
	small := w.network("small", "phy-net1", "10.30.0.0/24")
	w.block(small, "a", "10.30.0.8/29")
	for i := range 7 {
		w.awaitBound(w.pod(fmt.Sprintf("p-%d", i), "small"))
	}
	w.awaitBound(w.pod("urgent", "small", func(p *v1.Pod) { p.Spec.PriorityClassName = "urgent" }))
	if placed, _ := w.count(); placed != 7 {
		t.Errorf("%d pods are bound, want 7: one had to go for the urgent one", placed)
	}
}

func TestARefusedNetworkIsNotPlaced(t *testing.T) {
	w := newWorld(t)
	offer := w.node("a", "phy-net1")
	data := w.network("data", "phy-net1", "10.20.0.0/16")
	w.block(data, "a", "10.20.1.0/29")
	offer.Status.Refused = []v1alpha1.RefusedNetwork{{Network: "data", Reason: v1alpha1.ReasonPluginConflict, Message: "eth1 is a macvlan parent"}}
	w.updateStatus(offer)
	pod := w.pod("p", "data")
	w.awaitPending(pod, `1 node(s) refused network "data": PluginConflict`)
	offer.Status.Refused = nil
	w.updateStatus(offer)
	w.awaitBound(pod)
}

// One plugin that cannot sign pods, or a configuration that makes every pod
// different, would switch batching off without a word.
func TestPodsThatAreAlikeAreBatched(t *testing.T) {
	w := newWorld(t)
	w.node("a", "phy-net1")
	w.node("b", "phy-net1")
	data := w.network("data", "phy-net1", "10.20.0.0/16")
	for i := range 8 {
		w.block(data, []string{"a", "b"}[i%2], fmt.Sprintf("10.20.1.%d/29", 8*i))
	}
	before := batchHints(t)
	for i := range 40 {
		w.pod(fmt.Sprintf("p-%d", i), "data")
	}
	eventually(t, func() string {
		if placed, pending := w.count(); placed != 40 {
			return fmt.Sprintf("%d pods are bound and %d pending", placed, pending)
		}
		return ""
	})
	if after := batchHints(t); after <= before {
		t.Errorf("no pod was placed by a hint of its predecessor's (scheduler_batch_attempts_total stayed %v)", before)
	}
}

// batchHints reads how many pods were placed by the hint of the pod before.
func batchHints(t *testing.T) float64 {
	t.Helper()
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
	for _, family := range families {
		if family.GetName() != "scheduler_batch_attempts_total" {
			continue
		}
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "result" && label.GetValue() == "hint_used" {
					sum += metric.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}
