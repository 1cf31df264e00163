// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/overlay"
)

// ether is a cluster with one Network of plugin vxlan, as the API shows it.
type ether struct {
	network v1alpha1.Network
	plan    *addressing.Plan

	mu        sync.Mutex
	blocks    map[string]*v1alpha1.IPBlock // by CIDR
	followers map[int]func()
}

func newEther(t *testing.T, spec v1alpha1.NetworkSpec) *ether {
	t.Helper()
	spec.Plugin, spec.PhysicalNet = v1alpha1.PluginVXLAN, "phy-net0"
	e := &ether{blocks: map[string]*v1alpha1.IPBlock{}, followers: map[int]func(){}}
	e.network = v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "blue", UID: types.UID("uid of blue")}, Spec: spec}
	e.network.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}}
	var err error
	e.plan, err = addressing.NewPlan("blue", &spec)
	must(t, err)
	return e
}

func (e *ether) Follow(ctx context.Context, _ string, changed func()) (func() ([]*v1alpha1.IPBlock, bool), error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	id := len(e.followers)
	e.followers[id] = changed
	context.AfterFunc(ctx, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.followers[id] = func() {}
	})
	return func() ([]*v1alpha1.IPBlock, bool) {
		e.mu.Lock()
		defer e.mu.Unlock()
		var out []*v1alpha1.IPBlock
		for _, b := range e.blocks {
			out = append(out, b)
		}
		return out, true
	}, nil
}

// hold says that a node holds a block; no node means that the block is gone.
func (e *ether) hold(cidr, node, vtep string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.blocks, cidr)
	if node != "" {
		e.blocks[cidr] = &v1alpha1.IPBlock{Spec: v1alpha1.IPBlockSpec{
			Network: "blue", NetworkUID: e.network.UID, CIDR: v1alpha1.CIDR(cidr), NodeName: node, VTEP: v1alpha1.IP(vtep),
		}}
	}
	for _, changed := range e.followers {
		changed()
	}
}

// machine is a node with an agent's overlay part.
type machine struct {
	*space
	ether  *ether
	name   string
	tunnel link.Tunnel
	links  *link.Links
	stop   func()
	*overlay.Manager

	mu   sync.Mutex
	used []string
}

func newMachine(t *testing.T, e *ether, s *space, name, vtep string) *machine {
	t.Helper()
	m := &machine{space: s, ether: e, name: name, links: openLinks(t, s), used: []string{}}
	m.tunnel = link.Tunnel{Device: "eth1", Address: netip.MustParseAddr(vtep), MTU: 1500}
	m.start(t)
	return m
}

// start begins a run of the agent.
func (m *machine) start(t *testing.T) {
	t.Helper()
	m.Manager = overlay.New(m.name, overlay.Deps{
		Links: m.links, Blocks: m.ether,
		Networks: func() []v1alpha1.Network { return []v1alpha1.Network{m.ether.network} },
		Tunnel: func(string) (link.Tunnel, bool) {
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.tunnel, true
		},
		Used: m.bridges,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = m.Run(ctx) })
	m.stop = func() { cancel(); done.Wait() }
	t.Cleanup(func() { m.stop() })
}

func (m *machine) bridges() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.used)
}

// send says what the node's frames are sent from now.
func (m *machine) send(device, address string) {
	m.mu.Lock()
	m.tunnel.Device, m.tunnel.Address = device, netip.MustParseAddr(address)
	m.mu.Unlock()
	m.Notify()
}

func (m *machine) use(bridges ...string) {
	m.mu.Lock()
	m.used = append([]string{}, bridges...)
	m.mu.Unlock()
	m.Notify()
}

// pod makes a pod on the Network, with an address of the node's block.
func (m *machine) pod(t *testing.T, address string) *space {
	t.Helper()
	pod := newSpace(t, "pod")
	m.plug(t, pod, address)
	return pod
}

func (m *machine) plug(t *testing.T, pod *space, address string) {
	t.Helper()
	bridge := link.OverlayBridge(string(m.ether.network.UID))
	m.use(bridge)
	must(t, m.Ensure(t.Context(), &m.ether.network))
	addr := netip.MustParseAddr(address)
	spec := link.Interface{
		Name: "net1", Kind: link.KindVeth, Parent: bridge, HostEnd: link.HostEndName(pod.path, "net1"),
		MAC: m.ether.plan.MAC(addr).String(), MTU: m.link(t, bridge).Attrs().MTU, Addresses: m.ether.plan.Interface(addr),
	}
	must(t, m.links.Add(t.Context(), pod.path, spec))
	must(t, m.links.Announce(t.Context(), pod.path, spec))
}

func (m *machine) unplug(t *testing.T, pod *space) {
	t.Helper()
	must(t, m.links.Delete(t.Context(), pod.path, link.Interface{Name: "net1", Kind: link.KindVeth, HostEnd: link.HostEndName(pod.path, "net1")}))
}

// table renders the vxlan device's entries: how many MACs each node has, and
// to whom goes what is for everybody.
func (m *machine) table(t *testing.T) string {
	t.Helper()
	entries, err := m.links.Forwards(link.OverlayBridge(string(m.ether.network.UID)))
	if err != nil {
		return err.Error()
	}
	macs, all := map[string]int{}, []string{}
	for _, e := range entries {
		if e.MAC == [6]byte{} {
			all = append(all, e.VTEP.String())
			continue
		}
		macs[e.VTEP.String()]++
	}
	slices.Sort(all)
	return fmt.Sprintf("%v all %v", macs, all)
}

// passes sends a UDP packet of so many bytes of IP, with fragmentation
// forbidden, and says whether it arrives.
func passes(t *testing.T, from, to *space, addr string, size int) bool {
	t.Helper()
	header := 28
	if strings.Contains(addr, ":") {
		header = 48
	}
	var server net.PacketConn
	must(t, to.in(func() (err error) {
		server, err = net.ListenPacket("udp", net.JoinHostPort(addr, "0"))
		return err
	}))
	defer func() { _ = server.Close() }()
	must(t, server.SetReadDeadline(time.Now().Add(2*time.Second)))
	err := from.in(func() error {
		conn, err := net.Dial("udp", server.LocalAddr().String())
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		raw, err := conn.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		_ = raw.Control(func(fd uintptr) {
			if header == 28 {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			} else {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			}
		})
		_, err = conn.Write(make([]byte, size-header))
		return err
	})
	if err != nil {
		return false
	}
	buf := make([]byte, 2048)
	n, _, err := server.ReadFrom(buf)
	return err == nil && n == size-header
}

func address(t *testing.T, s *space, nic, prefix string) {
	t.Helper()
	must(t, s.AddrAdd(s.link(t, nic), &netlink.Addr{IPNet: ipNet(prefix), Flags: unix.IFA_F_NODAD}))
}

// linkLocal is what the kernel gave a NIC by itself.
func linkLocal(t *testing.T, s *space, nic string) string {
	t.Helper()
	var out string
	eventually(t, "the NIC has a link-local address", func() bool {
		all := whole(t, func() ([]netlink.Addr, error) { return s.AddrList(s.link(t, nic), netlink.FAMILY_V6) })
		for _, a := range all {
			if a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
				out = a.IP.String()
			}
		}
		return out != ""
	})
	return out
}

// enslave makes a bridge of a node's NIC, as a Network of plugin bridge does.
func enslave(t *testing.T, node *space) {
	t.Helper()
	nic := node.link(t, "eth1")
	must(t, node.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "np-eth1", HardwareAddr: nic.Attrs().HardwareAddr, TxQLen: -1}}))
	must(t, node.LinkSetMaster(nic, node.link(t, "np-eth1")))
	node.up(t, "np-eth1")
	eventually(t, "the port forwards", func() bool { return node.link(t, "np-eth1").Attrs().OperState == netlink.OperUp })
}

// TestVXLANOverEachKindOfTunnelAddress has pods of two nodes talk over either
// family of underlay, and over link-local addresses, which need no set-up.
func TestVXLANOverEachKindOfTunnelAddress(t *testing.T) {
	for name, test := range map[string]struct {
		vteps   [2]string
		bridged bool
		tagged  bool
		mtu     int
	}{
		"IPv4":       {vteps: [2]string{"192.168.7.1", "192.168.7.2"}, mtu: 1450},
		"IPv6":       {vteps: [2]string{"fd00:7::1", "fd00:7::2"}, mtu: 1430},
		"link-local": {mtu: 1430},
		"link-local, of a bridge that the NIC is a port of": {bridged: true, mtu: 1430},
		"link-local, of an administrator's tagged device":   {tagged: true, mtu: 1430},
	} {
		t.Run(name, func(t *testing.T) {
			nodes := wired(t, "a", "b")
			vteps, device := test.vteps, "eth1"
			for i, node := range nodes {
				switch {
				case test.bridged:
					enslave(t, node)
					device = "np-eth1"
				case test.tagged:
					needs(t, node, link.KindVLAN)
					must(t, node.LinkAdd(&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "storage", ParentIndex: node.link(t, "eth1").Attrs().Index, TxQLen: -1}, VlanId: 100}))
					node.up(t, "storage")
					device = "storage"
				}
				switch {
				case vteps[i] == "":
					vteps[i] = linkLocal(t, node, device)
				case strings.Contains(vteps[i], ":"):
					address(t, node, "eth1", vteps[i]+"/64")
				default:
					address(t, node, "eth1", vteps[i]+"/24")
				}
			}
			e := newEther(t, v1alpha1.NetworkSpec{Subnet: "10.7.0.0/24", Subnet6: "fd00:10:7::/64", BlockSize: 16})
			a, b := newMachine(t, e, nodes[0], "a", vteps[0]), newMachine(t, e, nodes[1], "b", vteps[1])
			a.send(device, vteps[0])
			b.send(device, vteps[1])
			e.hold("10.7.0.16/28", "a", vteps[0])
			e.hold("10.7.0.32/28", "b", vteps[1])
			one, two := a.pod(t, "10.7.0.18"), b.pod(t, "10.7.0.34")
			for address, from := range map[string]string{"10.7.0.34": "10.7.0.18", "fd00:10:7::a07:22": "fd00:10:7::a07:12"} {
				if seen := reach(t, one, two, address); seen != from {
					t.Errorf("%s is reached from %s, want %s", address, seen, from)
				}
				if !passes(t, one, two, address, test.mtu) {
					t.Errorf("a packet of %d bytes to %s is lost", test.mtu, address)
				}
				if passes(t, one, two, address, test.mtu+1) {
					t.Errorf("a packet of %d bytes to %s passes: the MTU is not the pods'", test.mtu+1, address)
				}
			}
			want := fmt.Sprintf("map[%s:16] all [%s]", vteps[1], vteps[1])
			if diff := cmp.Diff(want, a.table(t)); diff != "" {
				t.Errorf("table of a (-want +got):\n%s", diff)
			}
		})
	}
}

// vxlanPair is two nodes with addresses, each with a block.
func vxlanPair(t *testing.T) (e *ether, a, b *machine) {
	t.Helper()
	nodes := wired(t, "a", "b")
	address(t, nodes[0], "eth1", "192.168.7.1/24")
	address(t, nodes[1], "eth1", "192.168.7.2/24")
	e = newEther(t, v1alpha1.NetworkSpec{Subnet: "10.7.0.0/24", BlockSize: 16, StaticRange: "10.7.0.240/28"})
	a, b = newMachine(t, e, nodes[0], "a", "192.168.7.1"), newMachine(t, e, nodes[1], "b", "192.168.7.2")
	e.hold("10.7.0.16/28", "a", "192.168.7.1")
	e.hold("10.7.0.32/28", "b", "192.168.7.2")
	return e, a, b
}

// TestVXLANAddressFollowsItsBlockToAnotherNode: the static entries turn to the
// new node as soon as the API says so, without a word from the pod there.
func TestVXLANAddressFollowsItsBlockToAnotherNode(t *testing.T) {
	e, a, b := vxlanPair(t)
	e.hold("10.7.0.48/28", "b", "192.168.7.2")
	client := a.pod(t, "10.7.0.18")
	first := b.pod(t, "10.7.0.50")
	reach(t, client, first, "10.7.0.50")
	b.unplug(t, first)
	e.hold("10.7.0.48/28", "a", "192.168.7.1")
	eventually(t, "a forwards the block no more", func() bool { return a.table(t) == "map[192.168.7.2:16] all [192.168.7.2]" })
	eventually(t, "b forwards the block to a", func() bool { return b.table(t) == "map[192.168.7.1:32] all [192.168.7.1]" })
	second := a.pod(t, "10.7.0.50")
	reach(t, client, second, "10.7.0.50")
	reach(t, b.pod(t, "10.7.0.35"), second, "10.7.0.50")
}

// TestVXLANCarriesAddressesThatNoEntryIsFor: fixed addresses are in no block,
// and pods may ask for a MAC of their own; such frames go to all nodes.
func TestVXLANCarriesAddressesThatNoEntryIsFor(t *testing.T) {
	_, a, b := vxlanPair(t)
	client, fixed := a.pod(t, "10.7.0.18"), b.pod(t, "10.7.0.241")
	reach(t, client, fixed, "10.7.0.241")
	own, err := net.ParseMAC("02:00:00:00:00:77")
	must(t, err)
	must(t, fixed.LinkSetHardwareAddr(fixed.link(t, "net1"), own))
	reach(t, fixed, client, "10.7.0.18")
	// The fixed address moves: nothing that a has learned keeps it at b.
	b.unplug(t, fixed)
	moved := a.pod(t, "10.7.0.241")
	reach(t, b.pod(t, "10.7.0.35"), moved, "10.7.0.241")
	reach(t, client, moved, "10.7.0.241")
}

// TestVXLANSurvivesARestartAndRepairsWhatItFinds: links stay while no agent
// runs; the next one puts right what is wrong and removes what nobody uses.
func TestVXLANSurvivesARestartAndRepairsWhatItFinds(t *testing.T) {
	e, a, b := vxlanPair(t)
	one, two := a.pod(t, "10.7.0.18"), b.pod(t, "10.7.0.34")
	a.stop()
	reach(t, one, two, "10.7.0.34")

	bridge := link.OverlayBridge(string(e.network.UID))
	orphan := link.OverlayBridge("of a Network that is gone")
	_, err := a.links.EnsureOverlay(t.Context(), link.Overlay{Bridge: orphan, VNI: 9, Port: 4789, Tunnel: a.tunnel, MTU: 1450})
	must(t, err)
	must(t, a.links.ChangeForwards(t.Context(), bridge, "eth1", []link.Forward{{MAC: [6]byte{2, 1, 1, 1, 1, 1}, VTEP: netip.MustParseAddr("192.168.7.9")}}, nil))
	e.hold("10.7.0.64/28", "b", "192.168.7.2")
	a.start(t)
	eventually(t, "the table is right again", func() bool { return a.table(t) == "map[192.168.7.2:32] all [192.168.7.2]" })
	eventually(t, "the orphan is gone", func() bool {
		found, err := a.links.Overlays()
		return err == nil && slices.Equal(found, []string{bridge})
	})
	reach(t, one, two, "10.7.0.34")

	t.Log("somebody changes the device")
	must(t, a.LinkDel(a.link(t, "npx"+strings.TrimPrefix(bridge, "npb"))))
	a.Notify()
	eventually(t, "the device is back", func() bool { return a.table(t) == "map[192.168.7.2:32] all [192.168.7.2]" })
	reach(t, one, two, "10.7.0.34")

	t.Log("the NIC gets another address")
	address(t, a.space, "eth1", "192.168.7.11/24")
	a.send("eth1", "192.168.7.11")
	e.hold("10.7.0.16/28", "a", "192.168.7.11")
	eventually(t, "b sends to the new address", func() bool { return b.table(t) == "map[192.168.7.11:16] all [192.168.7.11]" })
	reach(t, two, one, "10.7.0.18")

	t.Log("the last pod goes")
	a.unplug(t, one)
	a.use()
	eventually(t, "nothing is left", func() bool { return slices.Equal(a.space.links(t), []string{"eth1"}) })
}

// TestVXLANSegmentsAreApart: two Networks on one NIC have nothing in common,
// even with the same addresses.
func TestVXLANSegmentsAreApart(t *testing.T) {
	_, a, b := vxlanPair(t)
	red := newEther(t, v1alpha1.NetworkSpec{Subnet: "10.7.0.0/24", BlockSize: 16})
	red.network.UID, red.network.Name = "uid of red", "red"
	red.hold("10.7.0.32/28", "b", "192.168.7.2")
	redder := &machine{space: b.space, ether: red, name: "b", links: b.links, tunnel: b.tunnel, used: []string{}}
	b.stop() // one agent on the node: this one has both
	redder.used = []string{link.OverlayBridge("uid of blue"), link.OverlayBridge("uid of red")}
	one := a.pod(t, "10.7.0.18")
	redder.start(t)
	other := newSpace(t, "other")
	must(t, redder.Ensure(t.Context(), &red.network))
	addr := netip.MustParseAddr("10.7.0.34")
	must(t, redder.links.Add(t.Context(), other.path, link.Interface{
		Name: "net1", Kind: link.KindVeth, Parent: link.OverlayBridge("uid of red"), HostEnd: link.HostEndName(other.path, "net1"),
		MAC: red.plan.MAC(addr).String(), MTU: 1450, Addresses: red.plan.Interface(addr),
	}))
	if passes(t, one, other, "10.7.0.34", 100) {
		t.Error("a pod of one Network reaches a pod of another")
	}
}
