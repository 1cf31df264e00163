// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/attach"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// plugged gives a node the NIC nic, a veth, whose cable leads to eth1 of the
// namespace that is returned.
func plugged(t *testing.T, node *space, nic string) *space {
	t.Helper()
	far := newSpace(t, "far-"+nic)
	must(t, node.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: nic, MTU: 1500, TxQLen: -1}, PeerTxQLen: -1,
		PeerName: "eth1", PeerMTU: 1500, PeerNamespace: netlink.NsFd(far.ns),
	}))
	node.up(t, nic)
	far.up(t, "eth1")
	eventually(t, "NIC "+nic+" is up", func() bool {
		return node.link(t, nic).Attrs().OperState == netlink.OperUp && far.link(t, "eth1").Attrs().OperState == netlink.OperUp
	})
	return far
}

// stateOf is what a NIC must have again when it comes back.
func stateOf(t *testing.T, s *space, nic string) string {
	t.Helper()
	a := s.link(t, nic).Attrs()
	return fmt.Sprintf("%s mac %s mtu %d up=%t alias %q master %d %v", a.Name, a.HardwareAddr, a.MTU, a.RawFlags&unix.IFF_UP != 0, a.Alias, a.MasterIndex, s.addresses(t, nic))
}

// wholeNIC is the NIC eth2 of a node as the pod's interface name.
func wholeNIC(t *testing.T, links *link.Links, name string) link.Interface {
	t.Helper()
	nic, err := links.NIC("eth2")
	must(t, err)
	return link.Interface{
		Name: name, Kind: link.KindHostDevice, Parent: nic.Name, NIC: &nic, MAC: "0a:01:0a:0a:00:05", MTU: 1400,
		Addresses: prefixes("10.10.0.5/16 fd00:10:10::a0a:5/64"),
	}
}

func TestWholeNICGoesIntoThePodAndComesBack(t *testing.T) {
	for _, name := range []string{"net1", "eth2", "eth1"} {
		t.Run("as "+name, func(t *testing.T) {
			node, pod := newSpace(t, "node"), newSpace(t, "pod")
			far := plugged(t, node, "eth2")
			plugged(t, node, "eth1") // the host has the name
			must(t, node.LinkSetAlias(node.link(t, "eth2"), "rack 7"))
			links := openLinks(t, node)
			before := stateOf(t, node, "eth2")
			spec := wholeNIC(t, links, name)
			wire := capture(t, far, "eth1")
			must(t, links.Add(t.Context(), pod.path, spec))
			must(t, links.Announce(t.Context(), pod.path, spec))
			must(t, links.Check(t.Context(), pod.path, spec))
			if diff := cmp.Diff([]string{"eth1"}, node.links(t)); diff != "" {
				t.Errorf("in the host: %s", diff)
			}
			want := fmt.Sprintf("%s mac 0a:01:0a:0a:00:05 mtu 1400 up=true alias %q master 0 [10.10.0.5/16 fd00:10:10::a0a:5/64]", name, "netplane: in a pod, comes back as eth2")
			if diff := cmp.Diff(want, stateOf(t, pod, name)); diff != "" {
				t.Error(diff)
			}
			announced := []string{"arp 10.10.0.5 at 0a:01:0a:0a:00:05", "na fd00:10:10::a0a:5 at 0a:01:0a:0a:00:05"}
			if diff := cmp.Diff(announced, wire.announcements(announced)); diff != "" {
				t.Errorf("on the wire: %s", diff)
			}
			must(t, far.AddrAdd(far.link(t, "eth1"), &netlink.Addr{IPNet: ipNet("10.10.0.9/16")}))
			if seen := reach(t, pod, far, "10.10.0.9"); seen != "10.10.0.5" {
				t.Errorf("arrived as %s", seen)
			}
			if err := links.Add(t.Context(), pod.path, spec); err == nil {
				t.Error("a second ADD succeeds")
			}
			for range 2 {
				must(t, links.Delete(t.Context(), pod.path, spec))
				if diff := cmp.Diff(before, stateOf(t, node, "eth2")); diff != "" {
					t.Errorf("back in the host: %s", diff)
				}
			}
			if left := pod.links(t); len(left) > 0 {
				t.Errorf("left in the pod: %v", left)
			}
			if err := links.Check(t.Context(), pod.path, spec); err == nil {
				t.Error("CHECK finds what is gone")
			}
		})
	}
}

func TestNICComesBackWhateverHappenedInThePod(t *testing.T) {
	for name, happens := range map[string]func(t *testing.T, node, pod *space){
		"nothing": func(*testing.T, *space, *space) {},
		"the pod changed all that it could": func(t *testing.T, _, pod *space) {
			nic := pod.link(t, "net1")
			must(t, pod.LinkSetDown(nic))
			must(t, pod.LinkSetName(nic, "mine"))
			must(t, pod.LinkSetMTU(nic, 1280))
			must(t, pod.LinkSetHardwareAddr(nic, []byte{2, 0, 0, 0, 0, 9}))
			must(t, pod.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "net1", TxQLen: -1}}))
			must(t, pod.LinkSetMaster(nic, pod.link(t, "net1")))
		},
		"the pod's namespace ended, and the kernel put it into the host": func(t *testing.T, node, pod *space) {
			nic := pod.link(t, "net1")
			must(t, pod.LinkSetDown(nic))
			must(t, pod.LinkSetNsFd(nic, int(node.ns)))
			pod.drop()
			must(t, unix.Unmount(pod.path, unix.MNT_DETACH))
			must(t, os.Remove(pod.path))
		},
		"an earlier DEL was interrupted in the host": func(t *testing.T, node, pod *space) {
			nic := pod.link(t, "net1")
			must(t, pod.LinkSetDown(nic))
			must(t, pod.LinkSetName(nic, "npt000000000000"))
			must(t, pod.LinkSetNsFd(nic, int(node.ns)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			node, pod := newSpace(t, "node"), newSpace(t, "pod")
			plugged(t, node, "eth2")
			links := openLinks(t, node)
			before := stateOf(t, node, "eth2")
			spec := wholeNIC(t, links, "net1")
			must(t, links.Add(t.Context(), pod.path, spec))
			happens(t, node, pod)
			for range 2 {
				must(t, links.Delete(t.Context(), pod.path, spec))
				if diff := cmp.Diff(before, stateOf(t, node, "eth2")); diff != "" {
					t.Error(diff)
				}
			}
			if diff := cmp.Diff([]string{"eth2"}, node.links(t)); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("it had no hardware and ended with the namespace", func(t *testing.T) {
		node, pod := newSpace(t, "node"), newSpace(t, "pod")
		plugged(t, node, "eth2")
		links := openLinks(t, node)
		spec := wholeNIC(t, links, "net1")
		must(t, links.Add(t.Context(), pod.path, spec))
		pod.drop()
		must(t, unix.Unmount(pod.path, unix.MNT_DETACH))
		must(t, os.Remove(pod.path))
		eventually(t, "the kernel removes the namespace", func() bool { return links.Delete(t.Context(), pod.path, spec) == nil && len(node.links(t)) == 0 })
	})
}

func TestNICWhoseNameIsTakenWaitsForIt(t *testing.T) {
	node, pod := newSpace(t, "node"), newSpace(t, "pod")
	plugged(t, node, "eth2")
	links := openLinks(t, node)
	before := stateOf(t, node, "eth2")
	spec := wholeNIC(t, links, "net1")
	must(t, links.Add(t.Context(), pod.path, spec))
	must(t, node.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth2", TxQLen: -1}}))
	must(t, links.Delete(t.Context(), pod.path, spec))
	must(t, links.Mend(t.Context()))
	names := node.links(t)
	if len(names) != 2 || names[0] != "eth2" || !link.Own(names[1]) {
		t.Fatalf("in the host are %v", names)
	}
	want := strings.Replace(strings.Replace(before, "eth2", names[1], 1), `alias ""`, `alias "netplane: waits for its name eth2, up"`, 1)
	want = strings.Replace(want, "up=true", "up=false", 1)
	if diff := cmp.Diff(want, stateOf(t, node, names[1])); diff != "" {
		t.Error(diff)
	}
	must(t, node.LinkDel(node.link(t, "eth2")))
	for range 2 {
		must(t, links.Mend(t.Context()))
		if diff := cmp.Diff(before, stateOf(t, node, "eth2")); diff != "" {
			t.Error(diff)
		}
	}
}

func TestNICsThatTheHostUsesStay(t *testing.T) {
	for name, test := range map[string]struct {
		use  func(t *testing.T, node *space)
		want string
	}{
		"an address": {func(t *testing.T, node *space) {
			must(t, node.AddrAdd(node.link(t, "eth2"), &netlink.Addr{IPNet: ipNet("192.0.2.1/24")}))
		}, "NIC eth2 carries the host's address 192.0.2.1/24"},
		"a default route": {func(t *testing.T, node *space) {
			must(t, node.RouteAdd(&netlink.Route{LinkIndex: node.link(t, "eth2").Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: ipNet("0.0.0.0/0")}))
		}, "NIC eth2 carries the host's default route"},
		"a bridge": {func(t *testing.T, node *space) {
			must(t, node.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", TxQLen: -1}}))
			must(t, node.LinkSetMaster(node.link(t, "eth2"), node.link(t, "br0")))
		}, "NIC eth2 is a port of another link of the host"},
		"a macvlan": {func(t *testing.T, node *space) {
			must(t, node.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "mv0", ParentIndex: node.link(t, "eth2").Attrs().Index, TxQLen: -1}}))
		}, "NIC eth2 carries the host's macvlan interface mv0"},
		"another link has its name": {func(t *testing.T, node *space) {
			must(t, node.LinkDel(node.link(t, "eth2")))
			plugged(t, node, "eth2")
		}, "another link is called eth2 since NIC eth2 was chosen"},
	} {
		t.Run(name, func(t *testing.T) {
			node, pod := newSpace(t, "node"), newSpace(t, "pod")
			plugged(t, node, "eth2")
			links := openLinks(t, node)
			spec := wholeNIC(t, links, "net1")
			test.use(t, node)
			before := stateOf(t, node, "eth2")
			err := links.Add(t.Context(), pod.path, spec)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("ADD: got %v, want %q", err, test.want)
			}
			if diff := cmp.Diff(before, stateOf(t, node, "eth2")); diff != "" {
				t.Error(diff)
			}
			if _, err := links.NIC("eth2"); name != "another link has its name" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("choosing: got %v, want %q", err, test.want)
			}
		})
	}
	t.Run("down", func(t *testing.T) {
		node := newSpace(t, "node")
		plugged(t, node, "eth2")
		must(t, node.LinkSetDown(node.link(t, "eth2")))
		if _, err := openLinks(t, node).NIC("eth2"); err == nil || !strings.Contains(err.Error(), "NIC eth2 is down or without carrier") {
			t.Errorf("got %v", err)
		}
	})
}

func TestNICComesBackWhenItsInterfaceCannotBeMade(t *testing.T) {
	for name, spoil := range map[string]func(spec *link.Interface){
		"no such MTU": func(spec *link.Interface) { spec.MTU = 70000 },
		"a next hop out of reach": func(spec *link.Interface) {
			spec.Routes = []link.Route{{To: netip.MustParsePrefix("192.0.2.0/24"), Via: netip.MustParseAddr("198.51.100.1")}}
		},
		"an address twice":        func(spec *link.Interface) { spec.Addresses = prefixes("10.10.0.5/16 10.10.0.5/16") },
		"a name that none can be": func(spec *link.Interface) { spec.Name = "a/b" },
	} {
		t.Run(name, func(t *testing.T) {
			node, pod := newSpace(t, "node"), newSpace(t, "pod")
			plugged(t, node, "eth2")
			links := openLinks(t, node)
			before, spec := stateOf(t, node, "eth2"), wholeNIC(t, links, "net1")
			spoil(&spec)
			if err := links.Add(t.Context(), pod.path, spec); err == nil {
				t.Fatal("it succeeds")
			}
			if diff := cmp.Diff(before, stateOf(t, node, "eth2")); diff != "" {
				t.Error(diff)
			}
			if left := pod.links(t); len(left) > 0 {
				t.Errorf("left in the pod: %v", left)
			}
		})
	}
}

// nicAgent is an agent of a node whose NICs eth2 and eth3 pods may have.
func nicAgent(t *testing.T) *agent {
	t.Helper()
	node := newSpace(t, "node")
	plugged(t, node, "eth2")
	plugged(t, node, "eth3")
	a := newAgent(t, node, network("fast", v1alpha1.PluginHostDevice, nil))
	a.exclusive = []string{"eth3", "eth2"}
	a.start(t)
	return a
}

func TestAgentLendsNICs(t *testing.T) {
	a := nicAgent(t)
	before := stateOf(t, a.node, "eth2") + stateOf(t, a.node, "eth3")
	pods := []*space{newSpace(t, "pod0"), newSpace(t, "pod1"), newSpace(t, "pod2")}
	sandboxes := []wire.Sandbox{sandboxOf("c0", pods[0]), sandboxOf("c1", pods[1]), sandboxOf("c2", pods[2])}
	must(t, a.add(t, sandboxes[0], "fast@data"))
	must(t, a.add(t, sandboxes[1], "fast@data"))
	if err := a.add(t, sandboxes[0], "fast@data"); err == nil || !strings.Contains(err.Error(), "has its networks already") {
		t.Errorf("a second ADD: %v", err)
	}
	if err := a.add(t, sandboxes[2], "fast@data"); err == nil || !strings.Contains(err.Error(), "is free for network") {
		t.Errorf("a third pod: %v", err)
	}
	if left := a.node.links(t); len(left) > 0 {
		t.Errorf("in the host: %v", left)
	}
	for i := range 2 {
		must(t, a.call(t, wire.Request{Op: wire.OpCheck, Sandbox: sandboxes[i]}))
		eventually(t, "network-status tells the NIC's MAC", func() bool {
			told := a.report(sandboxes[i].ContainerID)
			return len(told) == 1 && told[0].MAC == pods[i].link(t, "data").Attrs().HardwareAddr.String()
		})
	}
	t.Run("a new agent goes on", func(t *testing.T) {
		a.stop()
		a.start(t)
		must(t, a.call(t, wire.Request{Op: wire.OpCheck, Sandbox: sandboxes[0]}))
		if err := a.add(t, sandboxes[2], "fast@data"); err == nil {
			t.Error("a NIC is given twice")
		}
		must(t, a.del(t, sandboxes[0]))
		must(t, a.del(t, sandboxes[0]))
		must(t, a.add(t, sandboxes[2], "fast@data"))
	})
	t.Run("GC brings back what the runtime does not know", func(t *testing.T) {
		a.clock.seconds.Store(60)
		must(t, a.call(t, wire.Request{Op: wire.OpGC, Valid: []string{"c1"}}))
		if diff := cmp.Diff([]string{"eth3"}, a.node.links(t)); diff != "" {
			t.Error(diff)
		}
	})
	must(t, a.del(t, sandboxes[1]))
	if diff := cmp.Diff(before, stateOf(t, a.node, "eth2")+stateOf(t, a.node, "eth3")); diff != "" {
		t.Error(diff)
	}
	a.nothingLeft(t, "eth2", "eth3")
}

// An agent that died in the middle of an ADD left the NIC wherever it was then.
func TestAgentThatDiedDuringAnAddBringsTheNICBack(t *testing.T) {
	for _, where := range []string{"host", "pod"} {
		t.Run("in the "+where, func(t *testing.T) {
			a, pod := nicAgent(t), newSpace(t, "pod")
			before := stateOf(t, a.node, "eth2")
			spec := wholeNIC(t, a.links, "net1")
			a.stop()
			must(t, attach.Sandboxes(attach.Config{StateDir: a.state}.Sandboxes()).Save(&attach.Sandbox{
				Sandbox: sandboxOf("c1", pod), State: attach.StateAttaching, Interfaces: []link.Interface{spec},
			}))
			nic := a.node.link(t, "eth2")
			must(t, a.node.LinkSetAlias(nic, "netplane: in a pod, comes back as eth2"))
			must(t, a.node.LinkSetDown(nic))
			must(t, a.node.LinkSetName(nic, "npt000000000000"))
			if where == "pod" {
				must(t, a.node.LinkSetNsFd(nic, int(pod.ns)))
			}
			a.start(t)
			if diff := cmp.Diff(before, stateOf(t, a.node, "eth2")); diff != "" {
				t.Error(diff)
			}
			if left := pod.links(t); slices.Contains(left, "net1") {
				t.Errorf("left in the pod: %v", left)
			}
			a.nothingLeft(t, "eth2", "eth3")
		})
	}
}
