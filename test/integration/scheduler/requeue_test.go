// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

// Several times, because a pod that is woken before the data is there would
// wait for five minutes, but only now and then.
func TestAPodStartsWhenTheNICIsBack(t *testing.T) {
	w := newWorld(t)
	offer := w.node("a", "phy-net1")
	w.block(w.network("data", "phy-net1", "10.20.0.0/16"), "a", "10.20.1.0/29")
	for _, name := range []string{"first", "second", "third"} {
		w.setNICs(offer, false)
		pod := w.pod(name, "data")
		w.awaitPending(pod, `1 node(s) had the NIC for network "data" down`)
		w.setNICs(offer, true)
		w.awaitBound(pod)
	}
}

func TestAPodStartsWhenTheAgentIsReady(t *testing.T) {
	w := newWorld(t)
	w.node("a")
	w.block(w.network("data", "phy-net1", "10.20.0.0/16"), "a", "10.20.1.0/29")
	pod := w.pod("p", "data")
	w.awaitPending(pod, "1 node(s) had no ready netplane agent")

	offer := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	w.create(offer)
	offer.Status.PhysicalNetworks = []v1alpha1.NodePhysicalNetwork{{Name: "phy-net1", Ready: true, Reason: v1alpha1.ReasonInterfaceUp}}
	offer.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionAgentReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAgentPodReady, LastTransitionTime: metav1.Now()}}
	w.updateStatus(offer)
	w.awaitBound(pod)
}

func TestAPodStartsWhenABlockIsClaimed(t *testing.T) {
	w := newWorld(t)
	w.node("a", "phy-net1")
	data := w.network("data", "phy-net1", "10.20.0.0/16")
	pod := w.pod("p", "data")
	w.awaitPending(pod, `1 node(s) held no address block of network "data"`)
	w.block(data, "a", "10.20.1.0/29")
	w.awaitBound(pod)
}

// A pod that is gone may have left its sandbox: its addresses are free only
// when the agent no longer holds them.
func TestAPodStartsWhenAHeldAddressGoesFree(t *testing.T) {
	w := newWorld(t)
	offer := w.node("a", "phy-net1")
	w.block(w.network("data", "phy-net1", "10.20.0.0/16"), "a", "10.20.1.0/29")
	offer.Status.Held = []v1alpha1.HeldAddresses{{Network: "data", Count: 6}, {Network: "data", Count: 1, PodUID: "gone"}}
	w.updateStatus(offer)
	pod := w.pod("p", "data")
	w.awaitPending(pod, `1 node(s) had no free address in network "data"`)
	offer.Status.Held = offer.Status.Held[:1]
	w.updateStatus(offer)
	w.awaitBound(pod)
}

func TestAPodStartsWhenItsNetworkIsThere(t *testing.T) {
	w := newWorld(t)
	w.node("a", "phy-net1")
	pod := w.pod("p", "data")
	w.awaitPending(pod, `network "data" does not exist: create it, or correct annotation netplane.io/networks`)
	data := w.network("data", "phy-net1", "10.20.0.0/16")
	w.block(data, "a", "10.20.1.0/29")
	w.awaitBound(pod)
}

func TestAPodStartsWhenItsNetworkIsReady(t *testing.T) {
	w := newWorld(t)
	w.node("a", "phy-net1")
	data := w.network("data", "phy-net1", "10.20.0.0/16")
	w.block(data, "a", "10.20.1.0/29")
	w.setReady(data, metav1.ConditionFalse, v1alpha1.ReasonSubnetOverlap, `subnet overlaps network "older"`)
	pod := w.pod("p", "data")
	w.awaitPending(pod, `network "data" is not ready: SubnetOverlap: subnet overlaps network "older"`)
	w.setReady(data, metav1.ConditionTrue, v1alpha1.ReasonReady, "")
	w.awaitBound(pod)
}

func TestAPodStartsWhenItsNamespaceIsAdmitted(t *testing.T) {
	w := newWorld(t)
	w.node("a", "phy-net1")
	data := w.network("data", "phy-net1", "10.20.0.0/16", func(s *v1alpha1.NetworkSpec) {
		s.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}}
	})
	w.block(data, "a", "10.20.1.0/29")
	pod := w.pod("p", "data")
	w.awaitPending(pod, `network "data" does not admit pods of namespace "`+w.namespace+`"`)

	var namespace v1.Namespace
	if err := api.Get(t.Context(), key(w.namespace), &namespace); err != nil {
		t.Fatal(err)
	}
	namespace.Labels["team"] = "a"
	if err := api.Update(t.Context(), &namespace); err != nil {
		t.Fatal(err)
	}
	w.awaitBound(pod)
}

func TestAPodStartsWhenItsAnnotationIsCorrected(t *testing.T) {
	w := newWorld(t)
	w.node("a", "phy-net1")
	w.block(w.network("data", "phy-net1", "10.20.0.0/16"), "a", "10.20.1.0/29")
	for name, test := range map[string]struct{ annotation, want string }{
		"ifname-too-long":  {"- {name: data, ifname: abcdefghijklmnop}", `item 1 (network "data"): ifname "abcdefghijklmnop" has 16 characters`},
		"ifname-repeated":  {"data@eth1,data@eth1", `item 2 (network "data"): ifname "eth1" is already used by item 1`},
		"unknown-key":      {"- {name: data, interface: eth1}", `unknown field "interface"`},
		"fixed-address":    {"- {name: data, ips: [10.20.1.3]}", `ips: network "data" has no staticRange`},
		"a-name-with-dots": {"data.net@eth1", `item 1 (network "data.net"): the name is no DNS label`},
	} {
		t.Run(name, func(t *testing.T) {
			pod := w.pod(name, test.annotation)
			w.awaitPending(pod, test.want)
			if err := api.Get(t.Context(), key(w.namespace, name), pod); err != nil {
				t.Fatal(err)
			}
			pod.Annotations[v1alpha1.AnnotationNetworks] = "data"
			if err := api.Update(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
			w.awaitBound(pod)
		})
	}
}
