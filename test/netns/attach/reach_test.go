// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/overlay"
)

// ClusterIPs of the tests.
const (
	clusterIP  = "10.96.0.10"
	clusterIP6 = "fd00:10:96::10"
)

// balance stands for kube-proxy: what is for a ClusterIP goes to one endpoint.
func balance(t *testing.T, node *space, from, to string) {
	t.Helper()
	service, endpoint := netip.MustParseAddr(from), netip.MustParseAddr(to)
	family, proto, dest := nftables.TableFamilyIPv4, uint32(unix.NFPROTO_IPV4), uint32(16)
	if service.Is6() {
		family, proto, dest = nftables.TableFamilyIPv6, unix.NFPROTO_IPV6, 24
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(node.ns)))
	must(t, err)
	table := &nftables.Table{Family: family, Name: "services"}
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
		chain := conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityNATDest})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: dest, Len: uint32(len(service.AsSlice()))},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: service.AsSlice()},
			&expr.Immediate{Register: 1, Data: endpoint.AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: proto, RegAddrMin: 1},
		}})
	}
	must(t, conn.Flush())
}

func filterFrames(t *testing.T, node *space, on bool) {
	t.Helper()
	for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
		value := "0"
		if on {
			value = "1"
		}
		err := node.in(func() error { return os.WriteFile("/proc/sys/net/bridge/"+name, []byte(value), 0) })
		if err != nil && (on || !errors.Is(err, fs.ErrNotExist)) {
			t.Skipf("br_netfilter: %v", err)
		}
	}
}

// hold gives an agent another block of a Network than newAgent does.
func (a *agent) hold(t *testing.T, network, block string) {
	t.Helper()
	n := a.networks[network]
	plan, err := addressing.NewPlan(n.Name, &n.Spec)
	must(t, err)
	a.ipam.SetBlocks(n.Name, n.UID, plan, []ipam.Block{{Prefix: netip.MustParsePrefix(block), UID: "b"}})
}

// heldBlocks are what the first and the second node hold.
var heldBlocks = []string{"10.10.1.0/26", "10.10.2.0/26"}

// overlaid has the agent of a node make segments of vxlan, with tunnels between the
// link-local addresses of the nodes, and returns what keeps them.
func overlaid(t *testing.T, a *agent, nodes []*space, at int) (run func()) {
	t.Helper()
	n := a.networks["management"]
	blocks := &ether{blocks: map[string]*v1alpha1.IPBlock{}, followers: map[int]func(){}}
	for i, node := range nodes {
		blocks.blocks[heldBlocks[i]] = &v1alpha1.IPBlock{Spec: v1alpha1.IPBlockSpec{
			Network: n.Name, NetworkUID: n.UID, CIDR: v1alpha1.CIDR(heldBlocks[i]), NodeName: fmt.Sprint("node", i), VTEP: v1alpha1.IP(linkLocal(t, node, "eth1")),
		}}
	}
	a.tunnel = link.Tunnel{Device: "eth1", Address: netip.MustParseAddr(linkLocal(t, nodes[at], "eth1")), MTU: 1500}
	manager := overlay.New(fmt.Sprint("node", at), overlay.Deps{
		Links: a.links, Blocks: blocks,
		Networks: func() []v1alpha1.Network { return []v1alpha1.Network{*n} },
		Tunnel:   func(string) (link.Tunnel, bool) { return a.tunnel, true },
		Used:     func() []string { return a.server.OverlayBridges() },
	})
	a.overlays = manager
	return func() {
		ctx, cancel := context.WithCancel(context.Background())
		var done sync.WaitGroup
		done.Go(func() { _ = manager.Run(ctx) })
		t.Cleanup(func() { cancel(); done.Wait() })
	}
}

// TestClusterIPsWithEndpointsOnEth0: behind a ClusterIP stand pods whose eth0 is on
// a Network, on this node and on another, and all who ask get the answer from
// where they asked.
func TestClusterIPsWithEndpointsOnEth0(t *testing.T) {
	for _, test := range []struct {
		name, plugin, gateway, gateway6 string
		// filtered: frames on bridges pass the host's rules for packets (br_netfilter).
		filtered bool
	}{
		{name: "macvlan", plugin: v1alpha1.PluginMacvlan},
		{name: "macvlan with a gateway", plugin: v1alpha1.PluginMacvlan, gateway: "10.10.0.1", gateway6: "fd00:10:10::1"},
		{name: "vxlan", plugin: v1alpha1.PluginVXLAN},
		{name: "bridge", plugin: v1alpha1.PluginBridge},
		{name: "bridge whose frames are filtered", plugin: v1alpha1.PluginBridge, filtered: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			nodes := wired(t, "node", "far")
			rest := cluster(t, nodes[0])
			filterFrames(t, nodes[0], test.filtered)
			for _, route := range []string{"10.96.0.0/16", "fd00:10:96::/112"} { // as a default route would
				must(t, nodes[0].RouteAdd(&netlink.Route{LinkIndex: nodes[0].link(t, "cni0").Attrs().Index, Dst: ipNet(route)}))
				via := netip.MustParseAddr("172.16.0.1")
				if ipNet(route).IP.To4() == nil {
					via = netip.MustParseAddr("fd00:172::1")
				}
				must(t, rest.RouteAdd(&netlink.Route{Dst: ipNet(route), Gw: via.AsSlice()}))
			}
			gateway := func(s *v1alpha1.NetworkSpec) {
				s.Gateway, s.Gateway6 = v1alpha1.IP(test.gateway), v1alpha1.IP(test.gateway6)
			}
			var agents []*agent
			for i, node := range nodes {
				a := newAgent(t, node, network("management", test.plugin, gateway))
				a.hold(t, "management", heldBlocks[i])
				run := func() {}
				if test.plugin == v1alpha1.PluginVXLAN {
					run = overlaid(t, a, nodes, i)
				}
				a.start(t)
				run()
				agents = append(agents, a)
			}
			first, second, far := newSpace(t, "first"), newSpace(t, "second"), newSpace(t, "pod-far")
			must(t, agents[0].add(t, sandboxOf("c1", first), "management@eth0"))
			must(t, agents[0].add(t, sandboxOf("c2", second), "management@eth0"))
			must(t, agents[1].add(t, sandboxOf("c3", far), "management@eth0"))

			kept, kept6 := "172.16.0.2", "fd00:172::2" // a pod sees who asks, where its answer comes back by the node
			if test.gateway != "" {
				kept, kept6 = "10.10.1.0", "fd00:10:10::a0a:100"
			}
			for _, p := range []struct {
				what                string
				from, to            *space
				endpoint, endpoint6 string
				seen, seen6         string
			}{
				{"a pod asks one on another node", first, far, "10.10.2.1", "fd00:10:10::a0a:201", "10.10.1.0", "fd00:10:10::a0a:100"},
				{"a pod asks one on its node", first, second, "10.10.1.2", "fd00:10:10::a0a:102", "10.10.1.0", "fd00:10:10::a0a:100"},
				{"a pod asks itself", first, first, "10.10.1.1", "fd00:10:10::a0a:101", "10.10.1.0", "fd00:10:10::a0a:100"},
				{"the node asks one on another", nodes[0], far, "10.10.2.1", "fd00:10:10::a0a:201", "10.10.1.0", "fd00:10:10::a0a:100"},
				{"the node asks its own", nodes[0], second, "10.10.1.2", "fd00:10:10::a0a:102", "", ""},
				{"a pod of the cluster asks one on another node", rest, far, "10.10.2.1", "fd00:10:10::a0a:201", "10.10.1.0", "fd00:10:10::a0a:100"},
				{"a pod of the cluster asks one on its node", rest, second, "10.10.1.2", "fd00:10:10::a0a:102", kept, kept6},
			} {
				if test.filtered && p.from == p.to {
					continue // the kernel sends no frame back to the port that it came from, see docs/user/kinds.md
				}
				t.Run(p.what, func(t *testing.T) {
					for _, f := range []struct{ service, endpoint, seen string }{{clusterIP, p.endpoint, p.seen}, {clusterIP6, p.endpoint6, p.seen6}} {
						balance(t, nodes[0], f.service, f.endpoint)
						for range 2 { // a redirect in between would spoil the second
							if seen := reachBy(t, p.from, p.to, f.service, f.endpoint); f.seen != "" && seen != f.seen {
								t.Errorf("%s was reached from %s, want %s", f.endpoint, seen, f.seen)
							}
						}
					}
				})
			}
			for i, id := range []string{"c1", "c2", "c3"} {
				a := agents[i/2]
				must(t, a.del(t, sandboxOf(id, first)))
			}
			for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				if left := ours(t, nodes[0], family); len(left) > 0 {
					t.Errorf("routes left: %v", left)
				}
			}
		})
	}
}

// ours lists the routes that netplane made in the main table, with their metric.
func ours(t *testing.T, s *space, family int) []string {
	t.Helper()
	all := whole(t, func() ([]netlink.Route, error) { return s.RouteList(nil, family) })
	var out []string
	for _, r := range all {
		if r.Protocol != 110 {
			continue
		}
		dev, err := s.LinkByIndex(r.LinkIndex)
		must(t, err)
		out = append(out, r.Dst.String()+" dev "+dev.Attrs().Name+" src "+r.Src.String())
	}
	slices.Sort(out)
	return out
}

// TestRoutesToSubnetsSpareTheHosts: where the host itself has an address in the
// subnet, or in a larger one around it, its own route goes on to count.
func TestRoutesToSubnetsSpareTheHosts(t *testing.T) {
	subnets := []link.SubnetRoute{
		{To: netip.MustParsePrefix("10.10.0.0/16"), Source: netip.MustParseAddr("10.10.1.0")},
		{To: netip.MustParsePrefix("fd00:10:10::/64"), Source: netip.MustParseAddr("fd00:10:10::a0a:100")},
	}
	shim := link.ShimName("management", "eth1")
	whole := []string{"10.10.0.0/16 dev " + shim + " src 10.10.1.0", "fd00:10:10::/64 dev " + shim + " src fd00:10:10::a0a:100"}
	for _, test := range []struct {
		name      string
		addresses []string // of the NIC
		routes    []string // via 172.16.0.2
		tunnels   []string // without a next hop
		want      []string
	}{
		{name: "a host elsewhere", want: whole},
		{name: "a host in the subnet", addresses: []string{"10.10.5.5/16", "fd00:10:10::5/64"}},
		{name: "a host in a larger subnet", addresses: []string{"10.5.5.5/8", "fd00:10:11::5/32"}},
		{name: "a host in a part of the subnet", addresses: []string{"10.10.5.5/24", "fd00:10:10::5/96"}, want: whole},
		{name: "a router for all", routes: []string{"0.0.0.0/0", "10.0.0.0/8"}, want: whole},
		{name: "a tunnel for a larger range", tunnels: []string{"10.0.0.0/8", "fd00::/8"}, want: whole},
	} {
		t.Run(test.name, func(t *testing.T) {
			node := wired(t, "node")[0]
			cluster(t, node)
			for _, address := range test.addresses {
				must(t, node.AddrAdd(node.link(t, "eth1"), &netlink.Addr{IPNet: ipNet(address), Flags: nodad(address)}))
			}
			for _, to := range test.routes {
				must(t, node.RouteAdd(&netlink.Route{Dst: ipNet(to), Gw: netip.MustParseAddr("172.16.0.2").AsSlice()}))
			}
			for _, to := range test.tunnels {
				must(t, node.RouteAdd(&netlink.Route{Dst: ipNet(to), LinkIndex: node.link(t, "cni0").Attrs().Index}))
			}
			before := node.routes(t, netlink.FAMILY_V4)
			links := openLinks(t, node)
			path := link.Path{
				Device: shim, Parent: "eth1", MTU: 1500, Addresses: prefixes("10.10.1.0/32 fd00:10:10::a0a:100/128"), Reach: subnets,
			}
			for range 2 {
				must(t, links.AddPath(context.Background(), path))
			}
			got := append(ours(t, node, netlink.FAMILY_V4), ours(t, node, netlink.FAMILY_V6)...)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			for _, route := range before {
				if !slices.Contains(node.routes(t, netlink.FAMILY_V4), route) {
					t.Errorf("the host lost its route %s", route)
				}
			}
			// An exact route of the host's that comes later counts before ours.
			if test.want != nil && len(test.addresses) == 0 {
				must(t, node.RouteAdd(&netlink.Route{Dst: ipNet("10.10.0.0/16"), Gw: netip.MustParseAddr("172.16.0.2").AsSlice()}))
				hops, err := node.RouteGet(netip.MustParseAddr("10.10.9.9").AsSlice())
				must(t, err)
				if hops[0].LinkIndex != node.link(t, "cni0").Attrs().Index {
					t.Errorf("the route to the subnet is %v", hops[0])
				}
			}
			must(t, links.RemovePath(context.Background(), path, false))
			got = append(ours(t, node, netlink.FAMILY_V4), ours(t, node, netlink.FAMILY_V6)...)
			if len(got) > 0 {
				t.Errorf("left: %v", got)
			}
		})
	}
}

// TestPathIsMadeAgain: what the host's path consists of may vanish with the NIC,
// or by an administrator's hand, while the agent runs. A path that is complete
// stays as it is.
func TestPathIsMadeAgain(t *testing.T) {
	node := wired(t, "node")[0]
	a := newAgent(t, node, network("management", v1alpha1.PluginMacvlan, nil))
	a.start(t)
	pod := newSpace(t, "pod")
	must(t, a.add(t, sandboxOf("c1", pod), "management@eth0"))
	shim := link.ShimName("management", "eth1")
	state := func() []string {
		return slices.Concat(node.addresses(t, shim), ours(t, node, netlink.FAMILY_V4), ours(t, node, netlink.FAMILY_V6))
	}
	before := state()
	if len(before) != 6 {
		t.Fatalf("the path is %v", before)
	}
	must(t, node.LinkDel(node.link(t, shim)))
	a.stop()
	a.start(t)
	if diff := cmp.Diff(before, state()); diff != "" {
		t.Errorf("after the shim was removed: %s", diff)
	}
	index := node.link(t, shim).Attrs().Index
	a.stop()
	a.start(t)
	if diff := cmp.Diff(before, state()); diff != "" || node.link(t, shim).Attrs().Index != index {
		t.Errorf("after nothing happened: %s", diff)
	}
	must(t, a.del(t, sandboxOf("c1", pod)))
	a.nothingLeft(t, "eth1")
}
