// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

const ours, foreign = "10.20.0.16/29", "10.20.0.24/29"

// rewind has the agent notice that the API server's state went back.
func (f *claimFixture) rewind() { f.claimer.history.wentBack("test") }

func noPods(types.UID) bool { return false }

func livePods(types.UID) bool { return true }

// mark writes the controller's annotation.
func (f *claimFixture) mark(prefix, contester string) {
	f.t.Helper()
	block := ipBlock(prefix, thisNode, thisNodeUID)
	if err := f.api.Get(f.t.Context(), client.ObjectKeyFromObject(block), block); err != nil {
		f.t.Fatal(err)
	}
	delete(block.Annotations, v1alpha1.AnnotationContestedBy)
	if contester != "" {
		metav1.SetMetaDataAnnotation(&block.ObjectMeta, v1alpha1.AnnotationContestedBy, contester)
	}
	if err := f.api.Update(f.t.Context(), block); err != nil {
		f.t.Fatal(err)
	}
}

func TestAfterARollbackNewBlocksWait(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock(ours, thisNode, thisNodeUID))...)
	f.run()
	f.mustReserve(ask("a", "data"))
	f.clock.Step(time.Minute)
	f.rewind()
	f.create(pod("b", strings.TrimSuffix(strings.Repeat("data,", 12), ",")))
	calls, result := f.run()
	expectEqual(t, "calls", []string{"list"}, calls)
	expectEqual(t, "next look", DefaultRollbackPause, result.RequeueAfter)
	var asks []Ask
	for i := range 12 {
		asks = append(asks, ask("b", "data", fmt.Sprint("net", i)))
	}
	_, err := f.reserve(asks...)
	if err == nil || !strings.Contains(err.Error(), hintRollback) {
		t.Errorf("error %v, want the hint %q", err, hintRollback)
	}
	// The node's own block serves on.
	expectEqual(t, "address", []string{"10.20.0.18"}, f.mustReserve(ask("c", "data")))
	f.clock.Step(DefaultRollbackPause)
	calls, _ = f.run()
	if len(calls) == 0 || !strings.HasPrefix(calls[0], "create") {
		t.Errorf("calls after the pause: %v", calls)
	}
	f.mustReserve(asks...)
}

func TestASpecThatComesBackWithItsGenerationIsReadAnew(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock(ours, thisNode, thisNodeUID))...)
	f.run()
	restored := dataNetwork()
	if err := f.api.Get(t.Context(), client.ObjectKeyFromObject(restored), restored); err != nil {
		t.Fatal(err)
	}
	generation := restored.Generation
	restored.Spec.ExcludeRanges = []v1alpha1.IPRange{"10.20.0.17-10.20.0.19"}
	if err := f.api.Update(t.Context(), restored); err != nil {
		t.Fatal(err)
	}
	expectEqual(t, "generation", generation, restored.Generation)
	f.run()
	expectEqual(t, "address", []string{"10.20.0.20"}, f.mustReserve(ask("a", "data")))
}

func TestLostBlocksAreAssertedInThePause(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock(ours, thisNode, thisNodeUID))...)
	f.run()
	f.mustReserve(ask("a", "data"))
	f.forceGone(ours)
	f.rewind()
	calls, _ := f.run()
	expectEqual(t, "calls", []string{named("create", ours)}, calls)
	expectEqual(t, "next address", []string{"10.20.0.18"}, f.mustReserve(ask("b", "data")))
	calls, _ = f.run()
	expectEqual(t, "calls of the second look", []string(nil), calls)
}

func TestAfterARollbackTheCacheIsNotBelieved(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock(ours, thisNode, thisNodeUID))...)
	f.run()
	f.mustReserve(ask("a", "data"))
	f.clock.Step(time.Minute)
	stale := ipBlock(ours, thisNode, thisNodeUID)
	f.forceGone(ours)
	f.create(ipBlock(ours, "worker2", "uid-worker2"))
	f.claimer.client = showBlock{f.claimer.client, stale}
	f.rewind()
	calls, _ := f.run()
	expectEqual(t, "calls", []string{"list", named("create", ours), named("get", ours)}, calls)
	if _, err := f.reserve(ask("b", "data")); err == nil {
		t.Error("an address was handed out of another node's block")
	}
	expectEqual(t, "conflicts", 1, len(f.Conflicts()))
	f.clock.Step(DefaultRollbackPause)
	calls, _ = f.run()
	if len(calls) == 0 || calls[len(calls)-1] == named("create", ours) {
		t.Errorf("calls after the pause: %v, want the claim of another block", calls)
	}
}

// showBlock is a cache that has one block still.
type showBlock struct {
	client.Client
	block *v1alpha1.IPBlock
}

func (s showBlock) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	err := s.Client.List(ctx, list, opts...)
	if blocks, ok := list.(*v1alpha1.IPBlockList); ok && err == nil {
		var others []v1alpha1.IPBlock
		for i := range blocks.Items {
			if blocks.Items[i].Name != s.block.Name {
				others = append(others, blocks.Items[i])
			}
		}
		blocks.Items = append(others, *s.block)
	}
	return err
}

func TestBlocksThatComeWithARollbackStayClosedForAWhile(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock(ours, thisNode, thisNodeUID))...)
	f.run()
	f.clock.Step(time.Minute)
	f.create(ipBlock(foreign, thisNode, thisNodeUID))
	f.run() // a look before the rollback is noticed
	f.rewind()
	_, result := f.run()
	expectEqual(t, "next look", DefaultRollbackPause, result.RequeueAfter)
	var asks []Ask
	for i := range 7 {
		asks = append(asks, ask("a", "data", fmt.Sprint("net", i)))
	}
	for i, got := range f.mustReserve(asks...) {
		expectEqual(t, "address", fmt.Sprintf("10.20.0.%d", 17+i), got)
	}
	if got, err := f.reserve(ask("b", "data")); err == nil {
		t.Errorf("%v was handed out", got)
	}
	// The scheduler takes the closed block for capacity.
	expectEqual(t, "held", []v1alpha1.HeldAddresses{{Network: "data", Count: 7, Quarantined: true}}, f.Held(livePods))
	f.clock.Step(DefaultRollbackPause)
	f.run()
	expectEqual(t, "held after the pause", []v1alpha1.HeldAddresses(nil), f.Held(livePods))
	f.mustReserve(ask("b", "data"))
}

func TestAClaimThatTellsOfARollbackStaysClosed(t *testing.T) {
	f := newClaimFixture(t, world()...)
	f.claimer.history.see(blockCache, "1000000")
	f.run()
	expectEqual(t, "blocks", 1, len(f.blocksInAPI()))
	if got, err := f.reserve(ask("a", "data")); err == nil {
		t.Errorf("%v was handed out", got)
	}
	f.clock.Step(DefaultRollbackPause)
	f.run()
	f.mustReserve(ask("a", "data"))
}

// The other node opens the block as soon as nobody contests it.
func TestARestartedAgentReportsAConflictUntilItKnowsBetter(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock(ours, thisNode, thisNodeUID))...)
	f.run()
	f.mustReserve(ask("a", "data"))
	f.forceGone(ours)
	f.create(ipBlock(ours, "worker2", "uid-worker2"))
	f.run()
	published := f.Conflicts()
	expectEqual(t, "conflicts", 1, len(published))

	f.restart()
	f.Recall(published)
	expectEqual(t, "conflicts before the first look", published, f.Conflicts())
	f.run()
	expectEqual(t, "conflicts after it", published, f.Conflicts())

	f.restart()
	f.Recall(published)
	f.forceGone(ours)
	f.run() // asserts the block
	expectEqual(t, "conflicts when the other node has let go", []v1alpha1.BlockConflict(nil), f.Conflicts())
	f.Recall(published)
	expectEqual(t, "conflicts that are known better", []v1alpha1.BlockConflict(nil), f.Conflicts())

	f.mustRelease("sandbox-a")
	f.restart()
	f.Recall(published)
	expectEqual(t, "conflicts without addresses in use", []v1alpha1.BlockConflict(nil), f.Conflicts())
}

func TestABlockOfAnotherNodeWithOurAddressesIsAConflict(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock(ours, thisNode, thisNodeUID))...)
	f.run()
	f.mustReserve(ask("a", "data", "net1"), ask("a", "data", "net2"), ask("b", "data"), ask("c", "data"), ask("d", "data"))
	f.forceGone(ours)
	f.create(ipBlock(ours, "worker2", "uid-worker2"))
	for range 2 {
		_, result := f.run()
		expectEqual(t, "next look", conflictPause, result.RequeueAfter)
	}
	name := ipBlock(ours, "", "").Name
	want := []v1alpha1.BlockConflict{{
		Block: name, OtherNode: "worker2", Addresses: 5, Since: metav1.NewTime(f.clock.Now()), Pods: []string{"default/a", "default/b", "default/c"},
	}}
	expectEqual(t, "conflicts", want, f.Conflicts())
	expectEqual(t, "events", []string{"Warning BlockConflict Nodes worker and worker2 both have IPBlock " + name +
		": 5 addresses of it are in use on worker (pods default/a, default/b, default/c). Delete them, or those on worker2 if they are younger: see status.conflicts of both NodeNetworks"}, f.events)
	expectEqual(t, "conflicts counted", 1.0, testutil.ToFloat64(f.claimer.metrics.claims.WithLabelValues("data", string(claimConflict))))
	f.expectMetric("netplane_ipam_conflicts", 1)
	got := f.mustReserve(ask("e", "data"))
	if netip.MustParsePrefix(ours).Contains(netip.MustParseAddr(got[0])) {
		t.Errorf("%s was handed out of another node's block", got[0])
	}

	// The last lease in it ends the quarantine.
	for _, pod := range []string{"a", "b", "c", "d"} {
		f.mustRelease("sandbox-" + pod)
	}
	expectEqual(t, "conflicts without pods", []v1alpha1.BlockConflict(nil), f.Conflicts())
	f.expectMetric("netplane_ipam_conflicts", 0)
	f.clock.Step(conflictPause)
	calls, _ := f.run()
	expectEqual(t, "calls", []string(nil), calls)
}

func (f *claimFixture) expectMetric(name string, value int) {
	f.t.Helper()
	help := "IPBlocks in which addresses are in use here although another node has the block."
	want := fmt.Sprintf("# HELP %s %s\n# TYPE %s gauge\n%s{network=\"data\"} %d\n", name, help, name, name, value)
	if err := testutil.GatherAndCompare(f.metrics, strings.NewReader(want), name); err != nil {
		f.t.Error(err)
	}
}

func TestABlockThatTheOtherNodeLetsGoIsAsserted(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock(ours, thisNode, thisNodeUID))...)
	f.run()
	f.mustReserve(ask("a", "data"))
	f.forceGone(ours)
	f.create(ipBlock(ours, "worker2", "uid-worker2"))
	f.run()
	f.forceGone(ours)
	calls, _ := f.run()
	expectEqual(t, "calls before the pause is over", []string(nil), calls)
	f.clock.Step(conflictPause)
	calls, _ = f.run()
	expectEqual(t, "calls", []string{named("create", ours)}, calls)
	expectEqual(t, "conflicts", []v1alpha1.BlockConflict(nil), f.Conflicts())
}

func TestAContestedBlockIsClosedAndKept(t *testing.T) {
	network := dataNetwork()
	// No other block is to be had: even so nothing comes of the contested one.
	network.Status.Conditions = append(network.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionTight, Status: metav1.ConditionTrue})
	f := newClaimFixture(t, network, thisNodeNetwork(), thisNodeObject(), ipBlock(ours, thisNode, thisNodeUID))
	f.run()
	f.mustReserve(ask("a", "data"), ask("a", "data", "net2"))
	f.mark(ours, "worker2")
	calls, _ := f.run()
	expectEqual(t, "calls", []string(nil), calls)
	if got, err := f.reserve(ask("b", "data")); err == nil {
		t.Errorf("%v was handed out of a contested block", got)
	}
	expectEqual(t, "address of a repeated ADD", []string{"10.20.0.17"}, f.mustReserve(ask("a", "data")))
	conflicts := f.Conflicts()
	if len(conflicts) != 1 || conflicts[0].OtherNode != "worker2" || conflicts[0].Addresses != 2 {
		t.Errorf("conflicts %v", conflicts)
	}
	// 7 addresses, as the scheduler counts: 2 of a pod that lives, or of one that does not.
	expectEqual(t, "held", []v1alpha1.HeldAddresses{{Network: "data", Count: 5, Quarantined: true}}, f.Held(livePods))
	expectEqual(t, "held when the pod is gone", []v1alpha1.HeldAddresses{{Network: "data", Count: 5, Quarantined: true}, {Network: "data", Count: 2, PodUID: "uid-a"}}, f.Held(noPods))

	// Whoever had it next could give out what the other node's pods have.
	f.mustRelease("sandbox-a")
	expectEqual(t, "conflicts without pods", []v1alpha1.BlockConflict(nil), f.Conflicts())
	f.clock.Step(time.Hour)
	calls, _ = f.run()
	expectEqual(t, "calls when it is empty", []string(nil), calls)
	f.deleteInAPI(ipBlock(ours, thisNode, thisNodeUID))
	f.run()
	f.clock.Step(time.Hour)
	calls, _ = f.run()
	expectEqual(t, "calls when somebody deleted it", []string(nil), calls)
	f.mark(ours, "")
	calls, _ = f.run()
	expectEqual(t, "calls when nobody contests it", []string{named("patch", ours)}, calls)
}

func TestABlockIsServedAgainWhenNobodyContestsIt(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock(ours, thisNode, thisNodeUID))...)
	f.run()
	f.mustReserve(ask("a", "data"))
	f.mark(ours, "worker2")
	f.run()
	f.mark(ours, "")
	f.run()
	expectEqual(t, "conflicts", []v1alpha1.BlockConflict(nil), f.Conflicts())
	expectEqual(t, "address", []string{"10.20.0.18"}, f.mustReserve(ask("b", "data")))
}

func TestAddressesOfAFormerNetworkHoldTheirBlockInTodays(t *testing.T) {
	f := newClaimFixture(t, world()...)
	f.hold("data", "uid-former", ours)
	f.mustReserve(ask("a", "data"))
	calls, _ := f.run()
	expectEqual(t, "calls", []string{named("create", ours)}, calls)
	expectEqual(t, "next address", []string{"10.20.0.18"}, f.mustReserve(ask("b", "data")))
}
