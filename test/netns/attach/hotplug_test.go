// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/wire"
)

// A pod that runs, with a Network on eth0, is given an interface and loses it
// again. What it had stays as it is, over a restart of the agent, and DEL takes
// all.
func TestInterfacesOfARunningPodComeAndGo(t *testing.T) {
	const had = "management@eth0"
	node := wired(t, "node")[0]
	a := newAgent(t, node, network("management", v1alpha1.PluginMacvlan, nil), network("data", v1alpha1.PluginBridge, func(spec *v1alpha1.NetworkSpec) {
		spec.Subnet, spec.Subnet6 = "10.20.0.0/16", "fd00:10:20::/64"
	}))
	a.start(t)
	pod, peer := newSpace(t, "pod"), newSpace(t, "peer")
	sandbox, other := sandboxOf("c1", pod), sandboxOf("c2", peer)
	a.asked["pod-c1"], a.asked["pod-c2"] = had, "data@eth1"
	must(t, a.add(t, sandbox, had))
	must(t, a.add(t, other, "data@eth1"))
	routes := pod.routes(t, 2)

	if note := a.change(t, "c1", had+",data@eth2"); note != `added eth2 on network "data"` {
		t.Fatal(note)
	}
	if diff := cmp.Diff([]string{"10.20.2.2/16", "fd00:10:20::a14:202/64"}, pod.addresses(t, "eth2")); diff != "" {
		t.Error(diff)
	}
	for addr, from := range map[string]string{"10.20.2.2": "10.20.2.1", "fd00:10:20::a14:202": "fd00:10:20::a14:201"} {
		if seen := reach(t, peer, pod, addr); seen != from {
			t.Errorf("%s was reached by %s, want %s", addr, seen, from)
		}
	}
	if seen := reach(t, node, pod, "10.10.1.1"); seen != "10.10.1.0" {
		t.Errorf("eth0 was reached by %s", seen)
	}
	must(t, a.call(t, wire.Request{Op: wire.OpCheck, Sandbox: sandbox}))
	var names []string
	for _, attachment := range a.report("c1") {
		names = append(names, attachment.Interface+" "+strings.Join(attachment.IPs, " "))
	}
	if diff := cmp.Diff([]string{"eth0 10.10.1.1 fd00:10:10::a0a:101", "eth2 10.20.2.2 fd00:10:20::a14:202"}, names); diff != "" {
		t.Error(diff)
	}

	a.stop()
	a.start(t)
	must(t, a.call(t, wire.Request{Op: wire.OpCheck, Sandbox: sandbox}))
	if note := a.change(t, "c1", had); note != "removed eth2" {
		t.Fatal(note)
	}
	if got := pod.links(t); !slices.Equal(got, []string{"eth0"}) || len(a.ipam.Leases()) != 2 {
		t.Errorf("the pod has %v, leases are %v", got, a.ipam.Leases())
	}
	if diff := cmp.Diff(routes, pod.routes(t, 2)); diff != "" {
		t.Errorf("routes: %s", diff)
	}
	must(t, a.call(t, wire.Request{Op: wire.OpCheck, Sandbox: sandbox}))

	// The name is taken by an interface of the pod's own: it stays.
	must(t, pod.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth2", TxQLen: -1}}))
	if note := a.change(t, "c1", had+",data@eth2"); !strings.HasPrefix(note, `refused: interface eth2 on network "data" is not added yet: `) {
		t.Error(note)
	}
	if got := pod.links(t); !slices.Equal(got, []string{"eth0", "eth2"}) || len(a.ipam.Leases()) != 2 {
		t.Errorf("the pod has %v, leases are %v", got, a.ipam.Leases())
	}
	if note := a.change(t, "c1", had+",data@eth3"); note != `added eth3 on network "data"` {
		t.Error(note)
	}
	for _, gone := range []wire.Sandbox{sandbox, other} {
		must(t, a.del(t, gone))
	}
	a.nothingLeft(t, "eth1", "np-eth1")
	if got := pod.links(t); !slices.Equal(got, []string{"eth2"}) {
		t.Errorf("left in the pod: %v", got)
	}
}
