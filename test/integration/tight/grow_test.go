// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package tight

import (
	"fmt"
	"slices"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
)

// Patience is far less than the five minutes after which the scheduler tries
// every pod again without an event.
func TestPendingPodsRunWhenAFullNetworkGrows(t *testing.T) {
	const nodes, addresses, more = 3, 2*7 - 2, 5 // a /28 has two blocks for 7 pods; each serves one less
	w := newWorld(t, "grown", "10.64.0.0/28", nodes)
	for i := range addresses + more {
		w.pod(fmt.Sprint("p-", i))
	}
	w.startAll(addresses)
	w.awaitReason(v1alpha1.ConditionAddressesAvailable, v1alpha1.ReasonAddressesExhausted)

	w.patch(`{"spec":{"additionalSubnets":["10.64.1.0/26"]}}`)
	w.startAll(addresses + more)
	w.awaitReason(v1alpha1.ConditionAddressesAvailable, v1alpha1.ReasonAddressesLeft)
}

// awaitReason waits until a condition of the Network has a reason.
func (w *world) awaitReason(kind, reason string) {
	w.t.Helper()
	w.eventually(func() string {
		w.must(api.Get(w.t.Context(), client.ObjectKeyFromObject(w.network), w.network))
		for _, c := range w.network.Status.Conditions {
			if c.Type == kind && c.Reason == reason {
				return ""
			}
		}
		return fmt.Sprintf("the Network is %+v", w.network.Status)
	})
}

// What is excluded later stays with the pods that have it, is not handed out
// again, and counts no more, be it for the scheduler, the controller or the agent.
func TestAddressesAreExcludedFromANetworkInUse(t *testing.T) {
	const addresses, excluded = 2*7 - 2, 3 // as above
	w := newWorld(t, "excluded", "10.65.0.0/28", 1)
	agent := w.agents[w.nodes[0]]
	for i := range 4 {
		w.start(w.pod(fmt.Sprint("first-", i)))
	}
	before := agent.Leases()
	kept := before[0].Address
	// Both blocks have an address among these that no pod has.
	w.patch(fmt.Sprintf(`{"spec":{"excludeRanges":["%s","10.65.0.7","10.65.0.14"]}}`, kept))
	w.awaitCapacity(addresses - excluded)

	for i := range addresses {
		w.pod(fmt.Sprint("second-", i))
	}
	w.startAll(addresses - excluded)
	for _, lease := range agent.Leases() {
		switch lease.Address.String() {
		case kept.String():
			if lease.ContainerID != before[0].ContainerID {
				t.Errorf("%s was handed out again, to %s", kept, lease.PodName)
			}
		case "10.65.0.7", "10.65.0.14":
			t.Errorf("%s was handed out to %s although it is excluded", lease.Address, lease.PodName)
		}
	}
	w.patch(`{"spec":{"excludeRanges":null}}`)
	w.awaitCapacity(addresses)
	w.startAll(addresses)
	if after := agent.Leases(); !slices.ContainsFunc(after, func(l ipam.Lease) bool { return l == before[0] }) {
		t.Errorf("%+v is not among %+v", before[0], after)
	}
}

func (w *world) patch(text string) {
	w.t.Helper()
	w.must(api.Patch(w.t.Context(), w.network, client.RawPatch("application/merge-patch+json", []byte(text))))
}

// awaitCapacity waits until the Network's status says so.
func (w *world) awaitCapacity(want int64) {
	w.t.Helper()
	w.eventually(func() string {
		w.must(api.Get(w.t.Context(), client.ObjectKeyFromObject(w.network), w.network))
		if got := w.network.Status.Addresses.Capacity; got != want {
			return fmt.Sprintf("the capacity is %d, want %d", got, want)
		}
		return ""
	})
}
