// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/test/isolated"
)

func TestMain(m *testing.M) { os.Exit(isolated.Main(m, nil)) }

// node is a network namespace that stands for a node; the tests change it
// through its handle, as an administrator would.
type node struct {
	*netlink.Handle
	path string
}

// newNode makes a namespace that lives until the test ends, held by a bind
// mount as the runtimes do it.
func newNode(t *testing.T) *node {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	made := make(chan error, 1)
	go func() {
		// The thread is not unlocked: it ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- fmt.Errorf("making a network namespace: %w", err)
			return
		}
		// Link-local addresses change by themselves a second after a link came up.
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o600); err != nil && !os.IsNotExist(err) {
			made <- fmt.Errorf("keeping IPv6 quiet: %w", err)
			return
		}
		made <- unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ns, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		handle.Close()
		_ = ns.Close()
	})
	return &node{Handle: handle, path: path}
}

func (n *node) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (n *node) link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := n.LinkByName(name)
	n.must(t, err)
	return l
}

// cable makes a NIC, and the switch port that its cable leads to.
func (n *node) cable(t *testing.T, nic string) {
	t.Helper()
	n.must(t, n.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nic, MTU: 1500, TxQLen: -1}, PeerName: "port-" + nic}))
	n.up(t, nic)
	n.up(t, "port-"+nic)
}

func (n *node) up(t *testing.T, name string) {
	t.Helper()
	n.must(t, n.LinkSetUp(n.link(t, name)))
}

func (n *node) down(t *testing.T, name string) {
	t.Helper()
	n.must(t, n.LinkSetDown(n.link(t, name)))
}

func (n *node) remove(t *testing.T, name string) {
	t.Helper()
	n.must(t, n.LinkDel(n.link(t, name)))
}

func openDevices(t *testing.T, n *node) *link.Devices {
	t.Helper()
	devices, err := link.OpenDevices(n.path, link.Sysfs{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(devices.Close)
	return devices
}

func list(t *testing.T, devices *link.Devices) map[string]link.Device {
	t.Helper()
	all, err := devices.List()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]link.Device{}
	for i := range all {
		out[all[i].Name] = all[i]
	}
	return out
}

func TestDevicesListTellsKindsStatesAndUse(t *testing.T) {
	n := newNode(t)
	n.up(t, "lo")
	n.cable(t, "eth0")
	n.cable(t, "eth1")
	n.cable(t, "eth2")
	n.must(t, n.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", TxQLen: -1}}))
	n.must(t, n.LinkSetMaster(n.link(t, "eth1"), n.link(t, "br0")))
	n.must(t, n.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "mv0", ParentIndex: n.link(t, "eth2").Attrs().Index, TxQLen: -1}, Mode: netlink.MACVLAN_MODE_BRIDGE}))
	n.down(t, "port-eth2")
	address, err := netlink.ParseAddr("192.0.2.7/24")
	n.must(t, err)
	n.must(t, n.AddrAdd(n.link(t, "eth0"), address))
	n.must(t, n.RouteAdd(&netlink.Route{LinkIndex: n.link(t, "eth0").Attrs().Index, Gw: address.IPNet.IP.Mask(address.Mask).To4(), Flags: int(netlink.FLAG_ONLINK)}))

	type fact struct {
		Kind, Master, MasterKind, Parent string
		Up, Loopback, DefaultRoute       bool
		Addresses                        []netip.Prefix
	}
	devices := openDevices(t, n)
	// The kernel tells of a lost carrier up to a second late (net/core/link_watch.c).
	for deadline := time.Now().Add(5 * time.Second); list(t, devices)["eth2"].Up && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	got := map[string]fact{}
	for name, d := range list(t, devices) {
		if len(d.MAC) == 0 && name != "lo" || d.MTU == 0 || d.Index == 0 {
			t.Errorf("%s: MAC %v, MTU %d, index %d", name, d.MAC, d.MTU, d.Index)
		}
		got[name] = fact{d.Kind, d.Master, d.MasterKind, d.Parent, d.Up, d.Loopback, d.DefaultRoute, d.Addresses}
	}
	want := map[string]fact{
		"lo":        {Kind: link.KindDevice, Up: true, Loopback: true},
		"eth0":      {Kind: link.KindVeth, Up: true, DefaultRoute: true, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}},
		"eth1":      {Kind: link.KindVeth, Up: true, Master: "br0", MasterKind: link.KindBridge},
		"eth2":      {Kind: link.KindVeth},
		"port-eth0": {Kind: link.KindVeth, Up: true},
		"port-eth1": {Kind: link.KindVeth, Up: true},
		"port-eth2": {Kind: link.KindVeth},
		"br0":       {Kind: link.KindBridge},
		"mv0":       {Kind: link.KindMacvlan, Parent: "eth2"},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
}

func TestDevicesSupportsProbesWithoutMakingLinks(t *testing.T) {
	n := newNode(t)
	devices := openDevices(t, n)
	before := len(list(t, devices))
	for _, kind := range []string{link.KindBridge, link.KindMacvlan, link.KindVeth} {
		ok, err := devices.Supports(kind)
		if err != nil || !ok {
			t.Errorf("%s: %t, %v; the other tests of this folder need it", kind, ok, err)
		}
	}
	if ok, err := devices.Supports("np-nosuchkind"); ok || err != nil {
		t.Errorf("a kind that no kernel has: %t, %v", ok, err)
	}
	if after := len(list(t, devices)); after != before {
		t.Errorf("probing left %d links behind", after-before)
	}
}

// signal waits for what Watch says of a change that was made, however busy the
// machine is, and returns how many signals came until it was quiet.
func signal(t *testing.T, changes <-chan struct{}) int {
	t.Helper()
	select {
	case _, ok := <-changes:
		if !ok {
			t.Fatal("the watch broke")
		}
	case <-time.After(20 * time.Second):
		return 0
	}
	return 1 + signals(t, changes)
}

// signals reads everything that Watch says until it has been quiet for long
// enough that on an idle machine nothing is on its way.
func signals(t *testing.T, changes <-chan struct{}) int {
	t.Helper()
	count := 0
	for {
		select {
		case _, ok := <-changes:
			if !ok {
				t.Fatal("the watch broke")
			}
			count++
		case <-time.After(400 * time.Millisecond):
			return count
		}
	}
}

func TestDevicesWatchSignalsEveryChange(t *testing.T) {
	n := newNode(t)
	n.cable(t, "eth1")
	devices := openDevices(t, n)
	ctx, cancel := context.WithCancel(t.Context())
	changes, err := devices.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if signal(t, changes) == 0 {
		t.Error("no signal to begin with")
	}

	state := func(name string) string {
		d, ok := list(t, devices)[name]
		switch {
		case !ok:
			return "absent"
		case d.Up:
			return "up"
		}
		return "down"
	}
	address, err := netlink.ParseAddr("192.0.2.7/24")
	n.must(t, err)
	_, everywhere, err := net.ParseCIDR("0.0.0.0/0")
	n.must(t, err)
	route := func() *netlink.Route {
		return &netlink.Route{LinkIndex: n.link(t, "eth1").Attrs().Index, Dst: everywhere, Scope: unix.RT_SCOPE_LINK}
	}
	for _, step := range []struct {
		name      string
		do        func()
		nic, want string
	}{
		{"NIC set down", func() { n.down(t, "eth1") }, "eth1", "down"},
		{"NIC set up", func() { n.up(t, "eth1") }, "eth1", "up"},
		{"cable pulled", func() { n.down(t, "port-eth1") }, "eth1", "down"},
		{"cable plugged in", func() { n.up(t, "port-eth1") }, "eth1", "up"},
		{"NIC added", func() { n.cable(t, "eth2") }, "eth2", "up"},
		{"NIC removed", func() { n.remove(t, "eth2") }, "eth2", "absent"},
		{"address added", func() { n.must(t, n.AddrAdd(n.link(t, "eth1"), address)) }, "eth1", "up"},
		{"default route added", func() { n.must(t, n.RouteAdd(route())) }, "eth1", "up"},
		{"default route removed", func() { n.must(t, n.RouteDel(route())) }, "eth1", "up"},
		{"NIC added again", func() { n.cable(t, "eth2") }, "eth2", "up"},
	} {
		step.do()
		if got := signal(t, changes); got == 0 {
			t.Errorf("%s: no signal", step.name)
		}
		if got := state(step.nic); got != step.want {
			t.Errorf("%s: %s is %s, want %s", step.name, step.nic, got, step.want)
		}
	}

	cancel()
	ended := time.After(20 * time.Second)
	for open, late := true, 0; open; {
		select {
		case _, open = <-changes:
			if late++; open && late > 1 { // the channel holds one
				t.Error("signals after the end")
			}
		case <-ended:
			t.Fatal("the watch does not end with its context")
		}
	}
}

func TestDevicesWatchGathersBursts(t *testing.T) {
	n := newNode(t)
	devices := openDevices(t, n)
	changes, err := devices.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	signals(t, changes)
	const links = 40
	for i := range links {
		n.must(t, n.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("v%d", i), TxQLen: -1}, PeerName: fmt.Sprintf("p%d", i)}))
	}
	got := signal(t, changes)
	if got == 0 || got > links/2 {
		t.Errorf("%d signals for %d links made in a row, want a few", got, links)
	}
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range list(t, devices) {
			if name != "lo" && !yield(name) {
				return
			}
		}
	})
	if len(names) != 2*links {
		t.Errorf("%d links are listed, want %d", len(names), 2*links)
	}
}

func TestDevicesWatchPassesOverOtherRoutes(t *testing.T) {
	n := newNode(t)
	n.cable(t, "eth1")
	devices := openDevices(t, n)
	changes, err := devices.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	signals(t, changes)
	_, destination, err := net.ParseCIDR("198.51.100.9/32")
	n.must(t, err)
	n.must(t, n.RouteAdd(&netlink.Route{LinkIndex: n.link(t, "eth1").Attrs().Index, Dst: destination, Scope: unix.RT_SCOPE_LINK}))
	if got := signals(t, changes); got != 0 {
		t.Errorf("%d signals for a host route, want none: every pod has one", got)
	}
}
