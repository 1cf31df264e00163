// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestANodeKeepsOneWarmBlock(t *testing.T) {
	f := newClaimFixture(t, world()...)
	first := f.candidates()[0]
	calls, _ := f.run()
	expectEqual(t, "calls", []string{named("create", first)}, calls)
	var block v1alpha1.IPBlock
	if err := f.api.Get(t.Context(), client.ObjectKey{Name: strings.TrimPrefix(calls[0], "create ")}, &block); err != nil {
		t.Fatal(err)
	}
	want := v1alpha1.IPBlockSpec{Network: "data", NetworkUID: dataUID, CIDR: v1alpha1.CIDR(first), NodeName: thisNode, NodeUID: thisNodeUID}
	expectEqual(t, "spec", want, block.Spec)
	expectEqual(t, "finalizers", []string{v1alpha1.FinalizerIPBlock}, block.Finalizers)
	calls, _ = f.run()
	expectEqual(t, "calls of the second look", []string(nil), calls)
	f.mustReserve(ask("a", "data"))
}

func TestBlocksAreClaimedForWatermarkAndDemand(t *testing.T) {
	f := newClaimFixture(t, world(pod("a", "data,data,management"), pod("b", "data@eth0"))...)
	done := pod("done", "data")
	done.Status.Phase = corev1.PodSucceeded
	elsewhere := pod("elsewhere", "data")
	elsewhere.Spec.NodeName = "worker2"
	f.create(done, elsewhere, pod("broken", "data@an-interface-name-too-long"))
	f.run()
	expectEqual(t, "blocks for 3 addresses", 1, len(f.blocksInAPI()))
	f.create(pod("c", "data,data,data"))
	f.run()
	expectEqual(t, "blocks for 6 addresses", 2, len(f.blocksInAPI()))
	// 32 interfaces in one pod: the blocks come in one go.
	f.create(pod("d", strings.TrimSuffix(strings.Repeat("data,", 32), ",")))
	f.run()
	expectEqual(t, "blocks for 38 addresses", 6, len(f.blocksInAPI()))
}

func TestOfATightNetworkBlocksAreClaimedForBoundPodsOnly(t *testing.T) {
	network := dataNetwork()
	network.Status.Conditions = append(network.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionTight, Status: metav1.ConditionTrue})
	f := newClaimFixture(t, network, thisNodeNetwork(), thisNodeObject())
	f.run()
	expectEqual(t, "blocks without a pod", 0, len(f.blocksInAPI()))
	f.create(pod("a", "data"))
	f.run()
	expectEqual(t, "blocks while the scheduler's may be on its way", 0, len(f.blocksInAPI()))
	f.clock.Step(adoptWait)
	f.run()
	expectEqual(t, "blocks for a pod that nobody made one for", 1, len(f.blocksInAPI()))
}

func TestWhatIsNotClaimed(t *testing.T) {
	tests := []struct {
		name    string
		network func(*v1alpha1.Network)
		node    func(*v1alpha1.NodeNetwork)
		hint    string
	}{
		{name: "a Network that is not Ready", network: func(n *v1alpha1.Network) { n.Status.Conditions[0].Status = metav1.ConditionFalse }, hint: hintNotReady},
		{name: "a Network that nobody has judged", network: func(n *v1alpha1.Network) { n.Status.Conditions = nil }, hint: hintNotReady},
		{name: "a Network that was Ready with another spec", network: func(n *v1alpha1.Network) { n.Status.ObservedGeneration = 0 }, hint: hintNotReady},
		{name: "a Network whose spec cannot be carved", network: func(n *v1alpha1.Network) { n.Spec.BlockSize = 3 }, hint: hintNotReady},
		{name: "a Network without a subnet", network: func(n *v1alpha1.Network) { n.Spec.Subnet = "" }, hint: hintNotReady},
		{name: "a Network that the node's NICs do not back", network: func(n *v1alpha1.Network) { n.Spec.PhysicalNet = "phy-net9" }, hint: hintNotBacked},
		{name: "a Network whose NIC is down", network: func(n *v1alpha1.Network) { n.Spec.PhysicalNet = "phy-net0" }, hint: hintNotBacked},
		{name: "a Network that the node refuses", node: func(n *v1alpha1.NodeNetwork) {
			n.Status.Refused = []v1alpha1.RefusedNetwork{{Network: "data", Reason: v1alpha1.ReasonPluginConflict}}
		}, hint: hintNotBacked},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			network, node := dataNetwork(), thisNodeNetwork()
			if test.network != nil {
				test.network(network)
			}
			if test.node != nil {
				test.node(node)
			}
			f := newClaimFixture(t, network, node, thisNodeObject(), pod("a", "data"))
			f.wait = 10 * time.Second
			f.Subscribe(func(_ string, waiting bool) {
				if waiting {
					calls, _, err := f.tryRun()
					expectEqual(t, "error", error(nil), err)
					expectEqual(t, "calls", []string(nil), calls)
				}
			})
			ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errWaited)
			defer cancel()
			_, err := f.Reserve(ctx, []Ask{ask("a", "data")})
			if err == nil || !strings.Contains(err.Error(), test.hint) {
				t.Errorf("error %v, want the hint %q", err, test.hint)
			}
		})
	}
}

func TestCollisionsMoveOnAndListOnce(t *testing.T) {
	f := newClaimFixture(t, world()...)
	all := f.candidates()
	var want []string
	for i, prefix := range all[:6] {
		f.create(ipBlock(prefix, "worker2", "uid-worker2"))
		if i < maxCollisions {
			want = append(want, named("create", prefix))
		}
	}
	want = append(want, "list", named("create", all[6]))
	calls, _ := f.run()
	expectEqual(t, "calls", want, calls)
	expectEqual(t, "collisions counted", 4.0, testutil.ToFloat64(f.claimer.metrics.claims.WithLabelValues("data", string(claimTaken))))
}

func TestWithoutCandidatesTheNodePauses(t *testing.T) {
	f := newClaimFixture(t, world()...)
	for _, prefix := range f.candidates() {
		f.create(ipBlock(prefix, "worker2", "uid-worker2"))
	}
	calls, result := f.run()
	expectEqual(t, "calls", maxCollisions+1, len(calls))
	if result.RequeueAfter < minPause || result.RequeueAfter > 2*minPause {
		t.Errorf("next look after %s", result.RequeueAfter)
	}
	calls, _ = f.run()
	expectEqual(t, "calls in the pause", []string(nil), calls)
	last := time.Duration(0)
	for range 10 {
		f.clock.Step(2 * maxPause)
		calls, result = f.run()
		expectEqual(t, "calls after the pause", []string{"list"}, calls)
		if result.RequeueAfter < last || result.RequeueAfter > maxPause*6/5 {
			t.Errorf("next look after %s, the one before after %s", result.RequeueAfter, last)
		}
		last = min(result.RequeueAfter, maxPause)
	}
	// A block becomes free, and the controller's count says so.
	network := dataNetwork()
	network.Status.Addresses = v1alpha1.AddressCounts{Capacity: 54, Claimed: 54}
	f.updateNetwork(network)
	f.clock.Step(2 * maxPause)
	f.run() // notes the count
	network.Status.Addresses.Claimed = 47
	f.updateNetwork(network)
	f.forceGone(f.candidates()[5])
	calls, _ = f.run()
	expectEqual(t, "calls after a block became free", []string{"list", named("create", f.candidates()[5])}, calls)
}

func (f *claimFixture) updateNetwork(network *v1alpha1.Network) {
	f.t.Helper()
	var current v1alpha1.Network
	if err := f.api.Get(f.t.Context(), client.ObjectKeyFromObject(network), &current); err != nil {
		f.t.Fatal(err)
	}
	current.Status = network.Status
	if err := f.api.Status().Update(f.t.Context(), &current); err != nil {
		f.t.Fatal(err)
	}
}

func TestALostReplyIsRecognised(t *testing.T) {
	f := newClaimFixture(t, world()...)
	first := f.candidates()[0]
	hidden := true
	f.lost = func(call string) bool { return strings.HasPrefix(call, "create") }
	f.claimer.client = hideBlocks{f.claimer.client, &hidden} // the watch is behind
	_, _, err := f.tryRun()
	if err == nil || !strings.Contains(err.Error(), `of network "data"`) {
		t.Fatalf("error %v, want one that names the network", err)
	}
	f.lost = nil
	calls, _ := f.run()
	expectEqual(t, "calls", []string{named("create", first), named("get", first)}, calls)
	expectEqual(t, "blocks", []string{first + " of worker"}, f.blocksInAPI())
	f.mustReserve(ask("a", "data"))
	hidden = false
	calls, _ = f.run()
	expectEqual(t, "calls when the watch has caught up", []string(nil), calls)
}

// hideBlocks is a cache that has no IPBlocks yet.
type hideBlocks struct {
	client.Client
	hidden *bool
}

func (h hideBlocks) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	if _, ok := list.(*v1alpha1.IPBlockList); ok && *h.hidden {
		return nil
	}
	return h.Client.List(ctx, list, opts...)
}

func TestABlockCountsBeforeItComesThroughTheWatch(t *testing.T) {
	f := newClaimFixture(t, world()...)
	hidden := true
	f.claimer.client = hideBlocks{f.claimer.client, &hidden}
	f.run()
	calls, _ := f.run()
	expectEqual(t, "calls of the second look", []string(nil), calls)
	expectEqual(t, "blocks", 1, len(f.blocksInAPI()))
}

func TestARefusedCreateIsAnError(t *testing.T) {
	f := newClaimFixture(t, world()...)
	f.onWrite = func(string) error { return errors.New("denied by policy") }
	_, _, err := f.tryRun()
	want := fmt.Sprintf(`claiming block %s of network "data": denied by policy`, f.candidates()[0])
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestBlocksThatNameTheNodeAreAdopted(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock("10.20.0.16/29", thisNode, thisNodeUID))...)
	calls, _ := f.run()
	expectEqual(t, "calls", []string(nil), calls)
	expectEqual(t, "address", []string{"10.20.0.17"}, f.mustReserve(ask("a", "data")))
}

func TestBlocksOfAFormerNodeOfThisNameAreNotAdopted(t *testing.T) {
	f := newClaimFixture(t, world()...)
	first := f.candidates()[0]
	f.create(ipBlock(first, thisNode, "uid-former"))
	calls, _ := f.run()
	expectEqual(t, "calls", []string{named("create", f.candidates()[1])}, calls)
	expectEqual(t, "blocks held", 1, len(f.Usage("data").Blocks))
}

func TestADeletedBlockGoesWhenItsLastPodDoes(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock("10.20.0.16/29", thisNode, thisNodeUID))...)
	f.run()
	f.mustReserve(ask("a", "data"))
	f.deleteInAPI(ipBlock("10.20.0.16/29", thisNode, thisNodeUID))
	calls, _ := f.run()
	expectEqual(t, "calls: a warm block replaces it", 1, len(calls))
	f.clock.Step(time.Hour)
	calls, _ = f.run()
	expectEqual(t, "calls while a pod lives in it", []string(nil), calls)
	f.mustRelease("sandbox-a")
	calls, result := f.run()
	expectEqual(t, "calls in the grace", []string(nil), calls)
	expectEqual(t, "next look", DefaultDrainGrace, result.RequeueAfter)
	f.clock.Step(DefaultDrainGrace)
	calls, _ = f.run()
	expectEqual(t, "calls after the grace", []string{named("patch", "10.20.0.16/29")}, calls)
	expectEqual(t, "blocks", 1, len(f.blocksInAPI()))
}

// The scheduler sees 7 addresses then, and 7 pods.
func TestABlockThatGoesIsMadeUpForWhileItsPodsLive(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock("10.20.0.16/29", thisNode, thisNodeUID))...)
	for i := range 7 {
		name := fmt.Sprint("p", i)
		f.create(pod(name, "data"))
		if i == 0 {
			f.run()
		}
		f.mustReserve(ask(name, "data"))
	}
	f.deleteInAPI(ipBlock("10.20.0.16/29", thisNode, thisNodeUID))
	f.run()
	expectEqual(t, "open blocks", 2, f.openBlocks())
	// What makes up for it is not spare.
	f.clock.Step(2 * DefaultIdleGrace)
	calls, _ := f.run()
	expectEqual(t, "calls after a while", []string(nil), calls)
}

func (f *claimFixture) openBlocks() int {
	open := 0
	for _, b := range f.Usage("data").Blocks {
		if b.Open {
			open++
		}
	}
	return open
}

func TestSpareBlocksAreGivenBack(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock("10.20.0.16/29", thisNode, thisNodeUID), ipBlock("10.20.0.24/29", thisNode, thisNodeUID))...)
	_, result := f.run()
	expectEqual(t, "next look", DefaultIdleGrace, result.RequeueAfter)
	f.mustReserve(ask("a", "data"))
	f.clock.Step(DefaultIdleGrace)
	calls, _ := f.run()
	expectEqual(t, "calls", []string{named("delete", "10.20.0.24/29")}, calls)
	f.run()
	f.clock.Step(DefaultDrainGrace)
	f.run()
	expectEqual(t, "blocks", []string{"10.20.0.16/29 of worker"}, f.blocksInAPI())
}

func TestABlockThatCannotBeGivenBackStaysInUse(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock("10.20.0.16/29", thisNode, thisNodeUID), ipBlock("10.20.0.24/29", thisNode, thisNodeUID))...)
	f.run()
	f.clock.Step(DefaultIdleGrace)
	f.onWrite = func(string) error { return errors.New("no answer") }
	_, _, err := f.tryRun()
	if err == nil || err.Error() != `giving back block 10.20.0.16/29 of network "data": no answer` {
		t.Errorf("error %v", err)
	}
	expectEqual(t, "address", []string{"10.20.0.17"}, f.mustReserve(ask("a", "data")))
}

func TestANetworkThatIsDeletedLosesItsIdleBlocksAtOnce(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock("10.20.0.16/29", thisNode, thisNodeUID), ipBlock("10.20.0.24/29", thisNode, thisNodeUID))...)
	f.run()
	f.mustReserve(ask("a", "data"))
	f.deleteInAPI(dataNetwork())
	calls, _ := f.run()
	expectEqual(t, "calls", []string{named("delete", "10.20.0.24/29")}, calls)
	f.mustRelease("sandbox-a")
	calls, _ = f.run()
	expectEqual(t, "calls after the last pod", []string{named("delete", "10.20.0.16/29")}, calls)
	f.run()
	f.clock.Step(DefaultDrainGrace)
	f.run()
	expectEqual(t, "blocks", []string(nil), f.blocksInAPI())
}

func TestBlocksOfANetworkThatIsGoneGo(t *testing.T) {
	f := newClaimFixture(t, thisNodeNetwork(), thisNodeObject(), ipBlock("10.20.0.16/29", thisNode, thisNodeUID))
	f.run()
	f.run()
	f.clock.Step(DefaultDrainGrace)
	f.run()
	expectEqual(t, "blocks", []string(nil), f.blocksInAPI())
	f.run()
	expectEqual(t, "networks remembered", 0, len(f.claimer.networks)+len(f.Networks()))
}

func TestBlocksThatTheAPILostAreAsserted(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock("10.20.0.16/29", thisNode, thisNodeUID))...)
	f.run()
	f.mustReserve(ask("a", "data"))
	f.forceGone("10.20.0.16/29")
	f.crash(func(Lease) bool { return true })
	f.claimer.manager = f.Manager
	calls, _ := f.run()
	expectEqual(t, "calls", []string{named("create", "10.20.0.16/29")}, calls)
	expectEqual(t, "next address", []string{"10.20.0.18"}, f.mustReserve(ask("b", "data")))
}

func TestNothingHappensBeforeReplay(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock("10.20.0.16/29", thisNode, thisNodeUID))...)
	f.claimer.manager = New(Config{JournalPath: f.path + "-unread"})
	f.deleteInAPI(ipBlock("10.20.0.16/29", thisNode, thisNodeUID))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := f.claimer.Reconcile(ctx, requestFor("data")); err != nil {
		t.Fatal(err)
	}
	expectEqual(t, "calls", []string(nil), f.calls)
}

func TestWithoutItsNodeTheAgentClaimsNothing(t *testing.T) {
	f := newClaimFixture(t, dataNetwork(), thisNodeNetwork())
	_, _, err := f.tryRun()
	if err == nil || !strings.HasPrefix(err.Error(), `reading Node "worker": `) {
		t.Errorf("error %v", err)
	}
}

func TestAddressMetrics(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock("10.20.0.16/29", thisNode, thisNodeUID))...)
	f.run()
	f.mustReserve(ask("a", "data"))
	want := `# HELP netplane_ipam_addresses Addresses of the node's blocks: used ones, free ones, and used ones in blocks that are closed or not the node's; and fixed addresses in use.
# TYPE netplane_ipam_addresses gauge
netplane_ipam_addresses{network="data",state="closing"} 0
netplane_ipam_addresses{network="data",state="fixed"} 0
netplane_ipam_addresses{network="data",state="free"} 6
netplane_ipam_addresses{network="data",state="used"} 1
`
	if err := testutil.GatherAndCompare(f.metrics, strings.NewReader(want), "netplane_ipam_addresses"); err != nil {
		t.Error(err)
	}
	if _, err := NewMetrics(f.metrics, f.Manager); err == nil {
		t.Error("metrics were registered twice")
	}
}

func TestAddressesCostTheAPIServerNothing(t *testing.T) {
	f := newClaimFixture(t, world()...)
	f.run()
	for round := range 20 {
		name := fmt.Sprintf("pod-%d", round)
		f.mustReserve(ask(name, "data"), ask(name, "data", "net2"))
		calls, _ := f.run()
		expectEqual(t, "calls while the pod has addresses", []string(nil), calls)
		f.mustRelease("sandbox-" + name)
		calls, _ = f.run()
		expectEqual(t, "calls after it gave them back", []string(nil), calls)
	}
}

// All nodes of a large cluster want a block of a new Network at once.
func TestTheFirstBlockOfANetworkIsLeftToOthersForAWhile(t *testing.T) {
	const nodes = 5000
	network := dataNetwork()
	network.Status.Nodes.Total = nodes
	f := newClaimFixture(t, network, thisNodeNetwork(), thisNodeObject())
	calls, result := f.run()
	expectEqual(t, "calls", []string(nil), calls)
	if result.RequeueAfter <= 0 || result.RequeueAfter > nodes*claimSpread {
		t.Errorf("the next look is after %s, want one within %s", result.RequeueAfter, nodes*claimSpread)
	}
	f.clock.Step(result.RequeueAfter - 1)
	_, again := f.run()
	expectEqual(t, "rest of the wait", time.Duration(1), again.RequeueAfter)
	f.clock.Step(1)
	f.run()
	expectEqual(t, "blocks when it is this node's turn", 1, len(f.blocksInAPI()))
}

func TestTheFirstBlockIsClaimedAtOnceForAPod(t *testing.T) {
	network := dataNetwork()
	network.Status.Nodes.Total = 5000
	f := newClaimFixture(t, network, thisNodeNetwork(), thisNodeObject())
	f.run()
	f.create(pod("a", "data"))
	f.run()
	expectEqual(t, "blocks", 1, len(f.blocksInAPI()))
}
