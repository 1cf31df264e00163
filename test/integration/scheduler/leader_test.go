// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/integration/schedulerprocess"
)

// Nothing is kept in memory that is not in the API: the leader is killed in
// the middle of a burst, with pods that it has assumed and not yet bound, and the
// other replica goes on without placing anyone twice or too many.
func TestALeaderIsKilledInTheMiddleOfABurst(t *testing.T) {
	config, api := ownServer(t)
	file, err := schedulerprocess.WriteConfig(schedulerprocess.Shipped, config, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorldAt(t, api)
	burst := w.network("burst", "phy-net1", "10.40.0.0/16")
	const nodes, blocks = 4, 12
	var offers []*v1alpha1.NodeNetwork
	for i := range nodes {
		node := fmt.Sprintf("n-%d", i)
		offers = append(offers, w.node(node, "phy-net1"))
		w.setNICs(offers[i], false)
		for j := range blocks {
			w.block(burst, node, fmt.Sprintf("10.40.%d.%d/29", i, 8*j+8))
		}
	}
	const each = 7 * blocks
	const addresses, pods = nodes * each, nodes*each + 40

	// Shorter than the defaults, which would only take longer.
	flags := []string{"--leader-elect=true", "--leader-elect-lease-duration=5s", "--leader-elect-renew-deadline=4s", "--leader-elect-retry-period=500ms"}
	first := schedulerprocess.Start(t, file, flags...)
	leader := w.awaitLeader("")
	second := schedulerprocess.Start(t, file, flags...)
	for i := range pods {
		w.pod(fmt.Sprintf("p-%d", i), "burst")
	}
	// They all wait; the NICs come up, and so does the burst.
	for _, offer := range offers {
		w.setNICs(offer, true)
	}
	begun := time.Now()
	for placed := 0; placed == 0; placed, _ = w.count() {
		if time.Since(begun) > soon {
			t.Fatal("the burst has not begun")
		}
	}
	first.Kill()
	if placed, _ := w.count(); placed == addresses {
		t.Fatal("the burst was over before the leader was killed: this proves nothing")
	} else {
		t.Logf("the leader was killed when %d of %d pods were placed", placed, addresses)
	}
	w.awaitLeader(leader)
	eventuallyWithin(t, schedulerprocess.Starting, func() string {
		if placed, pending := w.count(); placed != addresses {
			return fmt.Sprintf("%d pods are bound and %d pending, want %d bound", placed, pending, addresses)
		}
		return ""
	})
	on := map[string]int{}
	for _, node := range w.bound() {
		on[node]++
	}
	for node, count := range on {
		if node != "" && count != each {
			t.Errorf("%d pods are bound to %s, which has %d addresses", count, node, each)
		}
	}
	// A third one, after the second: whoever leads finds the same account.
	schedulerprocess.Start(t, file, flags...)
	leader = w.leader()
	second.Kill()
	for name, node := range w.bound() {
		if node != "" {
			if err := api.Delete(t.Context(), &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.namespace}}, client.GracePeriodSeconds(0)); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	w.awaitLeader(leader)
	eventuallyWithin(t, schedulerprocess.Starting, func() string {
		if placed, pending := w.count(); placed != addresses || pending != pods-addresses-1 {
			return fmt.Sprintf("%d pods are bound and %d pending, want %d and %d", placed, pending, addresses, pods-addresses-1)
		}
		return ""
	})
}

// leader is who holds the scheduler's lease.
func (w *world) leader() string {
	w.t.Helper()
	var lease coordinationv1.Lease
	if err := w.api.Get(w.t.Context(), key(v1alpha1.SystemNamespace, "netplane-scheduler"), &lease); client.IgnoreNotFound(err) != nil {
		w.t.Fatal(err)
	}
	if lease.Spec.HolderIdentity == nil {
		return ""
	}
	return strings.TrimSpace(*lease.Spec.HolderIdentity)
}

// awaitLeader waits for a leader other than the one before.
func (w *world) awaitLeader(before string) string {
	w.t.Helper()
	var now string
	eventuallyWithin(w.t, schedulerprocess.Starting, func() string {
		if now = w.leader(); now == "" || now == before {
			return fmt.Sprintf("the lease is held by %q", now)
		}
		return ""
	})
	return now
}
