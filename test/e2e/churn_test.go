// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	churnRounds   = 5
	churnPerRound = 20
)

func workers() []string {
	return []string{env.node("worker"), env.node("worker2"), env.node("worker3")}
}

// TestChurnLeavesNothingBehind is promise g.
func TestChurnLeavesNothingBehind(t *testing.T) {
	churn(t, func(int) {})
}

// TestChurnWithKilledAgents is promise h: the same, with every agent killed in
// the middle, once while pods start and once while they go.
func TestChurnWithKilledAgents(t *testing.T) {
	before := restarts(t)
	churn(t, func(moment int) {
		if moment == 1 || moment == 6 {
			for _, node := range workers() {
				killAgent(t, node)
			}
		}
	})
	for node, after := range restarts(t) {
		if after <= before[node] {
			t.Errorf("the agent of %s was never killed: %d restarts before and %d after", node, before[node], after)
		}
	}
}

// restarts counts, by worker, how often its agent was started anew.
func restarts(t *testing.T) map[string]int32 {
	t.Helper()
	out := map[string]int32{}
	for _, node := range workers() {
		pod, err := agentPod(t.Context(), node)
		if err != nil || pod == nil || len(pod.Status.ContainerStatuses) == 0 {
			t.Fatalf("finding the agent of %s: %v", node, err)
		}
		out[node] = pod.Status.ContainerStatuses[0].RestartCount
	}
	return out
}

// churn creates and deletes pods in rounds and then looks for what they left.
// disturb is called twice a round: in the middle of starting, and of going.
func churn(t *testing.T, disturb func(moment int)) {
	ns := namespace(t)
	if err := env.client.Create(t.Context(), newService(ns, "churn")); err != nil {
		t.Fatal(err)
	}
	usedBefore := map[string]int64{}
	for _, network := range []string{netManagement, netData} {
		usedBefore[network] = settledUse(t, network)
	}
	linksBefore := map[string][]string{}
	for _, node := range workers() {
		linksBefore[node] = nodeLinks(t, node)
	}
	for round := range churnRounds {
		var pods []*corev1.Pod
		for i := range churnPerRound {
			networks := "management"
			if i%2 == 0 {
				networks = "management@eth0,data@eth1"
			}
			pods = append(pods, createPod(t, newPod(ns, fmt.Sprintf("r%d-%d", round, i), networks, labelled("app", "churn"))))
		}
		time.Sleep(time.Second)
		disturb(2 * round)
		for _, pod := range pods {
			awaitRunning(t, pod, 120*time.Second)
		}
		if round == 0 {
			checkAttached(t, pods[0], map[string]string{"eth0": netManagement, "eth1": netData})
			checkAttached(t, pods[1], map[string]string{"net1": netManagement})
		}
		if err := env.client.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(ns)); err != nil {
			t.Fatal(err)
		}
		disturb(2*round + 1)
		awaitNoPods(t.Context(), t, ns)
	}
	for _, node := range workers() {
		awaitAgent(t, node)
	}
	for _, node := range workers() {
		checkNodeIsClean(t, node, ns, linksBefore[node])
	}
	checkNoEndpoints(t, ns, "churn")
	for network, before := range usedBefore {
		eventually(t, 75*time.Second, "the used addresses of "+network, func() error {
			if used := usedNow(t, network); used != before {
				return fmt.Errorf("they are %d, were %d before", used, before)
			}
			return nil
		})
	}
}

func usedNow(t *testing.T, network string) int64 {
	t.Helper()
	n, _ := planOf(t, network)
	return n.Status.Addresses.Used
}

// settledUse is what the living pods of a network account for: the counter in
// the status is refreshed at most every 30 s, and an earlier test's pods may
// still be in it.
func settledUse(t *testing.T, network string) int64 {
	t.Helper()
	var want int64
	eventually(t, 75*time.Second, "the used addresses of "+network+" to settle", func() error {
		var pods corev1.PodList
		if err := env.client.List(t.Context(), &pods); err != nil {
			return err
		}
		want = 0
		for i := range pods.Items {
			for _, a := range attachments(t, &pods.Items[i]) {
				if a.Name == network {
					want++
				}
			}
		}
		if used := usedNow(t, network); used != want {
			return fmt.Errorf("they are %d, the pods have %d", used, want)
		}
		return nil
	})
	return want
}

// checkNodeIsClean looks for what the pods of a namespace left on a node.
func checkNodeIsClean(t *testing.T, node, ns string, links []string) {
	t.Helper()
	eventually(t, 60*time.Second, "node "+node+" to be clean", func() error {
		if now := nodeLinks(t, node); !slices.Equal(now, links) {
			return fmt.Errorf("the links for pods are %v, were %v before", now, links)
		}
		return traces(t, node, ns)
	})
}

// traces complains about addresses and files of a namespace's pods on a node.
func traces(t *testing.T, node, ns string) error {
	t.Helper()
	if leases := journalLeases(t, node, ns); len(leases) > 0 {
		return fmt.Errorf("the journal has the leases %v", leases)
	}
	left, err := onNode(t.Context(), node, "", "sh", "-c", "cd /run/netplane && { grep -ls "+ns+" sandboxes/*; ls -d sandboxes/*.new spool/* 2>/dev/null; true; }")
	if err != nil {
		return fmt.Errorf("looking into /run/netplane: %w", err)
	}
	if strings.TrimSpace(left) != "" {
		return fmt.Errorf("files in /run/netplane: %s", left)
	}
	nn, err := getNodeNetwork(t.Context(), node)
	if err != nil {
		return err
	}
	if len(nn.Status.Held) > 0 {
		return fmt.Errorf("held addresses: %+v", nn.Status.Held)
	}
	return nil
}

func checkNoEndpoints(t *testing.T, ns, service string) {
	t.Helper()
	eventually(t, 20*time.Second, "the Service's slices to be empty", func() error {
		ready, err := readyByGroup(t, ns, service)
		if err != nil {
			return err
		}
		if len(ready) > 0 {
			return fmt.Errorf("they have %v", ready)
		}
		return nil
	})
}

// journalLeases are the leases of a namespace's pods that an agent's journal
// holds: each line is a checksum and a record of leases taken or freed.
func journalLeases(t testing.TB, node, ns string) []string {
	t.Helper()
	text := mustOnNode(t, node, "cat", "/run/netplane/addresses.journal")
	type lease struct {
		PodNamespace, PodName, ContainerID, IfName, Network, Address string
	}
	live := map[string]string{}
	for line := range strings.Lines(text) {
		_, raw, ok := strings.Cut(line, " ")
		if !ok {
			continue
		}
		var record struct {
			Op     string  `json:"op"`
			Leases []lease `json:"leases"`
		}
		if err := json.Unmarshal([]byte(raw), &record); err != nil {
			continue // a line that was cut short when the agent was killed
		}
		for _, l := range record.Leases {
			key := l.ContainerID + " " + l.IfName + " " + l.Network + " " + l.Address
			if record.Op == "free" {
				delete(live, key)
			} else if l.PodNamespace == ns {
				live[key] = l.PodName + " " + l.IfName + " " + l.Address
			}
		}
	}
	out := make([]string, 0, len(live))
	for _, l := range live {
		out = append(out, l)
	}
	slices.Sort(out)
	return out
}
