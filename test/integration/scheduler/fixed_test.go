// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/v1alpha1"
)

// claim makes the IPClaim of a pod's interface net1.
func (w *world) claim(network *v1alpha1.Network, address, pod string) *v1alpha1.IPClaim {
	w.t.Helper()
	claim := &v1alpha1.IPClaim{
		ObjectMeta: metav1.ObjectMeta{Name: network.Name + "." + address},
		Spec: v1alpha1.IPClaimSpec{
			Network: network.Name, NetworkUID: network.UID, Address: v1alpha1.IP(address),
			Owner: v1alpha1.IPClaimOwner{Kind: v1alpha1.IPClaimOwnerPod, Namespace: w.namespace, Name: pod, Interface: "net1"},
		},
	}
	w.create(claim)
	return claim
}

// hand writes a claim's status as netplane-controller does.
func (w *world) hand(claim *v1alpha1.IPClaim, uid types.UID, pod string, bound metav1.Condition) {
	w.t.Helper()
	bound.Type = v1alpha1.ConditionBound
	claim.Status.PodUID, claim.Status.PodName = uid, pod
	meta.SetStatusCondition(&claim.Status.Conditions, bound)
	w.updateStatus(claim)
}

// A pod with a fixed address says what it waits for, until its claim is handed
// to it; the claim's events alone wake it.
func TestAPodStartsWhenItsFixedAddressIsHandedToIt(t *testing.T) {
	w := newWorld(t)
	w.node("a", "phy-net1")
	data := w.network("data", "phy-net1", "10.20.0.0/16", func(s *v1alpha1.NetworkSpec) { s.StaticRange = "10.20.254.0/24" })
	pod := w.pod("db-0", "- {name: data, sticky: true}")
	w.awaitPending(pod, `network "data": waits for a fixed address: netplane-controller has made no IPClaim for the pod yet`)

	claim := w.claim(data, "10.20.254.5", "db-0")
	w.awaitPending(pod, `network "data": waits for fixed address 10.20.254.5: netplane-controller has not handed it to the pod yet`)
	w.hand(claim, "the former pod", "db-0", metav1.Condition{Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonFormerNodeUnknown, Message: "node b does not answer"})
	w.awaitPending(pod, `network "data": waits for fixed address 10.20.254.5: FormerNodeUnknown: node b does not answer`)
	w.hand(claim, pod.UID, "db-0", metav1.Condition{Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonBound})
	// The node holds no block of the network: a fixed address takes none.
	w.awaitBound(pod)
}

func TestAPodIsToldWhoHasItsFixedAddress(t *testing.T) {
	w := newWorld(t)
	w.node("a", "phy-net1")
	data := w.network("data", "phy-net1", "10.20.0.0/16", func(s *v1alpha1.NetworkSpec) { s.StaticRange = "10.20.254.0/24" })
	w.claim(data, "10.20.254.5", "first")
	for name, want := range map[string]string{
		"10.20.254.5": `network "data": fixed address 10.20.254.5 belongs to interface net1 of pod ` + w.namespace + `/first`,
		"10.20.3.5":   `annotation netplane.io/networks: item 1 (network "data"): ips: 10.20.3.5 does not lie in staticRange 10.20.254.0/24 of network "data"`,
	} {
		w.awaitPending(w.pod("asks-"+name, "- {name: data, ips: ["+name+"]}"), want)
	}
}
