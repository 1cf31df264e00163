// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// TestExactlyAsManyPodsAsAddresses is promise d: of a network with N free
// addresses N pods run and the rest wait, none of them in ContainerCreating;
// two that go let two others start.
func TestExactlyAsManyPodsAsAddresses(t *testing.T) {
	const extra = 5
	network := newNetwork(t, "e2e-small", v1alpha1.NetworkSpec{
		PhysicalNet: physData, Plugin: v1alpha1.PluginBridge, Subnet: "10.30.0.0/27", BlockSize: 8,
	})
	ns := namespace(t)
	awaitNetwork(t, network.Name, "True", v1alpha1.ReasonReady)
	_, plan := planOf(t, network.Name)
	free := int(plan.TotalCapacity())
	for i := range free + extra {
		createPod(t, newPod(ns, fmt.Sprintf("a%d", i), network.Name))
	}
	running := awaitCounts(t, ns, free, extra)
	for i := range running {
		checkAttached(t, &running[i], map[string]string{"net1": network.Name})
	}
	always(t, 5*time.Second, "the count of running pods", func() error { return counts(t, ns, free, extra, nil) })
	for i := range 2 {
		if err := env.client.Delete(t.Context(), &running[i]); err != nil {
			t.Fatal(err)
		}
	}
	awaitCounts(t, ns, free, extra-2)
}

// awaitCounts waits until so many pods run and so many wait, and returns those that run.
func awaitCounts(t *testing.T, ns string, running, pending int) []corev1.Pod {
	t.Helper()
	var out []corev1.Pod
	eventually(t, 120*time.Second, fmt.Sprintf("%d pods to run and %d to wait", running, pending), func() error {
		return counts(t, ns, running, pending, &out)
	})
	return out
}

func counts(t *testing.T, ns string, running, pending int, into *[]corev1.Pod) error {
	var pods corev1.PodList
	if err := env.client.List(t.Context(), &pods, client.InNamespace(ns)); err != nil {
		return err
	}
	var run []corev1.Pod
	waiting, creating := 0, 0
	var other string
	for i := range pods.Items {
		p := &pods.Items[i]
		switch {
		case p.DeletionTimestamp != nil:
		case podReady(p):
			run = append(run, *p)
		case p.Spec.NodeName != "":
			creating++
			other = p.Name + ": " + waitingReason(p)
		case strings.Contains(waitingReason(p), "no free address"):
			waiting++
		default:
			other = p.Name + ": " + waitingReason(p)
		}
	}
	if len(run) != running || waiting != pending || creating != 0 {
		return fmt.Errorf("%d run, %d wait for a free address, %d are bound but not ready; another: %s", len(run), waiting, creating, other)
	}
	if into != nil {
		*into = run
	}
	return nil
}
