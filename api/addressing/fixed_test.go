// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addressing

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/netplane/netplane/api/v1alpha1"
)

var fixedSpec = v1alpha1.NetworkSpec{
	Subnet: "10.10.0.0/24", Subnet6: "fd00:10::/64", StaticRange: "10.10.0.240/28",
	Gateway: "10.10.0.241", ExcludeRanges: []v1alpha1.IPRange{"10.10.0.250-10.10.0.252", "fd00:10::a0a:f5"},
}

func fixedPlan(t *testing.T) *Plan {
	t.Helper()
	plan, err := NewPlan("data", &fixedSpec)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func TestCheckFixed(t *testing.T) {
	const reserved = " is the gateway of network \"data\", excluded there, or the first or last address of the subnet"
	tests := map[string]string{
		"10.10.0.240":     "",
		"10.10.0.254":     "",
		"10.10.0.241":     "10.10.0.241" + reserved,
		"10.10.0.251":     "10.10.0.251" + reserved,
		"10.10.0.245":     "10.10.0.245" + reserved, // its IPv6 address is excluded
		"10.10.0.255":     "10.10.0.255" + reserved,
		"10.10.0.5":       `10.10.0.5 does not lie in staticRange 10.10.0.240/28 of network "data"`,
		"fd00:10::a0a:f0": `fd00:10::a0a:f0 does not lie in staticRange 10.10.0.240/28 of network "data"`,
	}
	plan := fixedPlan(t)
	for text, want := range tests {
		got := ""
		if err := plan.CheckFixed(netip.MustParseAddr(text)); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func TestFixedOf(t *testing.T) {
	tests := map[string]struct {
		ips       []string
		want, err string
	}{
		"any":                      {nil, "invalid IP", ""},
		"one":                      {[]string{"10.10.0.242"}, "10.10.0.242", ""},
		"both families":            {[]string{"fd00:10::a0a:f2", "10.10.0.242"}, "10.10.0.242", ""},
		"IPv6 alone":               {[]string{"fd00:10::a0a:f2"}, "", "ips: write 10.10.0.242, the IPv4 address that fd00:10::a0a:f2 follows from"},
		"IPv6 of another":          {[]string{"10.10.0.242", "fd00:10::a0a:f3"}, "", "ips: fd00:10::a0a:f3 does not follow from the address beside it: leave the IPv6 address out"},
		"outside the static range": {[]string{"10.10.0.5"}, "", `ips: 10.10.0.5 does not lie in staticRange 10.10.0.240/28 of network "data"`},
	}
	plan := fixedPlan(t)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := plan.FixedOf(tt.ips)
			if err == nil && (tt.err != "" || got.String() != tt.want) || err != nil && err.Error() != tt.err {
				t.Errorf("%s, %v; want %s, %q", got, err, tt.want, tt.err)
			}
		})
	}
	bare, err := NewPlan("data", &v1alpha1.NetworkSpec{Subnet: "10.10.0.0/24"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bare.FixedOf(nil); err == nil {
		t.Error("a network without staticRange gives fixed addresses")
	}
}

func TestCheckFixedWithoutStaticRange(t *testing.T) {
	plan, err := NewPlan("data", &v1alpha1.NetworkSpec{Subnet: "10.10.0.0/24"})
	if err != nil {
		t.Fatal(err)
	}
	err = plan.CheckFixed(netip.MustParseAddr("10.10.0.5"))
	if err == nil || err.Error() != `network "data" has no staticRange, from which fixed addresses come` {
		t.Errorf("%v", err)
	}
	for addr := range plan.FixedAddresses("anyone") {
		t.Errorf("%s is offered", addr)
	}
}

// TestFixedAddressesAreThoseThatPass compares the offer with CheckFixed over
// the whole subnet.
func TestFixedAddressesAreThoseThatPass(t *testing.T) {
	plan := fixedPlan(t)
	var want []netip.Addr
	for addr := netip.MustParseAddr("10.10.0.0"); addr.Less(netip.MustParseAddr("10.10.1.0")); addr = addr.Next() {
		if plan.CheckFixed(addr) == nil {
			want = append(want, addr)
		}
	}
	if len(want) != 16-3-1-1-1 {
		t.Fatalf("%d addresses pass", len(want))
	}
	starts := map[netip.Addr]bool{}
	for _, owner := range []string{"a/db-0/net1", "a/db-1/net1", "b/db-0/net1", "a/db-0/net2"} {
		offered := slices.Collect(plan.FixedAddresses(owner))
		starts[offered[0]] = true
		if again := slices.Collect(plan.FixedAddresses(owner)); !slices.Equal(again, offered) {
			t.Errorf("%s: the order changes", owner)
		}
		slices.SortFunc(offered, netip.Addr.Compare)
		if diff := cmp.Diff(want, offered, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", owner, diff)
		}
	}
	if len(starts) < 2 {
		t.Error("all owners begin at the same address")
	}
}

// TestNoBlockHasAFixedAddress: blocks and the static range never share one.
func TestNoBlockHasAFixedAddress(t *testing.T) {
	plan := fixedPlan(t)
	for block := range plan.Candidates("node") {
		for addr := range plan.PodAddresses(block) {
			if plan.CheckFixed(addr) == nil {
				t.Errorf("block %s serves the fixed address %s", block, addr)
			}
		}
	}
}

func TestPrincipal(t *testing.T) {
	plan := fixedPlan(t)
	for text, want := range map[string]string{
		"10.10.0.244":       "10.10.0.244",
		"fd00:10::a0a:f4":   "10.10.0.244",
		"fd00:10::1:a0a:f4": "fd00:10::1:a0a:f4", // not derived from 32 bits
		"fd00:11::a0a:f4":   "fd00:11::a0a:f4",
	} {
		if got := plan.Principal(netip.MustParseAddr(text)); got.String() != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func TestClaimNamesAreNamesOfObjects(t *testing.T) {
	plan6, err := NewPlan("data", &v1alpha1.NetworkSpec{Subnet: "fd00:20::/64", StaticRange: "fd00:20::/120"})
	if err != nil {
		t.Fatal(err)
	}
	for _, plan := range []*Plan{fixedPlan(t), plan6} {
		for addr := range plan.FixedAddresses("anyone") {
			name := ClaimName("data", addr)
			if problems := validation.IsDNS1123Subdomain(name); problems != nil {
				t.Errorf("%s: %v", name, problems)
			}
		}
	}
	if got := ClaimName("data", netip.MustParseAddr("fd00:20::5")); got != "data.fd00-20--5" {
		t.Errorf("name %q", got)
	}
}
