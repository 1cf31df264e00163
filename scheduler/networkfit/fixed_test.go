// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2/ktesting"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/api/v1alpha1"
)

const sticky = "- {name: data, sticky: true}"

func staticRange(n *v1alpha1.Network) { n.Spec.StaticRange = "10.0.254.0/24" }

// makeClaim is pod p's claim on network data.
func makeClaim(address string, change ...func(*v1alpha1.IPClaim)) *v1alpha1.IPClaim {
	claim := &v1alpha1.IPClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "data." + address, UID: types.UID("uid-" + address)},
		Spec: v1alpha1.IPClaimSpec{
			Network: "data", NetworkUID: "uid-data", Address: v1alpha1.IP(address),
			Owner: v1alpha1.IPClaimOwner{Kind: v1alpha1.IPClaimOwnerPod, Namespace: "tenant", Name: "p", Interface: "net1"},
		},
	}
	for _, c := range change {
		c(claim)
	}
	return claim
}

func handedTo(pod string) func(*v1alpha1.IPClaim) {
	return func(c *v1alpha1.IPClaim) {
		c.Status.PodUID, c.Status.PodName = types.UID("uid-"+pod), pod
		says(metav1.ConditionTrue, v1alpha1.ReasonBound, "")(c)
	}
}

func says(status metav1.ConditionStatus, reason, message string) func(*v1alpha1.IPClaim) {
	return func(c *v1alpha1.IPClaim) {
		meta.SetStatusCondition(&c.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionBound, Status: status, Reason: reason, Message: message})
	}
}

func ownedBy(kind v1alpha1.IPClaimOwnerKind, name string) func(*v1alpha1.IPClaim) {
	return func(c *v1alpha1.IPClaim) {
		c.Spec.Owner = v1alpha1.IPClaimOwner{Kind: kind, Namespace: "tenant", Name: name}
		if kind == v1alpha1.IPClaimOwnerPod {
			c.Spec.Owner.Interface = "net1"
		}
	}
}

func TestAPodWaitsForItsFixedAddress(t *testing.T) {
	const vm, named = "- {name: data, ipam-claim-reference: vm-1}", "- {name: data, ips: [10.0.254.5]}"
	waits := func(format string, args ...any) answer {
		return unresolvable(fmt.Sprintf(`network "data": `+format, args...))
	}
	noClaim := waits("waits for a fixed address: netplane-controller has made no IPClaim for the pod yet; see the pod's other events")
	another := func(c *v1alpha1.IPClaim) { c.Status.PodUID = "uid-earlier" }
	older := func(c *v1alpha1.IPClaim) { c.CreationTimestamp = metav1.NewTime(time.Unix(1, 0)) }
	younger := func(c *v1alpha1.IPClaim) { c.CreationTimestamp = metav1.NewTime(time.Unix(2, 0)) }
	deleted := func(c *v1alpha1.IPClaim) { c.DeletionTimestamp = &metav1.Time{Time: time.Unix(3, 0)} }
	former := says(metav1.ConditionFalse, v1alpha1.ReasonFormerNodeUnknown, "node a does not answer")
	for name, test := range map[string]struct {
		asked  string
		claims []any
		want   answer
	}{
		"handed to it":                           {sticky, []any{makeClaim("10.0.254.7", handedTo("p"))}, success()},
		"handed to it by reference":              {vm, []any{makeClaim("10.0.254.7", ownedBy(v1alpha1.IPClaimOwnerReference, "vm-1"), handedTo("p"))}, success()},
		"handed to it by address":                {named, []any{makeClaim("10.0.254.5", handedTo("p"))}, success()},
		"the younger of two is handed to it":     {sticky, []any{makeClaim("10.0.254.5", older), makeClaim("10.0.254.7", younger, handedTo("p"))}, success()},
		"one that is being deleted is its":       {sticky, []any{makeClaim("10.0.254.7", handedTo("p"), deleted)}, success()},
		"no claim":                               {sticky, nil, noClaim},
		"a claim on an earlier Network":          {sticky, []any{makeClaim("10.0.254.7", handedTo("p"), func(c *v1alpha1.IPClaim) { c.Spec.NetworkUID = "earlier" })}, noClaim},
		"another pod's claim":                    {sticky, []any{makeClaim("10.0.254.7", ownedBy(v1alpha1.IPClaimOwnerPod, "q"))}, noClaim},
		"handed to nobody yet":                   {sticky, []any{makeClaim("10.0.254.7")}, waits("waits for fixed address 10.0.254.7: netplane-controller has not handed it to the pod yet")},
		"the owner was absent a moment ago":      {sticky, []any{makeClaim("10.0.254.7", says(metav1.ConditionFalse, v1alpha1.ReasonOwnerAbsent, "no pod"))}, waits("waits for fixed address 10.0.254.7: netplane-controller has not handed it to the pod yet")},
		"the former pod has it":                  {sticky, []any{makeClaim("10.0.254.7", handedTo("p"), another)}, waits("waits for fixed address 10.0.254.7: the former pod of this name has it")},
		"another pod of the reference has it":    {vm, []any{makeClaim("10.0.254.7", ownedBy(v1alpha1.IPClaimOwnerReference, "vm-1"), handedTo("q"))}, waits("waits for fixed address 10.0.254.7: pod tenant/q has it")},
		"the claim says why":                     {sticky, []any{makeClaim("10.0.254.7", handedTo("p"), another, former)}, waits("waits for fixed address 10.0.254.7: FormerNodeUnknown: node a does not answer")},
		"the claim is being deleted":             {sticky, []any{makeClaim("10.0.254.7", deleted)}, waits("waits for fixed address 10.0.254.7: its IPClaim is being deleted")},
		"the older of two is told":               {sticky, []any{makeClaim("10.0.254.5", younger), makeClaim("10.0.254.7", older, former)}, waits("waits for fixed address 10.0.254.7: FormerNodeUnknown: node a does not answer")},
		"the address is another pod's":           {named, []any{makeClaim("10.0.254.5", ownedBy(v1alpha1.IPClaimOwnerPod, "q"))}, waits("fixed address 10.0.254.5 belongs to interface net1 of pod tenant/q")},
		"the address is a reference's":           {named, []any{makeClaim("10.0.254.5", ownedBy(v1alpha1.IPClaimOwnerReference, "vm-1"))}, waits("fixed address 10.0.254.5 belongs to ipam-claim-reference vm-1 of namespace tenant")},
		"one of two addresses is there":          {sticky + "\n- {name: data, sticky: true}", []any{makeClaim("10.0.254.7", handedTo("p"))}, noClaim},
		"no address of the range":                {"- {name: data, ips: [10.0.3.5]}", nil, unresolvable(`annotation netplane.io/networks: item 1 (network "data"): ips: 10.0.3.5 does not lie in staticRange 10.0.254.0/24 of network "data"`)},
		"a network that brings its own":          {"- {name: bare, sticky: true}", nil, unresolvable(`annotation netplane.io/networks: item 1 (network "bare"): fixed addresses (ips, sticky, ipam-claim-reference) are for Networks with a subnet and a staticRange`)},
		"a second network that is not there":     {sticky + "\n- {name: foo, sticky: true}", []any{makeClaim("10.0.254.7", handedTo("p"))}, unresolvable(`network "foo" does not exist: create it, or correct annotation netplane.io/networks`)},
		"a fixed one beside one of the node's":   {sticky + "\n- {name: data}", []any{makeClaim("10.0.254.7", handedTo("p"))}, success()},
		"what others wait for is none of its":    {"data", []any{makeClaim("10.0.254.7", former)}, success()},
		"an address that nobody has asked for":   {named, nil, noClaim},
		"an address of its own beside the range": {named, []any{makeClaim("10.0.254.5"), makeClaim("10.0.254.7", handedTo("p"))}, waits("waits for fixed address 10.0.254.5: netplane-controller has not handed it to the pod yet")},
	} {
		t.Run(name, func(t *testing.T) {
			bare := makeNetwork("bare", func(n *v1alpha1.Network) { n.Spec.Subnet = "" })
			pl := newPlugin(t, append(test.claims, makeNetwork("data", staticRange), bare)...)
			_, status := pl.PreFilter(t.Context(), newCycleState(), makePod("p", test.asked), nil)
			if diff := cmp.Diff(test.want, answerOf(status)); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}
}

// An address that is of no block needs none on the node.
func TestAFixedAddressTakesNoneOfABlock(t *testing.T) {
	for name, test := range map[string]struct {
		asked string
		there string
		want  answer
	}{
		"on a node without a block":         {sticky, "", success()},
		"beside one of the node's":          {sticky + "\n- {name: data}", "", unresolvable(`node(s) held no address block of network "data"`)},
		"on eth0 it needs the node's own":   {"- {name: data, ifname: eth0, sticky: true}", "", unresolvable(`node(s) held no address block of network "data"`)},
		"it takes a whole NIC":              {"- {name: fast, sticky: true}", "fast", unschedulable(`node(s) had no free NIC for network "fast"`)},
		"others' fixed addresses take NICs": {"- {name: fast, sticky: true}", "- {name: fast, sticky: true}", unschedulable(`node(s) had no free NIC for network "fast"`)},
		"the NIC is free":                   {"- {name: fast, sticky: true}", "", success()},
	} {
		t.Run(name, func(t *testing.T) {
			fast := nicNetwork("fast", "phy-fast")
			fast.Spec.StaticRange = "10.0.254.0/24"
			ofFast := func(c *v1alpha1.IPClaim) { c.Name, c.Spec.Network, c.Spec.NetworkUID = "fast", "fast", fast.UID }
			offer := makeNode("n", up("data"), nicsOn("phy-fast", "up"))
			pl := newPlugin(t, makeNetwork("data", staticRange), newNetwork(fast.Network), offer, makeBlock("fast", "n", 0),
				makeClaim("10.0.254.7", handedTo("p")), makeClaim("10.0.254.8", handedTo("p"), ofFast),
				makeClaim("10.0.254.9", handedTo("p"), func(c *v1alpha1.IPClaim) { c.Spec.Owner.Interface = "eth0" }))
			info := newNodeInfo("n")
			if test.there != "" {
				info = newNodeInfo("n", makePod("other", test.there))
			}
			if diff := cmp.Diff(test.want, filter(t, pl, makePod("p", test.asked), info)); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHintsOnClaims(t *testing.T) {
	placed := func(c *v1alpha1.IPClaim) { c.Status.NodeName = "n" }
	former := says(metav1.ConditionFalse, v1alpha1.ReasonFormerPodRemains, "it ends")
	gone := says(metav1.ConditionFalse, v1alpha1.ReasonFormerNodeUnknown, "node a")
	other := ownedBy(v1alpha1.IPClaimOwnerPod, "q")
	for name, test := range map[string]struct {
		pod      string
		old, new any
		want     fwk.QueueingHint
	}{
		"made for it":                         {sticky, nil, makeClaim("10.0.254.7"), fwk.Queue},
		"handed to it":                        {sticky, makeClaim("10.0.254.7"), makeClaim("10.0.254.7", handedTo("p")), fwk.Queue},
		"the pod before leaves":               {sticky, makeClaim("10.0.254.7", handedTo("q")), makeClaim("10.0.254.7", handedTo("p")), fwk.Queue},
		"it comes to say what it waits for":   {sticky, makeClaim("10.0.254.7"), makeClaim("10.0.254.7", former), fwk.Queue},
		"it says something else":              {sticky, makeClaim("10.0.254.7", former), makeClaim("10.0.254.7", gone), fwk.Queue},
		"the node is noted":                   {sticky, makeClaim("10.0.254.7", handedTo("p")), makeClaim("10.0.254.7", handedTo("p"), placed), fwk.QueueSkip},
		"another pod's is handed on":          {sticky, makeClaim("10.0.254.7", other), makeClaim("10.0.254.7", other, handedTo("q")), fwk.QueueSkip},
		"the address that it names is taken":  {"- {name: data, ips: [10.0.254.7]}", nil, makeClaim("10.0.254.7", other), fwk.Queue},
		"another address of its own is taken": {"- {name: data, ips: [10.0.254.7]}", nil, makeClaim("10.0.254.8"), fwk.QueueSkip},
		"it asks for no fixed address":        {"data", nil, makeClaim("10.0.254.7"), fwk.QueueSkip},
		"it asks for one elsewhere":           {"- {name: web, sticky: true}", nil, makeClaim("10.0.254.7"), fwk.QueueSkip},
		"deleted and made anew unseen":        {sticky, makeClaim("10.0.254.7"), makeClaim("10.0.254.7", func(c *v1alpha1.IPClaim) { c.UID = "new" }), fwk.Queue},
	} {
		t.Run(name, func(t *testing.T) {
			logger, _ := ktesting.NewTestContext(t)
			pl := newPlugin(t, makeNetwork("data", staticRange))
			got, err := hintFor(t, pl, "ipclaims")(logger, makePod("p", test.pod), test.old, test.new)
			if got != test.want || err != nil {
				t.Errorf("hint %v (%v), want %v", got, err, test.want)
			}
		})
	}
}
