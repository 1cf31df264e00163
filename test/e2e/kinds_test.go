// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

// The MTUs of the NICs, as hack/cluster/physical.sh sets them.
const (
	mtuManagement = 1500
	mtuData       = 9000
)

// TestKindsAcrossNodes: over every kind of interface two pods on two nodes
// reach each other in both families with packets as large as the interface
// takes, and have no way to a pod of another Network on the same NIC.
func TestKindsAcrossNodes(t *testing.T) {
	for i, kind := range []struct {
		name, plugin, physical string
		specMTU, wantMTU       int
	}{
		{"macvlan", v1alpha1.PluginMacvlan, physManagement, 0, mtuManagement},
		{"macvlan-on-bridge-jumbo", v1alpha1.PluginMacvlan, physData, 0, mtuData},
		{"bridge-jumbo", v1alpha1.PluginBridge, physData, 0, mtuData},
		{"bridge-with-mtu", v1alpha1.PluginBridge, physData, 1400, 1400},
	} {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			made := func(name, octet string) *v1alpha1.Network {
				return newNetwork(t, "e2e-"+kind.name+name, v1alpha1.NetworkSpec{
					PhysicalNet: kind.physical, Plugin: kind.plugin, MTU: int32(kind.specMTU),
					Subnet:  v1alpha1.CIDR(fmt.Sprintf("10.%s.%d.0/24", octet, i)),
					Subnet6: v1alpha1.CIDR(fmt.Sprintf("fd00:10:%s:%d::/64", octet, i)),
				})
			}
			network, other := made("", "46"), made("-other", "47")
			awaitNetwork(t, network.Name, metav1.ConditionTrue, v1alpha1.ReasonReady)
			awaitNetwork(t, other.Name, metav1.ConditionTrue, v1alpha1.ReasonReady)
			ns := namespace(t)
			left := run(t, newPod(ns, "left", network.Name, on(env.node("worker"))))
			right := run(t, newPod(ns, "right", network.Name, on(env.node("worker3"))))
			stranger := run(t, newPod(ns, "stranger", other.Name, on(env.node("worker3"))))
			checkAttached(t, left, map[string]string{"net1": network.Name})
			checkAttached(t, right, map[string]string{"net1": network.Name})
			b := enter(t, left)
			if got := b.links(t)["net1"].MTU; got != kind.wantMTU {
				t.Errorf("the interface's MTU is %d, want %d", got, kind.wantMTU)
			}
			for _, v6 := range []bool{false, true} {
				b.mustReach(t, addressIn(t, right, network.Name, v6), webPort, "right")
				b.mustPassWhole(t, addressIn(t, right, network.Name, v6), kind.wantMTU)
				apart := addressIn(t, stranger, other.Name, v6)
				if way := b.ip(t, "route", "get", apart); strings.Contains(way, "dev net1") {
					t.Errorf("a pod of network %s has a way to %s of network %s: %s", network.Name, apart, other.Name, way)
				}
			}
			t.Run("the NIC's segment is one", func(t *testing.T) { oneSegment(t, b, enter(t, stranger), network, other) })
		})
	}
}

// oneSegment: without tags it is routes alone that keep Networks on one NIC apart,
// as docs/user/kinds.md says. It shows that a test of segments that are apart, as
// those of vxlan, can fail.
func oneSegment(t *testing.T, left, right box, network, other *v1alpha1.Network) {
	t.Helper()
	left.ip(t, "route", "add", string(other.Spec.Subnet), "dev", "net1")
	right.ip(t, "route", "add", string(network.Spec.Subnet), "dev", "net1")
	left.mustReach(t, addressIn(t, right.pod, other.Name, false), webPort, right.pod.Name)
}

// ip runs the node's ip command in the pod's network.
func (b box) ip(t *testing.T, args ...string) string {
	t.Helper()
	return mustOnNode(t, b.node, append([]string{"nsenter", "--target", strconv.Itoa(b.pid), "--net", "ip"}, args...)...)
}

// cannotReach says whether a pod gets no answer at all, although its packets leave
// by the interface.
func (b box) cannotReach(t *testing.T, ifname, to string) {
	t.Helper()
	if way := b.ip(t, "route", "get", to); !strings.Contains(way, "dev "+ifname) {
		t.Fatalf("%s is reached by another interface, so that nothing is proven: %s", to, way)
	}
	out, err := b.sh(t, "ping -c 3 -i 0.2 -W 2 "+to)
	if err == nil || !strings.Contains(out, " 0 packets received") {
		t.Errorf("pod %s reaches %s by %s (%v):\n%s", b.pod.Name, to, ifname, err, out)
	}
}

// TestBridgeOptions: isolated pods of one node do not reach each other, and those
// of two nodes do; a pod with a spoof check sends by its own address only.
func TestBridgeOptions(t *testing.T) {
	network := newNetwork(t, "e2e-options", v1alpha1.NetworkSpec{
		PhysicalNet: physData, Plugin: v1alpha1.PluginBridge, Subnet: "10.49.0.0/24", Subnet6: "fd00:10:49::/64",
		PluginConfig: &apiextensionsv1.JSON{Raw: []byte(`{"isolated":true,"spoofCheck":true}`)},
	})
	awaitNetwork(t, network.Name, metav1.ConditionTrue, v1alpha1.ReasonReady)
	ns := namespace(t)
	left := run(t, newPod(ns, "left", network.Name, on(env.node("worker"))))
	right := run(t, newPod(ns, "right", network.Name, on(env.node("worker3"))))
	beside := run(t, newPod(ns, "beside", network.Name, on(env.node("worker3"))))
	a, b := enter(t, left), enter(t, right)
	for _, v6 := range []bool{false, true} {
		a.mustReach(t, addressIn(t, right, network.Name, v6), webPort, "right")
		a.mustReach(t, addressIn(t, beside, network.Name, v6), webPort, "beside")
		b.mustReach(t, addressIn(t, left, network.Name, v6), webPort, "left")
		b.cannotReach(t, "net1", addressIn(t, beside, network.Name, v6))
	}
	b.ip(t, "addr", "add", "10.49.0.250/24", "dev", "net1")
	to := addressIn(t, left, network.Name, false)
	if out, err := b.sh(t, "ping -c 3 -i 0.2 -W 2 -I 10.49.0.250 "+to); err == nil || !strings.Contains(out, " 0 packets received") {
		t.Errorf("a pod sends from an address that is not its own (%v):\n%s", err, out)
	}
	b.mustReach(t, to, webPort, "left")
}

// TestKindThatTheKernelLacks: the pod waits, and is told why.
func TestKindThatTheKernelLacks(t *testing.T) {
	for _, suffix := range []string{"worker", "worker3"} {
		if _, err := onNode(t.Context(), env.node(suffix), "", "ip", "link", "add", "e2e-probe", "link", "eth1", "type", "ipvlan"); err == nil {
			mustOnNode(t, env.node(suffix), "ip", "link", "del", "e2e-probe")
			t.Skip("the kernel has ipvlan")
		}
	}
	network := newNetwork(t, "e2e-ipvlan", v1alpha1.NetworkSpec{PhysicalNet: physData, Plugin: v1alpha1.PluginIPVLAN, Subnet: "10.51.0.0/24"})
	awaitNetwork(t, network.Name, metav1.ConditionTrue, v1alpha1.ReasonReady)
	ns := namespace(t)
	pod := createPod(t, newPod(ns, "waits", network.Name))
	awaitPending(t, pod, `node(s) refused network "e2e-ipvlan": `+v1alpha1.ReasonPluginUnavailable)
}

// mustPassWhole is mustPassWholeBy for net1.
func (b box) mustPassWhole(t *testing.T, to string, mtu int) {
	t.Helper()
	b.mustPassWholeBy(t, "net1", to, mtu)
}

// mustPassWholeBy pings by an interface with packets of the size mtu, none of which
// may be sent in pieces.
func (b box) mustPassWholeBy(t *testing.T, ifname, to string, mtu int) {
	t.Helper()
	const count = 5
	headers := 20 + 8 // IPv4 and ICMP
	if strings.Contains(to, ":") {
		headers = 40 + 8
	}
	before := b.links(t)[ifname].Stats.TX
	out, err := b.sh(t, fmt.Sprintf("ping -c %d -i 0.2 -s %d -W 3 %s", count, mtu-headers, to))
	if err != nil || !strings.Contains(out, fmt.Sprintf("%d packets received", count)) {
		t.Errorf("ping %s with packets of %d bytes: %v\n%s", to, mtu, err, out)
	}
	after := b.links(t)[ifname].Stats.TX
	if sent := after.Bytes - before.Bytes; sent < uint64(count*mtu) {
		t.Errorf("%s sent %d bytes, want at least the %d of the pings", ifname, sent, count*mtu)
	}
	// Some packets of neighbour discovery may come in between.
	if sent := after.Packets - before.Packets; sent >= 2*count {
		t.Errorf("%s sent %d packets for %d pings: they went in pieces", ifname, sent, count)
	}
}
