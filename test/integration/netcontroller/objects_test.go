// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package netcontroller_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

// addPhysical makes a PhysicalNetwork.
func addPhysical(t *testing.T, c client.Client, name string) *v1alpha1.PhysicalNetwork {
	t.Helper()
	object := &v1alpha1.PhysicalNetwork{ObjectMeta: metav1.ObjectMeta{Name: name}}
	create(t, c, object)
	return object
}

// addNetwork makes a macvlan Network with blocks of 16.
func addNetwork(t *testing.T, c client.Client, name, physicalNet string, subnet v1alpha1.CIDR) *v1alpha1.Network {
	t.Helper()
	object := &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: physicalNet, Plugin: v1alpha1.PluginMacvlan, Subnet: subnet, BlockSize: 16},
	}
	create(t, c, object)
	return object
}

// addNode makes a Node that is Ready, its NodeNetwork without content, and a
// ready agent pod.
func addNode(t *testing.T, c client.Client, name string) *corev1.Node {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}}}
	create(t, c, node)
	setNodeReady(t, c, name, corev1.ConditionTrue)
	create(t, c, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: name}})
	addAgent(t, c, name)
	return node
}

func setNodeReady(t *testing.T, c client.Client, name string, status corev1.ConditionStatus) {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":%q}]}}`, status)
	if err := c.Status().Patch(t.Context(), node, client.RawPatch("application/strategic-merge-patch+json", []byte(patch))); err != nil {
		t.Fatalf("setting the Node's readiness: %v", err)
	}
}

func addAgent(t *testing.T, c client.Client, node string) *corev1.Pod {
	t.Helper()
	pod := aPod(v1alpha1.SystemNamespace, "agent-"+node, node)
	pod.Labels = map[string]string{"app.kubernetes.io/name": v1alpha1.AgentAppLabel}
	create(t, c, pod)
	setPodReady(t, c, pod, corev1.ConditionTrue)
	return pod
}

func setPodReady(t *testing.T, c client.Client, pod *corev1.Pod, status corev1.ConditionStatus) {
	t.Helper()
	patch := fmt.Sprintf(`{"status":{"phase":"Running","conditions":[{"type":"Ready","status":%q}]}}`, status)
	if err := c.Status().Patch(t.Context(), pod, client.RawPatch("application/strategic-merge-patch+json", []byte(patch))); err != nil {
		t.Fatalf("setting a pod's readiness: %v", err)
	}
}

func aPod(namespace, name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}
}

// addPod makes a pod bound to a node that asks for networks.
func addPod(t *testing.T, c client.Client, name, node, networks string) *corev1.Pod {
	t.Helper()
	pod := aPod(metav1.NamespaceDefault, name, node)
	pod.Annotations = map[string]string{v1alpha1.AnnotationNetworks: networks}
	create(t, c, pod)
	return pod
}

// addBlock makes the block of a Network that a node holds.
func addBlock(t *testing.T, c client.Client, network *v1alpha1.Network, cidr string, node *corev1.Node) *v1alpha1.IPBlock {
	t.Helper()
	block := &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{
			Name:       addressing.BlockName(network.Name, netip.MustParsePrefix(cidr)),
			Finalizers: []string{v1alpha1.FinalizerIPBlock},
		},
		Spec: v1alpha1.IPBlockSpec{
			Network: network.Name, NetworkUID: network.UID, CIDR: v1alpha1.CIDR(cidr), NodeName: node.Name, NodeUID: node.UID,
		},
	}
	create(t, c, block)
	return block
}

// report writes a NodeNetwork's status as its agent does.
func report(t *testing.T, c client.Client, node string, status v1alpha1.NodeNetworkStatus) {
	t.Helper()
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&status)
	if err != nil {
		t.Fatal(err)
	}
	object := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": node}, "status": fields}}
	object.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind("NodeNetwork"))
	err = c.Status().Apply(t.Context(), client.ApplyConfigurationFromUnstructured(object), client.FieldOwner(v1alpha1.FieldOwnerAgent), client.ForceOwnership)
	if err != nil {
		t.Fatalf("reporting the status of node %s: %v", node, err)
	}
}

// backs is a status that maps one physical network to one NIC.
func backs(physicalNet, nic string, up bool) v1alpha1.NodeNetworkStatus {
	reason := v1alpha1.ReasonInterfaceUp
	if !up {
		reason = v1alpha1.ReasonInterfaceDown
	}
	return v1alpha1.NodeNetworkStatus{PhysicalNetworks: []v1alpha1.NodePhysicalNetwork{
		{Name: physicalNet, Interfaces: []string{nic}, Ready: up, Reason: reason},
	}}
}

// awaitCondition waits for a condition and for parts of its message.
func awaitCondition(t *testing.T, c client.Client, object client.Object, kind string, status metav1.ConditionStatus, reason string, parts ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%T %s: %s=%s (%s)", object, object.GetName(), kind, status, reason), func(ctx context.Context) error {
		if err := c.Get(ctx, client.ObjectKeyFromObject(object), object); err != nil {
			return err
		}
		got := meta.FindStatusCondition(conditionsOf(object), kind)
		if got == nil || got.Status != status || got.Reason != reason {
			return fmt.Errorf("condition is %+v", got)
		}
		for _, part := range parts {
			if !strings.Contains(got.Message, part) {
				return fmt.Errorf("message %q lacks %q", got.Message, part)
			}
		}
		if got.ObservedGeneration != object.GetGeneration() && kind != v1alpha1.ConditionAgentReady {
			return fmt.Errorf("observed generation %d of %d", got.ObservedGeneration, object.GetGeneration())
		}
		return nil
	})
}

func conditionsOf(object client.Object) []metav1.Condition {
	switch o := object.(type) {
	case *v1alpha1.Network:
		return o.Status.Conditions
	case *v1alpha1.PhysicalNetwork:
		return o.Status.Conditions
	case *v1alpha1.NodeNetwork:
		return o.Status.Conditions
	}
	return nil
}

// awaitNetwork waits until a Network's counts are as wanted.
func awaitNetwork(t *testing.T, c client.Client, name string, nodes v1alpha1.NodeCounts, addresses v1alpha1.AddressCounts) {
	t.Helper()
	eventually(t, "counts of Network "+name, func(ctx context.Context) error {
		var network v1alpha1.Network
		if err := c.Get(ctx, client.ObjectKey{Name: name}, &network); err != nil {
			return err
		}
		if diff := cmp.Diff(nodes, network.Status.Nodes) + cmp.Diff(addresses, network.Status.Addresses); diff != "" {
			return fmt.Errorf("(-want +got):\n%s", diff)
		}
		return nil
	})
}
