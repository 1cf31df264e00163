// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package netcontroller_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// testAvailability fills a Network of 13 addresses in all the ways in which an
// address can be in use, and empties it again.
func testAvailability(t *testing.T, c client.Client) {
	addPhysical(t, c, "av")
	node := addNode(t, c, "av-node")
	report(t, c, node.Name, backs("av", "eth1", true))
	network := addNetwork(t, c, "available", "av", "10.9.0.0/28")
	await := func(status metav1.ConditionStatus, reason string, parts ...string) {
		t.Helper()
		awaitCondition(t, c, network, v1alpha1.ConditionAddressesAvailable, status, reason, parts...)
	}
	await("True", v1alpha1.ReasonAddressesLeft)

	status := backs("av", "eth1", true)
	status.Held = []v1alpha1.HeldAddresses{{Network: network.Name, Count: 6}}
	report(t, c, node.Name, status)
	two := addPod(t, c, "av-two", node.Name, "available,available")
	finished := addPod(t, c, "av-finished", node.Name, "available")
	setPhase(t, c, finished, corev1.PodSucceeded)
	going := addPod(t, c, "av-going", node.Name, "available,available@eth5,available@eth6")
	if err := c.Delete(t.Context(), going, client.GracePeriodSeconds(3600)); err != nil {
		t.Fatal(err)
	}
	addPod(t, c, "av-fixed", node.Name, `[{"name":"available","ips":["10.9.0.9"]}]`)
	counts := func(used int64) v1alpha1.AddressCounts { return v1alpha1.AddressCounts{Capacity: 13, Used: used} }
	nodes := v1alpha1.NodeCounts{Ready: 1, Total: 1}
	awaitNetwork(t, c, network.Name, nodes, counts(6+2+3))
	await("True", v1alpha1.ReasonAddressesLeft)
	awaitEvents(t, c, network.Name) // none: that a new Network has addresses is no news

	// The finished pod has its address until its sandbox is gone.
	status.Held = append(status.Held, v1alpha1.HeldAddresses{Network: network.Name, Count: 1, PodUID: finished.UID})
	report(t, c, node.Name, status)
	await("True", v1alpha1.ReasonAddressesRunningLow, "additionalSubnets")
	awaitNetwork(t, c, network.Name, nodes, counts(12))
	awaitEvents(t, c, network.Name, "Warning AddressesRunningLow")

	addPod(t, c, "av-last", node.Name, "available")
	await("False", v1alpha1.ReasonAddressesExhausted, "additionalSubnets")
	awaitEvents(t, c, network.Name, "Warning AddressesExhausted", "Warning AddressesRunningLow")

	remove(t, c, going)
	await("True", v1alpha1.ReasonAddressesLeft)
	awaitNetwork(t, c, network.Name, nodes, counts(10))
	awaitEvents(t, c, network.Name, "Normal AddressesLeft", "Warning AddressesExhausted", "Warning AddressesRunningLow")

	addPod(t, c, "av-many", node.Name, "available,available,available@eth5,available@eth6")
	await("False", v1alpha1.ReasonAddressesExhausted)
	if err := c.Patch(t.Context(), network, client.RawPatch("application/merge-patch+json",
		[]byte(`{"spec":{"additionalSubnets":["10.9.1.0/24"]}}`))); err != nil {
		t.Fatal(err)
	}
	await("True", v1alpha1.ReasonAddressesLeft)
	remove(t, c, two)
}

func setPhase(t *testing.T, c client.Client, pod *corev1.Pod, phase corev1.PodPhase) {
	t.Helper()
	patch := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"status":{"phase":%q}}`, phase))
	if err := c.Status().Patch(t.Context(), pod.DeepCopy(), patch); err != nil {
		t.Fatal(err)
	}
}

// awaitEvents waits until the events about a Network's AddressesAvailable are
// these, in the order of the alphabet.
func awaitEvents(t *testing.T, c client.Client, network string, want ...string) {
	t.Helper()
	reasons := []string{v1alpha1.ReasonAddressesLeft, v1alpha1.ReasonAddressesRunningLow, v1alpha1.ReasonAddressesExhausted}
	eventually(t, "the events of Network "+network, func(ctx context.Context) error {
		var list eventsv1.EventList
		if err := c.List(ctx, &list); err != nil {
			return err
		}
		var got []string
		for i := range list.Items {
			if e := &list.Items[i]; e.Regarding.Name == network && slices.Contains(reasons, e.Reason) {
				got = append(got, e.Type+" "+e.Reason)
			}
		}
		slices.Sort(got)
		if !slices.Equal(slices.Compact(got), want) {
			return fmt.Errorf("they are %q, want %q", got, want)
		}
		return nil
	})
}
