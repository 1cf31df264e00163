// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// TestOneLineSaysWhyNotAnywhere has every node refuse a pod for another cause:
// kubectl describe tells all of them in one line, each with its network and
// the number of nodes.
func TestOneLineSaysWhyNotAnywhere(t *testing.T) {
	wide := newNetwork(t, "e2e-wide", v1alpha1.NetworkSpec{
		PhysicalNet: physManagement, Plugin: v1alpha1.PluginMacvlan, Subnet: "10.33.0.0/24", MTU: 1450,
	})
	small := newNetwork(t, "e2e-why", v1alpha1.NetworkSpec{
		PhysicalNet: physData, Plugin: v1alpha1.PluginBridge, Subnet: "10.34.0.0/29",
	})
	ns := namespace(t)
	awaitNetwork(t, wide.Name, metav1.ConditionTrue, v1alpha1.ReasonReady)
	awaitNetwork(t, small.Name, metav1.ConditionTrue, v1alpha1.ReasonReady)

	// worker3 has the only block of e2e-why, and one pod takes all of it.
	_, plan := planOf(t, small.Name)
	all := strings.TrimSuffix(strings.Repeat(small.Name+",", int(plan.TotalCapacity())), ",")
	run(t, newPod(ns, "takes-all", all, on(env.node("worker3"))))
	// worker has its NIC for data down, worker2 none, and a management NIC that is too narrow for e2e-wide.
	setLink(t, env.node("worker"), backing(t, physData)[env.node("worker")], "down")
	setMTU(t, env.node("worker2"), "eth1", "1400", "1500")
	bareNode(t, "e2e-bare")
	eventually(t, 15*time.Second, "the NodeNetworks to tell", func() error {
		if backs := backing(t, physData); len(backs) != 1 {
			return fmt.Errorf("%v back %s", backs, physData)
		}
		narrow, err := getNodeNetwork(t.Context(), env.node("worker2"))
		if err != nil {
			return err
		}
		if len(narrow.Status.Refused) != 1 {
			return fmt.Errorf("worker2 refuses %v", narrow.Status.Refused)
		}
		return nil
	})

	everywhere := func(p *corev1.Pod) { p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}} }
	pod := createPod(t, newPod(ns, "nowhere", wide.Name+","+small.Name, everywhere))
	awaitPending(t, pod, "0/5 nodes are available: ",
		`1 node(s) had no NIC for network "e2e-wide"`,               // the control plane
		`1 node(s) had the NIC for network "e2e-why" down`,          // worker
		`1 node(s) refused network "e2e-wide": MTUExceedsInterface`, // worker2
		`1 node(s) had no free address in network "e2e-why"`,        // worker3
		`1 node(s) had no ready netplane agent`,                     // the node that is none
	)
	t.Log(waitingReason(pod))
}

// setMTU changes a NIC until the test ends.
func setMTU(t *testing.T, node, nic, mtu, before string) {
	t.Helper()
	mustOnNode(t, node, "ip", "link", "set", nic, "mtu", mtu)
	t.Cleanup(func() {
		if _, err := onNode(context.WithoutCancel(t.Context()), node, "", "ip", "link", "set", nic, "mtu", before); err != nil {
			t.Errorf("setting the NIC's MTU back: %v", err)
		}
	})
}

// bareNode registers a Node on which nothing runs, until the test ends.
func bareNode(t *testing.T, name string) {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	if err := env.client.Create(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.client.Delete(context.WithoutCancel(t.Context()), node); err != nil {
			t.Errorf("removing node %s: %v", name, err)
		}
	})
	before := client.MergeFrom(node.DeepCopy()) // a patch, for the node controllers write to it, too
	node.Status.Allocatable = corev1.ResourceList{corev1.ResourcePods: resource.MustParse("10")}
	node.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.NewTime(time.Now()),
	}}
	if err := env.client.Status().Patch(t.Context(), node, before); err != nil {
		t.Fatal(err)
	}
}
