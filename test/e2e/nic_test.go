// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"
)

// TestPodWaitsForANIC is promise c: with every NIC for data down, or unmapped,
// a pod that asks for it stays Pending and says why, and starts within seconds
// when a NIC comes back.
func TestPodWaitsForANIC(t *testing.T) {
	const soon = 15 * time.Second
	nics := backing(t, physData)
	back := env.node("worker3")
	if len(nics) != 2 || nics[back] == "" {
		t.Fatalf("nodes that back %s: %v, want worker and worker3", physData, nics)
	}
	awaitBacking := func(t *testing.T, want int) {
		t.Helper()
		eventually(t, 15*time.Second, fmt.Sprintf("%d nodes to back %s", want, physData), func() error {
			if got := backing(t, physData); len(got) != want {
				return fmt.Errorf("it is %v", got)
			}
			return nil
		})
	}
	t.Run("down", func(t *testing.T) {
		ns := namespace(t)
		for node, nic := range nics {
			setLink(t, node, nic, "down")
		}
		awaitBacking(t, 0)
		pod := createPod(t, newPod(ns, "waits", "data"))
		awaitPending(t, pod, `node(s) had the NIC for network "data" down`)
		setLink(t, back, nics[back], "up")
		started := time.Now()
		awaitRunning(t, pod, soon)
		t.Logf("the pod ran %s after the NIC came back", time.Since(started).Round(100*time.Millisecond))
		if pod.Spec.NodeName != back {
			t.Errorf("it runs on %s, want %s, whose NIC is up", pod.Spec.NodeName, back)
		}
		checkAttached(t, pod, map[string]string{"net1": netData})
	})
	awaitBacking(t, 2)

	t.Run("unmapped", func(t *testing.T) {
		ns := namespace(t)
		setMap(t, env.node("worker"), "provider:\n- {alias: phy-net0, ref_nic: eth1}\n")
		t.Run("on both", func(t *testing.T) {
			setMap(t, back, "provider:\n- {alias: phy-net0, ref_nic: eth2}\n")
			awaitBacking(t, 0)
			pod := createPod(t, newPod(ns, "waits", "data"))
			awaitPending(t, pod, `network "data"`, "NIC")
		})
		// The inner test's end has brought one map back.
		pod := newPod(ns, "waits", "data")
		awaitRunning(t, pod, soon)
	})
	awaitBacking(t, 2)
}
