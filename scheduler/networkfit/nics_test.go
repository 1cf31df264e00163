// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2/ktesting"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/capacity"
)

// nicNetwork is a Network of whole NICs.
func nicNetwork(name, physical string) *network {
	return makeNetwork(name, func(n *v1alpha1.Network) {
		n.Spec.Plugin, n.Spec.PhysicalNet = v1alpha1.PluginHostDevice, physical
	})
}

// nics maps NICs to phy-nics. Each is in a state: up, down, pod (it is inside a
// pod), shared (up, and other Networks' alone) or missing.
func nics(states ...string) *node {
	return makeNode("n", nil, nicsOn("phy-nics", states...))
}

func nicsOn(physical string, states ...string) func(*v1alpha1.NodeNetwork) {
	return func(n *v1alpha1.NodeNetwork) {
		backing := v1alpha1.NodePhysicalNetwork{Name: physical, Reason: v1alpha1.ReasonInterfaceNotFound}
		for i, state := range states {
			nic := v1alpha1.NodeInterfaceStatus{Name: fmt.Sprint(physical, i), State: v1alpha1.OperStateDown}
			backing.Interfaces = append(backing.Interfaces, nic.Name)
			switch state {
			case "missing":
				continue
			case "up", "shared":
				nic.State = v1alpha1.OperStateUp
				backing.Ready = true
			case "pod":
				nic.State, nic.InUse = "", true
				backing.Ready = true
			}
			if state != "shared" {
				backing.Exclusive = append(backing.Exclusive, nic.Name)
			}
			backing.Reason = v1alpha1.ReasonInterfaceDown
			n.Status.Interfaces = append(n.Status.Interfaces, nic)
		}
		if backing.Ready {
			backing.Reason = v1alpha1.ReasonInterfaceUp
		}
		n.Status.PhysicalNetworks = append(n.Status.PhysicalNetworks, backing)
	}
}

func TestFilterCountsNICsByPhysicalNetwork(t *testing.T) {
	own := makePod("p", "fast")
	own.Spec.NodeName = "n"
	full := func(network string) answer {
		return unschedulable(fmt.Sprintf("node(s) had no free NIC for network %q", network))
	}
	tooFew := func(network string) answer {
		return unresolvable(fmt.Sprintf("node(s) had too few NICs for network %q", network))
	}
	for name, test := range map[string]struct {
		asked string
		pod   *v1.Pod // instead of one that asks for asked
		node  *node
		there []*v1.Pod
		more  []any
		want  answer
	}{
		"a NIC is free":                                {asked: "fast", node: nics("up"), want: success()},
		"a pod has the only one":                       {asked: "fast", node: nics("pod"), there: pods(1, "fast"), want: full("fast")},
		"a pod is to have the only one":                {asked: "fast", node: nics("up"), there: pods(1, "fast"), want: full("fast")},
		"a pod of the sibling Network has it":          {asked: "fast", node: nics("pod"), there: pods(1, "slow"), want: full("fast")},
		"one of two is free":                           {asked: "fast", node: nics("pod", "up"), there: pods(1, "slow"), want: success()},
		"preemption frees the NIC inside the victim":   {asked: "fast", node: nics("pod"), want: success()},
		"two are wanted, one is free":                  {asked: "fast,fast", node: nics("pod", "up"), there: pods(1, "fast"), want: full("fast")},
		"two are wanted of two Networks, one is free":  {asked: "fast,slow", node: nics("pod", "up"), there: pods(1, "fast"), want: full("slow")},
		"two are wanted, the node has one":             {asked: "fast,fast", node: nics("up"), want: tooFew("fast")},
		"two are wanted of two Networks, it has one":   {asked: "fast,slow", node: nics("up"), want: tooFew("fast")},
		"two are wanted, one of two is down":           {asked: "fast,fast", node: nics("up", "down"), want: tooFew("fast")},
		"two are wanted, one of two is missing":        {asked: "fast,fast", node: nics("up", "missing"), want: tooFew("fast")},
		"too few is told before full":                  {asked: "fast,other,other", node: makeNode("n", nil, nicsOn("phy-nics", "pod"), nicsOn("phy-other", "up")), there: pods(1, "fast"), want: tooFew("other")},
		"two are wanted, one of two is for others":     {asked: "fast,fast", node: nics("shared", "up"), want: tooFew("fast")},
		"the only one is for others":                   {asked: "fast", node: nics("shared"), want: tooFew("fast")},
		"all are down":                                 {asked: "fast", node: nics("down", "down"), want: unresolvable(`node(s) had the NIC for network "fast" down`)},
		"all are missing":                              {asked: "fast", node: nics("missing"), want: unresolvable(`node(s) had no NIC for network "fast"`)},
		"one is left beside one that went down":        {asked: "fast", node: nics("pod", "down"), there: pods(1, "fast"), want: full("fast")},
		"another physical network's NICs do not help":  {asked: "fast", node: makeNode("n", nil, nicsOn("phy-nics", "pod"), nicsOn("phy-other", "up")), there: pods(1, "fast"), want: full("fast")},
		"another physical network's pods do not count": {asked: "fast", node: makeNode("n", nil, nicsOn("phy-nics", "up"), nicsOn("phy-other", "pod")), there: pods(1, "other"), want: success()},
		"pods that share the NIC do not count":         {asked: "fast", node: nics("up"), there: pods(5, "shared"), want: success()},
		"the pod does not stand in its own way":        {pod: own, node: nics("pod"), there: []*v1.Pod{own}, want: success()},
		"a sandbox that outlives its pod has its NIC":  {asked: "fast", node: makeNode("n", nil, nicsOn("phy-nics", "pod"), hold(v1alpha1.HeldAddresses{Network: "slow", Count: 1, PodUID: "gone"})), want: full("fast")},
		"no interface has the addresses of a block that is closed": {
			asked: "fast", node: makeNode("n", nil, nicsOn("phy-nics", "pod", "up"), hold(v1alpha1.HeldAddresses{Network: "fast", Count: 5, Quarantined: true})), there: pods(1, "fast"), want: success(),
		},
		"a network of NICs has addresses, too": {
			asked: "fast", node: nics("up", "up", "up", "up", "up", "up", "up", "up"), there: pods(7, "fast"),
			want: unschedulable(`node(s) had no free address in network "fast"`),
		},
		"a pod that shares the NIC needs none of its own": {asked: "shared", node: nics("up"), there: pods(3, "shared"), want: success()},
		"no address block is told before a NIC that is taken": {
			asked: "bare", node: nics("pod"), there: pods(1, "fast"), more: []any{nicNetwork("bare", "phy-nics")},
			want: unresolvable(`node(s) held no address block of network "bare"`),
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := test.pod
			if pod == nil {
				pod = makePod("p", test.asked)
			}
			objects := append(test.more, test.node, nicNetwork("fast", "phy-nics"), nicNetwork("slow", "phy-nics"), nicNetwork("other", "phy-other"),
				makeNetwork("shared", func(n *v1alpha1.Network) { n.Spec.PhysicalNet = "phy-nics" }))
			for i, name := range []string{"fast", "slow", "other", "shared"} {
				objects = append(objects, makeBlock(name, "n", i))
			}
			got := filter(t, newPlugin(t, objects...), pod, newNodeInfo("n", test.there...))
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}
}

func TestANodeHasRoomForOneInterfaceInModePassthru(t *testing.T) {
	alone := makeNetwork("alone", func(n *v1alpha1.Network) {
		n.Spec.PhysicalNet, n.Spec.PluginConfig = "phy-nics", &apiextensionsv1.JSON{Raw: []byte(`{"mode":"passthru"}`)}
	})
	full := unschedulable(`node(s) had no free NIC for network "alone"`)
	for name, test := range map[string]struct {
		asked string
		node  *node
		there []*v1.Pod
		want  answer
	}{
		"nobody has it":                    {asked: "alone", node: nics("shared"), want: success()},
		"a pod has it":                     {asked: "alone", node: nics("shared"), there: pods(1, "alone"), want: full},
		"a second NIC is of no use":        {asked: "alone", node: nics("shared", "shared"), there: pods(1, "alone"), want: full},
		"a sandbox that outlives its pod":  {asked: "alone", node: makeNode("n", nil, nicsOn("phy-nics", "shared"), hold(v1alpha1.HeldAddresses{Network: "alone", Count: 1, PodUID: "gone"})), want: full},
		"two are wanted":                   {asked: "alone,alone", node: nics("shared"), want: unresolvable(`node(s) had too few NICs for network "alone"`)},
		"another Network's pods are there": {asked: "alone", node: nics("shared"), there: pods(3, "other"), want: success()},
	} {
		t.Run(name, func(t *testing.T) {
			pl := newPlugin(t, test.node, alone, makeNetwork("other", func(n *v1alpha1.Network) { n.Spec.PhysicalNet = "phy-other" }), makeBlock("alone", "n", 0))
			got := filter(t, pl, makePod("p", test.asked), newNodeInfo("n", test.there...))
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAWholeNICIsNobodysEth0(t *testing.T) {
	pl := newPlugin(t, nics("up"), nicNetwork("fast", "phy-nics"), makeBlock("fast", "n", 0))
	_, status := pl.PreFilter(t.Context(), newCycleState(), makePod("p", "fast@net1,fast@eth0"), nil)
	want := `network "fast" gives the pod a whole NIC, which cannot be its eth0: choose another ifname in annotation netplane.io/networks`
	if status.Code() != fwk.UnschedulableAndUnresolvable || status.Message() != want {
		t.Errorf("got %v, want %q", status, want)
	}
}

// The pods that have the NICs stay what they are when a second Network comes
// to share them, and so does the generation of the NodeInfo.
func TestANetworkThatComesToShareNICsCountsAtOnce(t *testing.T) {
	pl := newPlugin(t, nics("pod"), nicNetwork("fast", "phy-nics"), makeBlock("fast", "n", 0), makeBlock("slow", "n", 1))
	info := newNodeInfo("n", pods(1, "slow")...)
	if got := filter(t, pl, makePod("p", "fast"), info); got != success() {
		t.Fatalf("with one Network of NICs: %v", got)
	}
	if err := pl.sources.networks.Add(nicNetwork("slow", "phy-nics")); err != nil {
		t.Fatal(err)
	}
	want := unschedulable(`node(s) had no free NIC for network "fast"`)
	if got := filter(t, pl, makePod("p", "fast"), info); got != want {
		t.Errorf("with two Networks of NICs: %v, want %v", got, want)
	}
}

func TestScoreFollowsTheScarcerOfNICsAndAddresses(t *testing.T) {
	pl := newPlugin(t, nics("up", "up", "up", "pod"), nicNetwork("fast", "phy-nics"), nicNetwork("slow", "phy-nics"), makeBlock("fast", "n", 0))
	state, pod := newCycleState(), makePod("p", "fast")
	if _, status := pl.PreFilter(t.Context(), state, pod, nil); !status.IsSuccess() {
		t.Fatal(status)
	}
	// Two of four NICs are taken with the pod placed, and one of seven addresses.
	got, status := pl.Score(t.Context(), state, pod, newNodeInfo("n", pods(1, "slow")...))
	if got != 50 || !status.IsSuccess() {
		t.Errorf("score %d (%v), want 50", got, status)
	}
}

func TestHintsOnNICs(t *testing.T) {
	holding := func(network string, count int32) *node {
		return makeNode("n", nil, nicsOn("phy-nics", "pod", "up"), hold(v1alpha1.HeldAddresses{Network: network, Count: count, PodUID: "gone"}))
	}
	bound := func(networks string) *v1.Pod { p := makePod("other", networks); p.Spec.NodeName = "n"; return p }
	for name, test := range map[string]struct {
		event    string
		pod      string
		old, new any
		want     fwk.QueueingHint
	}{
		"a second NIC is mapped":                 {"nodenetworks", "fast", nics("pod"), nics("pod", "up"), fwk.Queue},
		"a second NIC comes up":                  {"nodenetworks", "fast", nics("pod", "down"), nics("pod", "up"), fwk.Queue},
		"a NIC goes into a pod":                  {"nodenetworks", "fast", nics("up", "up"), nics("pod", "up"), fwk.QueueSkip},
		"a NIC comes out of a pod":               {"nodenetworks", "fast", nics("pod", "up"), nics("up", "up"), fwk.QueueSkip},
		"a second NIC is left to pods":           {"nodenetworks", "fast", nics("pod", "shared"), nics("pod", "up"), fwk.Queue},
		"a NIC goes":                             {"nodenetworks", "fast", nics("up", "up"), nics("up"), fwk.QueueSkip},
		"a second NIC is mapped, the pod shares": {"nodenetworks", "shared", nics("up"), nics("up", "up"), fwk.QueueSkip},
		"a sandbox of its Network goes":          {"nodenetworks", "fast", holding("fast", 1), holding("fast", 0), fwk.Queue},
		"a sandbox of the sibling Network goes":  {"nodenetworks", "fast", holding("slow", 1), holding("slow", 0), fwk.Queue},
		"a sandbox of another Network goes":      {"nodenetworks", "fast", holding("shared", 1), holding("shared", 0), fwk.QueueSkip},
		"a block of its Network serves again": {
			"nodenetworks", "slow", makeNode("n", nil, nicsOn("phy-nics", "pod"), hold(v1alpha1.HeldAddresses{Network: "fast", Count: 5, Quarantined: true})), nics("pod"), fwk.QueueSkip,
		},
		"the only pod in mode passthru goes":             {"AssignedPod", "alone", bound("alone"), nil, fwk.Queue},
		"the last sandbox in mode passthru goes":         {"nodenetworks", "alone", holding("alone", 1), holding("alone", 0), fwk.Queue},
		"a pod of its Network goes":                      {"AssignedPod", "fast", bound("fast"), nil, fwk.Queue},
		"a pod of the sibling Network goes":              {"AssignedPod", "fast", bound("slow"), nil, fwk.Queue},
		"a pod that shares the NIC goes":                 {"AssignedPod", "fast", bound("shared"), nil, fwk.QueueSkip},
		"a pod with a NIC goes, the pod shares":          {"AssignedPod", "shared", bound("fast"), nil, fwk.QueueSkip},
		"a pod with a NIC elsewhere goes":                {"AssignedPod", "fast", bound("other"), nil, fwk.QueueSkip},
		"a pod with a NIC goes from a node that is down": {"AssignedPod", "fast", func() *v1.Pod { p := bound("slow"); p.Spec.NodeName = "down"; return p }(), nil, fwk.QueueSkip},
	} {
		t.Run(name, func(t *testing.T) {
			logger, _ := ktesting.NewTestContext(t)
			pl := newPlugin(t, nics("pod"), makeNode("down", nil, nicsOn("phy-nics", "down")), nicNetwork("fast", "phy-nics"), nicNetwork("slow", "phy-nics"),
				nicNetwork("other", "phy-other"), makeNetwork("shared", func(n *v1alpha1.Network) { n.Spec.PhysicalNet = "phy-nics" }),
				makeNetwork("alone", func(n *v1alpha1.Network) {
					n.Spec.PhysicalNet, n.Spec.PluginConfig = "phy-nics", &apiextensionsv1.JSON{Raw: []byte(`{"mode":"passthru"}`)}
				}))
			got, err := hintFor(t, pl, test.event)(logger, makePod("p", test.pod), test.old, test.new)
			if got != test.want || err != nil {
				t.Errorf("hint %v (%v), want %v", got, err, test.want)
			}
		})
	}
}

// The caches drop the interfaces of a node; how many of them serve must be
// known by then.
func TestNICsAreCountedBeforeTheirNamesAreDropped(t *testing.T) {
	object := makeNodeNetwork("n", nil, nicsOn("phy-nics", "up", "pod", "down", "missing"), nicsOn("phy-other", "up"))
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		t.Fatal(err)
	}
	made, err := toNode(&unstructured.Unstructured{Object: raw})
	if err != nil {
		t.Fatal(err)
	}
	n, ok := made.(*node)
	if !ok {
		t.Fatalf("a NodeNetwork becomes a %T", made)
	}
	got := []capacity.NICs{n.backing("phy-nics").nics, n.backing("phy-other").nics, n.backing("phy-unknown").nics}
	if diff := cmp.Diff([]capacity.NICs{2, 1, 0}, got); diff != "" {
		t.Errorf("NICs (-want +got):\n%s", diff)
	}
}

func TestFilterCountsNICsWithoutAllocation(t *testing.T) {
	pl := newPlugin(t, nics("up", "up", "up", "pod"), nicNetwork("fast", "phy-nics"), nicNetwork("slow", "phy-nics"), makeBlock("fast", "n", 0), makeBlock("slow", "n", 1))
	state, pod, info := newCycleState(), makePod("p", "fast,slow"), newNodeInfo("n", pods(1, "slow")...)
	if _, status := pl.PreFilter(t.Context(), state, pod, nil); !status.IsSuccess() {
		t.Fatal(status)
	}
	if got := testing.AllocsPerRun(100, func() {
		if status := pl.Filter(t.Context(), state, pod, info); !status.IsSuccess() {
			t.Error(status)
		}
	}); got != 0 {
		t.Errorf("Filter allocates %v times", got)
	}
}
