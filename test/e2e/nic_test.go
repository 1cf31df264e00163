// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
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

// TestEndpointsFollowTheNIC: with a NIC down the pods of its node leave the
// slices of its network, and no others, within a second; they return with it.
func TestEndpointsFollowTheNIC(t *testing.T) {
	ns := namespace(t)
	const name = "web"
	if err := env.client.Create(t.Context(), newService(ns, name)); err != nil {
		t.Fatal(err)
	}
	var pods []*corev1.Pod
	for _, suffix := range []string{"worker", "worker3"} {
		pods = append(pods, createPod(t, newPod(ns, name+"-"+suffix, "management,data", on(env.node(suffix)), labelled("app", name))))
	}
	for _, pod := range pods {
		awaitRunning(t, pod, 60*time.Second)
	}
	awaitSlices(t, ns, name, pods)
	b := newBalancer(t.Context(), t, ns, name)
	node := env.node("worker")
	nic := backing(t, physData)[node]
	on := func(network string, all ...*corev1.Pod) []string {
		var out []string
		for _, pod := range all {
			out = append(out, addressIn(t, pod, network, false), addressIn(t, pod, network, true))
		}
		return sorted(out)
	}
	management := on(netManagement, pods...)
	// set sets the NIC, and tells how long that took to reach a watch of the slices.
	set := func(state string, want []string) time.Duration {
		t.Helper()
		began := setLinkAt(t, node, nic, state)
		for !slices.Equal(sorted(b.ready(netData)), want) {
			if time.Since(began) > 10*time.Second {
				t.Fatalf("NIC %s: ready on data are %v, want %v", state, b.ready(netData), want)
			}
			time.Sleep(time.Millisecond)
		}
		took := time.Since(began)
		if got := sorted(b.ready(netManagement)); !slices.Equal(got, management) {
			t.Errorf("NIC %s: ready on management are %v, want %v", state, got, management)
		}
		return took
	}
	// A busy machine may spoil a try, and even a round; a controller that gathers
	// changes, or an agent that polls, is late in all of them.
	const rounds, tries, bound = 3, 3, time.Second
	for range rounds {
		var down, up []time.Duration
		for range tries {
			down = append(down, set("down", on(netData, pods[1])))
			up = append(up, set("up", on(netData, pods...)))
			time.Sleep(time.Second)
		}
		slices.Sort(down)
		slices.Sort(up)
		t.Logf("NIC down: the endpoints left after %s (median of %v); NIC up: they were back after %s (of %v)", down[tries/2], down, up[tries/2], up)
		if down[tries/2] <= bound {
			return
		}
	}
	t.Errorf("with the NIC down the endpoints stayed for more than %s", bound)
}

// setLinkAt is setLink, and tells when the NIC began to change: to enter a node
// may take long. The nodes are containers, whose clock is the tests' own.
func setLinkAt(t *testing.T, node, nic, state string) time.Time {
	t.Helper()
	if state == "down" {
		t.Cleanup(func() {
			if _, err := onNode(context.WithoutCancel(t.Context()), node, "", "ip", "link", "set", nic, "up"); err != nil {
				t.Errorf("setting the NIC up again: %v", err)
			}
		})
	}
	out := strings.TrimSpace(mustOnNode(t, node, "sh", "-c", fmt.Sprintf("date +%%s%%N && ip link set %s %s", nic, state)))
	nanoseconds, err := strconv.ParseInt(out, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Unix(0, nanoseconds)
}
