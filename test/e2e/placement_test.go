// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestPodsLandWhereTheirNetworksAre is promise a: of 20 pods that ask for
// management and data none lands on worker2, which has no NIC for data, and
// each has the interfaces that it asked for.
func TestPodsLandWhereTheirNetworksAre(t *testing.T) {
	const count = 20
	ns := namespace(t)
	var pods []*corev1.Pod
	for i := range count {
		annotation := "management@eth0,data@eth1"
		if i%2 == 1 {
			annotation = "- {name: management, ifname: eth0}\n- {name: data, ifname: eth1}\n"
		}
		pods = append(pods, createPod(t, newPod(ns, fmt.Sprintf("p%d", i), annotation)))
	}
	able := map[string]bool{env.node("worker"): true, env.node("worker3"): true}
	seen := map[string]string{}
	for _, pod := range pods {
		awaitRunning(t, pod, 120*time.Second)
		if !able[pod.Spec.NodeName] {
			t.Errorf("pod %s landed on %s", pod.Name, pod.Spec.NodeName)
		}
		checkAttached(t, pod, map[string]string{"eth0": netManagement, "eth1": netData})
		for _, a := range attachments(t, pod) {
			for _, ip := range a.IPs {
				if other, taken := seen[ip]; taken {
					t.Errorf("address %s is in pods %s and %s", ip, other, pod.Name)
				}
				seen[ip] = pod.Name
			}
		}
	}
	if want := count * 4; len(seen) != want {
		t.Errorf("the pods have %d addresses in all, want %d", len(seen), want)
	}
}

// TestPodsSpreadByAddressUse: of pods that could go anywhere, neither node gets all.
func TestPodsSpreadByAddressUse(t *testing.T) {
	ns := namespace(t)
	perNode := map[string]int{}
	var pods []*corev1.Pod
	for i := range 6 {
		pods = append(pods, createPod(t, newPod(ns, fmt.Sprintf("s%d", i), "data")))
	}
	for _, pod := range pods {
		awaitRunning(t, pod, 60*time.Second)
		perNode[pod.Spec.NodeName]++
	}
	if len(perNode) != 2 {
		t.Errorf("6 pods went to %v, want both nodes that have the network", perNode)
	}
}
