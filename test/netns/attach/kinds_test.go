// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/cni/link"
)

// needs skips a test on a kernel that lacks a kind of link.
func needs(t *testing.T, node *space, kind string) {
	t.Helper()
	devices, err := link.OpenDevices(node.path, link.Sysfs{})
	must(t, err)
	defer devices.Close()
	has, err := devices.Supports(kind)
	must(t, err)
	if !has {
		t.Skipf("this kernel cannot make links of kind %s: nothing of it is tried here", kind)
	}
}

// cycle is one interface's life: ADD, CHECK, ADD again, DEL, DEL again.
func cycle(t *testing.T, links *link.Links, spec link.Interface, look func(pod *space)) {
	t.Helper()
	pod := newSpace(t, "pod")
	must(t, links.Add(t.Context(), pod.path, spec))
	must(t, links.Check(t.Context(), pod.path, spec))
	if err := links.Add(t.Context(), pod.path, spec); err == nil || !strings.Contains(err.Error(), "has an interface "+spec.Name+" already") {
		t.Errorf("the second ADD: %v", err)
	}
	must(t, links.Check(t.Context(), pod.path, spec))
	if diff := cmp.Diff([]string{"10.10.0.5/16", "fd00:10:10::a0a:5/64"}, pod.addresses(t, spec.Name)); diff != "" {
		t.Error(diff)
	}
	look(pod)
	for range 2 {
		must(t, links.Delete(t.Context(), pod.path, spec))
	}
	if left := pod.links(t); len(left) > 0 {
		t.Errorf("left in the pod: %v", left)
	}
}

func TestMacvlanModes(t *testing.T) {
	for name, want := range map[string]netlink.MacvlanMode{
		"": netlink.MACVLAN_MODE_BRIDGE, link.ModeBridge: netlink.MACVLAN_MODE_BRIDGE, link.ModeVEPA: netlink.MACVLAN_MODE_VEPA,
		link.ModePrivate: netlink.MACVLAN_MODE_PRIVATE, link.ModePassthru: netlink.MACVLAN_MODE_PASSTHRU,
	} {
		t.Run(name, func(t *testing.T) {
			node := wired(t, "node")[0]
			links := openLinks(t, node)
			spec := specOf(link.KindMacvlan, "net1", "5")
			spec.Mode = name
			if name == link.ModePassthru {
				parent, err := links.EnsureParent(t.Context(), link.ParentSpec{NIC: "eth1"})
				must(t, err)
				spec.MAC = parent.MAC
			}
			cycle(t, links, spec, func(pod *space) {
				got := pod.link(t, "net1").(*netlink.Macvlan)
				if got.Mode != want || got.HardwareAddr.String() != spec.MAC {
					t.Errorf("got mode %d mac %s", got.Mode, got.HardwareAddr)
				}
				other := spec
				other.Mode = link.ModeVEPA
				if err := links.Check(t.Context(), pod.path, other); name != link.ModeVEPA && (err == nil || !strings.Contains(err.Error(), "is not in mode vepa")) {
					t.Errorf("another mode is no difference: %v", err)
				}
				if name != link.ModePassthru {
					return
				}
				second := newSpace(t, "second")
				err := links.Add(t.Context(), second.path, spec)
				if err == nil || !strings.Contains(err.Error(), "a macvlan in passthru mode must be alone on eth1") || len(second.links(t)) > 0 {
					t.Errorf("a second pod: %v, %v", err, second.links(t))
				}
			})
			if diff := cmp.Diff([]string{"eth1"}, node.links(t)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestIPVLANModes(t *testing.T) {
	for name, want := range map[string]netlink.IPVlanMode{"": netlink.IPVLAN_MODE_L2, link.ModeL2: netlink.IPVLAN_MODE_L2, link.ModeL3: netlink.IPVLAN_MODE_L3} {
		t.Run(name, func(t *testing.T) {
			node := wired(t, "node")[0]
			needs(t, node, link.KindIPVLAN)
			links := openLinks(t, node)
			parent, err := links.EnsureParent(t.Context(), link.ParentSpec{NIC: "eth1"})
			must(t, err)
			spec := specOf(link.KindIPVLAN, "net1", "5")
			spec.Mode, spec.MAC = name, parent.MAC
			cycle(t, links, spec, func(pod *space) {
				if got := pod.link(t, "net1").(*netlink.IPVlan); got.Mode != want {
					t.Errorf("got mode %d", got.Mode)
				}
			})
		})
	}
}

func TestTaggedDevicesAreSharedAndGoWithTheirLastUser(t *testing.T) {
	for _, bridge := range []bool{false, true} {
		t.Run(fmt.Sprintf("bridge %t", bridge), func(t *testing.T) {
			node := wired(t, "node")[0]
			needs(t, node, link.KindVLAN)
			links := openLinks(t, node)
			kind := link.KindMacvlan
			if bridge {
				kind = link.KindVeth
			}
			untagged, tagged := specOf(kind, "net1", "4"), specOf(kind, "net1", "5")
			for spec, tag := range map[*link.Interface]int{&untagged: 0, &tagged: 100} {
				parent, err := links.EnsureParent(t.Context(), link.ParentSpec{NIC: "eth1", Tag: tag, Bridge: bridge})
				must(t, err)
				spec.Parent = parent.Name
			}
			other := newSpace(t, "other")
			must(t, links.Add(t.Context(), other.path, untagged))
			cycle(t, links, tagged, func(*space) {
				before := node.links(t)
				must(t, links.PruneParents(t.Context(), []string{untagged.Parent, tagged.Parent}))
				if diff := cmp.Diff(before, node.links(t)); diff != "" {
					t.Error(diff)
				}
			})
			must(t, links.PruneParents(t.Context(), []string{untagged.Parent}))
			if slices.ContainsFunc(node.links(t), func(name string) bool { return strings.Contains(name, ".100") }) {
				t.Errorf("left: %v", node.links(t))
			}
			must(t, links.Check(t.Context(), other.path, untagged))
		})
	}
}

func TestAnAdministratorsTaggedDeviceIsUsedAndKept(t *testing.T) {
	for _, name := range []string{"eth1.100", "storage"} {
		t.Run(name, func(t *testing.T) {
			node := wired(t, "node")[0]
			needs(t, node, link.KindVLAN)
			links := openLinks(t, node)
			must(t, node.LinkAdd(&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: name, ParentIndex: node.link(t, "eth1").Attrs().Index, TxQLen: -1}, VlanId: 100}))
			parent, err := links.EnsureParent(t.Context(), link.ParentSpec{NIC: "eth1", Tag: 100})
			must(t, err)
			if parent.Name != name {
				t.Errorf("got %s", parent.Name)
			}
			must(t, links.PruneParents(t.Context(), nil))
			if diff := cmp.Diff([]string{"eth1", name}, node.links(t)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestABridgeGivesItsNICBack(t *testing.T) {
	node, pod := wired(t, "node")[0], newSpace(t, "pod")
	links := openLinks(t, node)
	parent, err := links.EnsureParent(t.Context(), link.ParentSpec{NIC: "eth1", Bridge: true})
	must(t, err)
	spec := specOf(link.KindVeth, "net1", "5")
	spec.Parent = parent.Name
	must(t, links.Add(t.Context(), pod.path, spec))
	must(t, links.PruneParents(t.Context(), []string{"np-eth1"}))
	must(t, links.PruneParents(t.Context(), nil)) // no record, but a port: left alone
	must(t, links.Check(t.Context(), pod.path, spec))
	must(t, links.Delete(t.Context(), pod.path, spec))
	must(t, links.PruneParents(t.Context(), nil))
	nic := node.link(t, "eth1").Attrs()
	if diff := cmp.Diff([]string{"eth1"}, node.links(t)); diff != "" || nic.MasterIndex != 0 || nic.RawFlags&unix.IFF_UP == 0 {
		t.Errorf("master %d flags %x: %s", nic.MasterIndex, nic.RawFlags, diff)
	}
	cycle(t, links, specOf(link.KindMacvlan, "net1", "5"), func(*space) {})
}

// A bridge left to itself takes the smallest MTU of its ports, and macvlans on
// it shrink with it.
func TestABridgesMTUIsTheNICs(t *testing.T) {
	node, small, large := wired(t, "node")[0], newSpace(t, "small"), newSpace(t, "large")
	links := openLinks(t, node)
	parent := func(want int) link.Parent {
		t.Helper()
		got, err := links.EnsureParent(t.Context(), link.ParentSpec{NIC: "eth1", Bridge: true})
		must(t, err)
		if kernel := node.link(t, "np-eth1").Attrs().MTU; got.MTU != want || kernel != want {
			t.Errorf("MTU %d, the kernel's %d, want %d", got.MTU, kernel, want)
		}
		return got
	}
	onBridge := specOf(link.KindMacvlan, "net1", "5")
	onBridge.Parent, onBridge.MTU = parent(1500).Name, 1500
	must(t, links.Add(t.Context(), large.path, onBridge))
	port := specOf(link.KindVeth, "net1", "6")
	port.Parent = onBridge.Parent // of MTU 1400
	must(t, links.Add(t.Context(), small.path, port))
	must(t, links.Check(t.Context(), large.path, onBridge))
	parent(1500)
	for _, mtu := range []int{1450, 1500} {
		must(t, node.LinkSetMTU(node.link(t, "eth1"), mtu))
		parent(mtu)
	}
}

func TestIsolatedPortsReachAllButEachOther(t *testing.T) {
	nodes := wired(t, "node", "far")
	node, far := nodes[0], nodes[1]
	links := openLinks(t, node)
	bridge, err := links.EnsureBridge(t.Context(), "eth1")
	must(t, err)
	must(t, openLinks(t, far).Add(t.Context(), newSpace(t, "peer").path, specOf(link.KindMacvlan, "net1", "9")))
	must(t, far.AddrAdd(far.link(t, "eth1"), &netlink.Addr{IPNet: ipNet("10.10.0.8/16")}))
	pods := map[string]*space{}
	specs := map[string]link.Interface{}
	for _, last := range []string{"1", "2", "3"} {
		spec := specOf(link.KindVeth, "net1", last)
		spec.Parent, spec.Isolated = bridge, last != "3"
		pods[last], specs[last] = newSpace(t, "pod"+last), spec
		must(t, links.Add(t.Context(), pods[last].path, spec))
		must(t, links.Check(t.Context(), pods[last].path, spec))
	}
	reach(t, pods["1"], pods["3"], "10.10.0.3")
	reach(t, pods["3"], pods["2"], "10.10.0.2")
	reach(t, pods["1"], far, "10.10.0.8")
	err = pods["1"].in(func() error {
		conn, err := net.DialTimeout("tcp", "10.10.0.2:1", time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
	// Refused would mean that the frames arrived.
	if err == nil || strings.Contains(err.Error(), "refused") {
		t.Errorf("isolated pods reach each other: %v", err)
	}
	must(t, node.LinkSetIsolated(node.link(t, specs["1"].HostEnd), false))
	if err := links.Check(t.Context(), pods["1"].path, specs["1"]); err == nil || err.Error() != "interface net1 is not isolated" {
		t.Errorf("CHECK: %v", err)
	}
}

// forged are frames from a pod with this MAC and these addresses, and frames
// that only claim to be; what arrives is known by its last byte.
func forged(mac net.HardwareAddr, v4, v6, local netip.Addr) (good, bad map[string][]byte) {
	other := slices.Clone(mac)
	other[5]++
	not4, not6 := v4.Next(), v6.Next()
	good = map[string][]byte{
		"IPv4": etherFrame(mac, unix.ETH_P_IP, ipv4(v4)), "ARP": etherFrame(mac, unix.ETH_P_ARP, arp(mac, v4)),
		"ARP probe":               etherFrame(mac, unix.ETH_P_ARP, arp(mac, netip.IPv4Unspecified())),
		"IPv6":                    etherFrame(mac, unix.ETH_P_IPV6, ipv6(v6, unix.IPPROTO_NONE, nil)),
		"link-local":              etherFrame(mac, unix.ETH_P_IPV6, ipv6(local, unix.IPPROTO_NONE, nil)),
		"neighbour advertisement": etherFrame(mac, unix.ETH_P_IPV6, ipv6(v6, unix.IPPROTO_ICMPV6, advertisement(v6))),
	}
	bad = map[string][]byte{
		"MAC":  etherFrame(other, unix.ETH_P_IP, ipv4(v4)),
		"IPv4": etherFrame(mac, unix.ETH_P_IP, ipv4(not4)), "no IPv4": etherFrame(mac, unix.ETH_P_IP, ipv4(netip.IPv4Unspecified())),
		"ARP": etherFrame(mac, unix.ETH_P_ARP, arp(mac, not4)), "ARP for another MAC": etherFrame(mac, unix.ETH_P_ARP, arp(other, v4)),
		"IPv6":                    etherFrame(mac, unix.ETH_P_IPV6, ipv6(not6, unix.IPPROTO_NONE, nil)),
		"neighbour advertisement": etherFrame(mac, unix.ETH_P_IPV6, ipv6(v6, unix.IPPROTO_ICMPV6, advertisement(not6))),
		"behind an extension header": etherFrame(mac, unix.ETH_P_IPV6, ipv6(v6, unix.IPPROTO_HOPOPTS,
			append([]byte{unix.IPPROTO_ICMPV6, 0, 1, 4, 0, 0, 0, 0}, advertisement(not6)...))),
		"a VLAN tag":   etherFrame(mac, unix.ETH_P_8021Q, append([]byte{0, 100, 8, 0}, ipv4(v4)...)),
		"another type": etherFrame(mac, 0x88b5, make([]byte, 46)),
	}
	return good, bad
}

func etherFrame(source net.HardwareAddr, kind uint16, payload []byte) []byte {
	out := slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, source)
	return append(binary.BigEndian.AppendUint16(out, kind), payload...)
}

func ipv4(source netip.Addr) []byte {
	out := append([]byte{0x45, 0, 0, 48, 0, 0, 0, 0, 64, 253, 0, 0}, source.AsSlice()...)
	out = append(out, 10, 10, 0, 8)
	sum := uint32(0) // br_netfilter drops what has a wrong one
	for i := 0; i < len(out); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(out[i:]))
	}
	binary.BigEndian.PutUint16(out[10:], ^uint16(sum>>16+sum&0xffff))
	return append(out, make([]byte, 28)...)
}

func ipv6(source netip.Addr, next byte, payload []byte) []byte {
	out := append([]byte{0x60, 0, 0, 0, 0, byte(len(payload)), next, 255}, source.AsSlice()...)
	return slices.Concat(out, netip.IPv6LinkLocalAllNodes().AsSlice(), payload)
}

func arp(mac net.HardwareAddr, sender netip.Addr) []byte {
	out := slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 2}, mac, sender.AsSlice())
	return append(out, make([]byte, 28)...)
}

func advertisement(target netip.Addr) []byte {
	return append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, target.AsSlice()...)
}

// arrives sends a frame from a pod, then one with a mark, and says whether the
// frame came before the mark.
func arrives(t *testing.T, pod *space, wire *frames, frame, mark []byte) bool {
	t.Helper()
	must(t, pod.in(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		to := &unix.SockaddrLinklayer{Ifindex: pod.link(t, "net1").Attrs().Index, Halen: 6}
		if err := unix.Sendto(fd, frame, 0, to); err != nil {
			return err
		}
		return unix.Sendto(fd, mark, 0, to)
	}))
	arrived, buf := false, make([]byte, 2048)
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		n, _, err := unix.Recvfrom(wire.fd, buf, 0)
		if err != nil {
			continue
		}
		switch {
		case n >= len(mark) && string(buf[:len(mark)]) == string(mark):
			return arrived
		// The kernel shows a tagged frame without its tag.
		case n >= 14 && string(buf[6:12]) == string(frame[6:12]) && strings.Contains(string(frame), string(buf[14:min(n, len(frame))])):
			arrived = true
		}
	}
	t.Fatal("the mark did not arrive")
	return false
}

func TestSpoofCheckPassesOnlyWhatIsThePods(t *testing.T) {
	nodes := wired(t, "node", "far")
	node, far, pod := nodes[0], nodes[1], newSpace(t, "pod")
	links := openLinks(t, node)
	needs(t, node, link.NeedsIngress)
	bridge, err := links.EnsureBridge(t.Context(), "eth1")
	must(t, err)
	spec := specOf(link.KindVeth, "net1", "5")
	spec.Parent, spec.SpoofCheck = bridge, true
	must(t, links.Add(t.Context(), pod.path, spec))
	must(t, links.Check(t.Context(), pod.path, spec))
	must(t, far.AddrAdd(far.link(t, "eth1"), &netlink.Addr{IPNet: ipNet("10.10.0.8/16")}))
	must(t, far.AddrAdd(far.link(t, "eth1"), &netlink.Addr{IPNet: ipNet("fd00:10:10::a0a:8/64"), Flags: unix.IFA_F_NODAD}))
	for _, to := range []string{"10.10.0.8", "fd00:10:10::a0a:8"} {
		reach(t, pod, far, to)
	}
	good, bad := forged(net.HardwareAddr{0x0a, 1, 0x0a, 0x0a, 0, 5}, netip.MustParseAddr("10.10.0.5"), netip.MustParseAddr("fd00:10:10::a0a:5"), netip.MustParseAddr("fe80::801:aff:fe0a:5"))
	wire := capture(t, far, "eth1")
	marks := byte(0)
	mark := func() []byte {
		marks++
		out := slices.Clone(good["IPv4"])
		out[len(out)-1] = marks
		return out
	}
	for name, frame := range good {
		if !arrives(t, pod, wire, frame, mark()) {
			t.Errorf("dropped: %s", name)
		}
	}
	for name, frame := range bad {
		if arrives(t, pod, wire, frame, mark()) {
			t.Errorf("passed: %s", name)
		}
	}

	// A firewall flushes all rules; an earlier agent has left some.
	conn := rules(t, node)
	conn.FlushRuleset()
	must(t, conn.Flush())
	if err := links.Check(t.Context(), pod.path, spec); err == nil || err.Error() != "interface net1 has no spoof check" {
		t.Errorf("CHECK: %v", err)
	}
	for name, frame := range bad { // proves that the check was it
		if !arrives(t, pod, wire, frame, mark()) {
			t.Errorf("dropped without the check: %s", name)
		}
	}
	for range 2 {
		must(t, links.RestoreGuards(t.Context(), func() []link.Interface { return []link.Interface{spec} }))
	}
	must(t, links.Check(t.Context(), pod.path, spec))
	if arrives(t, pod, wire, bad["IPv4"], mark()) {
		t.Error("passed after the check was restored")
	}
	must(t, links.RestoreGuards(t.Context(), func() []link.Interface { return nil }))
	if left := chains(t, node); len(left) > 0 {
		t.Errorf("left of an interface that is not there: %v", left)
	}
	must(t, links.RestoreGuards(t.Context(), func() []link.Interface { return []link.Interface{spec} }))
	for range 2 {
		must(t, links.Delete(t.Context(), pod.path, spec))
	}
	if left := chains(t, node); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func rules(t *testing.T, s *space) *nftables.Conn {
	t.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(int(s.ns)))
	must(t, err)
	return conn
}

func chains(t *testing.T, s *space) []string {
	t.Helper()
	all, err := rules(t, s).ListChains()
	must(t, err)
	var out []string
	for _, c := range all {
		out = append(out, c.Table.Name+" "+c.Name)
	}
	return out
}
