// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// Names of what this file makes.
const (
	netWhole  = "e2e-whole"
	physWhole = "phy-whole"
)

// wholeNetwork makes a Network of whole NICs.
func wholeNetwork(t *testing.T) {
	t.Helper()
	physical := &v1alpha1.PhysicalNetwork{}
	physical.Name = physWhole
	if err := env.client.Create(t.Context(), physical); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.client.Delete(context.WithoutCancel(t.Context()), physical); err != nil {
			t.Error(err)
		}
	})
	newNetwork(t, netWhole, v1alpha1.NetworkSpec{PhysicalNet: physWhole, Plugin: v1alpha1.PluginHostDevice, Subnet: "10.77.0.0/24", Subnet6: "fd00:10:77::/64"})
}

// giveNICs plugs more NICs into a node, wired to a switch there, and maps them to
// physWhole.
func giveNICs(t *testing.T, node string, nics ...string) {
	t.Helper()
	plug, unplug, mapped := "ip link add sw-whole type bridge; ip link set sw-whole up\n", "ip link del sw-whole\n", ""
	for _, nic := range nics {
		plug += strings.ReplaceAll("ip link add NIC type veth peer name sw-NIC; ip link set sw-NIC master sw-whole up; ip link set NIC up\n", "NIC", nic)
		unplug += "ip link del " + nic + "\n"
		mapped += "- {alias: " + physWhole + ", ref_nic: " + nic + "}\n"
	}
	t.Cleanup(func() {
		if _, err := onNode(context.WithoutCancel(t.Context()), node, "", "sh", "-c", unplug+"true"); err != nil {
			t.Error(err)
		}
	})
	mustOnNode(t, node, "sh", "-e", "-c", plug)
	setMap(t, node, strings.TrimRight(mustOnNode(t, node, "cat", mapFile), "\n")+"\n"+mapped)
	eventually(t, 30*time.Second, "the node to offer its NICs", func() error { return offers(t, node, nics...) })
}

// cabled is the size of packets that a cable takes.
const cabled = 1450

// cable lays one between the switches of two nodes: a tunnel over the cluster's
// own network. The NICs get its size.
func cable(t *testing.T, nodes ...string) {
	t.Helper()
	for i, node := range nodes {
		mustOnNode(t, node, "sh", "-e", "-c", fmt.Sprintf(`ip link add sw-cable type vxlan id 77 remote %s local %s dstport 4799
			ip link set sw-cable mtu %[3]d master sw-whole up
			ip link set eth7 mtu %[3]d`, nodeIPv4(t, nodes[1-i]), nodeIPv4(t, node), cabled))
		t.Cleanup(func() {
			if _, err := onNode(context.WithoutCancel(t.Context()), node, "", "ip", "link", "del", "sw-cable"); err != nil {
				t.Error(err)
			}
		})
	}
}

// offers compares the NICs that a node has for pods, those inside pods marked
// with a star.
func offers(t *testing.T, node string, want ...string) error {
	t.Helper()
	nn, err := getNodeNetwork(t.Context(), node)
	if err != nil {
		return err
	}
	var got []string
	for _, p := range nn.Status.PhysicalNetworks {
		if p.Name != physWhole {
			continue
		}
		for _, nic := range p.Exclusive {
			for _, i := range nn.Status.Interfaces {
				if i.Name == nic && i.InUse {
					nic += "*"
				}
			}
			got = append(got, nic)
		}
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("NodeNetwork %s offers %v, want %v", node, got, want)
	}
	return nil
}

// TestPodsHaveWholeNICs: as many pods run as there are NICs, the next waits and
// says why, and runs when one ends; at last the node has its NICs back as they
// were, although its agent was restarted in between.
func TestPodsHaveWholeNICs(t *testing.T) {
	node := env.node("worker2")
	nics := []string{"eth7", "eth8"}
	wholeNetwork(t)
	giveNICs(t, node, nics...)
	state := func() string {
		var out strings.Builder
		links := parseLinks(t, mustOnNode(t, node, "ip", "-j", "addr"))
		for _, nic := range nics {
			l, ok := links[nic]
			fmt.Fprintf(&out, "%s there=%t mac %s mtu %d %s %v\n", nic, ok, l.Address, l.MTU, l.OperState, l.global())
		}
		return out.String()
	}
	before := state()
	ns := namespace(t)
	var pods []*corev1.Pod
	for i := range nics {
		pods = append(pods, run(t, newPod(ns, fmt.Sprint("nic", i), netWhole+"@data")))
	}
	for _, pod := range pods {
		if pod.Spec.NodeName != node {
			t.Fatalf("pod %s runs on %s", pod.Name, pod.Spec.NodeName)
		}
		status := attachments(t, pod)["data"]
		if !strings.Contains(before, "mac "+status.MAC) {
			t.Errorf("pod %s has the MAC %s, which is no NIC's of\n%s", pod.Name, status.MAC, before)
		}
	}
	for _, v6 := range []bool{false, true} {
		enter(t, pods[0]).mustReach(t, addressIn(t, pods[1], netWhole, v6), webPort, pods[1].Name)
		enter(t, pods[0]).mustPassWholeBy(t, "data", addressIn(t, pods[1], netWhole, v6), 1500)
	}
	third := createPod(t, newPod(ns, "third", netWhole+"@data"))
	awaitPending(t, third, fmt.Sprintf("node(s) had no free NIC for network %q", netWhole))
	// A veth, unlike a card, would not come back from a namespace whose DEL had to
	// wait for the agent.
	replaceAgent(t, node)
	eventually(t, 30*time.Second, "the new agent to tell of the NICs", func() error { return offers(t, node, "eth7*", "eth8*") })
	if err := env.client.Delete(t.Context(), pods[0]); err != nil {
		t.Fatal(err)
	}
	awaitRunning(t, third, 60*time.Second)
	if first, now := attachments(t, pods[0])["data"].MAC, attachments(t, third)["data"].MAC; first != now {
		t.Errorf("the third pod has the NIC %s, want %s, which went free", now, first)
	}
	if err := env.client.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(ns)); err != nil {
		t.Fatal(err)
	}
	awaitNoPods(t.Context(), t, ns)
	eventually(t, 30*time.Second, "the NICs to be offered again", func() error { return offers(t, node, nics...) })
	if after := state(); after != before {
		t.Errorf("the NICs were\n%sand are\n%s", before, after)
	}
}

// TestWholeNICsAcrossNodes: pods with a NIC each on two nodes reach each other in
// both families with packets as large as the NICs take.
func TestWholeNICsAcrossNodes(t *testing.T) {
	nodes := []string{env.node("worker"), env.node("worker3")}
	wholeNetwork(t)
	for _, node := range nodes {
		giveNICs(t, node, "eth7")
	}
	cable(t, nodes...)
	ns := namespace(t)
	left := run(t, newPod(ns, "left", netWhole, on(nodes[0])))
	right := run(t, newPod(ns, "right", netWhole, on(nodes[1])))
	checkAttached(t, left, map[string]string{"net1": netWhole})
	for _, v6 := range []bool{false, true} {
		enter(t, left).mustReach(t, addressIn(t, right, netWhole, v6), webPort, right.Name)
		enter(t, left).mustPassWhole(t, addressIn(t, right, netWhole, v6), cabled)
	}
	if err := env.client.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(ns)); err != nil {
		t.Fatal(err)
	}
	awaitNoPods(t.Context(), t, ns)
	for _, node := range nodes {
		eventually(t, 30*time.Second, "the NIC to be offered again", func() error { return offers(t, node, "eth7") })
	}
}
