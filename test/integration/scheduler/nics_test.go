// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"testing"

	"github.com/netplane/netplane/api/v1alpha1"
)

// Two Networks share two NICs of three; the agent's and the controller's parts
// are played here.
func TestPodsShareTheNICsOfAPhysicalNetwork(t *testing.T) {
	w := newWorld(t)
	offer := w.node("a", "phy-net1")
	offer.Status.PhysicalNetworks[0].Interfaces = []string{"eth0", "eth1", "eth2"}
	offer.Status.PhysicalNetworks[0].Exclusive = []string{"eth1", "eth2"}
	offer.Status.Interfaces = []v1alpha1.NodeInterfaceStatus{
		{Name: "eth0", State: v1alpha1.OperStateUp}, {Name: "eth1", State: v1alpha1.OperStateUp}, {Name: "eth2", State: v1alpha1.OperStateDown},
	}
	w.updateStatus(offer)
	whole := func(s *v1alpha1.NetworkSpec) { s.Plugin = v1alpha1.PluginHostDevice }
	w.block(w.network("fast", "phy-net1", "10.20.0.0/16", whole), "a", "10.20.1.0/29")
	w.block(w.network("slow", "phy-net1", "10.21.0.0/16", whole), "a", "10.21.1.0/29")

	first := w.pod("first", "fast")
	w.awaitBound(first)
	second := w.pod("second", "slow")
	w.awaitPending(second, `1 node(s) had no free NIC for network "slow"`)
	w.awaitPending(w.pod("greedy", "fast,slow"), `1 node(s) had too few NICs for network "fast"`)

	// The first NIC is inside its pod by now, and another comes up.
	offer.Status.Interfaces[1].State, offer.Status.Interfaces[1].InUse = "", true
	offer.Status.Interfaces[2].State = v1alpha1.OperStateUp
	w.updateStatus(offer)
	w.awaitBound(second)
	third := w.pod("third", "slow")
	w.awaitPending(third, `1 node(s) had no free NIC for network "slow"`)
	if err := w.api.Delete(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	w.awaitBound(third)
}
