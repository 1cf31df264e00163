// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

// change gives the network data another spec, and the node the same block.
func (f *fixture) change(uid types.UID, block string, edit func(*v1alpha1.NetworkSpec)) {
	f.t.Helper()
	spec := v1alpha1.NetworkSpec{Subnet: "10.20.0.0/26", BlockSize: 8}
	edit(&spec)
	plan, err := addressing.NewPlan("data", &spec)
	if err != nil {
		f.t.Fatal(err)
	}
	f.plans["data"] = plan
	f.hold("data", uid, block)
}

// fill reserves for pods of these names until there is no address left.
func (f *fixture) fill(name string) []string {
	f.t.Helper()
	var out []string
	for i := range 100 {
		got, err := f.reserve(ask(fmt.Sprint(name, i), "data"))
		if err != nil {
			return out
		}
		out = append(out, got...)
	}
	f.t.Fatal("the block has no end")
	return nil
}

// nodes are the node's addresses that the leases go with, each once.
func (f *fixture) nodes() []string {
	var out []string
	for _, lease := range f.Leases() {
		out = append(out, lease.Node.String())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func TestAddressesThatAreExcludedLaterStayWhereTheyAre(t *testing.T) {
	f := newFixture(t)
	const block = "10.20.0.8/29"
	f.hold("data", dataUID, block)
	expectEqual(t, "addresses", []string{"10.20.0.9", "10.20.0.10"}, f.mustReserve(ask("a", "data"), ask("b", "data")))

	// The node's own, and a pod's.
	f.change(dataUID, block, func(s *v1alpha1.NetworkSpec) { s.ExcludeRanges = []v1alpha1.IPRange{"10.20.0.8-10.20.0.9"} })
	expectEqual(t, "the pod's", []string{"10.20.0.9"}, f.mustReserve(ask("a", "data")))
	f.crash(func(Lease) bool { return true })
	f.hold("data", dataUID, block)
	expectEqual(t, "the others", []string{"10.20.0.11", "10.20.0.12", "10.20.0.13", "10.20.0.14", "10.20.0.15"}, f.fill("c"))
	expectEqual(t, "the node's", []string{"10.20.0.8"}, f.nodes())

	f.mustRelease("sandbox-a")
	if got, err := f.reserve(ask("d", "data")); err == nil {
		t.Errorf("%s is excluded and was handed out again", got)
	}
	f.mustRelease("sandbox-b")
	for i := range 5 {
		f.mustRelease(fmt.Sprint("sandbox-c", i))
	}
	expectEqual(t, "addresses of an empty block", 5, len(f.fill("e")))
	expectEqual(t, "the node's in it", []string{"10.20.0.10"}, f.nodes())
}

func TestAnAddressInFrontOfTheNodesMovesNothing(t *testing.T) {
	f := newFixture(t)
	const block = "10.20.0.8/29"
	f.change(dataUID, block, func(s *v1alpha1.NetworkSpec) { s.Gateway = "10.20.0.8" })
	expectEqual(t, "addresses", []string{"10.20.0.10"}, f.mustReserve(ask("a", "data")))
	expectEqual(t, "the node's", []string{"10.20.0.9"}, f.nodes())

	f.change(dataUID, block, func(*v1alpha1.NetworkSpec) {})
	expectEqual(t, "the others", []string{"10.20.0.11", "10.20.0.12", "10.20.0.13", "10.20.0.14", "10.20.0.15", "10.20.0.8"}, f.fill("b"))
	expectEqual(t, "the node's", []string{"10.20.0.9"}, f.nodes())
}

func TestANewGatewayThatAPodHasStaysThePods(t *testing.T) {
	f := newFixture(t)
	const block = "10.20.0.8/29"
	f.hold("data", dataUID, block)
	f.mustReserve(ask("a", "data"))
	f.change(dataUID, block, func(s *v1alpha1.NetworkSpec) { s.Gateway = "10.20.0.9" })
	expectEqual(t, "the pod's", []string{"10.20.0.9"}, f.mustReserve(ask("a", "data")))
	f.mustRelease("sandbox-a")
	if got := f.fill("b"); slices.Contains(got, "10.20.0.9") {
		t.Errorf("the gateway is among %s", got)
	}
}

func TestANetworkMadeAnewGivesOutNothingOfTheFormer(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	f.mustReserve(ask("a", "data"), ask("b", "data")) // .9 and .10; the node has .8
	f.change("uid-anew", "10.20.0.0/28", func(s *v1alpha1.NetworkSpec) { s.BlockSize = 16 })
	expectEqual(t, "the others", []string{
		"10.20.0.2", "10.20.0.3", "10.20.0.4", "10.20.0.5", "10.20.0.6", "10.20.0.7",
		"10.20.0.11", "10.20.0.12", "10.20.0.13", "10.20.0.14", "10.20.0.15",
	}, f.fill("c"))
	f.mustRelease("sandbox-a")
	f.mustRelease("sandbox-b")
	expectEqual(t, "what the former leaves", []string{"10.20.0.9", "10.20.0.10", "10.20.0.8"}, f.fill("d"))
}

// However spec and pods change, no address has two users, and none is given out
// that the spec keeps back.
func TestNoAddressHasTwoUsersWhateverIsExcluded(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 5))
		f := newFixture(t)
		const block = "10.20.0.8/29"
		prefix := netip.MustParsePrefix(block)
		f.hold("data", dataUID, block)
		for step := range 60 {
			switch r.IntN(6) {
			case 0:
				from := r.IntN(8)
				f.change(dataUID, block, func(s *v1alpha1.NetworkSpec) {
					s.ExcludeRanges = []v1alpha1.IPRange{v1alpha1.IPRange(fmt.Sprintf("10.20.0.%d-10.20.0.%d", 8+from, 8+from+r.IntN(8-from)))}
					if r.IntN(2) == 0 {
						s.Gateway = v1alpha1.IP(fmt.Sprintf("10.20.0.%d", 8+r.IntN(8)))
					}
				})
			case 1:
				f.crash(func(Lease) bool { return true })
				f.hold("data", dataUID, block)
			case 2, 3:
				f.mustRelease(fmt.Sprint("sandbox-p", r.IntN(10)))
			default:
				one := ask(fmt.Sprint("p", r.IntN(10)), "data")
				before := f.Leases()
				got, err := f.reserve(one)
				if err != nil || len(f.Leases()) == len(before) {
					continue
				}
				if address := netip.MustParseAddr(got[0]); !slices.Contains(usable(f.plans["data"], prefix), address) {
					t.Fatalf("seed %d, step %d: %s was given out", seed, step, address)
				}
			}
			users := map[netip.Addr]string{}
			for _, lease := range f.Leases() {
				if users[lease.Address] != "" || users[lease.Node] != "" && users[lease.Node] != "the node" {
					t.Fatalf("seed %d, step %d: two users: %v", seed, step, f.Leases())
				}
				users[lease.Address], users[lease.Node] = lease.PodName, "the node"
			}
		}
	}
}

func usable(plan *addressing.Plan, block netip.Prefix) []netip.Addr {
	out := slices.Collect(plan.PodAddresses(block))
	if node, ok := plan.NodeAddress(block); ok {
		out = append(out, node)
	}
	return out
}
