// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package tight

import (
	"fmt"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
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

	patch := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"additionalSubnets":["10.64.1.0/26"]}}`))
	w.must(api.Patch(t.Context(), w.network, patch))
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
