// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

// TestPodsThatAskForNonsense: each stays Pending and is told what is wrong.
func TestPodsThatAskForNonsense(t *testing.T) {
	ns := namespace(t)
	tests := []struct {
		name, annotation string
		want             []string
	}{
		{"unknown-network", "storage@eth1", []string{`network "storage" does not exist`}},
		{"bad-annotation", "- {name: data, interface: eth1}", []string{"netplane.io/networks", `unknown field "interface"`}},
		{"long-ifname", "data@abcdefghijklmnop", []string{`ifname "abcdefghijklmnop" has 16 characters: the kernel allows 15`}},
		{"duplicate-ifname", "management@eth1,data@eth1", []string{`item 2 (network "data"): ifname "eth1" is already used by item 1`}},
	}
	for _, tt := range tests {
		createPod(t, newPod(ns, tt.name, tt.annotation))
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { awaitPending(t, newPod(ns, tt.name, tt.annotation), tt.want...) })
	}
}

// TestNetworksThatCannotBe: the Network says why it cannot be used, and so
// does the scheduler to a pod that asks for it. Whether a node can serve a
// Network is that node's word; what is wrong for all makes it not Ready.
func TestNetworksThatCannotBe(t *testing.T) {
	tests := []struct {
		name   string
		spec   v1alpha1.NetworkSpec
		ready  metav1.ConditionStatus
		reason string
		words  []string
		pod    string
	}{
		{
			"e2e-overlap", v1alpha1.NetworkSpec{PhysicalNet: physManagement, Plugin: v1alpha1.PluginMacvlan, Subnet: "10.10.128.0/17"},
			metav1.ConditionFalse, v1alpha1.ReasonSubnetOverlap, []string{`older Network "management"`},
			`network "e2e-overlap" is not ready: SubnetOverlap`,
		},
		{
			"e2e-unknown", v1alpha1.NetworkSpec{PhysicalNet: "phy-net9", Plugin: v1alpha1.PluginMacvlan, Subnet: "10.40.0.0/24"},
			metav1.ConditionFalse, v1alpha1.ReasonUnknownPhysicalNetwork, []string{`"phy-net9"`},
			`network "e2e-unknown" is not ready: UnknownPhysicalNetwork`,
		},
		{
			"e2e-mtu", v1alpha1.NetworkSpec{PhysicalNet: physManagement, Plugin: v1alpha1.PluginMacvlan, Subnet: "10.41.0.0/24", MTU: 9000},
			metav1.ConditionTrue, v1alpha1.ReasonReady, []string{v1alpha1.ReasonMTUExceedsInterface, "spec.mtu 9000 is larger than the 1500 of NIC eth"},
			`node(s) refused network "e2e-mtu": MTUExceedsInterface`,
		},
		{
			"e2e-conflict", v1alpha1.NetworkSpec{PhysicalNet: physManagement, Plugin: v1alpha1.PluginBridge, Subnet: "10.42.0.0/24"},
			metav1.ConditionTrue, v1alpha1.ReasonReady, []string{v1alpha1.ReasonPluginConflict, "older Network management with plugin macvlan"},
			`node(s) refused network "e2e-conflict": PluginConflict`,
		},
		{
			"e2e-plugin", v1alpha1.NetworkSpec{PhysicalNet: physManagement, Plugin: "Flannel"},
			metav1.ConditionTrue, v1alpha1.ReasonReady, []string{v1alpha1.ReasonPluginNotInstalled, `no CNI configuration of a network or plugin "Flannel"`},
			`node(s) refused network "e2e-plugin": PluginNotInstalled`,
		},
	}
	for _, tt := range tests {
		newNetwork(t, tt.name, tt.spec)
	}
	ns := namespace(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			awaitNetwork(t, tt.name, tt.ready, tt.reason, tt.words...)
			awaitPending(t, createPod(t, newPod(ns, tt.name, tt.name)), tt.pod)
		})
	}
	t.Run("refused by the node", func(t *testing.T) {
		nn, err := getNodeNetwork(t.Context(), env.node("worker2"))
		if err != nil {
			t.Fatal(err)
		}
		reasons := map[string]string{}
		for _, r := range nn.Status.Refused {
			reasons[r.Network] = r.Reason
		}
		for network, want := range map[string]string{"e2e-mtu": v1alpha1.ReasonMTUExceedsInterface, "e2e-conflict": v1alpha1.ReasonPluginConflict} {
			if reasons[network] != want {
				t.Errorf("network %s is refused for %q, want %q", network, reasons[network], want)
			}
		}
	})
}

// TestMapWithTheTalksUnderscore: an alias that is no DNS label is answered with
// the one to use, and what was mapped before stays.
func TestMapWithTheTalksUnderscore(t *testing.T) {
	node := env.node("worker2")
	t.Run("map", func(t *testing.T) {
		setMap(t, node, "provider:\n- {alias: phy_net0, ref_nic: eth1}\n")
		eventually(t, 15*time.Second, "the error in the map to be told", func() error {
			nn, err := getNodeNetwork(t.Context(), node)
			if err != nil {
				return err
			}
			c := meta.FindStatusCondition(nn.Status.Conditions, v1alpha1.ConditionInventoryReady)
			if c == nil || c.Reason != v1alpha1.ReasonInvalidMap || !strings.Contains(c.Message, `alias "phy_net0" is no DNS label`) || !strings.Contains(c.Message, `use "phy-net0"`) {
				return fmt.Errorf("the condition is %+v", c)
			}
			if nic, ready := nicFor(nn, physManagement); nic != "eth1" || !ready {
				t.Errorf("%s is backed by %q (ready: %t), want it to stay eth1", physManagement, nic, ready)
			}
			return nil
		})
	})
	eventually(t, 15*time.Second, "the mended map to be read", func() error {
		return conditionIs(t.Context(), node, v1alpha1.ConditionInventoryReady, "True")
	})
}
