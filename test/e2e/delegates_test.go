// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

// installed is a CNI configuration whose addresses are those of one node.
const installed = `{"cniVersion":"1.0.0","name":"E2E-Own","plugins":[{"type":"macvlan","master":"eth1","mode":"bridge","ipam":{"type":"host-local",
"ranges":[[{"subnet":"10.66.0.0/24","rangeStart":"10.66.0.%[1]d","rangeEnd":"10.66.0.%[1]d"}],[{"subnet":"fd00:10:66::/64","rangeStart":"fd00:10:66::%[1]d","rangeEnd":"fd00:10:66::%[1]d"}]]}}]}`

// TestDelegatesAcrossNodes: plugins that are not built in make the interfaces of
// Networks, of a configuration of the node with addresses of their own and of one
// in the Network with ours. Pods on two nodes talk over them.
func TestDelegatesAcrossNodes(t *testing.T) {
	nodes := []string{env.node("worker"), env.node("worker2")}
	onDisk(t, "90-e2e-own.conflist", map[string]string{nodes[0]: fmt.Sprintf(installed, 11), nodes[1]: fmt.Sprintf(installed, 12)})
	own := newNetwork(t, "e2e-own", v1alpha1.NetworkSpec{PhysicalNet: physManagement, Plugin: "e2e-own"})
	ours := newNetwork(t, "e2e-ours", v1alpha1.NetworkSpec{
		PhysicalNet: physManagement, Plugin: "third-party", Subnet: "10.67.0.0/24", Subnet6: "fd00:10:67::/64", BlockSize: 16,
		PluginConfig: &apiextensionsv1.JSON{Raw: []byte(`{"cniVersion":"1.0.0","type":"macvlan","master":"eth1","mode":"bridge","capabilities":{"mac":true}}`)},
	})
	ns := namespace(t)
	for _, n := range []*v1alpha1.Network{own, ours} {
		awaitNetwork(t, n.Name, "True", v1alpha1.ReasonReady)
	}
	networks := own.Name + "@own0," + ours.Name + "@ours0"
	left := createPod(t, newPod(ns, "left", networks, on(nodes[0])))
	right := run(t, newPod(ns, "right", networks, on(nodes[1])))
	awaitRunning(t, left, 60*time.Second)
	if got := sorted(attachments(t, left)["own0"].IPs); !slices.Equal(got, []string{"10.66.0.11", "fd00:10:66::11"}) {
		t.Errorf("the plugin gave the addresses %v", got)
	}
	a, b := enter(t, left), enter(t, right)
	for _, n := range []string{own.Name, ours.Name} {
		for _, v6 := range []bool{false, true} {
			a.mustReach(t, addressIn(t, right, n, v6), webPort, "right")
			b.mustReach(t, addressIn(t, left, n, v6), webPort, "left")
			ifname := map[string]string{own.Name: "own0", ours.Name: "ours0"}[n]
			a.mustPassWholeBy(t, ifname, addressIn(t, right, n, v6), mtuManagement)
		}
	}
	for _, pod := range []*corev1.Pod{left, right} {
		v4 := netip.MustParseAddr(addressIn(t, pod, ours.Name, false))
		checkBlock(t, ours.Name, pod.Spec.NodeName, v4)
		_, plan := planOf(t, ours.Name)
		if got := enter(t, pod).links(t)["ours0"]; got.Address != plan.MAC(v4).String() {
			t.Errorf("pod %s: ours0 has the MAC address %s, want %s", pod.Name, got.Address, plan.MAC(v4))
		}
	}
	checkNothingDelegated(t, ns, nodes, "E2E-Own")
}
