// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// nftRules counts the rules of our table.
func nftRules(t *testing.T, node *space) int {
	t.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(int(node.ns)))
	must(t, err)
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	must(t, err)
	count := 0
	for _, chain := range chains {
		rules, err := conn.GetRules(chain.Table, chain)
		must(t, err)
		count += len(rules)
	}
	return count
}

// cluster gives a node a link to the rest of the cluster, with an address that
// stands for a Service's endpoint: behind it nobody knows a way to our pods.
func cluster(t *testing.T, node *space) *space {
	t.Helper()
	rest := newSpace(t, "cluster")
	must(t, node.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cni0", TxQLen: -1}, PeerTxQLen: -1, PeerName: "eth0", PeerNamespace: netlink.NsFd(rest.ns)}))
	for s, addresses := range map[*space][2]string{node: {"172.16.0.1/24", "fd00:172::1/64"}, rest: {"172.16.0.2/24", "fd00:172::2/64"}} {
		name := "eth0"
		if s == node {
			name = "cni0"
		}
		for _, address := range addresses {
			must(t, s.AddrAdd(s.link(t, name), &netlink.Addr{IPNet: ipNet(address), Flags: nodad(address)}))
		}
		s.up(t, name)
	}
	node.sysctl(t, "ipv4/ip_forward", "1")
	node.sysctl(t, "ipv6/conf/all/forwarding", "1")
	node.sysctl(t, "ipv4/conf/all/rp_filter", "1") // the strictest
	return rest
}

func nodad(address string) int {
	if strings.Contains(address, ":") {
		return unix.IFA_F_NODAD
	}
	return 0
}

func TestNetworkOnEth0HasAPathOverTheNode(t *testing.T) {
	for _, test := range []struct {
		name, plugin, device string
		bridged              bool
	}{
		{name: "macvlan on the NIC", plugin: v1alpha1.PluginMacvlan, device: link.ShimName("management", "eth1")},
		{name: "macvlan on a bridge", plugin: v1alpha1.PluginMacvlan, device: link.ShimName("management", "np-eth1"), bridged: true},
		{name: "bridge", plugin: v1alpha1.PluginBridge, device: "np-eth1", bridged: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			nodes := wired(t, "node", "far")
			node := nodes[0]
			rest := cluster(t, node)
			a := newAgent(t, node, network("management", test.plugin, nil))
			a.bridged = test.bridged
			a.start(t)
			first, second := newSpace(t, "first"), newSpace(t, "second")
			must(t, a.add(t, sandboxOf("c1", first), "management@eth0"))
			must(t, a.add(t, sandboxOf("c2", second), "management@eth0"))

			wantPod := []string{"10.10.0.0/16 dev eth0", "default via 10.10.1.0 dev eth0"}
			if diff := cmp.Diff(wantPod, first.routes(t, netlink.FAMILY_V4)); diff != "" {
				t.Errorf("routes in the pod: %s", diff)
			}
			wantPod = []string{"default via fd00:10:10::a0a:100 dev eth0", "fd00:10:10::/64 dev eth0"}
			if diff := cmp.Diff(wantPod, first.routes(t, netlink.FAMILY_V6)); diff != "" {
				t.Errorf("IPv6 routes in the pod: %s", diff)
			}
			if diff := cmp.Diff([]string{"10.10.1.0/32", "fd00:10:10::a0a:100/128"}, node.addresses(t, test.device)); diff != "" {
				t.Errorf("the node's own addresses: %s", diff)
			}

			// kubelet's probes, what a pod asks of its node, Services (there and
			// back through masquerade), and its neighbours.
			for _, p := range []struct {
				from, to   *space
				addr, seen string
			}{
				{node, first, "10.10.1.1", "10.10.1.0"}, {node, first, "fd00:10:10::a0a:101", "fd00:10:10::a0a:100"},
				{first, node, "172.16.0.1", "10.10.1.1"}, {first, node, "fd00:172::1", "fd00:10:10::a0a:101"},
				{first, rest, "172.16.0.2", "172.16.0.1"}, {first, rest, "fd00:172::2", "fd00:172::1"},
				{first, second, "10.10.1.2", "10.10.1.1"}, {first, second, "fd00:10:10::a0a:102", "fd00:10:10::a0a:101"},
			} {
				if seen := reach(t, p.from, p.to, p.addr); seen != p.seen {
					t.Errorf("%s was reached by %s, want %s", p.addr, seen, p.seen)
				}
			}

			must(t, a.call(t, wire.Request{Op: wire.OpCheck, Sandbox: sandboxOf("c1", first)}))
			must(t, a.del(t, sandboxOf("c1", first)))
			if seen := reach(t, node, second, "10.10.1.2"); seen != "10.10.1.0" {
				t.Errorf("after the other's DEL: reached by %s", seen)
			}

			// An agent that starts finds the path gone and makes it again.
			a.stop()
			dev := node.link(t, test.device)
			for _, address := range node.addresses(t, test.device) {
				must(t, node.AddrDel(dev, &netlink.Addr{IPNet: ipNet(address)}))
			}
			a.start(t)
			if seen := reach(t, node, second, "10.10.1.2"); seen != "10.10.1.0" {
				t.Errorf("after a restart: reached by %s", seen)
			}

			must(t, a.del(t, sandboxOf("c2", second)))
			must(t, a.del(t, sandboxOf("c2", second)))
			must(t, node.LinkDel(node.link(t, "cni0")))
			want := []string{"eth1"}
			if test.bridged {
				want = append(want, "np-eth1")
			}
			a.nothingLeft(t, want...)
		})
	}
}

func TestGatewayTakesTheDefaultRouteAndServicesStayWithTheNode(t *testing.T) {
	node := wired(t, "node")[0]
	a := newAgent(t, node, network("management", v1alpha1.PluginMacvlan, func(s *v1alpha1.NetworkSpec) { s.Gateway, s.Gateway6 = "10.10.0.1", "fd00:10:10::1" }))
	a.start(t)
	pod := newSpace(t, "pod")
	must(t, a.add(t, sandboxOf("c1", pod), "management@eth0"))
	want := []string{"10.10.0.0/16 dev eth0", "10.96.0.0/16 via 10.10.1.0 dev eth0", "default via 10.10.0.1 dev eth0"}
	if diff := cmp.Diff(want, pod.routes(t, netlink.FAMILY_V4)); diff != "" {
		t.Error(diff)
	}
	want = []string{"default via fd00:10:10::1 dev eth0", "fd00:10:10::/64 dev eth0", "fd00:10:96::/112 via fd00:10:10::a0a:100 dev eth0"}
	if diff := cmp.Diff(want, pod.routes(t, netlink.FAMILY_V6)); diff != "" {
		t.Error(diff)
	}
}

func TestAddIsAllOrNothing(t *testing.T) {
	node, pod := wired(t, "node")[0], newSpace(t, "pod")
	a := newAgent(t, node, network("management", v1alpha1.PluginMacvlan, nil),
		network("data", v1alpha1.PluginBridge, func(s *v1alpha1.NetworkSpec) { s.Subnet, s.Subnet6 = "10.20.0.0/16", "fd00:10:20::/64" }))
	a.start(t)
	sandbox := sandboxOf("c1", pod)
	t.Run("a name that is taken", func(t *testing.T) {
		must(t, pod.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "net2", TxQLen: -1}, PeerName: "peer"}))
		err := a.add(t, sandbox, "management@eth0,data@net1,data@net2")
		if err == nil || err.Error() != "interface net2: the pod has an interface net2 already" {
			t.Errorf("got %v", err)
		}
		if diff := cmp.Diff([]string{"net2", "peer"}, pod.links(t)); diff != "" {
			t.Errorf("in the pod: %s", diff)
		}
		a.nothingLeft(t, "eth1", "np-eth1") // the bridge is the NIC's, not the pod's
		must(t, pod.LinkDel(pod.link(t, "net2")))
	})
	t.Run("MTU above the NIC's", func(t *testing.T) {
		a.networks["data"].Spec.MTU = 9000
		defer func() { a.networks["data"].Spec.MTU = 0 }()
		err := a.add(t, sandbox, "management@eth0,data@net1")
		if err == nil || err.Error() != `prepare: mtu 9000 of network "data" is larger than the 1500 of NIC eth1` {
			t.Errorf("got %v", err)
		}
		a.nothingLeft(t, "eth1", "np-eth1")
	})
	t.Run("the caller goes between prepare and commit", func(t *testing.T) {
		client, err := wire.Dial(t.Context(), a.socket())
		must(t, err)
		_, err = client.Call(t.Context(), wire.Request{Op: wire.OpPrepare, Sandbox: sandbox, Networks: "data"})
		must(t, err)
		if len(a.ipam.Leases()) != 1 {
			t.Error("nothing was reserved")
		}
		_ = client.Close()
		eventually(t, "the address is free", func() bool { return len(a.ipam.Leases()) == 0 })
		a.nothingLeft(t, "eth1", "np-eth1")
	})
	t.Run("then it works", func(t *testing.T) {
		must(t, a.add(t, sandbox, "management@eth0,data@net1"))
		must(t, a.del(t, sandbox))
		a.nothingLeft(t, "eth1", "np-eth1")
	})
}

func TestDelOfWhatIsGone(t *testing.T) {
	node := wired(t, "node")[0]
	a := newAgent(t, node, network("data", v1alpha1.PluginBridge, nil))
	a.start(t)
	pod := newSpace(t, "pod")
	must(t, a.add(t, sandboxOf("c1", pod), "data@eth0,data@net1"))
	pod.drop()
	must(t, unix.Unmount(pod.path, unix.MNT_DETACH)) // leaves an empty file, as a dying runtime does
	for range 2 {
		must(t, a.del(t, sandboxOf("c1", pod)))
	}
	eventually(t, "the kernel removed the veth", func() bool { return len(node.links(t)) == 2 })
	must(t, os.Remove(pod.path))
	must(t, a.del(t, sandboxOf("c1", pod)))
	a.nothingLeft(t, "eth1", "np-eth1")
	must(t, a.del(t, wire.Sandbox{ContainerID: "never-seen"}))
}

func TestAgentThatDiedInAnAddUndoesItAtStart(t *testing.T) {
	node, pod := wired(t, "node")[0], newSpace(t, "pod")
	a := newAgent(t, node, network("management", v1alpha1.PluginMacvlan, nil))
	a.start(t)
	must(t, a.add(t, sandboxOf("c1", pod), "management@eth0,management"))
	a.stop()
	// What the disk says if the agent had died before the last write.
	file := a.state + "/sandboxes/c1.json"
	raw, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, []byte(strings.Replace(string(raw), `"state":"attached"`, `"state":"attaching"`, 1)), 0o600))
	a.start(t)
	if left := pod.links(t); len(left) > 0 {
		t.Errorf("left in the pod: %v", left)
	}
	a.nothingLeft(t, "eth1")
}

func TestStatusTellsWhatThePodHas(t *testing.T) {
	node, pod := wired(t, "node")[0], newSpace(t, "pod")
	a := newAgent(t, node, network("management", v1alpha1.PluginMacvlan, nil))
	a.start(t)
	must(t, a.add(t, sandboxOf("c1", pod), "- {name: management, ifname: eth0}\n- {name: management, ifname: data0, mac: '0A:00:00:00:00:77'}"))
	eventually(t, "the status is reported", func() bool { return len(a.report("c1")) == 2 })
	got := a.report("c1")
	if got[0].Interface != "eth0" || !got[0].Default || got[0].MTU != 1500 || got[1].MAC != "0a:00:00:00:00:77" || got[1].Default {
		t.Errorf("got %+v", got)
	}
	if diff := cmp.Diff([]string{"10.10.1.1", "fd00:10:10::a0a:101"}, got[0].IPs); diff != "" {
		t.Error(diff)
	}
	mac, err := net.ParseMAC(got[0].MAC)
	must(t, err)
	if born := pod.link(t, "eth0").Attrs().HardwareAddr; born.String() != mac.String() {
		t.Errorf("reported %s, born %s", mac, born)
	}
}
