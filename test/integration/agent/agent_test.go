// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package agent tests the node agent's writes against a real API server.
package agent

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/inventory"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/report"
	"github.com/netplane/netplane/test/integration/apiserver"
	"github.com/netplane/netplane/test/isolated"
)

// eventually bounds every wait; a loaded machine is slow.
const eventually = 30 * time.Second

// kernel is the links of a node that is not there.
type kernel struct {
	mu      sync.Mutex
	devices []link.Device
	changes chan struct{}
}

func (k *kernel) set(devices ...link.Device) {
	k.mu.Lock()
	k.devices = devices
	k.mu.Unlock()
	k.changes <- struct{}{}
}

func (k *kernel) List() ([]link.Device, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.devices, nil
}

func (k *kernel) Watch(context.Context) (<-chan struct{}, error) { return k.changes, nil }
func (k *kernel) Supports(string) (bool, error)                  { return true, nil }

// nothingHeld is an address manager without leases.
type nothingHeld struct{}

func (nothingHeld) Held() []v1alpha1.HeldAddresses { return nil }

func (nothingHeld) Conflicts() []v1alpha1.BlockConflict { return nil }

func device(name string, up bool) link.Device {
	return link.Device{Name: name, Index: 7, Kind: link.KindVeth, MTU: 1500, Up: up, Ethernet: true, MAC: []byte{2, 0, 0, 0, 0, 7}}
}

func newClient(t *testing.T) client.Client {
	t.Helper()
	c, err := apiserver.NewClient(apiserver.Start(t, apiserver.WithAPIServerFlag("advertise-address", isolated.Advertised)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(eventually); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, eventually)
		}
	}
}

// TestAgentWrites shares one API server, whose start takes seconds.
func TestAgentWrites(t *testing.T) {
	c := newClient(t)
	t.Run("NodeNetwork", func(t *testing.T) { testNodeNetwork(t, c) })
	t.Run("network-status", func(t *testing.T) { testReport(t, c) })
}

func testNodeNetwork(t *testing.T, c client.Client) {
	const name = "worker"
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := c.Create(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "map.yaml")
	if err := os.WriteFile(file, []byte("provider: [{alias: phy-net0, ref_nic: eth1}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	links := &kernel{changes: make(chan struct{}, 16), devices: []link.Device{device("eth1", true)}}
	inv, err := inventory.New(inventory.Config{NodeName: name, MapFile: file},
		inventory.Deps{Links: links, Held: nothingHeld{}, Client: c, Clock: clock.RealClock{}})
	if err != nil {
		t.Fatal(err)
	}
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	if err := inv.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- inv.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		close(links.changes)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	shown := func() *v1alpha1.NodeNetwork {
		t.Helper()
		var out v1alpha1.NodeNetwork
		if err := c.Get(t.Context(), types.NamespacedName{Name: name}, &out); err != nil {
			t.Fatal(err)
		}
		return &out
	}
	awaitStatus := func(what string, want []v1alpha1.NodePhysicalNetwork) {
		t.Helper()
		await(t, what, func() bool { return cmp.Equal(want, shown().Status.PhysicalNetworks, cmpopts.EquateEmpty()) })
	}

	backed := []v1alpha1.NodePhysicalNetwork{{Name: "phy-net0", Interfaces: []string{"eth1"}, Ready: true, Reason: v1alpha1.ReasonInterfaceUp}}
	if diff := cmp.Diff(backed, shown().Status.PhysicalNetworks); diff != "" {
		t.Errorf("physicalNetworks after Sync (-want +got):\n%s", diff)
	}
	if owners := shown().OwnerReferences; len(owners) != 1 || owners[0].UID != node.UID {
		t.Errorf("owners %v, want the Node %s", owners, node.UID)
	}

	// The controller's condition stands beside the agent's and stays through its writes.
	applyAgentReady(t, c, name)
	links.set(device("eth1", false))
	awaitStatus("NIC down", []v1alpha1.NodePhysicalNetwork{{Name: "phy-net0", Interfaces: []string{"eth1"}, Reason: v1alpha1.ReasonInterfaceDown}})
	links.set()
	awaitStatus("NIC removed", []v1alpha1.NodePhysicalNetwork{{Name: "phy-net0", Interfaces: []string{"eth1"}, Reason: v1alpha1.ReasonInterfaceNotFound}})
	if nics := shown().Status.Interfaces; len(nics) != 0 {
		t.Errorf("interfaces %v, want none", nics)
	}
	links.set(device("eth1", true), device("eth2", true))
	awaitStatus("NIC added", backed)
	for _, condition := range []string{v1alpha1.ConditionAgentReady, v1alpha1.ConditionInventoryReady} {
		if !apimeta.IsStatusConditionTrue(shown().Status.Conditions, condition) {
			t.Errorf("condition %s is not True: %v", condition, shown().Status.Conditions)
		}
	}

	if err := os.WriteFile(file, []byte("provider: []"), 0o600); err != nil {
		t.Fatal(err)
	}
	awaitStatus("map emptied", nil)
	if err := os.WriteFile(file, []byte("provider: [{alias: phy_net0, ref_nic: eth1}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	await(t, "map with an error", func() bool {
		c := apimeta.FindStatusCondition(shown().Status.Conditions, v1alpha1.ConditionInventoryReady)
		return c.Reason == v1alpha1.ReasonInvalidMap && c.Status == metav1.ConditionFalse &&
			c.Message == file+`: provider entry 1: alias "phy_net0" is no DNS label, as a PhysicalNetwork's name must be: use "phy-net0"`
	})
}

// applyAgentReady writes as the controller does.
func applyAgentReady(t *testing.T, c client.Client, name string) {
	t.Helper()
	u := &unstructured.Unstructured{Object: map[string]any{"status": map[string]any{"conditions": []any{map[string]any{
		"type": v1alpha1.ConditionAgentReady, "status": "True", "reason": v1alpha1.ReasonAgentPodReady, "message": "",
		"lastTransitionTime": time.Now().UTC().Format(time.RFC3339),
	}}}}}
	u.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind("NodeNetwork"))
	u.SetName(name)
	if err := c.Status().Apply(t.Context(), client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(v1alpha1.FieldOwnerController)); err != nil {
		t.Fatal(err)
	}
}

func testReport(t *testing.T, c client.Client) {
	pod := func() *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Annotations: map[string]string{"own": "kept"}},
			Spec:       corev1.PodSpec{NodeName: "worker", Containers: []corev1.Container{{Name: "c", Image: "web"}}, ServiceAccountName: "default"},
		}
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}}
	if err := c.Create(t.Context(), account); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	first := pod()
	if err := c.Create(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	name := client.ObjectKeyFromObject(first)

	reporter := report.New(c, c)
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- reporter.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	annotations := func() map[string]string {
		var out corev1.Pod
		if err := c.Get(t.Context(), name, &out); err != nil {
			t.Fatal(err)
		}
		return out.Annotations
	}
	attachments := []podnetworks.Attachment{{Name: "management", Interface: "eth0", IPs: []string{"10.10.0.5"}, Default: true}}

	reporter.Attached(name, first.UID, "sandbox-1", attachments, nil)
	await(t, "the report", func() bool { return reporter.Pending() == 0 })
	want := map[string]string{
		"own":                                   "kept",
		v1alpha1.AnnotationNetworkStatus:        `[{"name":"management","interface":"eth0","ips":["10.10.0.5"],"default":true}]`,
		v1alpha1.AnnotationNetworkStatusSandbox: "sandbox-1",
	}
	if diff := cmp.Diff(want, annotations()); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}

	// A report that comes late must not land on the successor of the same name.
	if err := c.Delete(t.Context(), first, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), pod()); err != nil {
		t.Fatal(err)
	}
	reporter.Attached(name, first.UID, "sandbox-1", attachments, nil)
	await(t, "the late report to be dropped", func() bool { return reporter.Pending() == 0 })
	if diff := cmp.Diff(map[string]string{"own": "kept"}, annotations()); diff != "" {
		t.Errorf("annotations of the successor (-want +got):\n%s", diff)
	}
}
