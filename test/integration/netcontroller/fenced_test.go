// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package netcontroller_test

import (
	"context"
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// testFenced tells a node that is silent from one that an admin has vouched to
// be off.
func testFenced(t *testing.T, c client.Client) {
	addPhysical(t, c, "fe")
	node := addNode(t, c, "fe-node")
	status := backs("fe", "eth1", true)
	status.Held = []v1alpha1.HeldAddresses{{Network: "fenced", Count: 1}}
	report(t, c, node.Name, status)
	network := addNetwork(t, c, "fenced", "fe", "10.11.0.0/24")
	block := addBlock(t, c, network, "10.11.0.0/28", node)
	pod := addPod(t, c, "fe-pod", node.Name, network.Name)
	stays := func(ctx context.Context) error {
		if err := c.Get(ctx, client.ObjectKeyFromObject(block), block); err != nil {
			return err
		}
		if !block.DeletionTimestamp.IsZero() {
			return errors.New("it has a deletionTimestamp")
		}
		return nil
	}

	setNodeReady(t, c, node.Name, corev1.ConditionUnknown)
	patch := client.RawPatch("application/strategic-merge-patch+json",
		[]byte(`{"spec":{"taints":[{"key":"node.kubernetes.io/out-of-service","value":"nodeshutdown","effect":"NoExecute"}]}}`))
	if err := c.Patch(t.Context(), node.DeepCopy(), patch); err != nil {
		t.Fatal(err)
	}
	never(t, "the block of a pod that stands on a fenced node", 2*time.Second, stays)
	remove(t, c, pod)
	awaitGone(t, c, block)

	silent := addNode(t, c, "fe-silent")
	block = addBlock(t, c, network, "10.11.0.16/28", silent)
	setNodeReady(t, c, silent.Name, corev1.ConditionUnknown)
	never(t, "the block of a node that is only silent", 12*time.Second, stays)
}
