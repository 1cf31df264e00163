// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestPreFilterAnswersOnceForAllNodes(t *testing.T) {
	tenants := func(n *v1alpha1.Network) {
		n.Spec.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}}
	}
	hostNetwork := makePod("p", "data")
	hostNetwork.Spec.HostNetwork = true
	resizing := makePod("p", "data")
	resizing.Status.Conditions = []v1.PodCondition{{Type: v1.PodResizePending, Status: v1.ConditionTrue, Reason: v1.PodReasonDeferred}}

	for name, test := range map[string]struct {
		pod     *v1.Pod
		objects []any
		want    answer
	}{
		"a pod without networks is passed over": {
			pod: makePod("p", ""), want: skip(),
		},
		"one that has given its networks up, too": {
			pod: makePod("p", " \n"), want: skip(),
		},
		"a bound pod that waits for a resize is passed over": {
			pod: resizing, want: skip(),
		},
		"networks that are there": {
			pod: makePod("p", "management@eth0,data"), objects: []any{makeNetwork("management"), makeNetwork("data")}, want: success(),
		},
		"an unknown network": {
			pod: makePod("p", "data,foo"), objects: []any{makeNetwork("data")},
			want: unresolvable(`network "foo" does not exist: create it, or correct annotation netplane.io/networks`),
		},
		"an ifname that the kernel refuses": {
			pod:  makePod("p", "data@eth1,data@abcdefghijklmnop"),
			want: unresolvable(`annotation netplane.io/networks: item 2 (network "data"): ifname "abcdefghijklmnop" has 16 characters: the kernel allows 15`),
		},
		"an ifname asked for twice": {
			pod:  makePod("p", "data@eth1,management@eth1"),
			want: unresolvable(`annotation netplane.io/networks: item 2 (network "management"): ifname "eth1" is already used by item 1`),
		},
		"an empty list": {
			pod:  makePod("p", "[]"),
			want: unresolvable(`annotation netplane.io/networks: the list is empty: name at least one network, such as management@eth0`),
		},
		"a fixed address of a network without a static range": {
			pod:     makePod("p", "- {name: management}\n- {name: data, sticky: true}"),
			objects: []any{makeNetwork("management"), makeNetwork("data")},
			want:    unresolvable(`annotation netplane.io/networks: item 2 (network "data"): network "data" has no staticRange, from which fixed addresses come`),
		},
		"a MAC where the NIC's is shared": {
			pod: makePod("p", "- {name: data}\n- {name: data, mac: 02:00:00:00:00:01}"), objects: []any{makeNetwork("data", ipvlan)},
			want: unresolvable(`network "data": interfaces of plugin ipvlan have the NIC's MAC address: ask for none`),
		},
		"eth0 where the NIC's MAC is shared": {
			pod: makePod("p", "data@eth0"), objects: []any{makeNetwork("data", ipvlan)},
			want: unresolvable(`network "data": interfaces of plugin ipvlan cannot be eth0, as the node itself would not reach the pod: choose another interface name, or a Network of plugin macvlan or bridge`),
		},
		"a pod in the node's own network namespace": {
			pod: hostNetwork, objects: []any{makeNetwork("data")},
			want: unresolvable("annotation netplane.io/networks: a pod with hostNetwork has the node's own interfaces: remove one of the two"),
		},
		"a network that is not ready": {
			pod: makePod("p", "data"), objects: []any{makeNetwork("data", setReady(metav1.ConditionFalse, v1alpha1.ReasonSubnetOverlap, `10.0.0.0/16 overlaps network "older"`))},
			want: unresolvable(`network "data" is not ready: SubnetOverlap: 10.0.0.0/16 overlaps network "older"`),
		},
		"a network that nobody has looked at": {
			pod: makePod("p", "data"), objects: []any{makeNetwork("data", func(n *v1alpha1.Network) { n.Status.Conditions = nil })},
			want: unresolvable(`network "data" is not ready: netplane-controller has not looked at it yet`),
		},
		"a network that is being deleted": {
			pod: makePod("p", "data"), objects: []any{makeNetwork("data", deletingNetwork)},
			want: unresolvable(`network "data" is being deleted`),
		},
		"a network whose subnet cannot be carved": {
			pod: makePod("p", "data"), objects: []any{makeNetwork("data", func(n *v1alpha1.Network) { n.Spec.BlockSize = 12 })},
			want: unresolvable(`network "data" is not usable: blockSize: 12 is not a power of two`),
		},
		"a namespace that the network admits": {
			pod: makePod("p", "data"), objects: []any{makeNetwork("data", tenants), makeNamespace("tenant", map[string]string{"team": "a"})},
			want: success(),
		},
		"a namespace that the network does not admit": {
			pod: makePod("p", "data"), objects: []any{makeNetwork("data", tenants), makeNamespace("tenant", map[string]string{"team": "b"})},
			want: unresolvable(`network "data" does not admit pods of namespace "tenant": its namespaceSelector does not match the namespace's labels`),
		},
		"a namespace that is not known yet": {
			pod: makePod("p", "data"), objects: []any{makeNetwork("data", tenants)},
			want: unresolvable(`network "data" does not admit pods of namespace "tenant": its namespaceSelector does not match the namespace's labels`),
		},
	} {
		t.Run(name, func(t *testing.T) {
			result, status := newPlugin(t, test.objects...).PreFilter(t.Context(), newCycleState(), test.pod, nil)
			if diff := cmp.Diff(test.want, answerOf(status)); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
			if result != nil {
				t.Errorf("PreFilter restricts the nodes to %v; the nodes' own reasons would be lost", result)
			}
		})
	}
}

func ipvlan(n *v1alpha1.Network) { n.Spec.Plugin = v1alpha1.PluginIPVLAN }

func TestPreFilterAddsUpTheSameNetwork(t *testing.T) {
	state := newCycleState()
	pl := newPlugin(t, makeNetwork("data"), makeNetwork("management"))
	if _, status := pl.PreFilter(t.Context(), state, makePod("p", "data@a,management@b,data@c"), nil); !status.IsSuccess() {
		t.Fatal(status)
	}
	got := map[string]int{}
	for _, w := range readWants(state) {
		got[w.Name] += w.demand
	}
	if diff := cmp.Diff(map[string]int{"data": 2, "management": 1}, got); diff != "" {
		t.Errorf("wants (-want +got):\n%s", diff)
	}
}
