// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addressing

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestNewPlanNamesTheFieldThatIsWrong(t *testing.T) {
	tests := map[string]struct {
		spec v1alpha1.NetworkSpec
		want string
	}{
		"no subnet": {
			v1alpha1.NetworkSpec{},
			"the Network has no subnet",
		},
		"subnet is no CIDR": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.0"},
			`subnet: "10.10.0.0" is no CIDR such as 10.10.0.0/16`,
		},
		"subnet with host bits": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.1/16"},
			"subnet: 10.10.0.1/16 has host bits set: write 10.10.0.0/16",
		},
		"IPv4-mapped subnet": {
			v1alpha1.NetworkSpec{Subnet: "::ffff:10.0.0.0/104"},
			"subnet: ::ffff:10.0.0.0/104 is an IPv4-mapped IPv6 prefix: write the IPv4 one",
		},
		"reserved IPv6 subnet": {
			v1alpha1.NetworkSpec{Subnet: "::1:0/112"},
			"subnet: ::1:0/112 lies in the reserved prefix ::/8: choose one such as fd00:10:10::/64",
		},
		"additional subnet overlaps": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16", AdditionalSubnets: []v1alpha1.CIDR{"10.11.0.0/16", "10.10.4.0/24"}},
			"additionalSubnets[1]: 10.10.4.0/24 overlaps 10.10.0.0/16",
		},
		"additional subnet of the other family": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16", AdditionalSubnets: []v1alpha1.CIDR{"fd00:1::/64"}},
			"additionalSubnets[0]: fd00:1::/64 is not of the same IP family as subnet 10.10.0.0/16",
		},
		"subnet6 too small": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16", Subnet6: "fd00:1::/112"},
			"subnet6: fd00:1::/112 must be an IPv6 prefix of at most /96 beside an IPv4 subnet",
		},
		"subnet6 of IPv4": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16", Subnet6: "10.11.0.0/16"},
			"subnet6: 10.11.0.0/16 must be an IPv6 prefix of at most /96 beside an IPv4 subnet",
		},
		"static range elsewhere": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16", StaticRange: "10.11.0.0/24"},
			"staticRange: 10.11.0.0/24 does not lie in subnet 10.10.0.0/16",
		},
		"static range larger than the subnet": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16", StaticRange: "10.0.0.0/8"},
			"staticRange: 10.0.0.0/8 does not lie in subnet 10.10.0.0/16",
		},
		"block size is no power of two": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16", BlockSize: 48},
			"blockSize: 48 is not a power of two",
		},
		"block larger than a subnet": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16", AdditionalSubnets: []v1alpha1.CIDR{"10.11.0.0/28"}, BlockSize: 64},
			"blockSize: 64 is larger than subnet 10.11.0.0/28",
		},
		"gateway is no address": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16", Gateway: "router"},
			`gateway: "router" is no IP address such as 10.10.0.1`,
		},
		"gateway outside the subnet": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16", Gateway: "10.11.0.1"},
			"gateway: 10.11.0.1 lies in no subnet of the network",
		},
		"gateway6 outside subnet6": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16", Subnet6: "fd00:1::/64", Gateway6: "fd00:2::1"},
			"gateway6: fd00:2::1 lies in no subnet of the network",
		},
		"exclude range is nothing": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16", ExcludeRanges: []v1alpha1.IPRange{"10.10.0.1", "half"}},
			`excludeRanges[1]: "half" is no CIDR, address, or range first-last`,
		},
		"exclude range backwards": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16", ExcludeRanges: []v1alpha1.IPRange{"10.10.0.9-10.10.0.1"}},
			`excludeRanges[0]: "10.10.0.9-10.10.0.1" does not go from a lower to a higher address of one family`,
		},
		"exclude range of two families": {
			v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16", ExcludeRanges: []v1alpha1.IPRange{"10.10.0.9-fd00::1"}},
			`excludeRanges[0]: "10.10.0.9-fd00::1" does not go from a lower to a higher address of one family`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := NewPlan("management", &tt.spec)
			if err == nil {
				t.Fatal("accepted")
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNewPlanTellsANetworkWithoutSubnet(t *testing.T) {
	if _, err := NewPlan("flannel", &v1alpha1.NetworkSpec{}); !errors.Is(err, ErrNoSubnet) {
		t.Errorf("got %v, want ErrNoSubnet", err)
	}
}

func TestDefaultBlockSize(t *testing.T) {
	for subnet, want := range map[v1alpha1.CIDR]int{
		"10.0.0.0/8":    64,
		"10.10.0.0/16":  64,
		"10.10.0.0/22":  64,
		"10.10.0.0/23":  32,
		"10.10.0.0/24":  16,
		"10.10.0.0/25":  8,
		"10.10.0.0/28":  8,
		"10.10.0.0/30":  4,
		"fd00:1::/64":   64,
		"fd00:1::/120":  16,
		"fd00:1::4/126": 4,
	} {
		p := mustPlan(t, v1alpha1.NetworkSpec{Subnet: subnet})
		if p.BlockSize() != want {
			t.Errorf("%s: block size %d, want %d", subnet, p.BlockSize(), want)
		}
	}
}

func TestPodAddressesLeaveOutWhatIsTaken(t *testing.T) {
	p := mustPlan(t, v1alpha1.NetworkSpec{
		Subnet: "10.10.0.0/28", Subnet6: "fd00:10:10::/64", BlockSize: 8,
		Gateway: "10.10.0.1", Gateway6: "fd00:10:10::a0a:9",
		ExcludeRanges: []v1alpha1.IPRange{"10.10.0.3-10.10.0.4"},
	})
	// 0 is the network, 1 the gateway, 2 the node's, 3 and 4 are excluded.
	checkBlock(t, p, "10.10.0.0/29", "10.10.0.2", "10.10.0.5", "10.10.0.6", "10.10.0.7")
	// 9 goes with gateway6, 8 is the node's, 15 the broadcast address.
	checkBlock(t, p, "10.10.0.8/29", "10.10.0.8", "10.10.0.10", "10.10.0.11", "10.10.0.12", "10.10.0.13", "10.10.0.14")
}

func checkBlock(t *testing.T, p *Plan, block, node string, pods ...string) {
	t.Helper()
	prefix := netip.MustParsePrefix(block)
	got, ok := p.NodeAddress(prefix)
	if !ok || got.String() != node {
		t.Errorf("%s: node address %v, want %s", block, got, node)
	}
	var addrs []string
	for addr := range p.PodAddresses(prefix) {
		addrs = append(addrs, addr.String())
	}
	if diff := cmp.Diff(pods, addrs); diff != "" {
		t.Errorf("%s: addresses (-want +got):\n%s", block, diff)
	}
}

func TestIPv6SubnetHasNoBroadcastAddress(t *testing.T) {
	p := mustPlan(t, v1alpha1.NetworkSpec{Subnet: "fd00:1::/125", BlockSize: 8})
	checkBlock(t, p, "fd00:1::/125", "fd00:1::1", "fd00:1::2", "fd00:1::3", "fd00:1::4", "fd00:1::5", "fd00:1::6", "fd00:1::7")
}

func TestBlockWhereAllIsExcludedServesNobody(t *testing.T) {
	p := mustPlan(t, v1alpha1.NetworkSpec{Subnet: "10.10.0.0/28", BlockSize: 8, ExcludeRanges: []v1alpha1.IPRange{"10.10.0.0/29"}})
	block := netip.MustParsePrefix("10.10.0.0/29")
	if addr, ok := p.NodeAddress(block); ok {
		t.Errorf("node address %s in an excluded block", addr)
	}
	if got := p.Capacity(block); got != 0 {
		t.Errorf("capacity %d, want 0", got)
	}
	if got := p.TotalCapacity(); got != 6 {
		t.Errorf("total capacity %d, want the 6 of the other block", got)
	}
}

func TestStaticRangeBeyondTheCarvedPartTakesNoBlock(t *testing.T) {
	spec := v1alpha1.NetworkSpec{Subnet: "fd00:1::/64", BlockSize: 64}
	without := mustPlan(t, spec)
	spec.StaticRange = "fd00:1::1:0:0/96" // the carved part ends at fd00:1::ffff:ffff
	with := mustPlan(t, spec)
	if without.BlockCount() != with.BlockCount() || without.TotalCapacity() != with.TotalCapacity() {
		t.Errorf("blocks %d and capacity %d, want %d and %d as without static range",
			with.BlockCount(), with.TotalCapacity(), without.BlockCount(), without.TotalCapacity())
	}
}

func TestTotalCapacityOfAHugeNetworkIsArithmetic(t *testing.T) {
	p := mustPlan(t, v1alpha1.NetworkSpec{Subnet: "fd00:1::/64", BlockSize: 64, ExcludeRanges: []v1alpha1.IPRange{"fd00:1::/97"}, StaticRange: "fd00:1::/112"})
	// The upper half is left: 2^31 addresses in blocks of 64, of which 63 serve pods.
	if got, want := p.TotalCapacity(), int64(1<<31/64*63); got != want {
		t.Errorf("total capacity %d, want %d", got, want)
	}
}

func TestMACsOfANetworksSubnetsDiffer(t *testing.T) {
	p := mustPlan(t, v1alpha1.NetworkSpec{Subnet: "fd00:1::/64", AdditionalSubnets: []v1alpha1.CIDR{"fd00:2::/64", "fd00:3::/64"}})
	seen := map[string]string{}
	for _, text := range []string{"fd00:1::5", "fd00:2::5", "fd00:3::5", "fd00:1::6"} {
		mac := p.MAC(netip.MustParseAddr(text))
		if mac[0]&3 != 2 {
			t.Errorf("%s: MAC %s is not locally administered unicast", text, mac)
		}
		if other, ok := seen[mac.String()]; ok {
			t.Errorf("%s and %s share the MAC %s", text, other, mac)
		}
		seen[mac.String()] = text
	}
}

func TestNodesBeginApart(t *testing.T) {
	p := mustPlan(t, v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16"})
	first := map[netip.Prefix]bool{}
	for node := range 100 {
		for block := range p.Candidates(fmt.Sprintf("worker%d", node)) {
			first[block] = true
			break
		}
	}
	// 100 random picks of 1024 give about 95 different ones.
	if len(first) < 80 {
		t.Errorf("100 nodes begin at %d blocks only", len(first))
	}
}

func TestOverlapsLooksAtEverySubnet(t *testing.T) {
	base := v1alpha1.NetworkSpec{Subnet: "10.10.0.0/16", Subnet6: "fd00:10::/64", AdditionalSubnets: []v1alpha1.CIDR{"10.12.0.0/16"}}
	tests := map[string]struct {
		spec v1alpha1.NetworkSpec
		want bool
	}{
		"apart":              {v1alpha1.NetworkSpec{Subnet: "10.11.0.0/16", Subnet6: "fd00:11::/64"}, false},
		"inside the subnet":  {v1alpha1.NetworkSpec{Subnet: "10.10.3.0/24"}, true},
		"around the subnet":  {v1alpha1.NetworkSpec{Subnet: "10.0.0.0/8"}, true},
		"additional subnet":  {v1alpha1.NetworkSpec{Subnet: "10.12.3.0/24"}, true},
		"subnet6":            {v1alpha1.NetworkSpec{Subnet: "10.11.0.0/16", Subnet6: "fd00:10::/96"}, true},
		"IPv6-only on IPv6":  {v1alpha1.NetworkSpec{Subnet: "fd00:10::/120"}, true},
		"IPv6-only, another": {v1alpha1.NetworkSpec{Subnet: "fd00:11::/120"}, false},
	}
	p := mustPlan(t, base)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			other := mustPlan(t, tt.spec)
			if p.Overlaps(other) != tt.want || other.Overlaps(p) != tt.want {
				t.Errorf("overlaps %v and %v, want %v both ways", p.Overlaps(other), other.Overlaps(p), tt.want)
			}
		})
	}
}

func TestServes(t *testing.T) {
	p := mustPlan(t, v1alpha1.NetworkSpec{Subnet: "10.10.0.0/24", Subnet6: "fd00:10:10::/64", BlockSize: 16, Gateway: "10.10.0.5"})
	tests := map[string]struct {
		block, addr string
		want        bool
	}{
		"a pod's address":                 {"10.10.0.16/28", "10.10.0.20", true},
		"the IPv6 address that follows":   {"10.10.0.16/28", "fd00:10:10::a0a:14", true},
		"the node's own":                  {"10.10.0.16/28", "10.10.0.16", false},
		"the node's own in IPv6":          {"10.10.0.16/28", "fd00:10:10::a0a:10", false},
		"the gateway":                     {"10.10.0.0/28", "10.10.0.5", false},
		"another block's":                 {"10.10.0.16/28", "10.10.0.40", false},
		"another block's in IPv6":         {"10.10.0.16/28", "fd00:10:10::a0a:28", false},
		"IPv6 with bits between":          {"10.10.0.16/28", "fd00:10:10::1:a0a:14", false},
		"IPv6 of another prefix":          {"10.10.0.16/28", "fd00:10:11::a0a:14", false},
		"no address of the network":       {"10.10.0.16/28", "192.0.2.1", false},
		"a block that is none":            {"10.10.0.0/24", "10.10.0.20", false},
		"a block of another network":      {"10.11.0.16/28", "10.11.0.20", false},
		"an IPv4-mapped one of the block": {"10.10.0.16/28", "::ffff:10.10.0.20", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := p.Serves(netip.MustParsePrefix(tt.block), netip.MustParseAddr(tt.addr)); got != tt.want {
				t.Errorf("Serves(%s, %s) = %v, want %v", tt.block, tt.addr, got, tt.want)
			}
		})
	}
}

// TestPlanProperties checks on many random Networks what the parts rely on.
// They are small enough to visit every block and address.
func TestPlanProperties(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 400 {
		spec := randomSpec(random)
		p, err := NewPlan("management", &spec)
		if err != nil {
			t.Fatalf("plan %d %+v: %v", i, spec, err)
		}
		if !t.Run(fmt.Sprintf("plan %d", i), func(t *testing.T) { checkPlan(t, p, random) }) {
			t.Fatalf("the plan was %+v", spec)
		}
	}
}

func checkPlan(t *testing.T, p *Plan, random *rand.Rand) {
	t.Helper()
	blocks := slices.Collect(p.Candidates("worker"))
	checkBlocks(t, p, blocks)
	total, serving := 0, int64(0)
	derived := map[netip.Addr]netip.Addr{}
	for _, block := range blocks {
		pods := slices.Collect(p.PodAddresses(block))
		if p.Capacity(block) != len(pods) {
			t.Errorf("block %s: capacity %d, but %d addresses", block, p.Capacity(block), len(pods))
		}
		total += len(pods)
		if len(pods) > 0 {
			serving++
		}
		for _, addr := range pods {
			checkAddress(t, p, block, addr, derived)
		}
	}
	if got := p.TotalCapacity(); got != int64(total) {
		t.Errorf("total capacity %d, but the blocks' is %d", got, total)
	}
	if got := p.ServingBlockCount(); got != serving {
		t.Errorf("%d blocks serve pods, but %d have addresses", got, serving)
	}
	if got := p.BlockCount(); got != uint64(len(blocks)) {
		t.Errorf("block count %d, but %d candidates", got, len(blocks))
	}
	other := slices.Collect(p.Candidates(fmt.Sprintf("worker%d", random.IntN(100))))
	if !slices.Equal(sorted(blocks), sorted(other)) {
		t.Errorf("two nodes see other candidates: %v and %v", blocks, other)
	}
}

func checkBlocks(t *testing.T, p *Plan, blocks []netip.Prefix) {
	t.Helper()
	names := map[string]netip.Prefix{}
	for _, block := range blocks {
		name := BlockName(p.network, block)
		if other, ok := names[name]; ok {
			t.Errorf("blocks %s and %s share the name %s", block, other, name)
		}
		names[name] = block
		if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
			t.Errorf("name %s: %v", name, problems)
		}
		if p.static.IsValid() && p.static.Overlaps(block) {
			t.Errorf("block %s lies in the static range %s", block, p.static)
		}
		if err := p.CheckBlock(block); err != nil {
			t.Errorf("candidate: %v", err)
		}
		// What is no candidate is refused: a wrong size, and host bits.
		for _, wrong := range []netip.Prefix{
			netip.PrefixFrom(block.Addr(), block.Bits()-1).Masked(),
			netip.PrefixFrom(block.Addr(), block.Bits()+1),
			netip.PrefixFrom(block.Addr().Next(), block.Bits()),
		} {
			if p.CheckBlock(wrong) == nil {
				t.Errorf("CheckBlock accepts %s", wrong)
			}
		}
	}
	ordered := sorted(blocks)
	for i := 1; i < len(ordered); i++ {
		if ordered[i-1].Overlaps(ordered[i]) {
			t.Errorf("blocks %s and %s overlap", ordered[i-1], ordered[i])
		}
	}
	checkOnlyCandidates(t, p, ordered)
}

// checkOnlyCandidates walks over the subnets and a block beyond each end.
func checkOnlyCandidates(t *testing.T, p *Plan, candidates []netip.Prefix) {
	t.Helper()
	for _, subnet := range p.Subnets()[:len(p.areas)] {
		bits := subnet.Addr().BitLen() - p.blockBits
		start := netip.PrefixFrom(subnet.Addr().Prev(), bits).Masked()
		for block := start; ; block = netip.PrefixFrom(lastOf(block).Next(), bits) {
			_, want := slices.BinarySearchFunc(candidates, block, comparePrefixes)
			if err := p.CheckBlock(block); (err == nil) != want {
				t.Errorf("CheckBlock(%s) = %v, candidate: %v", block, err, want)
			}
			if subnet.Addr().Less(block.Addr()) && !subnet.Contains(block.Addr()) {
				break
			}
		}
	}
}

func checkAddress(t *testing.T, p *Plan, block netip.Prefix, addr netip.Addr, derived map[netip.Addr]netip.Addr) {
	t.Helper()
	if node, _ := p.NodeAddress(block); addr == node {
		t.Errorf("%s is the node's own and a pod's", addr)
	}
	if !block.Contains(addr) || !p.Serves(block, addr) {
		t.Errorf("%s is not served by its block %s", addr, block)
	}
	prefixes := p.Interface(addr)
	want := 1
	if p.prefix6.IsValid() {
		want = 2
	}
	if len(prefixes) != want || prefixes[0].Addr() != addr {
		t.Fatalf("interface with %s has %v", addr, prefixes)
	}
	if want == 1 {
		return
	}
	addr6 := prefixes[1].Addr()
	if other, ok := derived[addr6]; ok {
		t.Errorf("%s follows from %s and %s", addr6, addr, other)
	}
	derived[addr6] = addr
	if !p.prefix6.Contains(addr6) || addr6 == p.gateway6 || !p.Serves(block, addr6) {
		t.Errorf("%s follows from %s but is not to be given out", addr6, addr)
	}
}

// randomSpec makes a valid spec with at most 2^10 addresses per subnet.
func randomSpec(random *rand.Rand) v1alpha1.NetworkSpec {
	six := random.IntN(3) == 0
	subnet := func(third int) netip.Prefix {
		bits := 2 + random.IntN(9)
		if six {
			return netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("fd00:10:%d::%x:0", third, random.IntN(100))), 128-bits)
		}
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 10, byte(third * 4), 0}), 32-bits)
	}
	subnets := []netip.Prefix{subnet(1)}
	for third := range random.IntN(3) {
		subnets = append(subnets, subnet(third+2))
	}
	smallest := 32
	for _, s := range subnets {
		smallest = min(smallest, s.Addr().BitLen()-s.Bits())
	}
	spec := v1alpha1.NetworkSpec{Subnet: v1alpha1.CIDR(subnets[0].String()), BlockSize: 1 << (random.IntN(smallest-1) + 2)}
	if spec.BlockSize > 1<<smallest {
		spec.BlockSize = 1 << smallest
	}
	for _, s := range subnets[1:] {
		spec.AdditionalSubnets = append(spec.AdditionalSubnets, v1alpha1.CIDR(s.String()))
	}
	addr := func() netip.Addr {
		s := subnets[random.IntN(len(subnets))]
		return withLow32(s.Addr(), low32(s.Addr())+uint32(random.IntN(1<<(s.Addr().BitLen()-s.Bits()))))
	}
	if random.IntN(2) == 0 {
		spec.Gateway = v1alpha1.IP(addr().String())
	}
	if !six && random.IntN(2) == 0 {
		spec.Subnet6 = "fd00:10:10::/64"
		if random.IntN(2) == 0 {
			spec.Gateway6 = v1alpha1.IP(withLow32(netip.MustParseAddr("fd00:10:10::"), low32(addr())).String())
		}
	}
	if random.IntN(2) == 0 {
		bits := subnets[0].Bits() + random.IntN(subnets[0].Addr().BitLen()-subnets[0].Bits()+1)
		first := withLow32(subnets[0].Addr(), low32(subnets[0].Addr())+uint32(random.IntN(1<<(subnets[0].Addr().BitLen()-subnets[0].Bits()))))
		spec.StaticRange = v1alpha1.CIDR(netip.PrefixFrom(first, bits).Masked().String())
	}
	for range random.IntN(4) {
		first, last := addr(), addr()
		if last.Less(first) {
			first, last = last, first
		}
		spec.ExcludeRanges = append(spec.ExcludeRanges, v1alpha1.IPRange(first.String()+"-"+last.String()))
	}
	return spec
}

func sorted(blocks []netip.Prefix) []netip.Prefix {
	out := slices.Clone(blocks)
	slices.SortFunc(out, comparePrefixes)
	return out
}

func comparePrefixes(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) }

func mustPlan(t *testing.T, spec v1alpha1.NetworkSpec) *Plan {
	t.Helper()
	p, err := NewPlan("management", &spec)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
