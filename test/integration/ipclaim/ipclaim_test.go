// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipclaim_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

func sticky(network string) string { return fmt.Sprintf("- {name: %s, sticky: true}", network) }

func named(network, ip string) string { return fmt.Sprintf("- {name: %s, ips: [%s]}", network, ip) }

func byReference(network, reference string) string {
	return fmt.Sprintf("- {name: %s, ipam-claim-reference: %s}", network, reference)
}

func TestFixedAddresses(t *testing.T) {
	w := newWorld(t)
	l, _ := w.start(0)
	for _, test := range []struct {
		name string
		run  func(*world, *line)
	}{
		// The first one counts writes.
		{"a pod of a StatefulSet keeps its address on another node", testSticky},
		{"a pod that vanished from a silent node keeps its address", testSilentNode},
		{"an address that the agent holds is not handed on", testHeldByAgent},
		{"an address that another node holds for a forgotten pod is not handed out", testForgotten},
		{"a pod that vanished before it was bound keeps nothing", testNeverBound},
		{"of two pods that name one address the second is told", testNamedTwice},
		{"the pods of a virtual machine have the address in turn", testReference},
		{"a full static range is told, and what goes free is given", testExhausted},
		{"a claim that an admin made is used", testPremade},
		{"a claim that is deleted goes when its pod has gone", testClaimDeleted},
		{"the claims of a Network that is deleted go with their pods", testNetworkDeleted},
		{"what cannot be given is told", testInvalid},
		{"both families of one address", testDualStack},
		{"a namespace that the Network does not admit gets nothing", testNotAdmitted},
		{"a deleted node's addresses are free after the grace", testNodeDeleted},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(w.with(t), l) })
	}
}

func testSticky(w *world, l *line) {
	network := w.addNetwork("sticky")
	first := w.addPod("db-0", sticky("sticky"))
	w.awaitHeld("sticky", first, "")
	w.bind(first, "a")
	claim := w.awaitHeld("sticky", first, "a")
	if got, want := l.takeWrites(), "POST, PUT status, PUT status"; got != want {
		w.t.Errorf("the first pod cost %s, want %s", got, want)
	}
	want := v1alpha1.IPClaimSpec{
		Network: "sticky", NetworkUID: network.UID, Address: claim.Spec.Address, ReclaimPolicy: v1alpha1.IPClaimRetain,
		Owner: v1alpha1.IPClaimOwner{Kind: v1alpha1.IPClaimOwnerPod, Namespace: namespace, Name: "db-0", Interface: "net1"},
	}
	if claim.Spec != want || !controllerutil.ContainsFinalizer(claim, v1alpha1.FinalizerIPClaim) {
		w.t.Errorf("claim %+v with finalizers %v, want %+v", claim.Spec, claim.Finalizers, want)
	}
	w.end(first)
	second := w.addPod("db-0", sticky("sticky"))
	w.awaitHeld("sticky", second, "")
	w.bind(second, "b")
	if again := w.awaitHeld("sticky", second, "b"); again.UID != claim.UID {
		w.t.Errorf("claim %s, before %s", again.Name, claim.Name)
	}
	if got, want := l.takeWrites(), "PUT status, PUT status"; got != want {
		w.t.Errorf("a hand-over cost %s, want %s", got, want)
	}
	w.end(second)
	w.awaitSays(claim.Name, v1alpha1.ReasonOwnerAbsent, "interface net1 of pod default/db-0 is not there")
	if got, want := l.takeWrites(), "PUT status"; got != want {
		w.t.Errorf("the end cost %s, want %s", got, want)
	}
}

func testSilentNode(w *world, _ *line) {
	w.addNetwork("silent")
	w.addNode("silent")
	first := w.addPod("silent-0", sticky("silent"))
	w.bind(first, "silent")
	claim := w.awaitHeld("silent", first, "silent")
	w.answers("silent", metav1.ConditionUnknown)
	w.vanish(first)
	second := w.addPod("silent-0", sticky("silent"))
	w.awaitSays(claim.Name, v1alpha1.ReasonFormerNodeUnknown, "node silent, where former pod default/silent-0 ran, does not answer")
	w.stays(claim, first, 2*grace)

	// It comes back: its agent gets the time to tell that the pod runs on.
	w.answers("silent", metav1.ConditionTrue)
	w.awaitSays(claim.Name, v1alpha1.ReasonFormerPodRemains, "the node gets 3s to tell")
	w.stays(claim, first, grace/2)
	w.answers("silent", metav1.ConditionUnknown)
	w.awaitSays(claim.Name, v1alpha1.ReasonFormerNodeUnknown, "does not answer")
	w.stays(claim, first, 2*grace)

	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "silent"}}
	fence := client.RawPatch("application/strategic-merge-patch+json", []byte(`{"spec":{"taints":[{"key":"node.kubernetes.io/out-of-service","value":"nodeshutdown","effect":"NoExecute"}]}}`))
	if err := w.c.Patch(w.t.Context(), node, fence); err != nil {
		w.t.Fatal(err)
	}
	w.awaitHeld("silent", second, "")
}

func testHeldByAgent(w *world, _ *line) {
	w.addNetwork("held")
	w.addNode("held")
	first := w.addPod("held-0", sticky("held"))
	w.bind(first, "held")
	claim := w.awaitHeld("held", first, "held")
	w.holds("held", "held", first)
	w.vanish(first)
	second := w.addPod("held-0", sticky("held"))
	w.awaitSays(claim.Name, v1alpha1.ReasonFormerPodRemains, "node held has not given back what former pod default/held-0 had")
	w.stays(claim, first, 2*grace)
	w.holds("held", "held")
	w.awaitHeld("held", second, "")
}

// testForgotten: after a restore the API has neither the claim nor the pod that
// has the address on a node.
func testForgotten(w *world, _ *line) {
	w.addNetwork("forgotten")
	w.addNode("forgotten")
	w.holdsAddress("forgotten", "forgotten", "10.10.254.9", "uid-of-a-forgotten-pod")
	pod := w.addPod("forgotten-0", named("forgotten", "10.10.254.9"))
	claim := w.awaitSays(addressing.ClaimName("forgotten", netip.MustParseAddr("10.10.254.9")), v1alpha1.ReasonFormerPodRemains, "node forgotten has not given back the address")
	w.stays(claim, &corev1.Pod{}, 2*grace)
	w.holds("forgotten", "forgotten")
	w.awaitHeld("forgotten", pod, "")
	// The same where the claim names a pod: its own node is asked, and others are.
	w.end(pod)
	w.holdsAddress("forgotten", "forgotten", "10.10.254.9", "uid-of-another")
	next := w.addPod("forgotten-0", named("forgotten", "10.10.254.9"))
	w.awaitSays(claim.Name, v1alpha1.ReasonFormerPodRemains, "node forgotten has not given back the address")
	w.holds("forgotten", "forgotten")
	w.awaitHeld("forgotten", next, "")
}

func testNeverBound(w *world, _ *line) {
	w.addNetwork("unbound")
	first := w.addPod("unbound-0", sticky("unbound"))
	claim := w.awaitHeld("unbound", first, "")
	w.vanish(first)
	second := w.addPod("unbound-0", sticky("unbound"))
	if again := w.awaitHeld("unbound", second, ""); again.UID != claim.UID {
		w.t.Errorf("claim %s, before %s", again.Name, claim.Name)
	}
}

func testNamedTwice(w *world, _ *line) {
	w.addNetwork("named")
	first := w.addPod("named-a", named("named", "10.10.254.7/16"))
	claim := w.awaitHeld("named", first, "")
	if claim.Spec.Address != "10.10.254.7" || claim.Spec.ReclaimPolicy != v1alpha1.IPClaimDelete {
		w.t.Errorf("claim %+v", claim.Spec)
	}
	w.bind(first, "a")
	w.awaitHeld("named", first, "a")
	second := w.addPod("named-b", named("named", "10.10.254.7"))
	const message = "network named: address 10.10.254.7 belongs to interface net1 of pod default/named-a"
	w.awaitEvent(second, v1alpha1.EventFixedAddressTaken, message)
	for i := range 3 { // what happens to others is no reason to say it again
		other := w.addPod(fmt.Sprintf("named-other-%d", i), named("named", fmt.Sprintf("10.10.254.%d", 20+i)))
		made := w.awaitHeld("named", other, "")
		w.vanish(other)
		w.awaitGone(made)
	}
	if times := w.awaitEvent(second, v1alpha1.EventFixedAddressTaken, message); times != 1 {
		w.t.Errorf("told %d times", times)
	}
	w.end(first)
	if again := w.awaitHeld("named", second, ""); again.UID == claim.UID || again.Spec.Owner.Name != "named-b" {
		w.t.Errorf("claim %+v", again.Spec)
	}
}

func testReference(w *world, _ *line) {
	w.addNetwork("vms")
	source := w.addPod("virt-1", byReference("vms", "vm-1"))
	w.bind(source, "a")
	claim := w.awaitHeld("vms", source, "a")
	target := w.addPod("virt-2", byReference("vms", "vm-1"))
	third := w.addPod("virt-3", byReference("vms", "vm-1"))
	w.stays(claim, source, time.Second)
	w.end(source)
	again := w.awaitHeld("vms", target, "")
	if again.UID != claim.UID {
		w.t.Errorf("claim %s, before %s", again.Name, claim.Name)
	}
	w.stays(claim, target, time.Second)
	w.vanish(target)
	w.awaitHeld("vms", third, "")
}

func testExhausted(w *world, _ *line) {
	w.addNetwork("full", func(n *v1alpha1.Network) { n.Spec.StaticRange = "10.10.254.8/30" })
	seen := map[v1alpha1.IP]bool{}
	var last *v1alpha1.IPClaim
	for i := range 4 {
		last = w.awaitHeld("full", w.addPod(fmt.Sprintf("full-%d", i), sticky("full")), "")
		seen[last.Spec.Address] = true
	}
	if len(seen) != 4 {
		w.t.Errorf("addresses %v, want four", seen)
	}
	late := w.addPod("full-late", sticky("full"))
	w.awaitEvent(late, v1alpha1.EventNoFixedAddressLeft, "network full: every address of staticRange 10.10.254.8/30 belongs to somebody")
	w.vanish(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: last.Status.PodName}})
	if err := w.c.Delete(w.t.Context(), last); err != nil {
		w.t.Fatal(err)
	}
	if got := w.awaitHeld("full", late, ""); got.Spec.Address != last.Spec.Address {
		w.t.Errorf("address %s, want %s", got.Spec.Address, last.Spec.Address)
	}
}

func testPremade(w *world, _ *line) {
	w.addNetwork("premade")
	claim := &v1alpha1.IPClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "premade.10.10.254.99"},
		Spec: v1alpha1.IPClaimSpec{
			Network: "premade", Address: "10.10.254.99",
			Owner: v1alpha1.IPClaimOwner{Kind: v1alpha1.IPClaimOwnerPod, Namespace: namespace, Name: "premade-0", Interface: "net1"},
		},
	}
	w.create(claim)
	w.awaitSays(claim.Name, v1alpha1.ReasonOwnerAbsent, "is not there")
	pod := w.addPod("premade-0", sticky("premade"))
	if got := w.awaitHeld("premade", pod, ""); got.UID != claim.UID || !controllerutil.ContainsFinalizer(got, v1alpha1.FinalizerIPClaim) {
		w.t.Errorf("claim %s with finalizers %v", got.Name, got.Finalizers)
	}
}

func testClaimDeleted(w *world, _ *line) {
	w.addNetwork("deleted")
	pod := w.addPod("deleted-0", sticky("deleted"))
	w.bind(pod, "a")
	claim := w.awaitHeld("deleted", pod, "a")
	if err := w.c.Delete(w.t.Context(), claim); err != nil {
		w.t.Fatal(err)
	}
	w.stays(claim, pod, time.Second)
	if claims, err := w.claims(w.t.Context(), "deleted"); err != nil || len(claims) != 1 {
		w.t.Errorf("claims %+v (%v): a pod that has one gets no other", claims, err)
	}
	w.end(pod)
	w.awaitGone(claim)
	next := w.addPod("deleted-0", sticky("deleted"))
	w.awaitHeld("deleted", next, "")
}

func testNetworkDeleted(w *world, _ *line) {
	network := w.addNetwork("leaving", func(n *v1alpha1.Network) { n.Finalizers = []string{v1alpha1.FinalizerNetwork} })
	pod, idle := w.addPod("leaving-0", sticky("leaving")), w.addPod("leaving-1", sticky("leaving"))
	w.bind(pod, "a")
	used, kept := w.awaitHeld("leaving", pod, "a"), w.awaitHeld("leaving", idle, "")
	w.vanish(idle)
	if err := w.c.Delete(w.t.Context(), network); err != nil {
		w.t.Fatal(err)
	}
	w.awaitGone(kept)
	w.stays(used, pod, time.Second)
	w.end(pod)
	w.awaitGone(used)
	network.Finalizers = nil
	if err := w.c.Patch(w.t.Context(), network, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))); err != nil {
		w.t.Fatal(err)
	}
}

func testInvalid(w *world, _ *line) {
	w.addNetwork("invalid")
	outside := w.addPod("invalid-0", named("invalid", "10.10.3.4"))
	w.awaitEvent(outside, v1alpha1.EventFixedAddressInvalid, `network invalid: ips: 10.10.3.4 does not lie in staticRange 10.10.254.0/24`)
	claim := &v1alpha1.IPClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "invalid.10.10.3.4"},
		Spec: v1alpha1.IPClaimSpec{
			Network: "invalid", Address: "10.10.3.4",
			Owner: v1alpha1.IPClaimOwner{Kind: v1alpha1.IPClaimOwnerReference, Namespace: namespace, Name: "vm"},
		},
	}
	foreign := claim.DeepCopy()
	foreign.Name, foreign.Spec.Network = "nonesuch.10.10.3.4", "nonesuch"
	w.create(claim, foreign)
	w.awaitSays(claim.Name, v1alpha1.ReasonInvalidAddress, "10.10.3.4 does not lie in staticRange")
	w.awaitSays(foreign.Name, v1alpha1.ReasonNetworkAbsent, `there is no Network "nonesuch"`)
}

func testDualStack(w *world, _ *line) {
	w.addNetwork("dual", func(n *v1alpha1.Network) { n.Spec.Subnet6 = "fd00:10::/64" })
	pod := w.addPod("dual-0", named("dual", `10.10.254.5, "fd00:10::a0a:fe05"`))
	if got := w.awaitHeld("dual", pod, ""); got.Spec.Address != "10.10.254.5" {
		w.t.Errorf("address %s", got.Spec.Address)
	}
	apart := w.addPod("dual-1", named("dual", `10.10.254.6, "fd00:10::a0a:fe05"`))
	w.awaitEvent(apart, v1alpha1.EventFixedAddressInvalid, "fd00:10::a0a:fe05 does not follow from the address beside it")
	alone := w.addPod("dual-2", named("dual", `"fd00:10::a0a:fe07"`))
	w.awaitEvent(alone, v1alpha1.EventFixedAddressInvalid, "write 10.10.254.7, the IPv4 address that fd00:10::a0a:fe07 follows from")
}

func testNotAdmitted(w *world, _ *line) {
	w.addNetwork("tenants", func(n *v1alpha1.Network) {
		n.Spec.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}}
	})
	pod := w.addPod("tenant-0", sticky("tenants"))
	never := time.Now().Add(time.Second)
	for time.Now().Before(never) {
		if claims, err := w.claims(w.t.Context(), "tenants"); err != nil || len(claims) > 0 {
			w.t.Fatalf("claims %+v (%v)", claims, err)
		}
		time.Sleep(poll)
	}
	label := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"team":"a"}}}`))
	if err := w.c.Patch(w.t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, label); err != nil {
		w.t.Fatal(err)
	}
	w.awaitHeld("tenants", pod, "")
}

func testNodeDeleted(w *world, _ *line) {
	w.addNetwork("nodeless")
	w.addNode("nodeless")
	first := w.addPod("nodeless-0", sticky("nodeless"))
	w.bind(first, "nodeless")
	claim := w.awaitHeld("nodeless", first, "nodeless")
	for _, object := range []client.Object{&corev1.Node{}, &v1alpha1.NodeNetwork{}} {
		object.SetName("nodeless")
		if err := w.c.Delete(w.t.Context(), object); err != nil {
			w.t.Fatal(err)
		}
	}
	w.vanish(first)
	second := w.addPod("nodeless-0", sticky("nodeless"))
	w.awaitSays(claim.Name, v1alpha1.ReasonFormerNodeUnknown, "node nodeless, where former pod default/nodeless-0 ran, is gone: it gets 3s to stop")
	w.stays(claim, first, grace/2)
	w.awaitHeld("nodeless", second, "")
}

// However many writes the controller lives for, and although the reply to the
// last of them is lost, the next one goes on where it ended: one claim, one pod
// at a time, and the same address.
func TestTheControllerDiesAfterEachWrite(t *testing.T) {
	w := newWorld(t)
	w.addNetwork("data")
	for writes := 1; ; writes++ {
		name := fmt.Sprintf("db-%d", writes)
		done := false
		t.Run(fmt.Sprintf("after write %d", writes), func(t *testing.T) {
			w := w.with(t)
			broken, stopBroken := w.start(writes)
			first := w.addPod(name, sticky("data"))
			w.bind(first, "a")
			w.outlive(broken, first, "a")
			stopBroken()
			survived := !broken.isBroken()

			_, stop := w.start(0)
			claim := w.awaitHeld("data", first, "a")
			stop()
			rest := writes
			if !survived {
				rest = 1
			}
			again, stopAgain := w.start(rest)
			w.end(first)
			second := w.addPod(name, sticky("data"))
			w.bind(second, "b")
			w.outlive(again, second, "b")
			stopAgain()
			done = survived && !again.isBroken()

			w.start(0)
			if got := w.awaitHeld("data", second, "b"); got.UID != claim.UID {
				t.Errorf("claim %s, before %s", got.Name, claim.Name)
			}
			claims, err := w.claims(t.Context(), "data")
			owned := slices.DeleteFunc(claims, func(c v1alpha1.IPClaim) bool { return c.Spec.Owner.Name != name })
			if err != nil || len(owned) != 1 {
				t.Errorf("claims %+v (%v), want one", owned, err)
			}
		})
		if done || t.Failed() {
			if writes < 3 {
				t.Errorf("all was done with %d writes: nothing was broken", writes)
			}
			return
		}
	}
}

// outlive waits until the controller's connection has broken, or all is done.
func (w *world) outlive(l *line, pod *corev1.Pod, node string) {
	w.t.Helper()
	w.eventually("the controller dies, or is done", func(ctx context.Context) error {
		if l.isBroken() {
			return nil
		}
		claims, err := w.claims(ctx, "data")
		if err != nil {
			return err
		}
		if slices.ContainsFunc(claims, func(c v1alpha1.IPClaim) bool { return c.Status.PodUID == pod.UID && c.Status.NodeName == node }) {
			return nil
		}
		return errors.New("neither")
	})
}
