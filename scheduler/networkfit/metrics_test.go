// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"strings"
	"testing"

	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/component-base/metrics/testutil"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestRejectedNodesAreCountedByReason(t *testing.T) {
	// The second profile's plugin counts in the same series.
	pl := newPlugin(t, makeNetwork("data"), makeNode("idle", up("data"), setAgent("False")), makeNode("bare", nil),
		makeNode("down", notReady("data", v1alpha1.ReasonInterfaceDown)), makeNode("refusing", up("data"), refuse("data", v1alpha1.ReasonPluginConflict)),
		makeNode("empty", up("data")), makeNode("small", up("data")), makeBlock("data", "small", 0))
	other, err := New(nil, pl.sources)
	if err != nil {
		t.Fatal(err)
	}
	for c := range pl.metrics.filtered {
		pl.metrics.filtered[c].Store(0)
	}
	for _, name := range []string{"unknown", "idle", "bare", "down", "refusing", "empty"} {
		filter(t, pl, makePod("p", "data"), newNodeInfo(name))
	}
	filter(t, pl, makePod("p", strings.TrimSuffix(strings.Repeat("data,", 8), ",")), newNodeInfo("small"))
	filter(t, pl, makePod("p", "data"), newNodeInfo("small"))
	crowded := newNodeInfo("small", pods(7, "data")...)
	crowded.generation = 2
	filter(t, other, makePod("p", "data"), crowded)
	legacyregistry.Reset()
	want := `
# HELP netplane_scheduler_filtered_nodes_total [ALPHA] Nodes that Filter has rejected for a pod, by reason.
# TYPE netplane_scheduler_filtered_nodes_total counter
netplane_scheduler_filtered_nodes_total{reason="nic_down"} 1
netplane_scheduler_filtered_nodes_total{reason="no_agent"} 2
netplane_scheduler_filtered_nodes_total{reason="no_block"} 1
netplane_scheduler_filtered_nodes_total{reason="no_free_address"} 1
netplane_scheduler_filtered_nodes_total{reason="no_free_nic"} 0
netplane_scheduler_filtered_nodes_total{reason="no_nic"} 1
netplane_scheduler_filtered_nodes_total{reason="refused"} 1
netplane_scheduler_filtered_nodes_total{reason="too_few_addresses"} 1
netplane_scheduler_filtered_nodes_total{reason="too_few_nics"} 0
`
	if err := testutil.GatherAndCompare(legacyregistry.DefaultGatherer, strings.NewReader(want), "netplane_scheduler_filtered_nodes_total"); err != nil {
		t.Error(err)
	}
}

func TestWaitingPodsAreCountedByNetwork(t *testing.T) {
	bound, host := makePod("bound", "data"), makePod("host", "data")
	bound.Spec.NodeName = "n"
	host.Spec.HostNetwork = true
	pl := newPlugin(t, bound, host, makePod("a", "data,data"), makePod("b", "data,management"), makePod("none", ""), makePod("bad", "data@x,data@x"))
	want := `
# HELP netplane_scheduler_pods_waiting [ALPHA] Pods without a node that ask for the network.
# TYPE netplane_scheduler_pods_waiting gauge
netplane_scheduler_pods_waiting{network="data"} 2
netplane_scheduler_pods_waiting{network="management"} 1
`
	compare := func(want string) {
		t.Helper()
		if err := testutil.GatherAndCompare(legacyregistry.DefaultGatherer, strings.NewReader(want), "netplane_scheduler_pods_waiting"); err != nil {
			t.Error(err)
		}
	}
	compare(want)
	for _, name := range []string{"a", "b"} {
		placed := makePod(name, "data")
		placed.Spec.NodeName = "n"
		if err := pl.sources.pods.Update(placed); err != nil {
			t.Fatal(err)
		}
	}
	compare("")
}
