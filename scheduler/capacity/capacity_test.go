// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package capacity

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

func plan(t *testing.T) *addressing.Plan {
	t.Helper()
	p, err := addressing.NewPlan("data", &v1alpha1.NetworkSpec{
		Subnet: "10.20.0.0/24", BlockSize: 8, Gateway: "10.20.0.1", ExcludeRanges: []v1alpha1.IPRange{"10.20.0.16-10.20.0.18"}, StaticRange: "10.20.0.248/29",
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSupplyCountsBlocksThatServe(t *testing.T) {
	for name, test := range map[string]struct {
		blocks []Block
		want   Supply
	}{
		"nothing held": {},
		"a whole block less the node's own address": {
			blocks: []Block{{Network: "u", Node: "n", CIDR: netip.MustParsePrefix("10.20.0.32/29")}},
			want:   Supply{Blocks: 1, Addresses: 7},
		},
		"network address and gateway are not for pods": {
			blocks: []Block{{Network: "u", Node: "n", CIDR: netip.MustParsePrefix("10.20.0.0/29")}},
			want:   Supply{Blocks: 1, Addresses: 5},
		},
		"excluded addresses are not for pods": {
			blocks: []Block{{Network: "u", Node: "n", CIDR: netip.MustParsePrefix("10.20.0.16/29")}},
			want:   Supply{Blocks: 1, Addresses: 4},
		},
		"blocks add up": {
			blocks: []Block{{Network: "u", Node: "n", CIDR: netip.MustParsePrefix("10.20.0.32/29")}, {Network: "u", Node: "n", CIDR: netip.MustParsePrefix("10.20.0.16/29")}},
			want:   Supply{Blocks: 2, Addresses: 11},
		},
		"a block of an older Network of that name does not serve": {
			blocks: []Block{{Network: "older", Node: "n", CIDR: netip.MustParsePrefix("10.20.0.32/29")}},
		},
		"a block of an older Node of that name does not serve": {
			blocks: []Block{{Network: "u", Node: "older", CIDR: netip.MustParsePrefix("10.20.0.32/29")}},
		},
		"a block that is being released does not serve": {
			blocks: []Block{{Network: "u", Node: "n", CIDR: netip.MustParsePrefix("10.20.0.32/29"), Leaving: true}},
		},
		"a block outside the subnet does not serve": {
			blocks: []Block{{Network: "u", Node: "n", CIDR: netip.MustParsePrefix("10.21.0.32/29")}},
		},
		"a block of another size does not serve": {
			blocks: []Block{{Network: "u", Node: "n", CIDR: netip.MustParsePrefix("10.20.0.32/28")}},
		},
		"a block in the static range does not serve": {
			blocks: []Block{{Network: "u", Node: "n", CIDR: netip.MustParsePrefix("10.20.0.248/29")}},
		},
		"a block whose CIDR is malformed does not serve": {
			blocks: []Block{{Network: "u", Node: "n"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got Supply
			for _, block := range test.blocks {
				got.AddBlock(plan(t), "u", "n", block)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("supply (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoadCountsEachAddressOnce(t *testing.T) {
	var load Load
	load.AddPod(Demand{{Network: "data", Addresses: 2, Fixed: 1}, {Network: "management", Addresses: 1}, {Network: "storage", Fixed: 1}})
	load.AddPod(nil)
	load.AddPod(Demand{{Network: "data", Addresses: 1}})
	load.AddHeld([]v1alpha1.HeldAddresses{
		{Network: "data", Count: 4, PodUID: "alive"},
		{Network: "data", Count: 8, PodUID: "gone"},
		{Network: "data", Count: 16},
		{Network: "data", Count: 32, PodUID: "gone", Fixed: true},
		{Network: "backup", Count: 1},
		{Network: "storage", Count: 5, Quarantined: true},
	}, func(uid types.UID) bool { return uid == "alive" })
	want := Load{
		{Network: "data", Addresses: 2 + 1 + 8 + 16, Fixed: 1 + 32}, {Network: "management", Addresses: 1},
		{Network: "storage", Addresses: 5, Fixed: 1, Closed: 5}, {Network: "backup", Addresses: 1},
	}
	if diff := cmp.Diff(want, load); diff != "" {
		t.Errorf("load (-want +got):\n%s", diff)
	}
	if got := []int{load.Of("data"), load.Of("management"), load.Of("storage"), load.Interfaces("data"), load.Interfaces("storage"), load.Interfaces("none")}; !slices.Equal(got, []int{27, 1, 5, 60, 1, 0}) {
		t.Errorf("by network: %v", got)
	}
}

func TestFit(t *testing.T) {
	for name, test := range map[string]struct {
		supply       Supply
		used, demand int
		want         Fit
	}{
		"room":                            {Supply{1, 7}, 3, 1, Fits},
		"the last address":                {Supply{1, 7}, 6, 1, Fits},
		"full":                            {Supply{1, 7}, 7, 1, Full},
		"some free, but not enough":       {Supply{1, 7}, 6, 2, Full},
		"over-committed":                  {Supply{1, 7}, 9, 1, Full},
		"more than the node has at all":   {Supply{1, 7}, 0, 8, TooFew},
		"a block without pod addresses":   {Supply{1, 0}, 0, 1, TooFew},
		"no block":                        {Supply{}, 0, 1, NoBlock},
		"no address wanted, no block":     {Supply{}, 0, 0, Fits},
		"no address wanted, nothing free": {Supply{1, 7}, 7, 0, Fits},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.supply.Fit(test.used, test.demand); got != test.want {
				t.Errorf("Fit = %d, want %d", got, test.want)
			}
		})
	}
}

func TestUtilisationStaysBetweenZeroAndOne(t *testing.T) {
	for name, test := range map[string]struct {
		supply       Supply
		used, demand int
		want         float64
	}{
		"a quarter":      {Supply{1, 8}, 1, 1, 0.25},
		"full":           {Supply{1, 8}, 7, 1, 1},
		"over-committed": {Supply{1, 8}, 20, 1, 1},
		"nothing held":   {Supply{}, 0, 0, 1},
		"empty":          {Supply{1, 8}, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.supply.Utilisation(test.used, test.demand); got != test.want {
				t.Errorf("Utilisation = %v, want %v", got, test.want)
			}
		})
	}
}

func TestFitOfNICs(t *testing.T) {
	for name, test := range map[string]struct {
		nics         NICs
		used, demand int
		want         Fit
		utilisation  float64
	}{
		"one is free":                   {2, 1, 1, Fits, 1},
		"a quarter is taken":            {8, 1, 1, Fits, 0.25},
		"all are taken":                 {2, 2, 1, Full, 1},
		"one goes down that a pod has":  {1, 2, 1, Full, 1},
		"more than the node has at all": {2, 0, 3, TooFew, 1},
		"none is up":                    {0, 0, 1, TooFew, 1},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.nics.Fit(test.used, test.demand); got != test.want {
				t.Errorf("Fit = %d, want %d", got, test.want)
			}
			if got := test.nics.Utilisation(test.used, test.demand); got != test.utilisation {
				t.Errorf("Utilisation = %v, want %v", got, test.utilisation)
			}
		})
	}
}
