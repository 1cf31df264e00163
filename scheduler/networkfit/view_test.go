// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"fmt"
	"sync"
	"testing"

	v1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/api/v1alpha1"
)

// filter runs PreFilter and Filter.
func filter(t testing.TB, pl *NetworkFit, pod *v1.Pod, info fwk.NodeInfo) answer {
	t.Helper()
	state := newCycleState()
	if _, status := pl.PreFilter(t.Context(), state, pod, nil); !status.IsSuccess() {
		t.Fatal(status)
	}
	return answerOf(pl.Filter(t.Context(), state, pod, info))
}

func TestFilterPassesANodeWithoutAllocation(t *testing.T) {
	for _, asked := range []string{"data", "data,management", "data,data,management,backup,storage"} {
		names := []string{"data", "management", "backup", "storage"}
		objects := []any{makeNode("n", up(names...), hold(v1alpha1.HeldAddresses{Network: "data", Count: 1, PodUID: "gone"}))}
		for i, name := range names {
			objects = append(objects, makeNetwork(name), makeBlock(name, "n", i))
		}
		pl := newPlugin(t, objects...)
		state, pod, info := newCycleState(), makePod("p", asked), newNodeInfo("n", pods(3, "data,management")...)
		if _, status := pl.PreFilter(t.Context(), state, pod, nil); !status.IsSuccess() {
			t.Fatal(status)
		}
		if got := testing.AllocsPerRun(100, func() {
			if status := pl.Filter(t.Context(), state, pod, info); !status.IsSuccess() {
				t.Error(status)
			}
		}); got != 0 {
			t.Errorf("%s: Filter allocates %v times", asked, got)
		}
		if got := testing.AllocsPerRun(100, func() { _, _ = pl.Score(t.Context(), state, pod, info) }); got != 0 {
			t.Errorf("%s: Score allocates %v times", asked, got)
		}
	}
}

// An informer that lists anew replaces its store's content and does not call
// the index functions for what is gone.
func TestWhatIsLostWhileListingAnewIsForgotten(t *testing.T) {
	lost, kept := makeBlock("data", "n", 0), makeBlock("data", "other", 1)
	pl := newPlugin(t, makeNetwork("data"), makeNode("n", up("data")), lost, kept)
	pod, info := makePod("p", "data"), newNodeInfo("n")
	if got := filter(t, pl, pod, info); got != success() {
		t.Fatal(got)
	}
	if err := pl.sources.blocks.Replace([]any{kept}, "2"); err != nil {
		t.Fatal(err)
	}
	pl.sources.staleness().OnDelete(stored(lost))
	if got := filter(t, pl, pod, info); got != unresolvable(`node(s) held no address block of network "data"`) {
		t.Errorf("without its block: %v", got)
	}
	// The same name in another node's hands is one update.
	moved := makeBlock("data", "n", 1)
	if err := pl.sources.blocks.Replace([]any{moved}, "3"); err != nil {
		t.Fatal(err)
	}
	if got := filter(t, pl, pod, info); got != success() {
		t.Errorf("with another's block: %v", got)
	}
	if err := pl.sources.blocks.Replace([]any{kept}, "4"); err != nil {
		t.Fatal(err)
	}
	pl.sources.staleness().OnUpdate(stored(moved), stored(kept))
	if got := filter(t, pl, pod, info); got == success() {
		t.Error("a block that moved is still counted")
	}
}

func TestANodeThatIsMadeAnewHoldsNoBlocks(t *testing.T) {
	pl := newPlugin(t, makeNetwork("data"), makeNode("n", up("data")), makeBlock("data", "n", 0))
	info := newNodeInfo("n")
	if got := filter(t, pl, makePod("p", "data"), info); got != success() {
		t.Fatal(got)
	}
	info.node = info.node.DeepCopy()
	info.node.UID = "younger"
	if got := filter(t, pl, makePod("p", "data"), info); got == success() {
		t.Error("the blocks of an older Node of that name are counted")
	}
}

func TestNodesAreForgottenInTime(t *testing.T) {
	var v views
	for i := range maxViews + 10 {
		v.of(fmt.Sprint("node-", i))
	}
	count := 0
	v.byNode.Range(func(any, any) bool { count++; return true })
	if count > maxViews {
		t.Errorf("%d nodes are remembered, at most %d may be", count, maxViews)
	}
}

// Whoever has changed a store sees the change, whatever others ask meanwhile.
func TestAChangeIsSeenAtOnce(t *testing.T) {
	pl := newPlugin(t, makeNetwork("data"), makeNode("n", up("data")))
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for worker := range 4 {
		readers.Go(func() {
			info := newNodeInfo("n")
			info.generation = int64(worker % 2)
			for {
				select {
				case <-stop:
					return
				default:
					filter(t, pl, makePod("p", "data"), info)
				}
			}
		})
	}
	without, info := unresolvable(`node(s) held no address block of network "data"`), newNodeInfo("n")
	for round := range 2000 {
		block := makeBlock("data", "n", round%8)
		if err := pl.sources.blocks.Add(block); err != nil {
			t.Fatal(err)
		}
		if got := filter(t, pl, makePod("p", "data"), info); got != success() {
			t.Errorf("round %d: after the claim: %v", round, got)
			break
		}
		if err := pl.sources.nodes.Update(makeNode("n", notReady("data", v1alpha1.ReasonInterfaceDown))); err != nil {
			t.Fatal(err)
		}
		if got := filter(t, pl, makePod("p", "data"), info); got != unresolvable(`node(s) had the NIC for network "data" down`) {
			t.Errorf("round %d: with the NIC down: %v", round, got)
			break
		}
		_ = pl.sources.nodes.Update(makeNode("n", up("data")))
		_ = pl.sources.blocks.Delete(block)
		if got := filter(t, pl, makePod("p", "data"), info); got != without {
			t.Errorf("round %d: after the release: %v", round, got)
			break
		}
	}
	close(stop)
	readers.Wait()
}

// After etcd was restored from a backup a generation comes again, with another spec.
func TestAnotherSpecOfTheSameGenerationCounts(t *testing.T) {
	pl := newPlugin(t, makeNetwork("data"), makeNode("n", up("data")), makeBlock("data", "n", 0))
	pod, info := makePod("p", "data"), newNodeInfo("n")
	if got := filter(t, pl, pod, info); got != success() {
		t.Fatal(got)
	}
	moved := makeNetwork("data", func(n *v1alpha1.Network) { n.Spec.PhysicalNet = "elsewhere" })
	if err := pl.sources.networks.Update(moved); err != nil {
		t.Fatal(err)
	}
	if got := filter(t, pl, pod, info); got == success() {
		t.Error("the pod is placed by the NICs of the physical network that the Network had before")
	}
}
