// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

func (w *world) block(network string, prefix netip.Prefix) *v1alpha1.IPBlock {
	w.t.Helper()
	var out v1alpha1.IPBlock
	w.must(w.Get(w.t.Context(), client.ObjectKey{Name: addressing.BlockName(network, prefix)}, &out))
	return &out
}

// forceGone removes a block as an admin can, finalizer or not.
func (w *world) forceGone(network string, prefix netip.Prefix) {
	w.t.Helper()
	block := w.block(network, prefix)
	block.Finalizers = nil
	w.must(w.Update(w.t.Context(), block), w.Delete(w.t.Context(), block))
}

// give makes a block of the network for the node, as its agent or an earlier
// state of the API server would.
func (w *world) give(network *v1alpha1.Network, prefix netip.Prefix, node string) error {
	w.t.Helper()
	out := &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{Name: addressing.BlockName(network.Name, prefix), Finalizers: []string{v1alpha1.FinalizerIPBlock}},
		Spec: v1alpha1.IPBlockSpec{
			Network: network.Name, NetworkUID: network.UID, CIDR: v1alpha1.CIDR(prefix.String()), NodeName: node, NodeUID: w.nodeUID(node),
		},
	}
	return w.Create(w.t.Context(), out)
}

func TestABlockRemovedByForceIsAsserted(t *testing.T) {
	w := newWorld(t)
	w.node("forced-0", "forced")
	owners := w.pods("forced-0", "forced", 2)
	w.network("forced", "10.55.0.0/26")
	a := w.agent("forced-0")
	a.reserve(owners[0], "forced")
	lease := a.Leases()[0]
	before := w.block("forced", lease.Block).UID
	w.forceGone("forced", lease.Block)
	w.eventually("the agent asserts its block", func() string {
		var block v1alpha1.IPBlock
		err := w.Get(t.Context(), client.ObjectKey{Name: addressing.BlockName("forced", lease.Block)}, &block)
		if err != nil || block.UID == before || block.Spec.NodeName != "forced-0" {
			return fmt.Sprint(err, block.Spec)
		}
		return ""
	})
	w.agree("forced", a)
	if address := a.reserve(owners[1], "forced"); address == lease.Address.String() {
		t.Errorf("the second pod got %s, which the first one has", address)
	}
}

// TestABlockThatTwoNodesHave plays the whole story: a block in which a pod
// lives names another node after a restore; that node adopts it and has a pod
// in it, too. Neither gives out more of it until one of them has no pod in it.
func TestABlockThatTwoNodesHave(t *testing.T) {
	w := newWorld(t)
	for _, node := range []string{"two-0", "two-1"} {
		w.node(node, "two")
	}
	owners := append(w.pods("two-0", "two", 2), w.pods("two-1", "two", 2)...)
	network := w.network("two", "10.56.0.0/26")
	first := w.agent("two-0")
	first.reserve(owners[0], "two")
	shared := first.Leases()[0].Block
	name := addressing.BlockName("two", shared)

	// Until the agent sees that its block is gone, another node's takes its place.
	first.pauseAssertions(func() {
		w.forceGone("two", shared)
		w.must(w.give(network, shared, "two-1"))
	})
	second := w.agent("two-1")
	second.reserve(owners[2], "two")
	w.eventually("the node with the pod reports the conflict", func() string {
		return cmp.Diff(name+" with two-1, 1 address", conflictsOf(first))
	})
	if got := first.reserve(owners[1], "two"); shared.Contains(netip.MustParseAddr(got)) {
		t.Errorf("%s was handed out of another node's block", got)
	}

	// The controller tells the other node, which has a pod in the block by now.
	if second.Leases()[0].Block != shared {
		t.Fatalf("the second node's pod is in %s", second.Leases()[0].Block)
	}
	block := w.block("two", shared)
	metav1.SetMetaDataAnnotation(&block.ObjectMeta, v1alpha1.AnnotationContestedBy, "two-0")
	w.must(w.Update(t.Context(), block))
	w.eventually("the other node reports it, too", func() string {
		return cmp.Diff(name+" with two-0, 1 address", conflictsOf(second))
	})
	if got := second.reserve(owners[3], "two"); shared.Contains(netip.MustParseAddr(got)) {
		t.Errorf("%s was handed out of a contested block", got)
	}

	// With the pods of the second node gone the block stays where it is: whoever
	// had it next could give out the first node's addresses.
	w.must(second.Release(t.Context(), owners[2].ContainerID))
	w.eventually("the second node has nothing to report", func() string { return conflictsOf(second) })
	time.Sleep(2 * time.Second) // longer than all graces
	if got := w.blocks("two"); !slices.Contains(got, shared.String()+" two-1") {
		t.Errorf("the contested block has gone: %v", got)
	}

	// The last pod of the first node settles it, and the controller tells.
	w.must(first.Release(t.Context(), owners[0].ContainerID))
	w.eventually("the first node has nothing to report", func() string { return conflictsOf(first) })
	block = w.block("two", shared)
	delete(block.Annotations, v1alpha1.AnnotationContestedBy)
	w.must(w.Update(t.Context(), block))
	w.eventually("the block, which nobody has needed for long, is anybody's again", func() string {
		if got := w.blocks("two"); slices.ContainsFunc(got, func(b string) bool { return strings.HasPrefix(b, shared.String()) }) {
			return fmt.Sprint(got)
		}
		return ""
	})
	w.agree("two", first, second)
}

func conflictsOf(a *agent) string {
	var out []string
	for _, c := range a.Conflicts() {
		out = append(out, fmt.Sprintf("%s with %s, %d address", c.Block, c.OtherNode, c.Addresses))
	}
	return strings.Join(out, "; ")
}

func TestAfterARollbackTheAgentWaitsWithNewBlocks(t *testing.T) {
	w := newWorld(t)
	w.node("wait-0", "wait")
	owners := w.pods("wait-0", "wait", 2)
	w.network("wait", "10.57.0.0/26")
	a := w.agent("wait-0")
	a.reserve(owners[0], "wait")
	a.stop()
	// The next agent is told that the API server was further than it is.
	a.remember("99999999")
	a.start()
	if got := a.reserve(owners[1], "wait"); !a.Leases()[0].Block.Contains(netip.MustParseAddr(got)) {
		t.Errorf("%s is not of the block that the node has", got)
	}
	w.pod("wait-0", "wait", 16)
	time.Sleep(rollbackPause / 2)
	if got := w.blocks("wait"); len(got) != 1 {
		t.Errorf("blocks in the pause: %v", got)
	}
	w.eventually("new blocks after the pause", func() string {
		if got := w.blocks("wait"); len(got) < 3 {
			return fmt.Sprint(got)
		}
		return ""
	})
}
