// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	eventsv1 "k8s.io/api/events/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/integration/program"
)

// TestAForeignHostsAddressIsToldOf runs the agent with the rights that it has in
// a cluster: what it finds out reaches whoever asks why.
func TestAForeignHostsAddressIsToldOf(t *testing.T) {
	w := newWorld(t)
	spec := v1alpha1.NetworkSpec{
		PhysicalNet: "phy-net0", Plugin: v1alpha1.PluginMacvlan, Subnet: "10.30.0.0/16", ConflictDetection: v1alpha1.ConflictDetectionProbe,
	}
	w.network("shared", spec)
	w.startAgent()
	plan, err := addressing.NewPlan("shared", &spec)
	w.must(err)
	var addresses []netip.Addr
	w.await("a block to be claimed", func() error {
		var blocks v1alpha1.IPBlockList
		w.must(w.client.List(t.Context(), &blocks, client.MatchingFields{v1alpha1.FieldIPBlockNetwork: "shared"}))
		if len(blocks.Items) != 1 {
			return fmt.Errorf("%d blocks", len(blocks.Items))
		}
		addresses = slices.Collect(plan.PodAddresses(netip.MustParsePrefix(string(blocks.Items[0].Spec.CIDR))))
		return nil
	})

	// The other end of the NIC's cable is the foreign host.
	port, err := netlink.LinkByName("port-eth1")
	w.must(err)
	taken, err := netlink.ParseAddr(addresses[0].String() + "/32")
	w.must(err)
	w.must(netlink.AddrAdd(port, taken))
	s := w.newSandbox("web", "shared@net1")
	if _, err := w.add(s); err != nil {
		t.Fatal(err)
	}
	if got, want := w.interfaces(s), "net1 macvlan "+addresses[1].String()+"/16"; got != want {
		t.Errorf("interfaces %q, want %q", got, want)
	}

	want := fmt.Sprintf(`network "shared": address %s is in use by a host outside the cluster, with MAC %s`, addresses[0], port.Attrs().HardwareAddr)
	w.await("an event on the pod", func() error {
		var events eventsv1.EventList
		w.must(w.client.List(t.Context(), &events, client.InNamespace("default")))
		for i := range events.Items {
			if e := &events.Items[i]; e.Reason == v1alpha1.EventAddressTaken && e.Regarding.UID == s.pod.UID && e.Note == want {
				return nil
			}
		}
		return fmt.Errorf("%d others", len(events.Items))
	})
	w.await("the address to be held", func() error {
		if h := w.nodeNetwork().Status.Held; len(h) != 1 || h[0].Network != "shared" || h[0].Count != 1 || h[0].PodUID != "" {
			return fmt.Errorf("held %v", h)
		}
		return nil
	})
	text, err := program.Fetch(w.metrics, "/metrics")
	w.must(err)
	if want := `netplane_ipam_foreign_addresses_total{network="shared"} 1`; !strings.Contains(text, want) {
		t.Errorf("no %s in the metrics", want)
	}
	if strings.Contains(w.log.String(), "is forbidden") {
		t.Errorf("the service account lacks a right:\n%s", w.log)
	}
}
