// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

// pods makes n pods that ask for networks.
func pods(n int, networks string) []*v1.Pod {
	out := make([]*v1.Pod, 0, n)
	for i := range n {
		out = append(out, makePod(fmt.Sprintf("%s-%d", networks, i), networks))
	}
	return out
}

func TestFilter(t *testing.T) {
	hostNetwork := makePod("host", "data")
	hostNetwork.Spec.HostNetwork = true
	own := makePod("p", "data")
	own.Spec.NodeName = "n"

	for name, test := range map[string]struct {
		pod     *v1.Pod // makePod("p", "data") if nil
		objects []any
		there   []*v1.Pod
		want    answer
	}{
		"room on the node": {
			objects: []any{makeNode("n", up("data")), makeBlock("data", "n", 0)},
			want:    success(),
		},
		"no NodeNetwork": {
			objects: []any{makeBlock("data", "n", 0)},
			want:    unresolvable("node(s) had no ready netplane agent"),
		},
		"the agent is not ready": {
			objects: []any{makeNode("n", up("data"), setAgent("False")), makeBlock("data", "n", 0)},
			want:    unresolvable("node(s) had no ready netplane agent"),
		},
		"nobody has looked at the agent": {
			objects: []any{makeNode("n", up("data"), func(n *v1alpha1.NodeNetwork) { n.Status.Conditions = nil }), makeBlock("data", "n", 0)},
			want:    unresolvable("node(s) had no ready netplane agent"),
		},
		"no NIC is mapped": {
			objects: []any{makeNode("n", up("management")), makeBlock("data", "n", 0)},
			want:    unresolvable(`node(s) had no NIC for network "data"`),
		},
		"the mapped NIC is not there": {
			objects: []any{makeNode("n", notReady("data", v1alpha1.ReasonInterfaceNotFound)), makeBlock("data", "n", 0)},
			want:    unresolvable(`node(s) had no NIC for network "data"`),
		},
		"the NIC is down": {
			objects: []any{makeNode("n", notReady("data", v1alpha1.ReasonInterfaceDown)), makeBlock("data", "n", 0)},
			want:    unresolvable(`node(s) had the NIC for network "data" down`),
		},
		"the node refuses the network": {
			objects: []any{makeNode("n", up("data"), refuse("management", v1alpha1.ReasonHostInterface), refuse("data", v1alpha1.ReasonPluginConflict)), makeBlock("data", "n", 0)},
			want:    unresolvable(`node(s) refused network "data": PluginConflict`),
		},
		"the node refuses another network": {
			objects: []any{makeNode("n", up("data"), refuse("management", v1alpha1.ReasonPluginConflict)), makeBlock("data", "n", 0)},
			want:    success(),
		},
		"one of two networks has no NIC": {
			pod:     makePod("p", "data,management"),
			objects: []any{makeNode("n", up("data")), makeBlock("data", "n", 0), makeBlock("management", "n", 1)},
			want:    unresolvable(`node(s) had no NIC for network "management"`),
		},
		"no block": {
			objects: []any{makeNode("n", up("data")), makeBlock("data", "other", 0), makeBlock("management", "n", 1)},
			want:    unresolvable(`node(s) held no address block of network "data"`),
		},
		"only a block of an older Network of that name": {
			objects: []any{makeNode("n", up("data")), func() *v1alpha1.IPBlock { b := makeBlock("data", "n", 0); b.Spec.NetworkUID = "older"; return b }()},
			want:    unresolvable(`node(s) held no address block of network "data"`),
		},
		"more interfaces than the node has addresses": {
			pod:     makePod("p", "data,data,data,data,data,data,data,data"),
			objects: []any{makeNode("n", up("data")), makeBlock("data", "n", 0)},
			want:    unresolvable(`node(s) had too few addresses in network "data" for the pod`),
		},
		"the last address": {
			objects: []any{makeNode("n", up("data")), makeBlock("data", "n", 0)},
			there:   pods(6, "data"),
			want:    success(),
		},
		"no address left": {
			objects: []any{makeNode("n", up("data")), makeBlock("data", "n", 0)},
			there:   pods(7, "data"),
			want:    unschedulable(`node(s) had no free address in network "data"`),
		},
		"a second block makes room": {
			objects: []any{makeNode("n", up("data")), makeBlock("data", "n", 0), makeBlock("data", "n", 1)},
			there:   pods(7, "data"),
			want:    success(),
		},
		"one address left for two interfaces": {
			pod:     makePod("p", "data,data"),
			objects: []any{makeNode("n", up("data")), makeBlock("data", "n", 0)},
			there:   pods(6, "data"),
			want:    unschedulable(`node(s) had no free address in network "data"`),
		},
		"a lack that no pod's end would cure is told first": {
			pod:     makePod("p", "data,management"),
			objects: []any{makeNode("n", up("data", "management")), makeBlock("data", "n", 0)},
			there:   pods(7, "data"),
			want:    unresolvable(`node(s) held no address block of network "management"`),
		},
		"pods on other networks, in the host's namespace or with a malformed list take no address": {
			objects: []any{makeNode("n", up("data")), makeBlock("data", "n", 0)},
			there:   append(append(pods(6, "data"), pods(7, "management")...), hostNetwork, makePod("bad", "data@x,data@x"), makePod("none", "")),
			want:    success(),
		},
		"addresses that are held for nobody count": {
			objects: []any{makeNode("n", up("data"), hold(v1alpha1.HeldAddresses{Network: "data", Count: 7})), makeBlock("data", "n", 0)},
			want:    unschedulable(`node(s) had no free address in network "data"`),
		},
		"addresses held for a pod that is gone count": {
			objects: []any{makeNode("n", up("data"), hold(v1alpha1.HeldAddresses{Network: "data", Count: 7, PodUID: "gone"})), makeBlock("data", "n", 0)},
			want:    unschedulable(`node(s) had no free address in network "data"`),
		},
		"addresses held for a living pod count once": {
			objects: []any{makeNode("n", up("data"), hold(v1alpha1.HeldAddresses{Network: "data", Count: 6, PodUID: "uid-data-0"})), makeBlock("data", "n", 0), makePod("data-0", "data")},
			there:   pods(1, "data"),
			want:    success(),
		},
		"a preempted pod's address is free in the simulation": {
			objects: []any{makeNode("n", up("data"), hold(v1alpha1.HeldAddresses{Network: "data", Count: 1, PodUID: "uid-victim"})), makeBlock("data", "n", 0), makePod("victim", "data")},
			there:   pods(6, "data"),
			want:    success(),
		},
		"the pod does not stand in its own way": {
			pod:     own,
			objects: []any{makeNode("n", up("data")), makeBlock("data", "n", 0)},
			there:   append(pods(6, "data"), own),
			want:    success(),
		},
		"a network without a subnet needs a NIC only": {
			pod:     makePod("p", "delegate"),
			objects: []any{makeNode("n", up("delegate")), makeNetwork("delegate", func(n *v1alpha1.Network) { n.Spec.Subnet, n.Spec.BlockSize = "", 0 })},
			want:    success(),
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := test.pod
			if pod == nil {
				pod = makePod("p", "data")
			}
			pl := newPlugin(t, append(test.objects, makeNetwork("data"), makeNetwork("management"))...)
			state := newCycleState()
			if _, status := pl.PreFilter(t.Context(), state, pod, nil); !status.IsSuccess() {
				t.Fatal(status)
			}
			got := pl.Filter(t.Context(), state, pod, newNodeInfo("n", test.there...))
			if diff := cmp.Diff(test.want, answerOf(got)); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}
}

// The framework filters nodes in parallel and simulates preemption on copies
// of the same node at the same time.
func TestFilterSeesTheNodeInfoThatItIsGiven(t *testing.T) {
	pl := newPlugin(t, makeNetwork("data"), makeNode("n", up("data")), makeBlock("data", "n", 0))
	state, pod := newCycleState(), makePod("p", "data")
	if _, status := pl.PreFilter(t.Context(), state, pod, nil); !status.IsSuccess() {
		t.Fatal(status)
	}
	var group sync.WaitGroup
	for worker := range 8 {
		there := worker
		group.Go(func() {
			info := newNodeInfo("n", pods(there, "data")...)
			info.generation = int64(there)
			want := success()
			if there >= 7 {
				want = unschedulable(`node(s) had no free address in network "data"`)
			}
			for range 500 {
				if got := answerOf(pl.Filter(t.Context(), state, pod, info)); got != want {
					t.Errorf("with %d pods on the node: %v, want %v", there, got, want)
					return
				}
			}
		})
	}
	group.Wait()
}
