// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// nth is the n-th block of the tests, of 8 addresses.
func nth(n byte) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 20, 0, 8 * n}), 29)
}

// decideTest is a situation, whose times are relative to noon.
type decideTest struct {
	name string
	s    situation
	want decision
}

func noon() time.Time { return time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC) }

func ago(d time.Duration) time.Time { return noon().Add(-d) }

func open(n byte, leased int, idle time.Duration) heldBlock {
	return heldBlock{prefix: nth(n), capacity: 7, leased: leased, open: true, used: true, idleSince: ago(idle)}
}

func unused(n byte, since time.Duration) heldBlock {
	return heldBlock{prefix: nth(n), capacity: 7, open: true, idleSince: ago(since)}
}

func deleted(n byte, leased int, since time.Duration) heldBlock {
	return heldBlock{prefix: nth(n), leased: leased, deleted: ago(since), idleSince: ago(time.Hour)}
}

func checkDecisions(t *testing.T, tests []decideTest) {
	t.Helper()
	for i := range tests {
		test := &tests[i]
		t.Run(test.name, func(t *testing.T) {
			test.s.now, test.s.watermark = noon(), watermark(8)
			test.s.graces = graces{idle: DefaultIdleGrace, scarce: DefaultScarceGrace, unused: DefaultUnusedGrace, drain: DefaultDrainGrace}
			if diff := cmp.Diff(test.want, decide(&test.s), cmp.AllowUnexported(decision{}), compareAddresses); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecideToClaim(t *testing.T) {
	checkDecisions(t, []decideTest{
		{
			name: "one block stays warm",
			s:    situation{claimable: true, backed: true},
			want: decision{claim: true, lacks: true},
		},
		{
			name: "a warm block is enough without pods",
			s:    situation{claimable: true, backed: true, blocks: []heldBlock{open(1, 0, time.Hour)}},
		},
		{
			name: "free addresses at the watermark are enough",
			s:    situation{claimable: true, backed: true, needed: 5, blocks: []heldBlock{open(1, 5, 0)}},
		},
		{
			name: "free addresses under the watermark claim",
			s:    situation{claimable: true, backed: true, needed: 6, blocks: []heldBlock{open(1, 6, 0)}},
			want: decision{claim: true, lacks: true},
		},
		{
			name: "pods that are bound but not attached claim",
			s:    situation{claimable: true, backed: true, needed: 12, blocks: []heldBlock{open(1, 0, 0)}},
			want: decision{claim: true, lacks: true},
		},
		{
			name: "nothing is claimed of a Network that may not be",
			s:    situation{backed: true, needed: 12, blocks: []heldBlock{open(1, 7, 0)}},
		},
		{
			name: "a closed block does not count",
			s:    situation{claimable: true, backed: true, blocks: []heldBlock{deleted(1, 3, time.Hour)}},
			want: decision{claim: true, lacks: true},
		},
	})
}

func TestDecideToGiveBack(t *testing.T) {
	checkDecisions(t, []decideTest{
		{
			name: "spare blocks go after the grace, the longest idle first, one stays",
			s:    situation{claimable: true, backed: true, blocks: []heldBlock{open(1, 0, 6*time.Minute), open(2, 0, 8*time.Minute), open(3, 0, 7*time.Minute)}},
			want: decision{giveBack: []netip.Prefix{nth(2), nth(3)}},
		},
		{
			name: "a spare block waits for its grace",
			s:    situation{claimable: true, backed: true, blocks: []heldBlock{open(1, 2, 0), open(2, 0, time.Minute)}, needed: 2},
			want: decision{again: 4 * time.Minute},
		},
		{
			name: "where blocks are scarce the grace is short",
			s:    situation{claimable: true, backed: true, scarce: true, blocks: []heldBlock{open(1, 2, 0), open(2, 0, time.Minute)}, needed: 2},
			want: decision{giveBack: []netip.Prefix{nth(2)}},
		},
		{
			name: "a spare block stays if its loss would claim another at once",
			s:    situation{claimable: true, backed: true, scarce: true, blocks: []heldBlock{open(1, 6, 0), open(2, 0, time.Hour)}, needed: 6},
		},
		{
			name: "a block that bound pods will need stays",
			s:    situation{backed: false, blocks: []heldBlock{open(1, 0, time.Hour)}, needed: 1},
		},
		{
			name: "a node that no longer backs the network gives all idle blocks back",
			s:    situation{backed: false, blocks: []heldBlock{open(1, 0, time.Hour), open(2, 1, 0)}, needed: 1},
			want: decision{giveBack: []netip.Prefix{nth(1)}},
		},
		{
			name: "a Network that is being deleted loses its idle blocks at once",
			s:    situation{ending: true, backed: true, blocks: []heldBlock{open(1, 0, 0), open(2, 1, 0)}, needed: 1},
			want: decision{giveBack: []netip.Prefix{nth(1)}},
		},
	})
}

func TestDecideOfATightNetwork(t *testing.T) {
	checkDecisions(t, []decideTest{
		{
			name: "nothing is claimed ahead",
			s:    situation{claimable: true, backed: true, tight: true, scarce: true},
		},
		{
			name: "a block that was never used waits longer for the pod that it was created for",
			s:    situation{claimable: true, backed: true, tight: true, scarce: true, blocks: []heldBlock{open(1, 0, 40*time.Second), unused(2, 40*time.Second)}},
			want: decision{giveBack: []netip.Prefix{nth(1)}, again: 20 * time.Second},
		},
		{
			name: "a block that was never used does not wait for ever",
			s:    situation{claimable: true, backed: true, tight: true, scarce: true, blocks: []heldBlock{unused(1, time.Minute)}},
			want: decision{giveBack: []netip.Prefix{nth(1)}},
		},
		{
			name: "a pod that is bound uses the last address of a block",
			s:    situation{claimable: true, backed: true, tight: true, scarce: true, needed: 7, blocks: []heldBlock{open(1, 6, 0)}},
		},
		{
			name: "a pod that was bound waits a moment for the block that the scheduler made for it",
			s:    situation{claimable: true, backed: true, tight: true, scarce: true, needed: 1, short: ago(300 * time.Millisecond)},
			want: decision{lacks: true, again: 700 * time.Millisecond},
		},
		{
			name: "a pod that was bound by somebody else gets a block",
			s:    situation{claimable: true, backed: true, tight: true, scarce: true, needed: 1, short: ago(time.Second)},
			want: decision{claim: true, lacks: true},
		},
		{
			name: "blocks that no pod needs are given back, the last one too",
			s:    situation{claimable: true, backed: true, tight: true, scarce: true, blocks: []heldBlock{open(1, 0, time.Minute), open(2, 0, time.Hour)}},
			want: decision{giveBack: []netip.Prefix{nth(2), nth(1)}},
		},
		{
			name: "a block that has just come waits for its pod",
			s:    situation{claimable: true, backed: true, tight: true, scarce: true, blocks: []heldBlock{open(1, 0, 10*time.Second)}},
			want: decision{again: 20 * time.Second},
		},
		{
			name: "a block is not let go while a pod that is bound has no other",
			s: situation{claimable: true, backed: true, tight: true, scarce: true, needed: 1, short: ago(time.Minute), blocks: []heldBlock{
				deleted(1, 0, time.Minute),
			}},
			want: decision{claim: true, lacks: true},
		},
		{
			name: "a block that a bound pod needs stays",
			s:    situation{claimable: true, backed: true, tight: true, scarce: true, needed: 8, blocks: []heldBlock{open(1, 7, 0), open(2, 0, time.Hour)}},
		},
	})
}

func TestDecideToLetGo(t *testing.T) {
	checkDecisions(t, []decideTest{
		{
			name: "blocks of a Network that is gone go as soon as they are empty",
			s: situation{claimable: true, backed: true, blocks: []heldBlock{
				open(1, 0, 0), {prefix: nth(2), orphan: true}, {prefix: nth(3), orphan: true, leased: 1}, {prefix: nth(4), orphan: true, deleted: ago(time.Minute)},
			}},
			want: decision{giveBack: []netip.Prefix{nth(2)}, finish: []netip.Prefix{nth(4)}},
		},
		{
			name: "deleted blocks go when they have been empty for the grace",
			s: situation{blocks: []heldBlock{
				deleted(1, 0, 10*time.Second), deleted(2, 1, time.Hour), deleted(3, 0, 4*time.Second),
				{prefix: nth(4), deleted: ago(time.Hour), idleSince: ago(7 * time.Second)},
			}},
			want: decision{finish: []netip.Prefix{nth(1)}, again: 3 * time.Second},
		},
	})
}

func TestWatermark(t *testing.T) {
	for size, want := range map[int]int{4: 1, 8: 2, 16: 4, 32: 8, 64: 8, 4096: 8} {
		if got := watermark(size); got != want {
			t.Errorf("watermark of blocks of %d is %d, want %d", size, got, want)
		}
	}
}

func TestNeeds(t *testing.T) {
	lease := func(pod string, host byte) Lease {
		return Lease{Owner: Owner{PodUID: pod}, Address: netip.AddrFrom4([4]byte{10, 20, 0, host})}
	}
	blocks := []BlockUsage{{Block: Block{Prefix: nth(1)}, Open: true}, {Block: Block{Prefix: nth(2), Closed: true}}}
	tests := []struct {
		name   string
		demand map[string]int
		usage  Usage
		want   int
	}{
		{name: "nothing"},
		{name: "pods that have nothing yet", demand: map[string]int{"a": 2, "b": 1}, want: 3},
		{
			name:   "a pod counts once, attached or not",
			demand: map[string]int{"a": 2},
			usage:  Usage{Leases: []Lease{lease("a", 9)}},
			want:   2,
		},
		{
			name:  "leases of pods that are gone",
			usage: Usage{Leases: []Lease{lease("a", 9), lease("", 10)}},
			want:  2,
		},
		{
			name:   "two sandboxes of one pod",
			demand: map[string]int{"a": 1},
			usage:  Usage{Leases: []Lease{lease("a", 9), lease("a", 10)}},
			want:   2,
		},
		{
			name:   "what a pod has in a closed block it does not need in an open one",
			demand: map[string]int{"a": 2, "b": 1},
			usage:  Usage{Leases: []Lease{lease("a", 9), lease("a", 17), lease("b", 18)}},
			want:   1,
		},
		{
			name:   "a pod that waits is the pod that is bound",
			demand: map[string]int{"a": 2},
			usage:  Usage{Waiting: map[string]int{"a": 2, "unseen": 1}},
			want:   3,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.usage.Blocks = blocks
			if got := needs(test.demand, &test.usage); got != test.want {
				t.Errorf("needs %d, want %d", got, test.want)
			}
		})
	}
}
