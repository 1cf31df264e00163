// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
)

// oneBlock is a Network of a single block with five addresses for pods, so that
// who gets an address got it from there.
var oneBlock = v1alpha1.NetworkSpec{Subnet: "10.60.0.0/29"}

// refuses asserts that an agent has no address for a pod.
func refuses(t *testing.T, a *agent, owner ipam.Owner, network string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	leases, err := a.Reserve(ctx, []ipam.Ask{{Owner: owner, Network: network}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("node %s got %v (error %v) of a block that another node has", a.node, leases, err)
	}
}

func TestANodeThatRegistersAnewKeepsItsAddresses(t *testing.T) {
	w := newWorld(t)
	w.controller()
	w.node("anew-0", "anew")
	w.backedNetwork("anew", oneBlock)
	owners := w.pods("anew-0", "anew", 3)
	a := w.agent("anew-0")
	first := a.reserve(owners[0], "anew")
	lease := a.Leases()[0]
	uid := w.blockOf(lease).UID

	node := w.reregister("anew-0")
	w.agentReady("anew-0", "True")
	w.eventually("the block is the new Node's", func() string {
		block := w.blockOf(lease)
		if block.Spec.NodeUID != node.UID || block.UID != uid || block.DeletionTimestamp != nil {
			return fmt.Sprintf("it is %+v", block)
		}
		return ""
	})
	if again := a.reserve(owners[0], "anew"); again != first {
		t.Errorf("the pod moved from %s to %s", first, again)
	}
	if second := a.reserve(owners[1], "anew"); second == first {
		t.Errorf("two pods have %s", first)
	}

	// The pods are force-deleted while their containers run on.
	w.node("anew-1", "anew")
	stranger := w.pods("anew-1", "anew", 1)[0]
	b := w.agent("anew-1")
	w.kill(owners...)
	w.stays("pods force-deleted", lease, "anew-0")
	refuses(t, b, stranger, "anew")

	w.must(a.Release(t.Context(), owners[0].ContainerID), a.Release(t.Context(), owners[1].ContainerID))
	b.reserve(stranger, "anew")
}

func TestAnAgentThatComesLateToANewNodeFindsItsAddresses(t *testing.T) {
	w := newWorld(t)
	w.controller()
	w.node("late-0", "late")
	w.backedNetwork("late", oneBlock)
	owner := w.pods("late-0", "late", 1)[0]
	a := w.agent("late-0")
	a.reserve(owner, "late")
	lease := a.Leases()[0]

	a.stop()
	w.kill(owner)
	node := w.reregister("late-0")
	w.agentReady("late-0", "False")
	w.stays("the new Node's agent is not ready", lease, "late-0")

	a.start()
	w.agentReady("late-0", "True")
	w.eventually("the agent adopts the block", func() string {
		if block := w.blockOf(lease); block.Spec.NodeUID != node.UID || block.DeletionTimestamp != nil {
			return fmt.Sprintf("it is %+v", block)
		}
		return ""
	})
	w.stays("the container runs on", lease, "late-0")
}

func TestAnotherMachineOfTheSameNameGetsNoAddressOfTheFormer(t *testing.T) {
	w := newWorld(t)
	w.controller()
	w.node("twin-0", "twin")
	w.backedNetwork("twin", v1alpha1.NetworkSpec{Subnet: "10.61.0.0/28"}) // two blocks
	pods := w.pods("twin-0", "twin", 2)
	former := w.agent("twin-0")
	address := former.reserve(pods[0], "twin")
	lease := former.Leases()[0]
	former.stop()

	// It starts with an empty journal, while the pods' objects stand.
	w.reregister("twin-0")
	w.agentReady("twin-0", "True")
	anew := w.agent("twin-0")
	if got := anew.reserve(pods[0], "twin"); lease.Block.Contains(anew.Leases()[0].Address) {
		t.Errorf("the pod's new sandbox got %s; %s may be in use still on the former machine", got, address)
	}
	w.stays("a pod of the former machine stands", lease, "twin-0")

	w.kill(pods...)
	w.eventually("the former machine's block is released", func() string {
		if block := w.blockOf(lease); block != nil {
			return fmt.Sprintf("it is %+v", block)
		}
		return ""
	})
}

func TestNothingMovesFromANodeThatIsPartitioned(t *testing.T) {
	w := newWorld(t)
	w.controller()
	w.node("cut-0", "cut")
	w.node("cut-1", "cut")
	w.backedNetwork("cut", oneBlock)
	owner := w.pods("cut-0", "cut", 1)[0]
	a := w.agent("cut-0")
	address := a.reserve(owner, "cut")
	lease := a.Leases()[0]

	a.stop()
	w.agentReady("cut-0", "False")
	w.kill(owner)
	stranger := w.pods("cut-1", "cut", 1)[0]
	b := w.agent("cut-1")
	w.stays("the node is partitioned", lease, "cut-0")
	refuses(t, b, stranger, "cut")

	a.start()
	w.stays("the node is back, the container still there", lease, "cut-0")
	if got := a.Leases()[0].Address.String(); got != address {
		t.Errorf("the container's address became %s, want %s", got, address)
	}
	w.must(a.Release(t.Context(), owner.ContainerID))
	b.reserve(stranger, "cut")
}

func TestAFencedNodeIsWaitedForNoLonger(t *testing.T) {
	w := newWorld(t)
	w.controller()
	w.node("off-0", "off")
	w.node("off-1", "off")
	w.backedNetwork("off", oneBlock)
	owner := w.pods("off-0", "off", 1)[0]
	a := w.agent("off-0")
	a.reserve(owner, "off")
	lease := a.Leases()[0]
	a.stop()
	stranger := w.pods("off-1", "off", 1)[0]
	b := w.agent("off-1")

	// What the agent held when it was switched off is over.
	offer := &v1alpha1.NodeNetwork{}
	w.must(w.Get(t.Context(), client.ObjectKey{Name: "off-0"}, offer))
	offer.Status.Held = []v1alpha1.HeldAddresses{{Network: "off", Count: 1}}
	w.must(w.Status().Update(t.Context(), offer))
	node := &corev1.Node{}
	w.must(w.Get(t.Context(), client.ObjectKey{Name: "off-0"}, node))
	node.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute}}
	w.must(w.Update(t.Context(), node))
	w.stays("a pod stands on the fenced node", lease, "off-0")
	refuses(t, b, stranger, "off")
	w.kill(owner)
	b.reserve(stranger, "off")
}
