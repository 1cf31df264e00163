// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"

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
// takes, and nobody reaches a pod of another Network on the same NIC.
func TestKindsAcrossNodes(t *testing.T) {
	for _, kind := range []struct {
		name, plugin, physical string
		specMTU, wantMTU       int
	}{
		{"macvlan", v1alpha1.PluginMacvlan, physManagement, 0, mtuManagement},
		{"macvlan-on-bridge-jumbo", v1alpha1.PluginMacvlan, physData, 0, mtuData},
		{"bridge-jumbo", v1alpha1.PluginBridge, physData, 0, mtuData},
		{"bridge-with-mtu", v1alpha1.PluginBridge, physData, 1400, 1400},
	} {
		t.Run(kind.name, func(t *testing.T) {
			spec := v1alpha1.NetworkSpec{
				PhysicalNet: kind.physical, Plugin: kind.plugin, MTU: int32(kind.specMTU),
				Subnet: "10.46.0.0/24", Subnet6: "fd00:10:46::/64",
			}
			network := newNetwork(t, "e2e-kind", spec)
			spec.Subnet, spec.Subnet6 = "10.47.0.0/24", "fd00:10:47::/64"
			other := newNetwork(t, "e2e-kind-other", spec)
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
				if out, err := b.sh(t, fmt.Sprintf("ping -c 2 -i 0.2 -W 1 %s", apart)); err == nil {
					t.Errorf("a pod of network %s reaches %s of network %s:\n%s", network.Name, apart, other.Name, out)
				}
			}
		})
	}
}

// mustPassWhole pings with packets of the size mtu, none of which may be sent
// in pieces.
func (b box) mustPassWhole(t *testing.T, to string, mtu int) {
	t.Helper()
	const count = 5
	headers := 20 + 8 // IPv4 and ICMP
	if strings.Contains(to, ":") {
		headers = 40 + 8
	}
	before := b.links(t)["net1"].Stats.TX
	out, err := b.sh(t, fmt.Sprintf("ping -c %d -i 0.2 -s %d -W 3 %s", count, mtu-headers, to))
	if err != nil || !strings.Contains(out, fmt.Sprintf("%d packets received", count)) {
		t.Errorf("ping %s with packets of %d bytes: %v\n%s", to, mtu, err, out)
	}
	after := b.links(t)["net1"].Stats.TX
	if sent := after.Bytes - before.Bytes; sent < uint64(count*mtu) {
		t.Errorf("net1 sent %d bytes, want at least the %d of the pings", sent, count*mtu)
	}
	// Some packets of neighbour discovery may come in between.
	if sent := after.Packets - before.Packets; sent >= 2*count {
		t.Errorf("net1 sent %d packets for %d pings: they went in pieces", sent, count)
	}
}
