// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/v1alpha1"
)

func fixedAsk(pod, network, address string) Ask {
	out := ask(pod, network)
	out.Fixed, out.NetworkUID = netip.MustParseAddr(address), dataUID
	return out
}

func anchored(a Ask) Ask {
	a.Anchor = true
	return a
}

func TestFixedAddressNeedsNoBlock(t *testing.T) {
	f := newFixture(t)
	expectEqual(t, "addresses", []string{"10.20.0.60"}, f.mustReserve(fixedAsk("db-0", "data", "10.20.0.60")))
	want := []Lease{{Owner: ask("db-0", "data").Owner, Network: "data", NetworkUID: dataUID,
		Address: netip.MustParseAddr("10.20.0.60"), Fixed: true, Since: f.clock.Now()}}
	expectEqual(t, "leases", want, f.Leases())
	f.crash(func(Lease) bool { return true })
	expectEqual(t, "leases after a crash", want, f.Leases())
	expectEqual(t, "the same again", []string{"10.20.0.60"}, f.mustReserve(fixedAsk("db-0", "data", "10.20.0.60")))
	f.mustRelease("sandbox-db-0")
	expectEqual(t, "leases after DEL", []Lease(nil), f.Leases())
	expectEqual(t, "networks", []string(nil), f.Networks())
}

func TestFixedAddressIsOfOneContainerAtATime(t *testing.T) {
	f := newFixture(t)
	f.mustReserve(fixedAsk("db-0", "data", "10.20.0.60"))
	again := fixedAsk("db-0", "data", "10.20.0.60")
	again.ContainerID, again.PodUID = "sandbox-later", "uid-later"
	_, err := f.reserve(ask("other", "management"), again)
	var inUse *FixedInUseError
	if !errors.As(err, &inUse) {
		t.Fatalf("got %v", err)
	}
	expectEqual(t, "message", `address 10.20.0.60 of network "data" is in use still by interface net1 of pod default/db-0, container sandbox-db-0: it goes free with that container`, err.Error())
	f.mustRelease("sandbox-db-0")
	expectEqual(t, "after DEL", []string{"10.20.0.60"}, f.mustReserve(again))
}

func TestFixedAddressesAreAllOrNothingWithOthers(t *testing.T) {
	f := newFixture(t)
	f.hold("management", managementUID, "10.10.0.0/29")
	_, err := f.reserve(fixedAsk("db-0", "data", "10.20.0.60"), ask("db-0", "management", "net2"), ask("db-0", "absent", "net3"))
	if err == nil {
		t.Fatal("reserved without an address of network absent")
	}
	expectEqual(t, "leases", []Lease(nil), f.Leases())
	expectEqual(t, "free", 6, f.Usage("management").Blocks[0].Free)
}

func TestFixedAddressIsNotGivenTwiceInOneCall(t *testing.T) {
	f := newFixture(t)
	second := fixedAsk("db-0", "data", "10.20.0.60")
	second.IfName = "net2"
	if _, err := f.reserve(fixedAsk("db-0", "data", "10.20.0.60"), second); err == nil || !strings.Contains(err.Error(), "two interfaces ask for it") {
		t.Errorf("got %v", err)
	}
}

// TestAnchorKeepsTheBlockOfTheNodeAddress: the path to eth0 leads over the
// node's address in a block, which must not become another node's meanwhile.
func TestAnchorKeepsTheBlockOfTheNodeAddress(t *testing.T) {
	f := newFixture(t)
	if _, err := f.reserve(anchored(fixedAsk("db-0", "data", "10.20.0.60"))); err == nil || !strings.Contains(err.Error(), "it holds no block of the network") {
		t.Fatalf("without a block: %v", err)
	}
	block := netip.MustParsePrefix("10.20.0.8/29")
	f.hold("data", dataUID, "10.20.0.8/29")
	f.mustReserve(anchored(fixedAsk("db-0", "data", "10.20.0.60")))
	usage := f.Usage("data")
	expectEqual(t, "leased", 1, usage.Blocks[0].Leased)
	expectEqual(t, "free", 7, usage.Blocks[0].Free)
	expectEqual(t, "needed", 0, needs(map[string]int{}, &usage))
	if f.Drain("data", block) || f.Seal("data", block) {
		t.Error("the block can be given back")
	}
	f.crash(func(Lease) bool { return true })
	f.hold("data", dataUID, "10.20.0.8/29")
	if f.Drain("data", block) {
		t.Error("the block can be given back after a crash")
	}
	f.mustRelease("sandbox-db-0")
	if !f.Drain("data", block) {
		t.Error("the block cannot be given back after DEL")
	}
}

func TestHeldTellsFixedAddressesFromOthers(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.0/29")
	f.mustReserve(fixedAsk("db-0", "data", "10.20.0.60"), ask("db-0", "data", "net2"))
	f.mustReserve(fixedAsk("db-1", "data", "10.20.0.61"))
	f.hold("data", dataUID, "-10.20.0.0/29") // fixed addresses count whatever happens to blocks
	held := f.Held(func(uid types.UID) bool { return uid == "uid-db-1" })
	expectEqual(t, "held", []v1alpha1.HeldAddresses{{Network: "data", Count: 1, PodUID: "uid-db-0", Fixed: true, Address: "10.20.0.60"}}, held)
	f.hold("data", dataUID, "10.20.0.0/29")
	held = f.Held(func(uid types.UID) bool { return uid == "uid-db-1" })
	expectEqual(t, "held", []v1alpha1.HeldAddresses{{Network: "data", Count: 1, PodUID: "uid-db-0"}, {Network: "data", Count: 1, PodUID: "uid-db-0", Fixed: true, Address: "10.20.0.60"}}, held)
	usage := f.Usage("data")
	expectEqual(t, "by state", map[string]int{"used": 1, "free": 5, "closing": 0, "fixed": 2}, usage.count())
}

// The IPClaim of a restored API server may be of before another node had the
// address.
func TestNoNewFixedAddressWhileTheAPIServersStateIsInDoubt(t *testing.T) {
	f := newClaimFixture(t, world()...)
	f.run()
	f.mustReserve(fixedAsk("db-0", "data", "10.20.0.60"))
	f.rewind()
	expectEqual(t, "an address that the interface has", []string{"10.20.0.60"}, f.mustReserve(fixedAsk("db-0", "data", "10.20.0.60")))
	if _, err := f.reserve(fixedAsk("db-1", "data", "10.20.0.61")); err == nil || !strings.Contains(err.Error(), hintFixedRollback) {
		t.Errorf("in the pause: %v, want the hint %q", err, hintFixedRollback)
	}
	f.clock.Step(DefaultRollbackPause)
	expectEqual(t, "after the pause", []string{"10.20.0.61"}, f.mustReserve(fixedAsk("db-1", "data", "10.20.0.61")))

	f.claimer.caches = []cacheVersion{cacheAt(blocksKind, "105")}
	if _, err := f.reserve(fixedAsk("db-2", "data", "10.20.0.62")); err == nil || !strings.Contains(err.Error(), hintComparing) {
		t.Errorf("before the comparison: %v, want the hint %q", err, hintComparing)
	}
	close(f.claimer.compared)
	f.mustReserve(fixedAsk("db-2", "data", "10.20.0.62"))
}
