// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package netcontroller_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// testHolding tells the pods that keep a Network from those that do not.
func testHolding(t *testing.T, c client.Client) {
	addPhysical(t, c, "ho")
	node := addNode(t, c, "ho-node")
	report(t, c, node.Name, backs("ho", "eth1", true))
	network := addNetwork(t, c, "holding", "ho", "10.12.0.0/24")
	awaitCondition(t, c, network, v1alpha1.ConditionReady, "True", v1alpha1.ReasonReady)
	fixed := addPod(t, c, "ho-a-fixed", node.Name, `[{"name":"holding","ips":["10.12.0.9"]}]`)
	going := addPod(t, c, "ho-b-going", node.Name, "holding,holding")
	if err := c.Delete(t.Context(), going, client.GracePeriodSeconds(3600)); err != nil {
		t.Fatal(err)
	}
	pending := addPod(t, c, "ho-c-unbound", "", "holding")
	finished := addPod(t, c, "ho-d-finished", node.Name, "holding")
	setPhase(t, c, finished, corev1.PodFailed)

	remove(t, c, network)
	awaitCondition(t, c, network, v1alpha1.ConditionReady, "False", v1alpha1.ReasonTerminating,
		"waits for 2 pods on it (default/ho-a-fixed, default/ho-b-going)")
	remove(t, c, going)
	awaitCondition(t, c, network, v1alpha1.ConditionReady, "False", v1alpha1.ReasonTerminating, "waits for 1 pod on it (default/ho-a-fixed)")
	setPhase(t, c, fixed, corev1.PodSucceeded)
	awaitGone(t, c, network)
	for _, pod := range []*corev1.Pod{pending, finished, fixed} {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); err != nil {
			t.Errorf("the pod %s went with the Network: %v", pod.Name, err)
		}
	}
}
