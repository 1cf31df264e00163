// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

// newNetwork creates a Network and removes it at the end of the test. Make the
// test's namespace after it, so that the pods are gone by then.
func newNetwork(t testing.TB, name string, spec v1alpha1.NetworkSpec) *v1alpha1.Network {
	t.Helper()
	n := &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
	if err := env.client.Create(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := env.client.Delete(ctx, n); err != nil {
			t.Errorf("removing Network %s: %v", name, err)
		}
		eventually(t, 90*time.Second, "Network "+name+" and its blocks to be gone", func() error {
			err := env.client.Get(ctx, client.ObjectKeyFromObject(n), n)
			if apierrors.IsNotFound(err) {
				return nil
			}
			if err != nil {
				return err
			}
			return fmt.Errorf("it is there: %+v", n.Status)
		})
	})
	return n
}

// awaitNetwork waits for a Network's Ready condition; words must be in its message.
func awaitNetwork(t testing.TB, name string, status metav1.ConditionStatus, reason string, words ...string) {
	t.Helper()
	eventually(t, 30*time.Second, fmt.Sprintf("Network %s to be Ready=%s, %s", name, status, reason), func() error {
		var n v1alpha1.Network
		if err := env.client.Get(t.Context(), client.ObjectKey{Name: name}, &n); err != nil {
			return err
		}
		ready := meta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionReady)
		if ready == nil {
			return fmt.Errorf("there is no such condition")
		}
		if ready.Status != status || ready.Reason != reason {
			return fmt.Errorf("it is %s, %s: %s", ready.Status, ready.Reason, ready.Message)
		}
		for _, w := range words {
			if !strings.Contains(ready.Message, w) {
				return fmt.Errorf("want %q in the message %q", w, ready.Message)
			}
		}
		return nil
	})
}

func planOf(t *testing.T, network string) (*v1alpha1.Network, *addressing.Plan) {
	t.Helper()
	var n v1alpha1.Network
	if err := env.client.Get(t.Context(), client.ObjectKey{Name: network}, &n); err != nil {
		t.Fatal(err)
	}
	plan, err := addressing.NewPlan(network, &n.Spec)
	if err != nil {
		t.Fatal(err)
	}
	return &n, plan
}

// checkAttached holds a running pod to what it asked for: want maps each
// interface to its network. The names, addresses and prefixes inside the pod
// must be those of network-status, of the Network and of a block of the node.
func checkAttached(t *testing.T, pod *corev1.Pod, want map[string]string) {
	t.Helper()
	inside := enter(t, pod).links(t)
	told := attachments(t, pod)
	for ifname, network := range want {
		l, ok := inside[ifname]
		if !ok {
			t.Errorf("pod %s has no interface %s, only %v", pod.Name, ifname, keys(inside))
			continue
		}
		a, ok := told[ifname]
		if !ok || a.Name != network {
			t.Errorf("pod %s: network-status has %+v for %s, want network %s", pod.Name, a, ifname, network)
			continue
		}
		_, plan := planOf(t, network)
		v4, err := netip.ParseAddr(addressIn(t, pod, network, false))
		if err != nil {
			t.Error(err)
			continue
		}
		var addresses, ips []string
		for _, prefix := range plan.Interface(v4) {
			addresses = append(addresses, prefix.String())
			ips = append(ips, prefix.Addr().String())
		}
		slices.Sort(addresses)
		if got := l.global(); !slices.Equal(got, addresses) {
			t.Errorf("pod %s, %s: inside are the addresses %v, want %v", pod.Name, ifname, got, addresses)
		}
		if !slices.Equal(sorted(a.IPs), sorted(ips)) {
			t.Errorf("pod %s, %s: network-status has %v, want %v", pod.Name, ifname, a.IPs, ips)
		}
		if a.MAC != l.Address {
			t.Errorf("pod %s, %s: network-status has MAC %s, the interface %s", pod.Name, ifname, a.MAC, l.Address)
		}
		if l.OperState != "UP" {
			t.Errorf("pod %s, %s is %s", pod.Name, ifname, l.OperState)
		}
		checkBlock(t, network, pod.Spec.NodeName, v4)
		if ifname == "eth0" {
			checkPodIPs(t, pod, ips)
		}
	}
	for name := range inside {
		if _, ok := want[name]; !ok && name != "lo" && name != "eth0" {
			t.Errorf("pod %s has an interface %s that it did not ask for", pod.Name, name)
		}
	}
}

// checkPodIPs: the addresses on eth0 are what kubectl shows.
func checkPodIPs(t *testing.T, pod *corev1.Pod, want []string) {
	t.Helper()
	var got []string
	for _, ip := range pod.Status.PodIPs {
		got = append(got, ip.IP)
	}
	if !slices.Equal(got, want) || pod.Status.PodIP != want[0] {
		t.Errorf("pod %s: status.podIPs are %v (podIP %s), want %v", pod.Name, got, pod.Status.PodIP, want)
	}
}

func checkBlock(t *testing.T, network, node string, addr netip.Addr) {
	t.Helper()
	var blocks v1alpha1.IPBlockList
	if err := env.client.List(t.Context(), &blocks, client.MatchingFields{v1alpha1.FieldIPBlockNetwork: network}); err != nil {
		t.Fatal(err)
	}
	for i := range blocks.Items {
		prefix, err := netip.ParsePrefix(string(blocks.Items[i].Spec.CIDR))
		if err == nil && prefix.Contains(addr) {
			if holder := blocks.Items[i].Spec.NodeName; holder != node {
				t.Errorf("address %s of a pod on %s lies in block %s of node %s", addr, node, blocks.Items[i].Name, holder)
			}
			return
		}
	}
	t.Errorf("address %s of network %s lies in no block", addr, network)
}

func keys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func sorted(in []string) []string {
	out := slices.Clone(in)
	slices.Sort(out)
	return out
}
