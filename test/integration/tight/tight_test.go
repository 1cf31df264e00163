// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package tight

import (
	"fmt"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// A /24 has 16 blocks. Whatever 16 of the nodes have held before, the 17th gets
// one as soon as one of them has no use for it.
func TestAPodRunsOnEachOf17NodesThatShareA24(t *testing.T) {
	w := newWorld(t, "shared", "10.60.0.0/24", 17)
	w.awaitTight()
	var running []*corev1.Pod
	for i, node := range w.nodes[:16] {
		pod := w.pod(fmt.Sprint("first-", i), on(node))
		w.start(pod)
		running = append(running, pod)
	}
	if blocks := w.blocks(); len(blocks) != 16 {
		t.Fatalf("for 16 pods on 16 nodes there are %v", blocks)
	}
	last := w.pod("last", on(w.nodes[16]))
	w.awaitComplaint(last, `1 node(s) held no address block of network "shared"`)
	w.end(running[3])
	w.start(last)
	for _, pod := range running[4:] {
		w.end(pod)
	}
	for i, node := range w.nodes {
		pod := w.pod(fmt.Sprint("again-", i), on(node))
		w.start(pod)
		w.end(pod)
	}
}

func TestNoAddressStaysUnusedAndNoPodGetsNone(t *testing.T) {
	const nodes, addresses = 12, 8*7 - 2 // a /26 has 8 blocks for 7 pods; the first and the last serve one less
	w := newWorld(t, "full", "10.61.0.0/26", nodes)
	w.awaitTight()
	for i := range addresses + 6 {
		w.pod(fmt.Sprint("p-", i))
	}
	bound := w.startAll(addresses)
	time.Sleep(time.Second)
	w.startAll(addresses)
	w.end(bound[7])
	w.startAll(addresses)
}

// Two schedulers that know nothing of each other take blocks of one Network,
// each for nodes of its own.
func TestTwoSchedulersClaimSideBySide(t *testing.T) {
	const nodes, blocks, each = 12, 8, 5
	w := newWorld(t, "two", "10.63.0.0/26", nodes)
	w.awaitTight()
	for i := range nodes * each {
		scheduler := []string{v1alpha1.DefaultSchedulerName, otherScheduler}[i%2]
		w.pod(fmt.Sprint("p-", i), on(w.nodes[i%nodes]), by(scheduler))
	}
	bound := w.startAll(blocks * each)
	freed := bound[0].Spec.NodeName
	for _, pod := range bound {
		if pod.Spec.NodeName == freed {
			w.end(pod)
		}
	}
	w.startAll(blocks * each)
}

// A network with one block: a promise that is not taken back would be the end of it.
func TestABlockThatCannotBeCreatedIsPromisedToNobody(t *testing.T) {
	w := newWorld(t, "single", "10.62.0.0/29", 2)
	w.awaitTight()
	refuseBlocks := newRefusal()
	for _, object := range refuseBlocks {
		w.create(object)
	}
	w.eventually(func() string {
		block := &v1alpha1.IPBlock{
			ObjectMeta: metav1.ObjectMeta{Name: "single.10.62.0.0-29"},
			Spec:       v1alpha1.IPBlockSpec{Network: "single", NetworkUID: w.network.UID, CIDR: "10.62.0.0/29", NodeName: "nobody", NodeUID: "nobody"},
		}
		if err := api.Create(t.Context(), block, client.DryRunAll); err == nil {
			return "the test's policy does not hold"
		}
		return ""
	})
	first := w.pod("first", on(w.nodes[0]))
	w.awaitComplaint(first, "blocks are refused by the test")
	w.end(first)
	for _, object := range refuseBlocks {
		w.must(api.Delete(t.Context(), object))
	}
	w.start(w.pod("second", on(w.nodes[1])))
	if blocks := w.blocks(); len(blocks) != 1 || blocks[0] != "10.62.0.0/29 "+w.nodes[1] {
		t.Errorf("blocks are %v", blocks)
	}
}

// newRefusal is a policy that refuses every IPBlock.
func newRefusal() []client.Object {
	const name = "netplane-test-no-blocks"
	return []client.Object{
		&admissionv1.ValidatingAdmissionPolicy{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: admissionv1.ValidatingAdmissionPolicySpec{
				MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{
					RuleWithOperations: admissionv1.RuleWithOperations{
						Operations: []admissionv1.OperationType{admissionv1.Create},
						Rule: admissionv1.Rule{
							APIGroups: []string{v1alpha1.SchemeGroupVersion.Group}, APIVersions: []string{"*"}, Resources: []string{v1alpha1.ResourceIPBlocks},
						},
					},
				}}},
				Validations: []admissionv1.Validation{{Expression: "false", Message: "blocks are refused by the test"}},
			},
		},
		&admissionv1.ValidatingAdmissionPolicyBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
				PolicyName: name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
			},
		},
	}
}
