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
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// change gives a pod another annotation, or none.
func change(t *testing.T, pod *corev1.Pod, networks string) {
	t.Helper()
	value := any(networks)
	if networks == "" {
		value = nil
	}
	raw, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{v1alpha1.AnnotationNetworks: value}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := env.client.Patch(t.Context(), pod, merge(string(raw))); err != nil {
		t.Fatalf("changing the networks of pod %s to %q: %v", pod.Name, networks, err)
	}
}

// awaitInterfaces waits until a pod's network-status, and the pod inside, have
// these interfaces beside lo.
func awaitInterfaces(t *testing.T, pod *corev1.Pod, timeout time.Duration, want ...string) {
	t.Helper()
	eventually(t, timeout, fmt.Sprintf("pod %s to have %v", pod.Name, want), func() error {
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if told := keys(attachments(t, pod)); !slices.Equal(told, want) {
			return fmt.Errorf("network-status has %v", told)
		}
		inside := slices.DeleteFunc(keys(enter(t, pod).links(t)), func(name string) bool { return name == "lo" })
		if !slices.Equal(inside, want) {
			return fmt.Errorf("inside are %v", inside)
		}
		return nil
	})
}

// awaitEvent waits for an event on a pod whose note has all words.
func awaitEvent(t *testing.T, pod *corev1.Pod, reason string, words ...string) {
	t.Helper()
	eventually(t, 40*time.Second, fmt.Sprintf("event %s on pod %s", reason, pod.Name), func() error {
		var events corev1.EventList
		if err := env.client.List(t.Context(), &events, client.InNamespace(pod.Namespace)); err != nil {
			return err
		}
		var notes []string
		for i := range events.Items {
			e := &events.Items[i]
			if e.InvolvedObject.UID != pod.UID || e.Reason != reason {
				continue
			}
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(e.Message, w) }) {
				return nil
			}
			notes = append(notes, e.Message)
		}
		return fmt.Errorf("want %q, there are %q", words, notes)
	})
}

// A running pod gets an interface and loses it again, and reaches a peer over it
// in between. On a full network it is told so, and gets the address that another
// gives up; an address whose pod asks for nothing any more is not free before
// its interface is gone.
func TestInterfacesOfARunningPodFollowItsAnnotation(t *testing.T) {
	network := newNetwork(t, "e2e-plug", v1alpha1.NetworkSpec{
		PhysicalNet: physData, Plugin: v1alpha1.PluginBridge, BlockSize: 8,
		Subnet: "10.36.0.0/29", ExcludeRanges: []v1alpha1.IPRange{"10.36.0.4-10.36.0.6"}, // two are left for pods
	})
	ns := namespace(t)
	awaitNetwork(t, network.Name, "True", v1alpha1.ReasonReady)
	peer := run(t, newPod(ns, "peer", network.Name+"@eth1"))
	node := peer.Spec.NodeName
	pod := run(t, newPod(ns, "runner", "data@eth1", on(node)))
	late := run(t, newPod(ns, "late", "data@eth1", on(node)))
	addresses := pod.Status.PodIPs

	change(t, pod, "data@eth1,"+network.Name+"@eth2")
	awaitInterfaces(t, pod, 20*time.Second, "eth0", "eth1", "eth2")
	checkAttached(t, pod, map[string]string{"eth1": netData, "eth2": network.Name})
	awaitEvent(t, pod, v1alpha1.EventHotPlugged, `added eth2 on network "e2e-plug"`)
	enter(t, pod).mustReach(t, addressIn(t, peer, network.Name, false), webPort, "peer")
	enter(t, peer).mustReach(t, addressIn(t, pod, network.Name, false), webPort, "runner")

	change(t, late, "data@eth1,"+network.Name+"@eth2")
	awaitEvent(t, late, v1alpha1.EventHotPlugRefused, `interface eth2 on network "e2e-plug" is not added yet`, "no free address")
	awaitInterfaces(t, late, 5*time.Second, "eth0", "eth1")

	change(t, pod, "")
	if got := pod.Annotations[v1alpha1.AnnotationAttached]; got != "data=1,e2e-plug=1" {
		t.Errorf("when the annotation was taken away the pod counted for %q", got)
	}
	awaitInterfaces(t, pod, 20*time.Second, "eth0")
	eventually(t, 10*time.Second, "nothing to be counted for the pod", func() error {
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if got, ok := pod.Annotations[v1alpha1.AnnotationAttached]; !ok || got != "" {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
	if got := pod.Status.PodIPs; !slices.Equal(got, addresses) {
		t.Errorf("the pod's IPs were %v and are %v", addresses, got)
	}
	awaitInterfaces(t, late, 40*time.Second, "eth0", "eth1", "eth2")
	enter(t, late).mustReach(t, addressIn(t, peer, network.Name, false), webPort, "peer")
}

// An interface that joins a running pod brings the pod into its network's slices
// of a Service, and takes it out when it goes.
func TestHotPluggedAddressesFollowIntoSlices(t *testing.T) {
	ns := namespace(t)
	const name = "plug"
	if err := env.client.Create(t.Context(), newService(ns, name)); err != nil {
		t.Fatal(err)
	}
	pod := run(t, newPod(ns, name, "management@eth1", on(env.node("worker3")), labelled("app", name)))
	inSlices := func(networks ...string) {
		t.Helper()
		eventually(t, 20*time.Second, fmt.Sprintf("the pod to be in slices of %v alone", networks), func() error {
			got, err := readyByGroup(t, ns, name)
			if err != nil {
				return err
			}
			for _, g := range allGroups {
				var want []string
				if slices.Contains(networks, g.network) {
					want = []string{addressIn(t, pod, g.network, g.family == discoveryv1.AddressTypeIPv6)}
				}
				if !slices.Equal(got[g], want) {
					return fmt.Errorf("%s %s has %v, want %v", g.network, g.family, got[g], want)
				}
			}
			return nil
		})
	}
	inSlices(netManagement)
	change(t, pod, "management@eth1,data@eth2")
	awaitInterfaces(t, pod, 20*time.Second, "eth0", "eth1", "eth2")
	inSlices(netManagement, netData)
	change(t, pod, "data@eth2")
	awaitInterfaces(t, pod, 20*time.Second, "eth0", "eth2")
	inSlices(netData)
	change(t, pod, "management@eth1")
	awaitInterfaces(t, pod, 20*time.Second, "eth0", "eth1")
	inSlices(netManagement)
}
