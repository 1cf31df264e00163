// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package policies

import (
	"fmt"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestAgentWritesOnlyItsOwnNodeNetwork(t *testing.T) {
	mine, theirs := agentOf(t, "worker"), agentOf(t, "worker2")
	const refusal = "NodeNetwork worker: the agent of node worker2 may write only the NodeNetwork of its own node"
	nn := func() *v1alpha1.NodeNetwork {
		return &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "worker"}}
	}
	check(t, theirs.Create(t.Context(), nn()), refusal)
	check(t, mine.Create(t.Context(), nn()), "")
	removeAfter(t, nn())

	status := []byte(`{"status":{"interfaces":[{"name":"eth1"}]}}`)
	check(t, theirs.Status().Patch(t.Context(), nn(), client.RawPatch(types.MergePatchType, status)), refusal)
	check(t, mine.Status().Patch(t.Context(), nn(), client.RawPatch(types.MergePatchType, status)), "")
	label := []byte(`{"metadata":{"labels":{"a":"b"}}}`)
	check(t, mine.Patch(t.Context(), nn(), client.RawPatch(types.MergePatchType, label)), `cannot patch resource "nodenetworks"`)
	check(t, mine.Delete(t.Context(), nn()), `cannot delete resource "nodenetworks"`)
}

func TestAgentWritesOnlyBlocksOfItsOwnNode(t *testing.T) {
	network := newNetwork("own", nil)
	create(t, network)
	mine, theirs := agentOf(t, "worker"), agentOf(t, "worker2")
	const refusal = "IPBlock own.10.10.0.0-26: spec.nodeName is worker, but the agent of node worker2 may write only the blocks of its own node"
	block := func() *v1alpha1.IPBlock { return newBlock(network, "10.10.0.0/26", "worker") }

	check(t, theirs.Create(t.Context(), block()), refusal)
	check(t, mine.Create(t.Context(), block()), "")
	removeAfter(t, block())
	label := []byte(`{"metadata":{"labels":{"a":"b"}}}`)
	check(t, theirs.Patch(t.Context(), block(), client.RawPatch(types.MergePatchType, label)), refusal)
	check(t, mine.Patch(t.Context(), block(), client.RawPatch(types.MergePatchType, label)), "")
	check(t, theirs.Delete(t.Context(), block()), refusal)
	check(t, theirs.DeleteAllOf(t.Context(), &v1alpha1.IPBlock{}), "cannot deletecollection resource")
	check(t, mine.Delete(t.Context(), block()), "")
}

func TestAgentWritesOnlyNetworkStatusOfPodsOnItsNode(t *testing.T) {
	pod := boundPod(t, "own-node", "worker", nil)
	mine, theirs := agentOf(t, "worker"), agentOf(t, "worker2")
	status := `{"metadata":{"uid":"` + string(pod.UID) + `","annotations":{"k8s.v1.cni.cncf.io/network-status":"[]","netplane.io/network-status-sandbox":"s1","netplane.io/attached-networks":"data=1"}}}`
	tests := []struct {
		name  string
		as    client.Client
		patch string
		want  string
	}{
		{"its pod's status", mine, status, ""},
		{"again, the same", mine, status, ""},
		{"another node's pod", theirs, `{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":"[1]"}}}`,
			"pod default/own-node: the agent of node worker2 may write only the network-status of pods that are bound to its own node"},
		{"a label", mine, `{"metadata":{"labels":{"app":"b"}}}`, "pod default/own-node: spec, metadata.labels, metadata.finalizers"},
		{"a new label", mine, `{"metadata":{"labels":{"new":"b"}}}`, "pod default/own-node: spec, metadata.labels, metadata.finalizers"},
		{"a finalizer", mine, `{"metadata":{"finalizers":["example.org/x"]}}`, "pod default/own-node: spec, metadata.labels, metadata.finalizers"},
		{"another annotation", mine, `{"metadata":{"annotations":{"note":"y"}}}`, "of metadata.annotations an agent may change only k8s.v1.cni.cncf.io/network-status, netplane.io/network-status-sandbox, netplane.io/attached-networks"},
		{"a new annotation", mine, `{"metadata":{"annotations":{"other":"y"}}}`, "of metadata.annotations an agent may change only"},
		{"an annotation removed", mine, `{"metadata":{"annotations":{"note":null}}}`, "of metadata.annotations an agent may change only"},
		{"the pod's IP", mine, `{"status":{"podIP":"10.1.2.3","podIPs":[{"ip":"10.1.2.3"}]}}`, "pod default/own-node: status is not an agent's to change"},
		{"the pod's phase", mine, `{"status":{"phase":"Running"}}`, "pod default/own-node: status is not an agent's to change"},
		{"its status removed", mine, `{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":null,"netplane.io/network-status-sandbox":null}}}`, ""},
		{"a pod made anew", mine, `{"metadata":{"uid":"another","annotations":{"k8s.v1.cni.cncf.io/network-status":"[]"}}}`, "metadata.uid: Invalid value"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			patch := client.RawPatch(types.MergePatchType, []byte(tt.patch))
			check(t, tt.as.Status().Patch(t.Context(), newPod("own-node", nil), patch), tt.want)
		})
	}
}

// TestAgentPatchesPodsThemselvesNowhere: not even those on its own node.
func TestAgentPatchesPodsThemselvesNowhere(t *testing.T) {
	boundPod(t, "not-mine-to-patch", "worker", nil)
	mine := agentOf(t, "worker")
	for _, patch := range []string{
		`{"metadata":{"labels":{"app":"b"}}}`,
		`{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":"[]"}}}`,
		`{"spec":{"activeDeadlineSeconds":1}}`,
	} {
		check(t, mine.Patch(t.Context(), newPod("not-mine-to-patch", nil), client.RawPatch(types.MergePatchType, []byte(patch))),
			`cannot patch resource "pods"`)
	}
	check(t, mine.Delete(t.Context(), newPod("not-mine-to-patch", nil)), `cannot delete resource "pods"`)
	check(t, mine.Create(t.Context(), newPod("new", nil)), `cannot create resource "pods"`)
}

func TestAgentWithoutANodeIsRefused(t *testing.T) {
	unbound, err := env.as(agentUser, nil)
	if err != nil {
		t.Fatal(err)
	}
	check(t, unbound.Create(t.Context(), &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "worker"}}),
		"the token of system:serviceaccount:netplane-system:netplane-agent names no node: it must be bound to a pod of the DaemonSet netplane-agent")
}

// tokenOf is the agent of a node with a token as kubelet mounts it, bound to a
// pod on that node, instead of impersonation.
func tokenOf(t *testing.T, node string) client.Client {
	t.Helper()
	create(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}})
	pod := newPod("agent-of-"+node, func(p *corev1.Pod) {
		p.Namespace = v1alpha1.SystemNamespace
		p.Spec.ServiceAccountName = "netplane-agent"
		p.Spec.NodeName = node
	})
	create(t, pod)
	token := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "netplane-agent", Namespace: v1alpha1.SystemNamespace}}
	if err := env.admin.SubResource("token").Create(t.Context(), account, token); err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(env.config)
	config.BearerToken = token.Status.Token
	agent, err := client.New(config, client.Options{Scheme: env.admin.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return agent
}

func TestAgentsTokenNamesItsNode(t *testing.T) {
	agent := tokenOf(t, "token-node")
	for name, want := range map[string]string{
		"token-node": "",
		"worker2":    "NodeNetwork worker2: the agent of node token-node may write only the NodeNetwork of its own node",
	} {
		check(t, agent.Create(t.Context(), &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: name}}), want)
	}
	removeAfter(t, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "token-node"}})
}

// TestAgentAdoptsBlocksOfItsOwnNodeOnly: of a block's spec it may change
// nodeUID and vtep, and nothing else.
func TestAgentAdoptsBlocksOfItsOwnNodeOnly(t *testing.T) {
	agent := tokenOf(t, "adopter")
	network := newNetwork("adopted", nil)
	knownNetwork(t, network)
	own, others := newBlock(network, "10.10.0.0/26", "adopter"), newBlock(network, "10.10.0.64/26", "worker2")
	create(t, own)
	create(t, others)
	const immutable = "spec is immutable but for nodeUID"
	for _, tt := range []struct {
		block       *v1alpha1.IPBlock
		field, want string
	}{
		{own, `"nodeUID":"registered-anew"`, ""},
		{own, `"vtep":"192.168.0.1"`, ""},
		{own, `"vtep":"eth1"`, "must be an IP address"},
		{others, `"vtep":"192.168.0.1"`, "spec.nodeName is worker2, but the agent of node adopter may write only the blocks of its own node"},
		{own, `"nodeName":"worker2"`, immutable},
		{own, `"nodeUID":"other","nodeName":"worker2"`, immutable},
		{own, `"network":"other"`, immutable},
		{own, `"networkUID":"other"`, immutable},
		{own, `"cidr":"10.10.0.128/26"`, immutable},
		{others, `"nodeUID":"registered-anew"`, "spec.nodeName is worker2, but the agent of node adopter may write only the blocks of its own node"},
		{others, `"nodeName":"adopter"`, immutable},
		{others, `"nodeUID":"registered-anew","nodeName":"adopter"`, immutable},
	} {
		t.Run(tt.block.Spec.NodeName+" "+tt.field, func(t *testing.T) {
			target := &v1alpha1.IPBlock{ObjectMeta: metav1.ObjectMeta{Name: tt.block.Name}}
			check(t, agent.Patch(t.Context(), target, client.RawPatch(types.MergePatchType, []byte(`{"spec":{`+tt.field+`}}`))), tt.want)
		})
	}
	for block, want := range map[*v1alpha1.IPBlock]types.UID{own: "registered-anew", others: "n"} {
		if err := env.admin.Get(t.Context(), client.ObjectKeyFromObject(block), block); err != nil {
			t.Fatal(err)
		}
		if block.Spec.NodeUID != want {
			t.Errorf("nodeUID of %s is %q, want %q", block.Name, block.Spec.NodeUID, want)
		}
	}
}

// TestOthersAreNotHeldToANode: the policy is about agents only.
func TestOthersAreNotHeldToANode(t *testing.T) {
	controller, err := env.as("system:serviceaccount:netplane-system:netplane-controller", nil)
	if err != nil {
		t.Fatal(err)
	}
	create(t, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "any"}})
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"AgentReady","status":"True","reason":"AgentPodReady","message":"","lastTransitionTime":%q}]}}`, "2026-01-01T00:00:00Z")
	nn := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "any"}}
	check(t, controller.Status().Patch(t.Context(), nn, client.RawPatch(types.MergePatchType, []byte(patch))), "")
}
