// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2/ktesting"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/api/v1alpha1"
)

func forTeamA(n *v1alpha1.Network) {
	n.Spec.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}}
}

func TestHints(t *testing.T) {
	held := func(count int32) *node {
		return makeNode("n", up("data"), hold(v1alpha1.HeldAddresses{Network: "data", Count: count}))
	}
	heldFixed := makeNode("n", up("data"), hold(v1alpha1.HeldAddresses{Network: "data", Count: 1, PodUID: "gone", Fixed: true}))
	noAgent := makeNode("n", up("data"), setAgent("False"))
	down := makeNode("n", notReady("data", v1alpha1.ReasonInterfaceDown))
	unready := makeNetwork("data", setReady(metav1.ConditionFalse, v1alpha1.ReasonNoNode, ""))
	grown := makeNetwork("data", func(n *v1alpha1.Network) { n.Spec.AdditionalSubnets = []v1alpha1.CIDR{"10.9.0.0/24"} })
	counted := makeNetwork("data", func(n *v1alpha1.Network) { n.Status.Addresses.Used = 5 })
	former := makeBlock("data", "n", 0)
	former.Spec.NodeUID = "uid-former"
	releasing := makeBlock("data", "n", 0)
	releasing.DeletionTimestamp = &metav1.Time{}
	bound := func(networks string) *v1.Pod { p := makePod("other", networks); p.Spec.NodeName = "n"; return p }
	labelled := makeNamespace("tenant", map[string]string{"team": "a"})

	for name, test := range map[string]struct {
		event    string
		pod      string // what the rejected pod asks for; "data" if empty
		old, new any
		want     fwk.QueueingHint
	}{
		"the NIC comes up":                                    {"nodenetworks", "", down, makeNode("n", up("data")), fwk.Queue},
		"the NIC is mapped":                                   {"nodenetworks", "", makeNode("n", nil), makeNode("n", up("data")), fwk.Queue},
		"the NIC goes down":                                   {"nodenetworks", "", makeNode("n", up("data")), down, fwk.QueueSkip},
		"the agent becomes ready":                             {"nodenetworks", "", noAgent, makeNode("n", up("data")), fwk.Queue},
		"the node no longer refuses":                          {"nodenetworks", "", makeNode("n", up("data"), refuse("data", "PluginConflict")), makeNode("n", up("data")), fwk.Queue},
		"a node joins":                                        {"nodenetworks", "", nil, makeNode("n", up("data")), fwk.Queue},
		"a node without the NIC joins":                        {"nodenetworks", "", nil, makeNode("n", up("management")), fwk.QueueSkip},
		"held addresses go free":                              {"nodenetworks", "", held(3), held(2), fwk.Queue},
		"the last held address goes free":                     {"nodenetworks", "", held(1), makeNode("n", up("data")), fwk.Queue},
		"a fixed address that was held goes free":             {"nodenetworks", "", heldFixed, makeNode("n", up("data")), fwk.QueueSkip},
		"addresses become held":                               {"nodenetworks", "", held(2), held(3), fwk.QueueSkip},
		"nothing that matters changes":                        {"nodenetworks", "", makeNode("n", up("data")), makeNode("n", up("data", "management")), fwk.QueueSkip},
		"the NIC of another network comes up":                 {"nodenetworks", "", makeNode("n", nil), makeNode("n", up("management")), fwk.QueueSkip},
		"one of two NICs comes up":                            {"nodenetworks", "data,management", makeNode("n", nil), makeNode("n", up("data")), fwk.QueueSkip},
		"the second of two NICs comes up":                     {"nodenetworks", "data,management", makeNode("n", up("management")), makeNode("n", up("data", "management")), fwk.Queue},
		"a node changes, the network is missing":              {"nodenetworks", "foo", makeNode("n", nil), makeNode("n", up("foo")), fwk.QueueSkip},
		"the Network is created, not ready":                   {"networks", "", nil, unready, fwk.QueueSkip},
		"the Network is created ready":                        {"networks", "", nil, makeNetwork("data"), fwk.Queue},
		"the Network becomes ready":                           {"networks", "", unready, makeNetwork("data"), fwk.Queue},
		"the Network's spec changes":                          {"networks", "", makeNetwork("data"), grown, fwk.Queue},
		"the Network's counters change":                       {"networks", "", makeNetwork("data"), counted, fwk.QueueSkip},
		"the Network stops being ready":                       {"networks", "", makeNetwork("data"), unready, fwk.QueueSkip},
		"another Network becomes ready":                       {"networks", "management", unready, makeNetwork("data"), fwk.QueueSkip},
		"a block is claimed":                                  {"ipblocks", "", nil, makeBlock("data", "n", 0), fwk.Queue},
		"a block of another network is claimed":               {"ipblocks", "management", nil, makeBlock("data", "n", 0), fwk.QueueSkip},
		"a block begins to be released":                       {"ipblocks", "", makeBlock("data", "n", 0), releasing, fwk.QueueSkip},
		"a block changes hands unseen":                        {"ipblocks", "", makeBlock("data", "n", 0), makeBlock("data", "m", 0), fwk.Queue},
		"a Node that registered anew adopts a block":          {"ipblocks", "", former, makeBlock("data", "n", 0), fwk.Queue},
		"a block stays as it is":                              {"ipblocks", "", makeBlock("data", "n", 0), makeBlock("data", "n", 0), fwk.QueueSkip},
		"a block is claimed by a node without the NIC":        {"ipblocks", "", nil, makeBlock("data", "bare", 0), fwk.QueueSkip},
		"a block is claimed by a node that lacks another NIC": {"ipblocks", "data,management", nil, makeBlock("data", "m", 0), fwk.QueueSkip},
		"the namespace appears":                               {"namespaces", "tenants", nil, labelled, fwk.Queue},
		"the namespace is labelled":                           {"namespaces", "tenants", makeNamespace("tenant", nil), labelled, fwk.Queue},
		"the namespace loses the label":                       {"namespaces", "tenants", labelled, makeNamespace("tenant", nil), fwk.QueueSkip},
		"the namespace is labelled, no network cares":         {"namespaces", "", makeNamespace("tenant", nil), labelled, fwk.QueueSkip},
		"the namespace is annotated":                          {"namespaces", "tenants", labelled, labelled.DeepCopy(), fwk.QueueSkip},
		"another namespace is labelled":                       {"namespaces", "tenants", nil, makeNamespace("other", map[string]string{"team": "a"}), fwk.QueueSkip},
		"a pod on the network goes":                           {"AssignedPod", "", bound("data,management"), nil, fwk.Queue},
		"a pod on the network went unseen":                    {"AssignedPod", "", cache.DeletedFinalStateUnknown{Obj: bound("data")}, nil, fwk.Queue},
		"a pod on another network goes":                       {"AssignedPod", "", bound("management"), nil, fwk.QueueSkip},
		"a pod on a node without the NIC goes":                {"AssignedPod", "", func() *v1.Pod { p := bound("data"); p.Spec.NodeName = "bare"; return p }(), nil, fwk.QueueSkip},
		"a Node joins after its NodeNetwork":                  {"Node", "", nil, newNodeInfo("n").node, fwk.Queue},
		"a Node joins before its NodeNetwork":                 {"Node", "", nil, newNodeInfo("unknown").node, fwk.QueueSkip},
		"a Node without the NIC joins":                        {"Node", "", nil, newNodeInfo("bare").node, fwk.QueueSkip},
		"a Node with one of two NICs joins":                   {"Node", "data,management", nil, newNodeInfo("m").node, fwk.QueueSkip},
		"a pod without networks goes":                         {"AssignedPod", "", bound(""), nil, fwk.QueueSkip},
		"the annotation is corrected":                         {"TargetPod", "", makePod("p", "dataa"), makePod("p", "data"), fwk.Queue},
		"the pod is labelled":                                 {"TargetPod", "", makePod("p", "data"), makePod("p", "data"), fwk.QueueSkip},
		"an event of an unexpected type, to wake":             {"ipblocks", "", nil, makePod("p", ""), fwk.Queue},
	} {
		t.Run(name, func(t *testing.T) {
			pod := makePod("p", test.pod)
			if test.pod == "" {
				pod = makePod("p", "data")
			}
			logger, _ := ktesting.NewTestContext(t)
			pl := newPlugin(t, makeNetwork("data"), makeNetwork("management"), makeNetwork("tenants", forTeamA),
				makeNode("n", up("data", "management")), makeNode("m", up("data")), makeNode("bare", nil))
			got, err := hintFor(t, pl, test.event)(logger, pod, stored(test.old), stored(test.new))
			if got != test.want && err == nil { // an error queues, too
				t.Errorf("hint %v, want %v", got, test.want)
			}
		})
	}
}

// hintFor finds the hint that is registered for a resource.
func hintFor(t *testing.T, pl *NetworkFit, resource string) fwk.QueueingHintFn {
	t.Helper()
	name := map[string]fwk.EventResource{
		"nodenetworks": "nodenetworks.v1alpha1.netplane.io", "networks": "networks.v1alpha1.netplane.io",
		"ipblocks": "ipblocks.v1alpha1.netplane.io", "ipclaims": "ipclaims.v1alpha1.netplane.io", "namespaces": "namespaces.v1.", // two dots: the core group has no name
	}[resource]
	if name == "" {
		name = fwk.EventResource(resource)
	}
	events, err := pl.EventsToRegister(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range events {
		if event.Event.Resource == name && event.QueueingHintFn != nil {
			return event.QueueingHintFn
		}
	}
	t.Fatalf("no hint is registered for %s", name)
	return nil
}
