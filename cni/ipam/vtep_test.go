// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/netplane/netplane/api/v1alpha1"
)

// newTunnelFixture is a claimFixture whose Network "data" is a vxlan; the node's
// tunnel address is what address points to.
func newTunnelFixture(t *testing.T, blocks ...*v1alpha1.IPBlock) (f *claimFixture, address *netip.Addr) {
	t.Helper()
	network := dataNetwork()
	network.Spec.Plugin = v1alpha1.PluginVXLAN
	f = newClaimFixture(t, network, thisNodeNetwork(), thisNodeObject())
	address = new(netip.Addr)
	f.claimer.tunnel = func(string) netip.Addr { return *address }
	for _, block := range blocks {
		f.create(block)
	}
	return f, address
}

// vteps lists the blocks and their tunnel addresses.
func (f *claimFixture) vteps() []string {
	f.t.Helper()
	var list v1alpha1.IPBlockList
	if err := f.api.List(f.t.Context(), &list); err != nil {
		f.t.Fatal(err)
	}
	var out []string
	for i := range list.Items {
		out = append(out, string(list.Items[i].Spec.CIDR)+" "+string(list.Items[i].Spec.VTEP))
	}
	slices.Sort(out)
	return out
}

func TestABlockIsClaimedWithTheTunnelAddress(t *testing.T) {
	f, address := newTunnelFixture(t)
	*address = netip.MustParseAddr("192.168.0.1")
	first := f.candidates()[0]
	calls, _ := f.run()
	expectEqual(t, "calls", []string{named("create", first)}, calls)
	expectEqual(t, "blocks", []string{first + " 192.168.0.1"}, f.vteps())
}

func TestBlocksAreAmendedWhenTheTunnelAddressIsAnother(t *testing.T) {
	const made, other = "10.20.0.8/29", "10.20.0.16/29"
	// The scheduler made one; the other is another node's.
	f, address := newTunnelFixture(t, ipBlock(made, thisNode, thisNodeUID), ipBlock(other, "worker2", "uid-2"))
	f.run()
	expectEqual(t, "blocks while the address is unknown", []string{other + " ", made + " "}, f.vteps())
	*address = netip.MustParseAddr("fe80::1")
	calls, _ := f.run()
	expectEqual(t, "calls", []string{named("patch", made)}, calls)
	expectEqual(t, "blocks", []string{other + " ", made + " fe80::1"}, f.vteps())
	*address = netip.Addr{}
	calls, _ = f.run()
	expectEqual(t, "calls when the NIC lost its address", []string(nil), calls)
	*address = netip.MustParseAddr("fe80::2")
	f.run()
	expectEqual(t, "blocks with the new address", []string{other + " ", made + " fe80::2"}, f.vteps())
}

func TestNetworksOfOtherPluginsHaveNoTunnelAddress(t *testing.T) {
	f := newClaimFixture(t, world()...)
	f.claimer.tunnel = func(string) netip.Addr { return netip.MustParseAddr("192.168.0.1") }
	f.run()
	expectEqual(t, "blocks", []string{f.candidates()[0] + " "}, f.vteps())
}
