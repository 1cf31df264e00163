// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

// agentClient acts with a token of the agent that runs on a node, such as
// somebody would find there.
func agentClient(t *testing.T, node string) client.Client {
	t.Helper()
	pod, err := agentPod(t.Context(), node)
	if err != nil || pod == nil {
		t.Fatalf("finding the agent of %s: %v", node, err)
	}
	token, err := env.clientset.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(t.Context(), pod.Spec.ServiceAccountName, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(env.config)
	config.BearerToken = token.Status.Token
	c, err := client.New(config, client.Options{Scheme: env.client.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// refused wants an error that holds all the words.
func refused(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: accepted", what)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: refused with %q, want it to say %q", what, err, w)
		}
	}
}

func merge(patch string) client.Patch { return client.RawPatch(types.MergePatchType, []byte(patch)) }

// TestAgentIsHeldToItsNode is the first part of promise i.
func TestAgentIsHeldToItsNode(t *testing.T) {
	ns := namespace(t)
	mine, theirs := env.node("worker"), env.node("worker3")
	agent := agentClient(t, mine)
	own := run(t, newPod(ns, "own", "data", on(mine)))
	other := run(t, newPod(ns, "other", "data", on(theirs)))
	held := "the agent of node " + mine + " may write only"

	nn := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: theirs}}
	refused(t, "another node's NodeNetwork", agent.Patch(t.Context(), nn, merge(`{"metadata":{"labels":{"a":"b"}}}`)), `cannot patch resource "nodenetworks"`)
	refused(t, "another node's NodeNetwork status", agent.Status().Patch(t.Context(), nn, merge(`{"status":{"held":[]}}`)), held)

	network, plan := planOf(t, netData)
	for cidr := range plan.Candidates("nobody") {
		block := &v1alpha1.IPBlock{ObjectMeta: metav1.ObjectMeta{Name: addressing.BlockName(netData, cidr)}, Spec: v1alpha1.IPBlockSpec{
			Network: netData, NetworkUID: network.UID, CIDR: v1alpha1.CIDR(cidr.String()), NodeName: theirs, NodeUID: "x",
		}}
		refused(t, "a block for another node", agent.Create(t.Context(), block), held)
		break
	}
	var blocks v1alpha1.IPBlockList
	if err := env.client.List(t.Context(), &blocks, client.MatchingFields{v1alpha1.FieldIPBlockNodeName: theirs}); err != nil || len(blocks.Items) == 0 {
		t.Fatalf("node %s has no blocks (%v)", theirs, err)
	}
	refused(t, "deleting another node's block", agent.Delete(t.Context(), &blocks.Items[0]), held)
	refused(t, "another node's block's finalizer", agent.Patch(t.Context(), &blocks.Items[0], merge(`{"metadata":{"finalizers":null}}`)), held)

	status := `{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":"[]"}}}`
	refused(t, "another node's pod", agent.Status().Patch(t.Context(), other, merge(status)), held)
	refused(t, "a pod's labels", agent.Patch(t.Context(), own, merge(`{"metadata":{"labels":{"a":"b"}}}`)), `cannot patch resource "pods"`)
	refused(t, "a pod's labels through its status", agent.Status().Patch(t.Context(), own, merge(`{"metadata":{"labels":{"a":"b"}}}`)), "metadata.labels")
	refused(t, "a pod's spec", agent.Patch(t.Context(), own, merge(`{"spec":{"activeDeadlineSeconds":1}}`)), `cannot patch resource "pods"`)
	refused(t, "a pod's addresses", agent.Status().Patch(t.Context(), own, merge(`{"status":{"podIP":"10.9.9.9","podIPs":[{"ip":"10.9.9.9"}]}}`)), "status is not an agent's to change")
	refused(t, "a pod's deletion", agent.Delete(t.Context(), own), `cannot delete resource "pods"`)

	nn = &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: mine}}
	if err := agent.Status().Patch(t.Context(), nn, merge(`{"status":{"held":[]}}`), client.DryRunAll); err != nil {
		t.Errorf("its own NodeNetwork: %v", err)
	}
	if err := agent.Status().Patch(t.Context(), own, merge(status), client.DryRunAll); err != nil {
		t.Errorf("its own pod's network-status: %v", err)
	}
}

// TestUsersAreHeldToo is the second part of promise i, with an administrator's rights.
func TestUsersAreHeldToo(t *testing.T) {
	ns := namespace(t)
	pod := run(t, newPod(ns, "bound", "data"))
	status := merge(`{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":"[]"}}}`)
	const byAgentsOnly = "are written by the node's agent only"
	refused(t, "network-status", env.client.Patch(t.Context(), pod.DeepCopy(), status), byAgentsOnly)
	refused(t, "network-status through the status", env.client.Status().Patch(t.Context(), pod.DeepCopy(), status), byAgentsOnly)
	forged := newPod(ns, "forged", "", func(p *corev1.Pod) {
		p.Annotations = map[string]string{v1alpha1.AnnotationNetworkStatus: "[]"}
	})
	refused(t, "a pod created with network-status", env.client.Create(t.Context(), forged), byAgentsOnly)

	plain := run(t, newPod(ns, "plain", "", by(v1alpha1.DefaultSchedulerName)))
	const fixed = "has no annotation netplane.io/attached-networks"
	patch := `{"metadata":{"annotations":{"netplane.io/networks":"management"}}}`
	refused(t, patch, env.client.Patch(t.Context(), plain.DeepCopy(), merge(patch)), fixed)
	refused(t, patch+" through the status", env.client.Status().Patch(t.Context(), plain.DeepCopy(), merge(patch)), fixed)
	patch = `{"metadata":{"annotations":{"netplane.io/networks":"data,management@eth0"}}}`
	refused(t, patch, env.client.Patch(t.Context(), pod.DeepCopy(), merge(patch)), "the network on eth0 is made with the pod")
	refused(t, "the default scheduler", env.client.Create(t.Context(), newPod(ns, "wrong", "data", by(corev1.DefaultSchedulerName))),
		"set it to "+v1alpha1.DefaultSchedulerName)
}
