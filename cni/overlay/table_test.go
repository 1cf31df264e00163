// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

func testPlan(tb testing.TB, spec v1alpha1.NetworkSpec) *addressing.Plan {
	tb.Helper()
	plan, err := addressing.NewPlan("blue", &spec)
	if err != nil {
		tb.Fatal(err)
	}
	return plan
}

func testBlock(cidr, node, vtep string) *v1alpha1.IPBlock {
	return &v1alpha1.IPBlock{Spec: v1alpha1.IPBlockSpec{
		Network: "blue", NetworkUID: "u1", CIDR: v1alpha1.CIDR(cidr), NodeName: node, VTEP: v1alpha1.IP(vtep),
	}}
}

// render shows entries as "<mac> <vtep>", sorted.
func render(forwards []link.Forward) []string {
	out := make([]string, 0, len(forwards))
	for _, f := range forwards {
		text := "all " + f.VTEP.String()
		if f.MAC != [6]byte{} {
			text = net.HardwareAddr(f.MAC[:]).String() + " " + f.VTEP.String()
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return out
}

func TestDesiredTableHasTheBlocksOfOtherNodes(t *testing.T) {
	former := testBlock("10.7.0.48/30", "d", "192.168.0.4")
	former.Spec.NetworkUID = "u0"
	view := View{Node: "a", NetworkUID: "u1", Local: netip.MustParseAddr("192.168.0.1")}
	table, strangers := view.Desired([]*v1alpha1.IPBlock{
		testBlock("10.7.0.0/30", "a", "192.168.0.1"), // our own
		testBlock("10.7.0.4/30", "b", "192.168.0.2"),
		testBlock("10.7.0.8/30", "b", "192.168.0.2"),
		testBlock("10.7.0.12/30", "c", ""),            // its agent has not told yet
		testBlock("10.7.0.16/30", "e", "fd00::5"),     // of the other family
		testBlock("10.7.0.20/30", "f", "192.168.0.1"), // our address, by mistake
		former,
	})
	want := Table{
		netip.MustParsePrefix("10.7.0.4/30"): netip.MustParseAddr("192.168.0.2"),
		netip.MustParsePrefix("10.7.0.8/30"): netip.MustParseAddr("192.168.0.2"),
	}
	if diff := cmp.Diff(want, table, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	if got, want := fmt.Sprint(strangers), "[192.168.0.1 fd00::5]"; got != want {
		t.Errorf("strangers %s, want %s", got, want)
	}
}

func TestLinkLocalAndGlobalTunnelsDoNotMeet(t *testing.T) {
	view := View{Node: "a", NetworkUID: "u1", Local: netip.MustParseAddr("fd00::1")}
	table, strangers := view.Desired([]*v1alpha1.IPBlock{testBlock("10.7.0.4/30", "b", "fe80::2"), testBlock("10.7.0.8/30", "c", "fd00::3")})
	if len(table) != 1 || fmt.Sprint(strangers) != "[fe80::2]" {
		t.Errorf("table %v, strangers %v", table, strangers)
	}
}

func TestDiffNamesEveryAddressOfABlockThatChanged(t *testing.T) {
	plan := testPlan(t, v1alpha1.NetworkSpec{Subnet: "10.7.0.0/24", BlockSize: 4})
	a, b := netip.MustParseAddr("192.168.0.2"), netip.MustParseAddr("192.168.0.3")
	first, second := netip.MustParsePrefix("10.7.0.4/30"), netip.MustParsePrefix("10.7.0.8/30")
	mac := func(last string) string { return plan.MAC(netip.MustParseAddr("10.7.0." + last)).String() }
	all := func(vtep netip.Addr, lasts ...string) []string {
		out := []string{}
		for _, last := range lasts {
			out = append(out, mac(last)+" "+vtep.String())
		}
		return out
	}
	for name, test := range map[string]struct {
		have, want  Table
		add, remove []string
	}{
		"the first block of a node": {want: Table{first: a}, add: append(all(a, "4", "5", "6", "7"), "all 192.168.0.2")},
		"its second":                {have: Table{first: a}, want: Table{first: a, second: a}, add: all(a, "10", "11", "8", "9")},
		"a block moves": {
			have: Table{first: a}, want: Table{first: b},
			add: append(all(b, "4", "5", "6", "7"), "all 192.168.0.3"), remove: []string{"all 192.168.0.2"},
		},
		"a block goes":  {have: Table{first: a, second: a}, want: Table{first: a}, remove: all(a, "8", "9", "10", "11")},
		"the last goes": {have: Table{first: a}, remove: append(all(a, "4", "5", "6", "7"), "all 192.168.0.2")},
		"nothing":       {have: Table{first: a}, want: Table{first: a}},
	} {
		t.Run(name, func(t *testing.T) {
			got := Diff(test.have, test.want, plan)
			for what, pair := range map[string][2][]string{"add": {test.add, render(got.Add)}, "remove": {test.remove, render(got.Remove)}} {
				want := append([]string{}, pair[0]...)
				slices.Sort(want)
				if diff := cmp.Diff(want, pair[1]); diff != "" {
					t.Errorf("%s (-want +got):\n%s", what, diff)
				}
			}
		})
	}
}

func TestRepairOfAFoundTableEndsAtTheWantedOne(t *testing.T) {
	plan := testPlan(t, v1alpha1.NetworkSpec{Subnet: "10.7.0.0/24", BlockSize: 4})
	a, b := netip.MustParseAddr("192.168.0.2"), netip.MustParseAddr("192.168.0.3")
	want := Table{netip.MustParsePrefix("10.7.0.4/30"): b}
	foreign := link.Forward{MAC: [6]byte{2, 0, 0, 0, 0, 9}, VTEP: a}
	found := []link.Forward{
		{MAC: [6]byte(plan.MAC(netip.MustParseAddr("10.7.0.4"))), VTEP: b}, // right
		{MAC: [6]byte(plan.MAC(netip.MustParseAddr("10.7.0.5"))), VTEP: a}, // the block has moved
		{VTEP: a}, foreign,
	}
	got := Repair(found, want, plan)
	mac := func(last string) string { return plan.MAC(netip.MustParseAddr("10.7.0." + last)).String() }
	wantAdd := []string{mac("5") + " 192.168.0.3", mac("6") + " 192.168.0.3", mac("7") + " 192.168.0.3", "all 192.168.0.3"}
	slices.Sort(wantAdd)
	if diff := cmp.Diff(wantAdd, render(got.Add)); diff != "" {
		t.Errorf("add (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"02:00:00:00:00:09 192.168.0.2", "all 192.168.0.2"}, render(got.Remove)); diff != "" {
		t.Errorf("remove (-want +got):\n%s", diff)
	}
}

// kernel applies changes as a vxlan device does: an entry of a MAC replaces the
// one that the MAC had, and a removal of another's entry is none.
type kernel map[string]link.Forward

func (k kernel) apply(c Changes) {
	key := func(f link.Forward) string {
		if f.MAC == [6]byte{} {
			return "all " + f.VTEP.String()
		}
		return string(f.MAC[:])
	}
	for _, f := range c.Add {
		k[key(f)] = f
	}
	for _, f := range c.Remove {
		if k[key(f)] == f {
			delete(k, key(f))
		}
	}
}

func TestWhateverHappensTheDeviceEndsAtTheWantedTable(t *testing.T) {
	plan := testPlan(t, v1alpha1.NetworkSpec{Subnet: "10.7.0.0/24", BlockSize: 4})
	random := rand.New(rand.NewPCG(7, 11))
	anyTable := func() Table {
		out := Table{}
		for i := range 16 {
			if random.IntN(2) == 0 {
				out[netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 7, 0, byte(4 * i)}), 30)] = netip.AddrFrom4([4]byte{192, 168, 0, byte(2 + random.IntN(4))})
			}
		}
		return out
	}
	device, have := kernel{}, Table{}
	for round := range 300 {
		want := anyTable()
		if random.IntN(5) == 0 { // the agent forgot what it had made
			device.apply(Repair(slices.Collect(maps.Values(device)), want, plan))
		} else {
			device.apply(Diff(have, want, plan))
		}
		have = want
		fresh := kernel{}
		fresh.apply(Diff(nil, want, plan))
		if diff := cmp.Diff(render(slices.Collect(maps.Values(fresh))), render(slices.Collect(maps.Values(device)))); diff != "" {
			t.Fatalf("round %d (-want +got):\n%s", round, diff)
		}
	}
}

func TestIPv6BlocksHaveEntriesToo(t *testing.T) {
	plan := testPlan(t, v1alpha1.NetworkSpec{Subnet: "fd00:7::/64", BlockSize: 4})
	got := Diff(nil, Table{netip.MustParsePrefix("fd00:7::4/126"): netip.MustParseAddr("fe80::2")}, plan)
	if len(got.Add) != 5 || len(got.Remove) != 0 {
		t.Errorf("%d entries to add, %d to remove; want 4 addresses and what is for everybody", len(got.Add), len(got.Remove))
	}
}

// BenchmarkDiff is what an agent does when one block changes hands in a
// Network of 1,024 nodes with 64 addresses each.
func BenchmarkDiff(b *testing.B) {
	plan := testPlan(b, v1alpha1.NetworkSpec{Subnet: "10.0.0.0/16", BlockSize: 64})
	have, want := Table{}, Table{}
	for i := range 1024 {
		block := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 2), byte(i << 6)}), 26)
		vtep := netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})
		have[block], want[block] = vtep, vtep
	}
	moved := netip.MustParsePrefix("10.0.0.0/26")
	want[moved] = netip.MustParseAddr("172.16.9.9")
	b.ReportAllocs()
	for b.Loop() {
		if got := Diff(have, want, plan); len(got.Add) != 65 {
			b.Fatalf("%d entries to add, want 65", len(got.Add))
		}
	}
}
