// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/v1alpha1"
)

var epoch = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

// aNetwork is a /24 with blocks of 16 on phy-net0, made at epoch.
func aNetwork(name string, change ...func(*v1alpha1.Network)) v1alpha1.Network {
	n := v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name + "-uid"), Generation: 3, CreationTimestamp: metav1.NewTime(epoch)},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: "phy-net0", Plugin: v1alpha1.PluginMacvlan, Subnet: "10.10.0.0/24"},
	}
	for _, f := range change {
		f(&n)
	}
	return n
}

func subnet(cidr v1alpha1.CIDR) func(*v1alpha1.Network) {
	return func(n *v1alpha1.Network) { n.Spec.Subnet = cidr }
}

func madeAfter(d time.Duration) func(*v1alpha1.Network) {
	return func(n *v1alpha1.Network) { n.CreationTimestamp = metav1.NewTime(epoch.Add(d)) }
}

// found is the status of an evaluation at a generation.
func found(generation int64, status metav1.ConditionStatus, reason string) func(*v1alpha1.Network) {
	return func(n *v1alpha1.Network) {
		n.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: status, Reason: reason, ObservedGeneration: generation}}
	}
}

func grown(cidr v1alpha1.CIDR) func(*v1alpha1.Network) {
	return func(n *v1alpha1.Network) { n.Spec.AdditionalSubnets = append(n.Spec.AdditionalSubnets, cidr) }
}

func deleting(n *v1alpha1.Network) { n.DeletionTimestamp = &metav1.Time{Time: epoch} }

// aNode maps phy-net0 to eth1, which is up, and has a ready agent.
func aNode(name string, change ...func(*v1alpha1.NodeNetwork)) v1alpha1.NodeNetwork {
	n := v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: name}}
	n.Status.PhysicalNetworks = []v1alpha1.NodePhysicalNetwork{
		{Name: "phy-net0", Interfaces: []string{"eth1"}, Ready: true, Reason: v1alpha1.ReasonInterfaceUp},
	}
	n.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionAgentReady, Status: metav1.ConditionTrue}}
	for _, f := range change {
		f(&n)
	}
	return n
}

func nicDown(n *v1alpha1.NodeNetwork) { n.Status.PhysicalNetworks[0].Ready = false }

func agentDown(n *v1alpha1.NodeNetwork) { n.Status.Conditions[0].Status = metav1.ConditionFalse }

func refuses(network, reason, message string) func(*v1alpha1.NodeNetwork) {
	return func(n *v1alpha1.NodeNetwork) {
		n.Status.Refused = append(n.Status.Refused, v1alpha1.RefusedNetwork{Network: network, Reason: reason, Message: message})
	}
}

func holds(network string, count int32, pod types.UID) func(*v1alpha1.NodeNetwork) {
	return func(n *v1alpha1.NodeNetwork) {
		n.Status.Held = append(n.Status.Held, v1alpha1.HeldAddresses{Network: network, Count: count, PodUID: pod})
	}
}

func aPod(name, networks string, change ...func(*corev1.Pod)) corev1.Pod {
	p := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, UID: types.UID(name + "-uid"),
			Annotations: map[string]string{v1alpha1.AnnotationNetworks: networks},
		},
		Spec: corev1.PodSpec{NodeName: "worker"},
	}
	for _, f := range change {
		f(&p)
	}
	return p
}

func aBlock(network string, cidr v1alpha1.CIDR, change ...func(*v1alpha1.IPBlock)) v1alpha1.IPBlock {
	b := v1alpha1.IPBlock{Spec: v1alpha1.IPBlockSpec{Network: network, NetworkUID: types.UID(network + "-uid"), CIDR: cidr, NodeName: "worker"}}
	for _, f := range change {
		f(&b)
	}
	return b
}

// facts are those of a Network that is Ready.
func facts(network v1alpha1.Network, change ...func(*Facts)) *Facts {
	f := &Facts{Network: &network, PhysicalNetworkExists: true, Nodes: []v1alpha1.NodeNetwork{aNode("worker")}}
	for _, c := range change {
		c(f)
	}
	return f
}

func TestReadiness(t *testing.T) {
	type verdict struct {
		Status          metav1.ConditionStatus
		Reason, Message string
	}
	tests := map[string]struct {
		facts *Facts
		want  verdict
	}{
		"nothing stands against it": {
			facts: facts(aNetwork("management")),
			want:  verdict{"True", "Ready", "pods may be placed on it"},
		},
		"unknown physical network": {
			facts: facts(aNetwork("management"), func(f *Facts) { f.PhysicalNetworkExists = false }),
			want:  verdict{"False", "UnknownPhysicalNetwork", `there is no PhysicalNetwork "phy-net0": create it, or make a new Network with the right physicalNet`},
		},
		"a vlan tag on vxlan": {
			facts: facts(aNetwork("management", func(n *v1alpha1.Network) { n.Spec.Plugin, n.Spec.VLAN = "vxlan", 100 })),
			want:  verdict{"False", "UnsupportedPlugin", "vlan 100: a tunnel has no tag of its own: make the tagged device on the nodes, map it to a physical network, and name that here without vlan"},
		},
		"a delegate with our addresses": {
			facts: facts(aNetwork("management", func(n *v1alpha1.Network) { n.Spec.Plugin = "ptp" })),
			want:  verdict{"True", "Ready", "pods may be placed on it"},
		},
		"a delegate with its own": {
			facts: facts(aNetwork("management", subnet(""), func(n *v1alpha1.Network) { n.Spec.Plugin = "canal" })),
			want:  verdict{"True", "Ready", "pods may be placed on it"},
		},
		"a delegate that is asked for what only built-in kinds can": {
			facts: facts(aNetwork("management", func(n *v1alpha1.Network) { n.Spec.Plugin, n.Spec.VLAN = "canal", 5 })),
			want:  verdict{"False", "UnsupportedPlugin", `vlan 5: a plugin that is not built in, such as "canal", tags by itself: write it into pluginConfig`},
		},
		"a delegate whose addresses cannot be probed": {
			facts: facts(aNetwork("management", func(n *v1alpha1.Network) {
				n.Spec.Plugin, n.Spec.ConflictDetection = "canal", v1alpha1.ConflictDetectionProbe
			})),
			want: verdict{"False", "UnsupportedPlugin", `conflictDetection Probe: a plugin that is not built in, such as "canal", cannot wait for it`},
		},
		"a delegate that is asked for sysctls": {
			facts: facts(aNetwork("management", func(n *v1alpha1.Network) {
				n.Spec.Plugin, n.Spec.Sysctls = "canal", []v1alpha1.Sysctl{{Name: "net.ipv4.conf.IFNAME.rp_filter", Value: "2"}}
			})),
			want: verdict{"False", "UnsupportedPlugin", `sysctls: a plugin that is not built in, such as "canal", makes its interfaces by itself: add the plugin tuning to its configuration`},
		},
		"a delegate with its own addresses and our routes": {
			facts: facts(aNetwork("management", subnet(""), func(n *v1alpha1.Network) {
				n.Spec.Plugin, n.Spec.Routes = "canal", []v1alpha1.Route{{To: "10.0.0.0/8"}}
			})),
			want: verdict{"False", "UnsupportedPlugin", `routes and gateway: of a Network without subnet they are plugin "canal"'s: write them into pluginConfig`},
		},
		"a vlan tag": {
			facts: facts(aNetwork("management", func(n *v1alpha1.Network) { n.Spec.VLAN = 100 })),
			want:  verdict{"True", "Ready", "pods may be placed on it"},
		},
		"a vlan tag on whole NICs": {
			facts: facts(aNetwork("management", func(n *v1alpha1.Network) { n.Spec.Plugin, n.Spec.VLAN = "host-device", 100 })),
			want:  verdict{"False", "UnsupportedPlugin", "vlan 100: a pod that has a NIC for itself tags by itself: make a Network without vlan"},
		},
		"ipvlan with a mode": {
			facts: facts(aNetwork("management", func(n *v1alpha1.Network) {
				n.Spec.Plugin, n.Spec.PluginConfig = "ipvlan", &apiextensionsv1.JSON{Raw: []byte(`{"mode": "l3"}`)}
			})),
			want: verdict{"True", "Ready", "pods may be placed on it"},
		},
		"a mode that the plugin lacks": {
			facts: facts(aNetwork("management", func(n *v1alpha1.Network) {
				n.Spec.PluginConfig = &apiextensionsv1.JSON{Raw: []byte(`{"mode": "l3"}`)}
			})),
			want: verdict{"False", "InvalidSpec", `spec.pluginConfig.mode: "l3" is no mode of plugin macvlan: write one of bridge, vepa, private, passthru`},
		},
		"subnets of its own that overlap": {
			facts: facts(aNetwork("management", func(n *v1alpha1.Network) { n.Spec.AdditionalSubnets = []v1alpha1.CIDR{"10.10.0.0/25"} })),
			want:  verdict{"False", "InvalidSpec", "spec.additionalSubnets[0]: 10.10.0.0/25 overlaps 10.10.0.0/24"},
		},
		"the newer of two that overlap": {
			facts: facts(aNetwork("new", subnet("10.10.0.0/16"), madeAfter(time.Hour)), func(f *Facts) {
				f.Siblings = []v1alpha1.Network{aNetwork("old"), *f.Network}
			}),
			want: verdict{"False", "SubnetOverlap", `10.10.0.0/16 overlaps the older Network "old" (10.10.0.0/24) on physical network "phy-net0": choose another subnet or vlan, or delete one of the two`},
		},
		"the older of two that overlap": {
			facts: facts(aNetwork("old"), func(f *Facts) {
				f.Siblings = []v1alpha1.Network{aNetwork("new", subnet("10.10.0.0/16"), madeAfter(time.Hour)), *f.Network}
			}),
			want: verdict{"True", "Ready", "pods may be placed on it"},
		},
		"made in the same second, the name decides": {
			facts: facts(aNetwork("b"), func(f *Facts) { f.Siblings = []v1alpha1.Network{aNetwork("a"), aNetwork("b")} }),
			want:  verdict{"False", "SubnetOverlap", `10.10.0.0/24 overlaps the older Network "a" (10.10.0.0/24) on physical network "phy-net0": choose another subnet or vlan, or delete one of the two`},
		},
		"the oldest of several is named": {
			facts: facts(aNetwork("c", madeAfter(2*time.Hour)), func(f *Facts) {
				f.Siblings = []v1alpha1.Network{aNetwork("b", madeAfter(time.Hour)), aNetwork("a")}
			}),
			want: verdict{"False", "SubnetOverlap", `10.10.0.0/24 overlaps the older Network "a" (10.10.0.0/24) on physical network "phy-net0": choose another subnet or vlan, or delete one of the two`},
		},
		"overlap in IPv6 alone": {
			facts: facts(aNetwork("new", subnet("10.99.0.0/24"), madeAfter(time.Hour), func(n *v1alpha1.Network) { n.Spec.Subnet6 = "fd00:1::/64" }), func(f *Facts) {
				f.Siblings = []v1alpha1.Network{aNetwork("old", func(n *v1alpha1.Network) { n.Spec.Subnet6 = "fd00:1::/48" })}
			}),
			want: verdict{"False", "SubnetOverlap", `10.99.0.0/24, fd00:1::/64 overlaps the older Network "old" (10.10.0.0/24, fd00:1::/48) on physical network "phy-net0": choose another subnet or vlan, or delete one of the two`},
		},
		"the same subnet on another vlan": {
			facts: facts(aNetwork("new", madeAfter(time.Hour)), func(f *Facts) {
				f.Siblings = []v1alpha1.Network{aNetwork("old", func(n *v1alpha1.Network) { n.Spec.VLAN = 7 })}
			}),
			want: verdict{"True", "Ready", "pods may be placed on it"},
		},
		"an older Network that is being deleted still has its addresses": {
			facts: facts(aNetwork("new", madeAfter(time.Hour)), func(f *Facts) {
				f.Siblings = []v1alpha1.Network{aNetwork("old", deleting)}
			}),
			want: verdict{"False", "SubnetOverlap", `10.10.0.0/24 overlaps the older Network "old" (10.10.0.0/24) on physical network "phy-net0": choose another subnet or vlan, or delete one of the two`},
		},
		"no node maps a NIC": {
			facts: facts(aNetwork("management"), func(f *Facts) { f.Nodes = nil }),
			want:  verdict{"False", "NoNode", `no node maps a NIC to physical network "phy-net0": name one in the node's map file or in spec.nodeInterfaces of the PhysicalNetwork`},
		},
		"every NIC down leaves the reason to the nodes": {
			facts: facts(aNetwork("management"), func(f *Facts) { f.Nodes = []v1alpha1.NodeNetwork{aNode("worker", nicDown)} }),
			want:  verdict{"True", "Ready", `no node can serve it now: all NICs of physical network "phy-net0" are down, or their nodes' agents are not ready`},
		},
		"every node refuses it": {
			facts: facts(aNetwork("management"), func(f *Facts) {
				f.Nodes = []v1alpha1.NodeNetwork{
					aNode("worker3", refuses("management", v1alpha1.ReasonPluginConflict, "x")),
					aNode("worker2", refuses("management", v1alpha1.ReasonMTUExceedsInterface, "9000 is more than the 1500 of eth1")),
				}
			}),
			want: verdict{"True", "Ready", "no node can serve it now; node worker2 refuses it: MTUExceedsInterface: 9000 is more than the 1500 of eth1"},
		},
		"being deleted, and nothing left": {
			facts: facts(aNetwork("management", deleting)),
			want:  verdict{"False", "Terminating", "it is being deleted"},
		},
		"being deleted while fixed addresses are not given back": {
			facts: facts(aNetwork("management", deleting), func(f *Facts) {
				claim := func(uid types.UID, finalizers ...string) v1alpha1.IPClaim {
					return v1alpha1.IPClaim{ObjectMeta: metav1.ObjectMeta{Finalizers: finalizers}, Spec: v1alpha1.IPClaimSpec{Network: "management", NetworkUID: uid}}
				}
				f.Claims = []v1alpha1.IPClaim{
					claim("management-uid"), claim("", v1alpha1.FinalizerIPClaim),
					claim(""), claim("of an earlier one", v1alpha1.FinalizerIPClaim), // hold nothing
				}
			}),
			want: verdict{"False", "Terminating", "it is being deleted and waits for 2 IPClaims of addresses that are not given back"},
		},
		"being deleted while pods and blocks are left": {
			facts: facts(aNetwork("management", deleting), func(f *Facts) {
				for _, name := range []string{"d", "c", "b", "a"} {
					f.Pods = append(f.Pods, aPod(name, "management"))
				}
				f.Blocks = []v1alpha1.IPBlock{aBlock("management", "10.10.0.0/28")}
			}),
			want: verdict{"False", "Terminating", "it is being deleted and waits for 4 pods on it (default/a, default/b, default/c, ...) and 1 address block that nodes hold"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			status := Evaluate(tt.facts)
			ready := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionReady)
			if ready == nil {
				t.Fatal("no condition Ready")
			}
			if diff := cmp.Diff(tt.want, verdict{ready.Status, ready.Reason, ready.Message}); diff != "" {
				t.Errorf("Ready (-want +got):\n%s", diff)
			}
			if ready.ObservedGeneration != 3 || status.ObservedGeneration != 3 {
				t.Errorf("observed generations %d and %d, want 3", ready.ObservedGeneration, status.ObservedGeneration)
			}
		})
	}
}

func TestAnOlderNetworkCannotGrowIntoAYoungerOneThatWorks(t *testing.T) {
	const into = "10.20.0.0/25"
	younger := func(change ...func(*v1alpha1.Network)) v1alpha1.Network {
		return aNetwork("younger", append(change, subnet("10.20.0.0/24"), madeAfter(time.Hour))...)
	}
	tests := map[string]struct {
		older, younger v1alpha1.Network
		want           []string // reasons of the older and of the younger one
	}{
		"the moment of growth": {
			aNetwork("older", grown(into), found(2, "True", "Ready")), younger(found(3, "True", "Ready")), []string{"SubnetOverlap", "Ready"},
		},
		"from then on": {
			aNetwork("older", grown(into), found(3, "False", "SubnetOverlap")), younger(found(3, "True", "Ready")), []string{"SubnetOverlap", "Ready"},
		},
		"the younger one changes something else": {
			aNetwork("older", grown(into), found(3, "False", "SubnetOverlap")), younger(found(2, "True", "Ready")), []string{"SubnetOverlap", "Ready"},
		},
		"no node backs the younger one for a while": {
			aNetwork("older", grown(into), found(3, "False", "SubnetOverlap")), younger(found(3, "False", "NoNode")), []string{"SubnetOverlap", "Ready"},
		},
		"the younger one is being deleted and its pods still live": {
			aNetwork("older", grown(into), found(3, "False", "SubnetOverlap")), younger(deleting), []string{"SubnetOverlap", "Terminating"},
		},
		"the younger one came later": {
			aNetwork("older", grown(into), found(3, "True", "Ready")), younger(), []string{"Ready", "SubnetOverlap"},
		},
		"neither was looked at yet": {
			aNetwork("older", grown(into)), younger(), []string{"Ready", "SubnetOverlap"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			both := []v1alpha1.Network{tt.older, tt.younger}
			var got []string
			for _, network := range both {
				status := Evaluate(facts(network, func(f *Facts) { f.Siblings = both }))
				got = append(got, meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionReady).Reason)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("reasons (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTightLeavesOnlyWithRoomForEveryNode(t *testing.T) {
	blocks := func(n int) []v1alpha1.IPBlock {
		cidrs := []v1alpha1.CIDR{"10.10.0.0/26", "10.10.0.64/26", "10.10.0.128/26", "10.10.0.192/26"}
		var out []v1alpha1.IPBlock
		for _, cidr := range cidrs[:n] {
			out = append(out, aBlock("small", cidr))
		}
		return out
	}
	small := func(tight metav1.ConditionStatus) v1alpha1.Network { // four blocks in all
		return aNetwork("small", func(n *v1alpha1.Network) {
			n.Spec.BlockSize = 64
			n.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionTight, Status: tight}}
		})
	}
	twoNodes := []v1alpha1.NodeNetwork{aNode("a"), aNode("b", nicDown)}
	tests := map[string]struct {
		before metav1.ConditionStatus
		blocks int
		want   metav1.ConditionStatus
	}{
		"as many left as nodes":             {"False", 2, "False"},
		"fewer left than nodes":             {"False", 3, "True"},
		"none left":                         {"False", 4, "True"},
		"given back, but not twice as many": {"True", 1, "True"},
		"twice as many":                     {"True", 0, "False"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			status := Evaluate(facts(small(tt.before), func(f *Facts) { f.Nodes, f.Blocks = twoNodes, blocks(tt.blocks) }))
			tight := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionTight)
			if tight == nil || tight.Status != tt.want {
				t.Errorf("Tight = %+v, want %s", tight, tt.want)
			}
		})
	}
}

// Blocks without an address for a pod are of no use to a node.
func TestTightCountsOnlyBlocksThatServePods(t *testing.T) {
	network := aNetwork("small", func(n *v1alpha1.Network) {
		n.Spec.BlockSize, n.Spec.ExcludeRanges = 64, []v1alpha1.IPRange{"10.10.0.64-10.10.0.255"}
	})
	status := Evaluate(facts(network, func(f *Facts) { f.Nodes = []v1alpha1.NodeNetwork{aNode("a"), aNode("b")} }))
	if !meta.IsStatusConditionTrue(status.Conditions, v1alpha1.ConditionTight) {
		t.Errorf("two nodes and one block that serves: %+v", status.Conditions)
	}
}

func TestANetworkThatCannotBeCarvedHasNoTight(t *testing.T) {
	status := Evaluate(facts(aNetwork("delegate", subnet(""))))
	if tight := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionTight); tight != nil {
		t.Errorf("Tight = %+v, want none", tight)
	}
}
