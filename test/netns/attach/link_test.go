// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/cni/link"
)

// specOf is an interface on eth1's network with the given last octet.
func specOf(kind, name, last string) link.Interface {
	spec := link.Interface{
		Name: name, Kind: kind, Parent: "eth1", MAC: "0a:01:0a:0a:00:0" + last, MTU: 1400,
		Addresses: prefixes("10.10.0." + last + "/16 fd00:10:10::a0a:" + last + "/64"),
	}
	if kind == link.KindVeth {
		spec.HostEnd = link.HostEndName(last, name)
	}
	return spec
}

func TestInterfacesAreBornAsDesignedAndAnnounced(t *testing.T) {
	for _, test := range []struct {
		name, kind     string
		bridged        bool
		hostHasTheName bool
	}{
		{name: "macvlan on the NIC", kind: link.KindMacvlan},
		{name: "macvlan named as a link of the host", kind: link.KindMacvlan, hostHasTheName: true},
		{name: "macvlan on the NIC's bridge", kind: link.KindMacvlan, bridged: true},
		{name: "veth on the NIC's bridge", kind: link.KindVeth, bridged: true},
		{name: "veth named as a link of the host", kind: link.KindVeth, bridged: true, hostHasTheName: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			nodes := wired(t, "node", "far")
			node, far, pod := nodes[0], nodes[1], newSpace(t, "pod")
			links := openLinks(t, node)
			spec := specOf(test.kind, "net1", "5")
			if test.hostHasTheName {
				must(t, node.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", TxQLen: -1}, PeerName: "eth0-peer"}))
				spec.Name = "eth0"
			}
			if test.bridged {
				bridge, err := links.EnsureBridge(t.Context(), "eth1")
				must(t, err)
				spec.Parent = bridge
			}
			wire := capture(t, far, "eth1")
			must(t, links.Add(t.Context(), pod.path, spec))
			must(t, links.Announce(t.Context(), pod.path, spec))
			want := []string{"arp 10.10.0.5 at 0a:01:0a:0a:00:05", "na fd00:10:10::a0a:5 at 0a:01:0a:0a:00:05"}
			if diff := cmp.Diff(want, wire.announcements(want)); diff != "" {
				t.Errorf("on the wire: %s", diff)
			}
			if diff := cmp.Diff([]string{spec.Name}, pod.links(t)); diff != "" {
				t.Error(diff)
			}
			born := pod.link(t, spec.Name)
			if born.Type() != test.kind || born.Attrs().MTU != 1400 || born.Attrs().HardwareAddr.String() != spec.MAC || born.Attrs().RawFlags&unix.IFF_UP == 0 {
				t.Errorf("got %s mtu %d mac %s flags %x", born.Type(), born.Attrs().MTU, born.Attrs().HardwareAddr, born.Attrs().RawFlags)
			}
			// Not tentative: usable at once.
			if diff := cmp.Diff([]string{"10.10.0.5/16", "fd00:10:10::a0a:5/64"}, pod.addresses(t, spec.Name)); diff != "" {
				t.Error(diff)
			}
			must(t, links.Check(t.Context(), pod.path, spec))
			before := node.links(t)
			for range 2 {
				must(t, links.Delete(t.Context(), pod.path, spec))
			}
			if left := pod.links(t); len(left) > 0 {
				t.Errorf("left in the pod: %v", left)
			}
			if test.kind == link.KindVeth && len(node.links(t)) != len(before)-1 {
				t.Errorf("left in the host: %v", node.links(t))
			}
		})
	}
}

func TestOfWhatIsGoneOrDownNothingIsAnnounced(t *testing.T) {
	nodes := wired(t, "node", "far")
	far, pod := nodes[1], newSpace(t, "pod")
	links, spec := openLinks(t, nodes[0]), specOf(link.KindMacvlan, "net1", "5")
	must(t, links.Add(t.Context(), pod.path, spec))
	must(t, pod.LinkSetDown(pod.link(t, "net1")))
	wire := capture(t, far, "eth1")
	must(t, links.Announce(t.Context(), pod.path, spec))
	must(t, links.Delete(t.Context(), pod.path, spec))
	if err := links.Announce(t.Context(), pod.path, spec); !link.IsGone(err) {
		t.Errorf("of a link that is gone: %v", err)
	}
	if err := links.Announce(t.Context(), pod.path+"-gone", spec); !errors.Is(err, link.ErrNamespaceGone) {
		t.Errorf("of a namespace that is gone: %v", err)
	}
	spec.Sysctls = []link.Sysctl{{Name: "net.ipv6.conf.IFNAME.ndisc_notify", Value: "0"}}
	must(t, links.Add(t.Context(), pod.path, spec))
	must(t, links.Announce(t.Context(), pod.path, spec))
	want := []string{"arp 10.10.0.5 at 0a:01:0a:0a:00:05"} // and none by IPv6, as the Network asks
	if diff := cmp.Diff(want, wire.announcements(append(want, "a frame that ends the wait after the last one"))); diff != "" {
		t.Errorf("on the wire: %s", diff)
	}
}

func TestPodsOnTwoNodesReachEachOther(t *testing.T) {
	for _, kinds := range [][2]string{{link.KindMacvlan, link.KindMacvlan}, {link.KindVeth, link.KindVeth}, {link.KindVeth, link.KindMacvlan}} {
		t.Run(kinds[0]+" to "+kinds[1], func(t *testing.T) {
			var pods []*space
			for i, node := range wired(t, "a", "b") {
				links := openLinks(t, node)
				spec := specOf(kinds[i], "eth0", []string{"1", "2"}[i])
				if kinds[i] == link.KindVeth {
					bridge, err := links.EnsureBridge(t.Context(), "eth1")
					must(t, err)
					spec.Parent = bridge
				}
				pod := newSpace(t, "pod")
				must(t, links.Add(t.Context(), pod.path, spec))
				pods = append(pods, pod)
			}
			for from, to := range map[string]string{"10.10.0.1": "10.10.0.2", "fd00:10:10::a0a:1": "fd00:10:10::a0a:2"} {
				if seen := reach(t, pods[0], pods[1], to); seen != from {
					t.Errorf("%s arrived as %s", from, seen)
				}
			}
		})
	}
}

func TestAddFailsReadablyAndLeavesNothing(t *testing.T) {
	for _, test := range []struct {
		name  string
		kind  string
		spoil func(spec *link.Interface)
		want  string
	}{
		{"MTU above the NIC's", link.KindMacvlan, func(spec *link.Interface) {
			spec.MTU = 9000
		}, "making macvlan net1 on eth1: mtu 9000 is larger than the 1500 of eth1"},
		{"NIC gone", link.KindMacvlan, func(spec *link.Interface) {
			spec.Parent = "eth9"
		}, "making macvlan net1 on eth9: looking for eth9: no such device"},
		{"next hop out of reach", link.KindVeth, func(spec *link.Interface) {
			spec.Routes = []link.Route{{To: netip.MustParsePrefix("192.0.2.0/24"), Via: netip.MustParseAddr("198.51.100.1")}}
		}, "adding route to 192.0.2.0/24: the next hop lies in no subnet of the interface"},
		{"an address twice", link.KindVeth, func(spec *link.Interface) {
			spec.Addresses = prefixes("10.10.0.5/16 10.10.0.5/16")
		}, "configuring net1: adding address 10.10.0.5/16: file exists"},
	} {
		t.Run(test.name, func(t *testing.T) {
			node, pod := wired(t, "node")[0], newSpace(t, "pod")
			links := openLinks(t, node)
			spec := specOf(test.kind, "net1", "5")
			if test.kind == link.KindVeth {
				bridge, err := links.EnsureBridge(t.Context(), "eth1")
				must(t, err)
				spec.Parent = bridge
			}
			before := node.links(t)
			test.spoil(&spec)
			err := links.Add(t.Context(), pod.path, spec)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if left := pod.links(t); len(left) > 0 {
				t.Errorf("left in the pod: %v", left)
			}
			if diff := cmp.Diff(before, node.links(t)); diff != "" {
				t.Errorf("left in the host: %s", diff)
			}
		})
	}
	t.Run("the name is taken", func(t *testing.T) {
		node, pod := wired(t, "node")[0], newSpace(t, "pod")
		links := openLinks(t, node)
		must(t, links.Add(t.Context(), pod.path, specOf(link.KindMacvlan, "net1", "5")))
		err := links.Add(t.Context(), pod.path, specOf(link.KindMacvlan, "net1", "6"))
		if err == nil || err.Error() != "interface net1: the pod has an interface net1 already" {
			t.Errorf("got %v", err)
		}
		must(t, links.Check(t.Context(), pod.path, specOf(link.KindMacvlan, "net1", "5")))
	})
}

func TestBridgeTakesTheNICAndKeepsItsMAC(t *testing.T) {
	node := wired(t, "node")[0]
	links := openLinks(t, node)
	for range 2 {
		bridge, err := links.EnsureBridge(t.Context(), "eth1")
		must(t, err)
		if bridge != "np-eth1" {
			t.Errorf("got %s", bridge)
		}
	}
	nic, bridge := node.link(t, "eth1").Attrs(), node.link(t, "np-eth1").Attrs()
	if nic.MasterIndex != bridge.Index || bridge.HardwareAddr.String() != nic.HardwareAddr.String() || bridge.MTU != nic.MTU {
		t.Errorf("got nic %+v bridge %+v", nic, bridge)
	}
	t.Run("a bridge is its own", func(t *testing.T) {
		got, err := links.EnsureBridge(t.Context(), "np-eth1")
		if err != nil || got != "np-eth1" {
			t.Errorf("got %s, %v", got, err)
		}
	})
	t.Run("a NIC with macvlans takes none", func(t *testing.T) {
		node, pod := wired(t, "node")[0], newSpace(t, "pod")
		links := openLinks(t, node)
		must(t, links.Add(t.Context(), pod.path, specOf(link.KindMacvlan, "net1", "5")))
		_, err := links.EnsureBridge(t.Context(), "eth1")
		if err == nil || !strings.Contains(err.Error(), "eth1 cannot be a macvlan parent and a bridge port at once") {
			t.Errorf("got %v", err)
		}
		if diff := cmp.Diff([]string{"eth1"}, node.links(t)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestCheckTellsEveryDifference(t *testing.T) {
	node, pod := wired(t, "node")[0], newSpace(t, "pod")
	links := openLinks(t, node)
	spec := specOf(link.KindMacvlan, "net1", "5")
	must(t, links.Add(t.Context(), pod.path, spec))
	must(t, pod.LinkSetMTU(pod.link(t, "net1"), 1300))
	must(t, pod.AddrDel(pod.link(t, "net1"), &netlink.Addr{IPNet: ipNet("10.10.0.5/16")}))
	must(t, pod.LinkSetDown(pod.link(t, "net1")))
	err := links.Check(t.Context(), pod.path, spec)
	want := "interface net1 has MTU 1300, not 1400, is down, lacks address 10.10.0.5/16, lacks address fd00:10:10::a0a:5/64"
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

func TestDefaultRouteMovesAndServicesStay(t *testing.T) {
	node, pod := wired(t, "node")[0], newSpace(t, "pod")
	links := openLinks(t, node)
	must(t, pod.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", TxQLen: -1}, PeerName: "peer"}))
	pod.up(t, "eth0")
	pod.up(t, "peer")
	must(t, pod.AddrAdd(pod.link(t, "eth0"), &netlink.Addr{IPNet: ipNet("10.244.0.9/24")}))
	must(t, pod.RouteAdd(&netlink.Route{LinkIndex: pod.link(t, "eth0").Attrs().Index, Gw: []byte{10, 244, 0, 1}}))
	spec := specOf(link.KindMacvlan, "net1", "5")
	spec.TakeDefault, spec.Keep = true, prefixes("10.96.0.0/16 fd00:10:96::/112")
	spec.Routes = []link.Route{{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.10.0.254")}, {To: netip.MustParsePrefix("10.11.0.0/16")}}
	must(t, links.Add(t.Context(), pod.path, spec))
	want := []string{
		"10.10.0.0/16 dev net1", "10.11.0.0/16 dev net1", "10.244.0.0/24 dev eth0",
		"10.96.0.0/16 via 10.244.0.1 dev eth0", "default via 10.10.0.254 dev net1",
	}
	if diff := cmp.Diff(want, pod.routes(t, netlink.FAMILY_V4)); diff != "" {
		t.Error(diff)
	}
}
