// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	testingclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// Streams of the tests.
var (
	podCache   = stream{"Pod", fromCache}
	nodeCache  = stream{"Node", fromCache}
	blockCache = stream{blocksKind, fromCache}
)

func newHistory(clock *testingclock.FakeClock, path string) *history {
	h := &history{clock: clock, pause: time.Minute, path: path, logger: klog.Background(), metrics: newMetrics(), seen: map[stream]string{}}
	h.remember()
	return h
}

func TestWhatTellsOfARollback(t *testing.T) {
	tests := []struct {
		name string
		see  func(h *history)
		want int // pauses
	}{
		{"versions that grow", func(h *history) { h.see(podCache, "9"); h.see(podCache, "10"); h.see(podCache, "100010") }, 0},
		{"the same version", func(h *history) { h.see(podCache, "10"); h.see(podCache, "10") }, 0},
		{"a version that went back", func(h *history) { h.see(podCache, "10"); h.see(podCache, "9") }, 1},
		{"kinds whose caches are not equally far", func(h *history) { h.see(podCache, "10"); h.see(nodeCache, "9") }, 0},
		{"no version yet", func(h *history) {
			h.see(podCache, "10")
			h.see(podCache, "")
			h.see(podCache, "0")
			h.see(podCache, "11")
		}, 0},
		{"versions that are no numbers", func(h *history) { h.see(podCache, "b"); h.see(podCache, "a") }, 0},
		{"a jump of etcd's --bump-revision", func(h *history) { h.see(podCache, "10"); h.see(podCache, "1000000010") }, 1},
		{"a write's version that is new", func(h *history) { h.see(blockCache, "10"); h.wrote("11", h.floor()) }, 0},
		{"a write's version that is not new", func(h *history) { h.see(blockCache, "10"); h.wrote("9", h.floor()) }, 1},
		{"a write older than one before it", func(h *history) { h.wrote("11", h.floor()); h.wrote("10", h.floor()) }, 1},
		{"replies in another order than the writes", func(h *history) { floor := h.floor(); h.wrote("11", floor); h.wrote("10", floor) }, 0},
		{"two signs of one rollback", func(h *history) {
			h.see(podCache, "10")
			h.see(nodeCache, "10")
			h.see(podCache, "8")
			h.see(nodeCache, "9")
		}, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := newHistory(testingclock.NewFakeClock(time.Unix(1000, 0)), "")
			test.see(h)
			epoch, _ := h.signs()
			expectEqual(t, "pauses", test.want, epoch)
			expectEqual(t, "pausing", test.want > 0, h.rest(h.clock.Now()) > 0)
		})
	}
}

func TestAPauseEnds(t *testing.T) {
	clock := testingclock.NewFakeClock(time.Unix(1000, 0))
	h := newHistory(clock, "")
	rewind := func() { h.see(podCache, "10"); h.see(podCache, "9") }
	rewind()
	clock.Step(40 * time.Second)
	rewind() // makes it longer
	clock.Step(40 * time.Second)
	expectEqual(t, "rest", 20*time.Second, h.rest(clock.Now()))
	clock.Step(20 * time.Second)
	expectEqual(t, "rest at the end", time.Duration(0), h.rest(clock.Now()))
	rewind()
	epoch, count := h.signs()
	expectEqual(t, "pauses", 2, epoch)
	expectEqual(t, "signs", 3, count)
}

func TestARestartedAgentNoticesARollback(t *testing.T) {
	clock := testingclock.NewFakeClock(time.Unix(1000, 0))
	path := filepath.Join(t.TempDir(), "apiserver.json")
	h := newHistory(clock, path)
	h.see(blockCache, "100")
	h.save()
	h = newHistory(clock, path)
	h.see(blockCache, "90")
	expectEqual(t, "rest", time.Minute, h.rest(clock.Now()))
	clock.Step(20 * time.Second)
	h = newHistory(clock, path) // in the pause
	h.see(blockCache, "95")
	expectEqual(t, "rest after another restart", 40*time.Second, h.rest(clock.Now()))
	clock.Step(time.Minute)
	h = newHistory(clock, path)
	expectEqual(t, "rest after the pause", time.Duration(0), h.rest(clock.Now()))
}

func TestARestartedAgentKnowsTheNewestOfAllThatTheFormerSaw(t *testing.T) {
	tests := []struct {
		name  string
		seen  func(h *history)
		after stream
	}{
		{"another kind's cache", func(h *history) { h.see(podCache, "100") }, podCache},
		{"the API server's answer, which no cache had come to", func(h *history) {
			h.see(podCache, "80")
			h.see(stream{"Pod", fromServer}, "100")
		}, podCache},
		{"an own write", func(h *history) { h.wrote("100", h.floor()) }, blockCache},
		{"a cache, of a server that answers later", func(h *history) { h.see(podCache, "100") }, stream{"Pod", fromServer}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for version, want := range map[string]time.Duration{"90": time.Minute, "100": 0, "101": 0} {
				clock := testingclock.NewFakeClock(time.Unix(1000, 0))
				path := filepath.Join(t.TempDir(), "apiserver.json")
				former := newHistory(clock, path)
				test.seen(former)
				former.save()
				h := newHistory(clock, path)
				h.see(test.after, version)
				expectEqual(t, "rest after version "+version, want, h.rest(clock.Now()))
			}
		})
	}
}

func TestAFileThatCannotBeReadIsNoRollback(t *testing.T) {
	clock := testingclock.NewFakeClock(time.Unix(1000, 0))
	path := filepath.Join(t.TempDir(), "apiserver.json")
	if err := os.WriteFile(path, []byte(`{"resourceVersions":`), 0o600); err != nil {
		t.Fatal(err)
	}
	h := newHistory(clock, path)
	h.see(blockCache, "1")
	h.save()
	expectEqual(t, "rest", time.Duration(0), h.rest(clock.Now()))
	h = newHistory(clock, path)
	expectEqual(t, "version", "1", h.seen[blockCache])
}

func TestObjectsTellOfARollback(t *testing.T) {
	versioned := func(version string) *v1alpha1.NodeNetwork {
		return &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: thisNode, ResourceVersion: version}}
	}
	bare := ipBlock("10.20.0.16/29", thisNode, thisNodeUID)
	bare.Finalizers = nil
	tests := []struct {
		name    string
		happens func(h toolscache.ResourceEventHandler, c *Claimer)
		want    int
	}{
		{"an object that became newer", func(h toolscache.ResourceEventHandler, _ *Claimer) { h.OnUpdate(versioned("9"), versioned("10")) }, 0},
		{"an object that became older", func(h toolscache.ResourceEventHandler, _ *Claimer) { h.OnUpdate(versioned("10"), versioned("9")) }, 1},
		{"a block that vanished", func(h toolscache.ResourceEventHandler, _ *Claimer) {
			h.OnDelete(toolscache.DeletedFinalStateUnknown{Obj: ipBlock("10.20.0.16/29", thisNode, thisNodeUID)})
		}, 1},
		{"a block that this node let go", func(h toolscache.ResourceEventHandler, c *Claimer) {
			block := ipBlock("10.20.0.16/29", thisNode, thisNodeUID)
			c.finished[block.UID] = true
			h.OnDelete(block)
		}, 0},
		{"a block whose finalizer somebody took off", func(h toolscache.ResourceEventHandler, _ *Claimer) { h.OnDelete(bare) }, 0},
		{"a block of a former node of the name", func(h toolscache.ResourceEventHandler, _ *Claimer) {
			h.OnDelete(ipBlock("10.20.0.16/29", thisNode, "uid-former"))
		}, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newClaimFixture(t, world()...)
			f.run()
			test.happens(f.claimer.watchObjects("any"), f.claimer)
			epoch, _ := f.claimer.history.signs()
			expectEqual(t, "pauses", test.want, epoch)
		})
	}
}

func TestABlockThatTheNodeLetsGoIsNoRollback(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock("10.20.0.16/29", thisNode, thisNodeUID), ipBlock("10.20.0.24/29", thisNode, thisNodeUID))...)
	f.run()
	f.clock.Step(DefaultIdleGrace)
	f.run()
	var block v1alpha1.IPBlock
	if err := f.api.Get(t.Context(), client.ObjectKeyFromObject(ipBlock("10.20.0.16/29", thisNode, thisNodeUID)), &block); err != nil {
		t.Fatal(err)
	}
	f.run()
	f.clock.Step(DefaultDrainGrace)
	f.run()
	expectEqual(t, "blocks", []string{"10.20.0.24/29 of worker"}, f.blocksInAPI())
	f.claimer.watchObjects(blocksKind).OnDelete(&block)
	epoch, _ := f.claimer.history.signs()
	expectEqual(t, "pauses", 0, epoch)
	expectEqual(t, "blocks remembered", 0, len(f.claimer.finished))
}
