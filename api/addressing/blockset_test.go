// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addressing

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netplane/netplane/api/v1alpha1"
)

// In any history a BlockSet answers as a plain list of its members would.
func TestBlockSetIsASetOfThePlansBlocks(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for i := range 300 {
		spec := randomSpec(random)
		p := mustPlan(t, spec)
		all := slices.Collect(p.Candidates("worker"))
		if len(all) == 0 {
			continue // the static range is all of the subnet
		}
		set, members := p.NewBlockSet(), map[netip.Prefix]bool{}
		for range 60 {
			block := all[random.IntN(len(all))]
			if remove := random.IntN(3) == 0; remove {
				set.Remove(block)
				delete(members, block)
			} else {
				set.Add(block)
				members[block] = true
			}
		}
		if random.IntN(4) == 0 { // full: nothing is left
			for _, block := range all {
				set.Add(block)
				members[block] = true
			}
		}
		checkSet(t, p, set, members, fmt.Sprintf("worker%d", random.IntN(50)))
		if t.Failed() {
			t.Fatalf("plan %d was %+v", i, spec)
		}
	}
}

func checkSet(t *testing.T, p *Plan, set *BlockSet, members map[netip.Prefix]bool, node string) {
	t.Helper()
	var rest []netip.Prefix
	left := p.TotalCapacity()
	for block := range p.Candidates(node) {
		if members[block] {
			left -= int64(p.Capacity(block))
		} else {
			rest = append(rest, block)
		}
		if set.Has(block) != members[block] {
			t.Errorf("Has(%s) is %v", block, set.Has(block))
		}
	}
	if set.Left() != left {
		t.Errorf("%d addresses are left, want %d", set.Left(), left)
	}
	if diff := cmp.Diff(rest, slices.Collect(set.Candidates(node)), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("candidates (-want +got):\n%s", diff)
	}
	for range set.Candidates(node) {
		break // asks for no more
	}
}

func TestBlockSetLeavesOutWhatIsNoBlockOfThePlan(t *testing.T) {
	p := mustPlan(t, v1alpha1.NetworkSpec{Subnet: "10.10.0.0/24", BlockSize: 8, StaticRange: "10.10.0.248/29"})
	set := p.NewBlockSet()
	set.Add(netip.MustParsePrefix("10.10.0.8/29"))
	left := set.Left()
	for _, text := range []string{"10.10.0.16/28", "10.10.0.18/29", "10.10.1.0/29", "10.10.0.248/29", "fd00::/125"} {
		block := netip.MustParsePrefix(text)
		set.Add(block)
		if set.Has(block) || set.Left() != left {
			t.Errorf("%s is in the set", block)
		}
		set.Remove(block)
	}
	set.Add(netip.Prefix{})
	if set.Left() != left {
		t.Errorf("%d addresses are left, want %d", set.Left(), left)
	}
}

// A set costs what is in it, not what the network is made of.
func TestBlockSetOfAHugeNetwork(t *testing.T) {
	p := mustPlan(t, v1alpha1.NetworkSpec{Subnet: "fd00:10:10::/64", BlockSize: 8})
	set := p.NewBlockSet()
	var added []netip.Prefix
	for block := range p.Candidates("worker") {
		if len(added) == 1000 {
			break
		}
		added = append(added, block)
		set.Add(block)
	}
	if len(set.words) > 1000/perWord+2 {
		t.Errorf("%d blocks take %d words", len(added), len(set.words))
	}
	for block := range set.Candidates("worker") {
		if slices.Contains(added, block) {
			t.Errorf("%s is in the set", block)
		}
		break
	}
	for _, block := range added {
		set.Remove(block)
	}
	if len(set.words) != 0 || set.Left() != p.TotalCapacity() {
		t.Errorf("empty again, the set takes %d words", len(set.words))
	}
}
