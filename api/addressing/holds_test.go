// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addressing

import (
	"net/netip"
	"testing"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestHoldsWhatPodsKeep(t *testing.T) {
	p := mustPlan(t, v1alpha1.NetworkSpec{
		Subnet: "10.10.0.0/24", Subnet6: "fd00:10:10::/64", BlockSize: 16, Gateway: "10.10.0.5", Gateway6: "fd00:10:10::a0a:6",
		ExcludeRanges: []v1alpha1.IPRange{"10.10.0.16-10.10.0.18", "fd00:10:10::a0a:13"}, StaticRange: "10.10.0.128/28",
	})
	tests := map[string]struct {
		block, addr   string
		holds, serves bool
	}{
		"a pod's address":                 {"10.10.0.16/28", "10.10.0.21", true, true},
		"the IPv6 address that follows":   {"10.10.0.16/28", "fd00:10:10::a0a:15", true, true},
		"one that was excluded later":     {"10.10.0.16/28", "10.10.0.17", true, false},
		"what follows from it":            {"10.10.0.16/28", "fd00:10:10::a0a:11", true, false},
		"one whose IPv6 address was":      {"10.10.0.16/28", "10.10.0.19", true, false},
		"the node's own of today":         {"10.10.0.16/28", "10.10.0.20", true, false},
		"the gateway":                     {"10.10.0.0/28", "10.10.0.5", false, false},
		"what follows from it in IPv6":    {"10.10.0.0/28", "fd00:10:10::a0a:5", false, false},
		"the IPv6 gateway":                {"10.10.0.0/28", "fd00:10:10::a0a:6", false, false},
		"what it follows from":            {"10.10.0.0/28", "10.10.0.6", false, false},
		"the network's own":               {"10.10.0.0/28", "10.10.0.0", false, false},
		"the broadcast address":           {"10.10.0.240/28", "10.10.0.255", false, false},
		"another block's":                 {"10.10.0.16/28", "10.10.0.40", false, false},
		"IPv6 with bits between":          {"10.10.0.16/28", "fd00:10:10::1:a0a:15", false, false},
		"no address of the network":       {"10.10.0.16/28", "192.0.2.1", false, false},
		"a block that is none":            {"10.10.0.0/24", "10.10.0.20", false, false},
		"one of the static range":         {"10.10.0.128/28", "10.10.0.130", false, false},
		"an IPv4-mapped one of the block": {"10.10.0.16/28", "::ffff:10.10.0.21", false, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			block, addr := netip.MustParsePrefix(tt.block), netip.MustParseAddr(tt.addr)
			if got := p.Holds(block, addr); got != tt.holds {
				t.Errorf("Holds(%s, %s) = %t, want %t", block, addr, got, tt.holds)
			}
			if got := p.Serves(block, addr); got != tt.serves {
				t.Errorf("Serves(%s, %s) = %t, want %t", block, addr, got, tt.serves)
			}
		})
	}
}

func TestHoldsWhatItServes(t *testing.T) {
	for _, spec := range []v1alpha1.NetworkSpec{
		{Subnet: "10.10.0.0/26", BlockSize: 8, Gateway: "10.10.0.1"},
		{Subnet: "10.10.0.0/26", Subnet6: "fd00:10:10::/64", BlockSize: 8, ExcludeRanges: []v1alpha1.IPRange{"10.10.0.9"}},
		{Subnet: "fd00:20::/120", BlockSize: 16, Gateway: "fd00:20::1"},
	} {
		p := mustPlan(t, spec)
		for block := range p.Candidates("worker") {
			for addr := range p.PodAddresses(block) {
				for _, configured := range p.Interface(addr) {
					if !p.Holds(block, configured.Addr()) {
						t.Errorf("%s does not hold %s, which it serves", block, configured.Addr())
					}
				}
			}
		}
	}
}
