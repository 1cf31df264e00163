// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

func TestReserveGivesEveryInterfaceAnAddressOfItsNetwork(t *testing.T) {
	f := newFixture(t)
	f.hold("management", managementUID, "10.10.0.8/29")
	f.hold("data", dataUID, "10.20.0.16/29")
	got := f.mustReserve(ask("a", "management", "eth0"), ask("a", "data", "eth1"), ask("a", "data", "eth2"))
	// The first address of a block is the node's own.
	expectEqual(t, "addresses", []string{"10.10.0.9", "10.20.0.17", "10.20.0.18"}, got)
	lease := f.Leases()[2] // after those of "data"
	want := Lease{Owner: ask("a", "management", "eth0").Owner, Network: "management", NetworkUID: managementUID,
		Address: netip.MustParseAddr("10.10.0.9"), Block: netip.MustParsePrefix("10.10.0.8/29"),
		Node: netip.MustParseAddr("10.10.0.8"), Since: f.clock.Now()}
	expectEqual(t, "lease", want, lease)
}

func TestReserveAgainReturnsTheSameAddress(t *testing.T) {
	f := newFixture(t)
	f.hold("management", managementUID, "10.10.0.8/29")
	first := f.mustReserve(ask("a", "management"))
	expectEqual(t, "repeated ADD", first, f.mustReserve(ask("a", "management")))
	// An ADD that asks for more than it got before keeps what it has.
	got := f.mustReserve(ask("a", "management", "net2"), ask("a", "management"))
	expectEqual(t, "addresses", []string{"10.10.0.10", "10.10.0.9"}, got)
}

func TestReserveIsAllOrNothing(t *testing.T) {
	f := newFixture(t)
	f.hold("management", managementUID, "10.10.0.8/29")
	if _, err := f.reserve(ask("a", "management", "eth0"), ask("a", "data", "eth1")); err == nil {
		t.Fatal("a network without a block gave an address")
	}
	expectEqual(t, "leases", []Lease(nil), f.Leases())
	// What was picked and put back comes first again.
	expectEqual(t, "addresses", []string{"10.10.0.9"}, f.mustReserve(ask("b", "management")))
}

func TestReserveRefusals(t *testing.T) {
	tests := []struct {
		name string
		asks []Ask
		want string
	}{
		{
			name: "no block of the network is held",
			asks: []Ask{ask("a", "data")},
			want: `network "data" has no free address on this node: it holds no block of the network; a block is being claimed, the next attempt may succeed`,
		},
		{
			name: "every address is in use",
			asks: []Ask{ask("a", "management", "net8"), ask("a", "management", "net9")},
			want: `network "management" has no free address on this node: all 6 addresses of the 1 blocks that it holds are in use; every block is claimed`,
		},
		{
			name: "an interface is asked for twice",
			asks: []Ask{ask("a", "management"), ask("a", "data")},
			want: `reserving an address of network "data": interface net1 is asked for twice`,
		},
		{
			name: "the container is not named",
			asks: []Ask{{Network: "management", Owner: Owner{IfName: "net1"}}},
			want: `reserving an address of network "management": container ID, interface and network are required`,
		},
		{
			name: "the interface has an address of another network",
			asks: []Ask{ask("full", "data", "net1")},
			want: `reserving an address of network "data": interface net1 of container sandbox-full has an address of network "management" still`,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t)
			f.hold("management", managementUID, "10.10.0.0/29")
			f.Hint("management", "every block is claimed")
			var fill []Ask
			for i := range 6 { // of 8: less the network address and the node's own
				fill = append(fill, ask("full", "management", fmt.Sprintf("net%d", i)))
			}
			f.mustReserve(fill...)
			_, err := f.reserve(test.asks...)
			if err == nil || err.Error() != test.want {
				t.Errorf("error %v, want %s", err, test.want)
			}
			expectEqual(t, "number of leases", 6, len(f.Leases()))
		})
	}
}

func TestReserveEndsWithTheCaller(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.Reserve(ctx, []Ask{ask("a", "data")})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), `network "data"`) {
		t.Errorf("error %v, want a cancellation that names the network", err)
	}
}

func TestReserveBeforeReplayIsRefused(t *testing.T) {
	m := New(Config{JournalPath: filepath.Join(t.TempDir(), "journal")})
	if _, err := m.Reserve(t.Context(), []Ask{ask("a", "data")}); !errors.Is(err, ErrNotReplayed) {
		t.Errorf("Reserve: %v", err)
	}
	if err := m.Release(t.Context(), "sandbox-a"); !errors.Is(err, ErrNotReplayed) {
		t.Errorf("Release: %v", err)
	}
}

func TestReserveWaitsForABlockAndAsksForIt(t *testing.T) {
	f := newFixture(t)
	f.wait = 10 * time.Second
	asked := make(chan Usage, 1)
	f.Subscribe(func(network string, waiting bool) {
		if waiting {
			asked <- f.Usage(network)
		}
	})
	result := make(chan []string, 1)
	go func() {
		leases, err := f.Reserve(t.Context(), []Ask{ask("a", "data", "net1"), ask("a", "data", "net2")})
		if err != nil {
			t.Error(err)
		}
		result <- addresses(leases)
	}()
	expectEqual(t, "waiting", map[string]int{"uid-a": 2}, (<-asked).Waiting)
	f.hold("data", dataUID, "10.20.0.8/29")
	expectEqual(t, "addresses", []string{"10.20.0.9", "10.20.0.10"}, <-result)
	expectEqual(t, "waiting after the answer", map[string]int(nil), f.Usage("data").Waiting)
}

func TestReserveWaitsForARelease(t *testing.T) {
	f := newFixture(t)
	f.wait = 10 * time.Second
	f.hold("data", dataUID, "10.20.0.8/29")
	for i := range 7 {
		f.mustReserve(ask(fmt.Sprint("p", i), "data"))
	}
	waits := make(chan struct{}, 1)
	f.Subscribe(func(_ string, waiting bool) {
		if waiting {
			waits <- struct{}{}
		}
	})
	result := make(chan []string, 1)
	go func() {
		leases, _ := f.Reserve(t.Context(), []Ask{ask("late", "data")})
		result <- addresses(leases)
	}()
	<-waits
	f.mustRelease("sandbox-p3")
	expectEqual(t, "addresses", []string{"10.20.0.12"}, <-result)
}

func TestReleaseMatchesItsOwner(t *testing.T) {
	tests := []struct {
		name      string
		container string
		ifnames   []string
		want      []string
	}{
		{name: "one interface", container: "sandbox-a", ifnames: []string{"eth0"}, want: []string{"10.10.0.10", "10.10.0.11"}},
		{name: "the whole container", container: "sandbox-a", want: []string{"10.10.0.11"}},
		{name: "another container", container: "sandbox-x", want: []string{"10.10.0.9", "10.10.0.10", "10.10.0.11"}},
		{name: "another interface", container: "sandbox-a", ifnames: []string{"eth7"}, want: []string{"10.10.0.9", "10.10.0.10", "10.10.0.11"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t)
			f.hold("management", managementUID, "10.10.0.8/29")
			f.mustReserve(ask("a", "management", "eth0"), ask("a", "management", "eth1"))
			f.mustReserve(ask("b", "management", "eth0"))
			f.mustRelease(test.container, test.ifnames...)
			f.mustRelease(test.container, test.ifnames...)
			expectEqual(t, "addresses in use", test.want, addresses(f.Leases()))
		})
	}
}

func TestLateReleaseOfAnOldSandboxLeavesTheNewOneAlone(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	for i := range 7 {
		f.mustReserve(ask(fmt.Sprint("p", i), "data"))
	}
	f.mustRelease("sandbox-p0")
	again := ask("p0", "data")
	again.ContainerID = "sandbox-p0-again"
	expectEqual(t, "the only free address", []string{"10.20.0.9"}, f.mustReserve(again))
	f.mustRelease("sandbox-p0")
	expectEqual(t, "leases", 7, len(f.Leases()))
}

func TestTheAddressFreedLastIsHandedOutLast(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	f.mustReserve(ask("a", "data"))
	f.mustReserve(ask("b", "data"))
	f.mustRelease("sandbox-b")
	f.clock.Step(time.Second)
	f.mustRelease("sandbox-a")
	var got []string
	for i := range 7 {
		got = append(got, f.mustReserve(ask(fmt.Sprint("p", i), "data"))...)
	}
	want := []string{"10.20.0.11", "10.20.0.12", "10.20.0.13", "10.20.0.14", "10.20.0.15", "10.20.0.10", "10.20.0.9"}
	expectEqual(t, "order", want, got)
}

func TestBlocksFillOneAfterTheOtherButHotAddressesComeLast(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29", "10.20.0.16/29")
	for i := range 7 {
		f.mustReserve(ask(fmt.Sprint("p", i), "data"))
	}
	f.mustRelease("sandbox-p0")
	expectEqual(t, "while 10.20.0.9 is hot", []string{"10.20.0.17"}, f.mustReserve(ask("x", "data")))
	f.clock.Step(coolDown)
	expectEqual(t, "the busiest block again", []string{"10.20.0.9"}, f.mustReserve(ask("y", "data")))
}

func TestClosedBlocksServeWhatLivesInThem(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29", "10.20.0.16/29")
	f.mustReserve(ask("a", "data"))
	f.hold("data", dataUID, "-10.20.0.8/29", "10.20.0.16/29")
	expectEqual(t, "repeated ADD", []string{"10.20.0.9"}, f.mustReserve(ask("a", "data")))
	expectEqual(t, "next address", []string{"10.20.0.17"}, f.mustReserve(ask("b", "data")))
	f.mustRelease("sandbox-a")
	f.clock.Step(2 * coolDown)
	expectEqual(t, "after release", []string{"10.20.0.18"}, f.mustReserve(ask("c", "data")))
	usage := f.Usage("data").Blocks[0]
	if usage.Open || usage.Leased != 0 || usage.ClosedSince.IsZero() {
		t.Errorf("usage of the closed block: %+v", usage)
	}
}

// Of a scarce Network the node gave back what a pod needs that was bound just then.
func TestABlockThatIsBeingDeletedIsTheLastResort(t *testing.T) {
	f := newFixture(t)
	linger := Block{Prefix: netip.MustParsePrefix("10.20.0.8/29"), UID: "uid-linger", Closed: true, LastResort: true}
	open := Block{Prefix: netip.MustParsePrefix("10.20.0.16/29"), UID: "uid-open"}
	set := func(blocks ...Block) { f.SetBlocks("data", dataUID, f.plans["data"], blocks) }
	set(linger, open)
	expectEqual(t, "with another block", []string{"10.20.0.17"}, f.mustReserve(ask("a", "data")))
	set(linger)
	expectEqual(t, "without another", []string{"10.20.0.9"}, f.mustReserve(ask("b", "data")))
	expectEqual(t, "sealed in use", false, f.Seal("data", linger.Prefix))
	f.mustRelease("sandbox-b")
	expectEqual(t, "sealed when empty", true, f.Seal("data", linger.Prefix))
	if got, err := f.reserve(ask("c", "data")); err == nil {
		t.Errorf("a sealed block gave out %v", got)
	}
}

func TestDrainRefusesABlockInUse(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	prefix := netip.MustParsePrefix("10.20.0.8/29")
	f.mustReserve(ask("a", "data"))
	if f.Drain("data", prefix) {
		t.Error("a block with a lease was drained")
	}
	f.mustRelease("sandbox-a")
	if !f.Drain("data", prefix) || f.Drain("data", prefix) {
		t.Error("an idle block is drained once")
	}
	if _, err := f.reserve(ask("b", "data")); err == nil {
		t.Error("a drained block gave an address")
	}
	f.hold("data", dataUID, "10.20.0.8/29") // the cache does not know of the deletion yet
	if _, err := f.reserve(ask("b", "data")); err == nil {
		t.Error("a drained block was opened by a stale cache")
	}
	f.Undrain("data", prefix)
	f.mustReserve(ask("b", "data"))
}

func TestABlockOfTheSameNameButAnotherUIDIsNew(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	f.mustReserve(ask("a", "data"))
	f.hold("data", dataUID, "-10.20.0.8/29")
	f.SetBlocks("data", dataUID, f.plans["data"], []Block{{Prefix: netip.MustParsePrefix("10.20.0.8/29"), UID: "another"}})
	expectEqual(t, "next address", []string{"10.20.0.10"}, f.mustReserve(ask("b", "data")))
}

func TestExcludedAddressesAreNotHandedOutAgain(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	f.mustReserve(ask("a", "data"), ask("a", "data", "net2"))
	plan, err := addressing.NewPlan("data", &v1alpha1.NetworkSpec{Subnet: "10.20.0.0/26", BlockSize: 8, ExcludeRanges: []v1alpha1.IPRange{"10.20.0.10-10.20.0.14"}})
	if err != nil {
		t.Fatal(err)
	}
	f.plans["data"] = plan
	f.hold("data", dataUID, "10.20.0.8/29")
	f.mustRelease("sandbox-a")
	expectEqual(t, "addresses", []string{"10.20.0.15", "10.20.0.9"}, f.mustReserve(ask("b", "data"), ask("b", "data", "net2")))
	if _, err := f.reserve(ask("c", "data")); err == nil {
		t.Error("an excluded address was handed out")
	}
}

func TestLeasesOfAFormerNetworkStayInUse(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	f.mustReserve(ask("a", "data"))
	f.SetBlocks("data", "", nil, nil)
	expectEqual(t, "leases", []string{"10.20.0.9"}, addresses(f.Leases()))
	f.hold("data", "uid-data-again", "10.20.0.8/29")
	expectEqual(t, "next address", []string{"10.20.0.10"}, f.mustReserve(ask("b", "data")))
}

func TestReplayKeepsWhatLives(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	f.mustReserve(ask("a", "data"))
	f.mustReserve(ask("b", "data"))
	f.mustReserve(ask("c", "data"))
	f.mustRelease("sandbox-c")
	before := f.Leases()
	f.crash(func(l Lease) bool { return l.PodName != "b" })
	// No block is known yet.
	expectEqual(t, "leases", before[:1], f.Leases())
	f.hold("data", dataUID, "10.20.0.8/29")
	expectEqual(t, "repeated ADD", []string{"10.20.0.9"}, f.mustReserve(ask("a", "data")))
	expectEqual(t, "next address: neither that of b nor of c, which cool down", []string{"10.20.0.12"}, f.mustReserve(ask("d", "data")))
}

func TestReplayTwiceOrBesideAnotherAgentIsRefused(t *testing.T) {
	f := newFixture(t)
	all := func(Lease) bool { return true }
	if err := f.Replay(all); err == nil || !strings.Contains(err.Error(), "replayed already") {
		t.Errorf("second Replay: %v", err)
	}
	err := New(Config{JournalPath: f.path}).Replay(all)
	if err == nil || !strings.Contains(err.Error(), "does another agent run on this node?") {
		t.Errorf("Replay of a second agent: %v", err)
	}
}

func TestHeldCountsWhatNoLivingPodAccountsFor(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29", "10.20.0.16/29")
	f.hold("management", managementUID, "10.10.0.8/29")
	f.mustReserve(ask("living", "data", "net1"), ask("living", "data", "net2"), ask("living", "management", "net3"))
	f.mustReserve(ask("gone", "data", "net1"), ask("gone", "data", "net2"))
	f.clock.Step(time.Second)
	again := ask("living", "data", "net1") // a second sandbox while the first one is still there
	again.ContainerID = "sandbox-2"
	f.mustReserve(again)
	unknown := ask("unknown", "management")
	unknown.PodUID = ""
	f.mustReserve(unknown)
	living := func(uid types.UID) bool { return uid == "uid-living" }
	want := []v1alpha1.HeldAddresses{
		{Network: "data", Count: 1},
		{Network: "data", Count: 2, PodUID: "uid-gone"},
		{Network: "management", Count: 1},
	}
	expectEqual(t, "held", want, f.Held(living))
	f.hold("data", dataUID, "-10.20.0.8/29")
	expectEqual(t, "held, less the closed block", want[2:], f.Held(living))
	f.mustRelease("sandbox-unknown")
	expectEqual(t, "held at the end", []v1alpha1.HeldAddresses(nil), f.Held(living))
}

func TestWatchersHearOfEveryChange(t *testing.T) {
	f := newFixture(t)
	var got []string
	f.Subscribe(func(network string, waiting bool) { got = append(got, fmt.Sprint(network, " ", waiting)) })
	f.hold("data", dataUID, "10.20.0.8/29")
	f.hold("data", dataUID, "10.20.0.8/29")
	f.mustReserve(ask("a", "data"))
	f.mustReserve(ask("a", "data"))
	f.mustRelease("sandbox-a")
	f.mustRelease("sandbox-a")
	// blocks came; the lease; the repeated ADD; the release.
	expectEqual(t, "calls", []string{"data false", "data false", "data false", "data false"}, got)
}

func TestABlockCountsAsUsedFromItsFirstLeaseOn(t *testing.T) {
	f := newFixture(t)
	f.hold("data", "uid-data", "10.20.0.8/29")
	used := func() bool { return f.Usage("data").Blocks[0].Used }
	expectEqual(t, "used before", false, used())
	f.mustReserve(ask("a", "data"))
	f.mustRelease("sandbox-a")
	expectEqual(t, "used after the lease has ended", true, used())
	f.mustReserve(ask("b", "data"))
	f.crash(func(Lease) bool { return true })
	f.hold("data", "uid-data", "10.20.0.8/29")
	expectEqual(t, "used after a restart with a lease", true, used())
}

// An API server that was restored from a backup does not know of a deletion.
func TestABlockWhoseDeletionIsUndoneIsServedAgain(t *testing.T) {
	block := netip.MustParsePrefix("10.20.0.8/29")
	for _, close := range []func(f *fixture) bool{
		func(f *fixture) bool { return f.Drain("data", block) },
		func(f *fixture) bool { return f.Drain("data", block) && f.Seal("data", block) },
	} {
		f := newFixture(t)
		f.hold("data", dataUID, "10.20.0.8/29")
		expectEqual(t, "closed", true, close(f))
		f.hold("data", dataUID, "10.20.0.8/29") // the cache does not show the deletion yet
		if got, err := f.reserve(ask("a", "data")); err == nil {
			t.Errorf("%v was handed out of a block that is being given back", got)
		}
		f.hold("data", dataUID, "-10.20.0.8/29")
		f.hold("data", dataUID, "10.20.0.8/29")
		expectEqual(t, "address", []string{"10.20.0.9"}, f.mustReserve(ask("a", "data")))
	}
}
