// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice_test

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

const noBlock = "it lies in no IPBlock of this network that the pod's node holds, and no IPClaim gives it to the pod"

// What the policy that guards network-status is to keep out, and what the
// controller makes of it where it came in all the same.
func testForged(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.create(t, service(namespace, "data"))
	w.pod(t, namespace, "honest", "worker", attachment("data", "eth2", "10.20.1.7"))
	w.pod(t, namespace, "forger", "worker", attachment("data", "eth2", "10.20.7.5", "fd00:10:20::a14:705"))
	w.wantEvent(t, namespace, "forger", v1alpha1.EventAddressWithheld, "not published in Service web: "+
		"address 10.20.7.5 on network data: "+noBlock+"; address fd00:10:20::a14:705 on network data: "+noBlock)
	honest := []string{"data IPv4: honest 10.20.1.7 ready", "data IPv6: -"}
	w.wantEndpoints(t, namespace, honest...)
	// Once the node holds the block, the same claim is good.
	w.block(t, "data", "worker", "10.20.7.0/26")
	w.wantEndpoints(t, namespace, "data IPv4: forger 10.20.7.5 ready", "data IPv4: honest 10.20.1.7 ready", "data IPv6: forger fd00:10:20::a14:705 ready")

	for name, claimed := range map[string]string{
		"anothers-node":    "10.20.2.9", // worker2 holds the block
		"anothers-network": "10.10.1.9", // of management
		"unclaimed":        "10.20.254.9",
		"api-server":       "10.0.0.1", // the ClusterIP of Kubernetes itself
		"outside":          "192.0.2.1",
	} {
		w.pod(t, namespace, name, "worker", attachment("data", "eth2", claimed))
		w.wantEvent(t, namespace, name, v1alpha1.EventAddressWithheld, "not published in Service web: address "+claimed+" on network data: "+noBlock)
	}
	w.wantEndpoints(t, namespace, "data IPv4: forger 10.20.7.5 ready", "data IPv4: honest 10.20.1.7 ready", "data IPv6: forger fd00:10:20::a14:705 ready")
	w.wantEndpointsOf(t, namespace, "web-data", "data IPv4: forger 10.20.7.5 ready", "data IPv4: honest 10.20.1.7 ready", "data IPv6: forger fd00:10:20::a14:705 ready")
}

// On the cluster's own network kubelet's word counts, not network-status.
func testForgedOnDefault(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.create(t, service(namespace, "default"))
	pod := w.pod(t, namespace, "web-0", "worker")
	text, err := podnetworks.FormatStatus([]podnetworks.Attachment{
		{Name: "kindnet", Interface: "eth0", IPs: []string{"10.0.0.1"}, Default: true}, {Name: "default", Interface: "eth1", IPs: []string{"192.0.2.1"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	change(t, w, pod, false, func(p *corev1.Pod) { p.Annotations[v1alpha1.AnnotationNetworkStatus] = text })
	published := []string{"default IPv4: web-0 10.244.1.5 ready", "default IPv6: web-0 fd00:244::5 ready"}
	w.wantEndpoints(t, namespace, published...)
	w.wantEvent(t, namespace, "web-0", v1alpha1.EventAddressWithheld,
		"not published in Service web: address 192.0.2.1 on network default: it is none of the pod's own in status.podIPs")
	change(t, w, pod, true, func(p *corev1.Pod) { setReady(p, false) })
	w.wantEndpoints(t, namespace, "default IPv4: web-0 10.244.1.5 notready", "default IPv6: web-0 fd00:244::5 notready")
}

// A network-status that no agent wrote is not passed over in silence.
func testNotTheAgents(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.create(t, service(namespace, "data,management"))
	pod := w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	published := []string{"data IPv4: web-0 10.20.1.5 ready", "data IPv6: -", "management IPv4: -", "management IPv6: -"}
	w.wantEndpoints(t, namespace, published...)
	none := append([]string{"data IPv4: -"}, published[1:]...)
	told := func(what string) {
		t.Helper()
		w.wantEvent(t, namespace, "web-0", v1alpha1.EventAddressWithheld, "not published in Service web: "+what)
	}
	change(t, w, pod, false, func(p *corev1.Pod) { delete(p.Annotations, v1alpha1.AnnotationNetworkStatusSandbox) })
	w.wantEndpoints(t, namespace, none...)
	told("address 10.20.1.5 on network data: the annotation netplane.io/network-status-sandbox is missing, which netplane's agent writes with network-status")
	change(t, w, pod, false, func(p *corev1.Pod) {
		p.Annotations[v1alpha1.AnnotationNetworkStatusSandbox] = "sandbox"
		p.Annotations[v1alpha1.AnnotationNetworkStatus] = "{}"
	})
	w.wantEndpoints(t, namespace, none...)
	told("all that its annotation claims: reading network-status: json: cannot unmarshal object into Go value of type []podnetworks.Attachment")
	w.attach(t, pod, attachment("data", "eth2", "10.20.1.5"))
	w.wantEndpoints(t, namespace, published...)
}

// An address that the API server refuses in a slice would take those of all
// other pods in the slice with it.
func testNoHostAddress(t *testing.T, w *world) {
	namespace := w.namespace(t)
	foreign := w.network("calico", "phy-net1", "", "")
	foreign.Spec.Plugin = "Calico"
	w.createFor(t, foreign)
	w.create(t, service(namespace, "calico"))
	bad := w.pod(t, namespace, "bad", "worker", attachment("calico", "eth2", "169.254.1.1", "192.168.9.4", "fe80::1"))
	w.pod(t, namespace, "good", "worker", attachment("calico", "eth2", "192.168.9.5", "fd00:9::5"))
	w.wantEndpoints(t, namespace, "calico IPv4: bad 192.168.9.4 ready", "calico IPv4: good 192.168.9.5 ready", "calico IPv6: good fd00:9::5 ready")
	const why = "no endpoint can have an address that is unspecified, loopback, link-local, multicast or mapped from IPv4"
	w.wantEvent(t, namespace, "bad", v1alpha1.EventAddressWithheld, "not published in Service web: "+
		"address 169.254.1.1 on network calico: "+why+"; address fe80::1 on network calico: "+why)
	change(t, w, bad, true, func(p *corev1.Pod) { setReady(p, false) })
	w.wantEndpoints(t, namespace, "calico IPv4: bad 192.168.9.4 notready", "calico IPv4: good 192.168.9.5 ready", "calico IPv6: good fd00:9::5 ready")
}

func testFixed(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.create(t, service(namespace, "data"))
	pod := w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.254.5", "fd00:10:20::a14:fe05"))
	none := []string{"data IPv4: -", "data IPv6: -"}
	w.wantEndpoints(t, namespace, none...)
	ipClaim := &v1alpha1.IPClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "data.10.20.254.5"},
		Spec: v1alpha1.IPClaimSpec{
			Network: "data", Address: "10.20.254.5",
			Owner: v1alpha1.IPClaimOwner{Kind: v1alpha1.IPClaimOwnerPod, Namespace: namespace, Name: pod.Name, Interface: "eth2"},
		},
	}
	w.create(t, ipClaim)
	hand := func(uid types.UID, node string) {
		t.Helper()
		change(t, w, ipClaim, true, func(c *v1alpha1.IPClaim) { c.Status.PodUID, c.Status.PodName, c.Status.NodeName = uid, pod.Name, node })
	}
	published := []string{"data IPv4: web-0 10.20.254.5 ready", "data IPv6: web-0 fd00:10:20::a14:fe05 ready"}
	hand(pod.UID, "worker")
	w.wantEndpoints(t, namespace, published...)
	hand(pod.UID, "another")
	w.wantEndpoints(t, namespace, none...)
	hand(pod.UID, "worker")
	w.wantEndpoints(t, namespace, published...)
	hand("a later pod", "worker")
	w.wantEndpoints(t, namespace, none...)

	// A pod of the same name is another pod, until the claim is handed to it.
	hand(pod.UID, "worker")
	w.wantEndpoints(t, namespace, published...)
	if err := w.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	w.wantEndpoints(t, namespace, none...)
	pod = w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.254.5", "fd00:10:20::a14:fe05"))
	w.wantEvent(t, namespace, "web-0", v1alpha1.EventAddressWithheld, "not published in Service web: "+
		"address 10.20.254.5 on network data: "+noBlock+"; address fd00:10:20::a14:fe05 on network data: "+noBlock)
	w.wantEndpoints(t, namespace, none...)
	hand(pod.UID, "worker")
	w.wantEndpoints(t, namespace, published...)
}

func testContested(t *testing.T, w *world) {
	namespace, elsewhere := w.namespace(t), w.namespace(t)
	w.create(t, service(namespace, "data"))
	w.create(t, service(elsewhere, "data"))
	w.pod(t, namespace, "first", "worker", attachment("data", "eth2", "10.20.1.20"))
	published, none := []string{"data IPv4: first 10.20.1.20 ready", "data IPv6: -"}, []string{"data IPv4: -", "data IPv6: -"}
	w.wantEndpoints(t, namespace, published...)
	second := w.pod(t, elsewhere, "second", "worker", attachment("data", "eth2", "10.20.1.20"))
	w.wantEndpoints(t, namespace, none...)
	w.wantEndpoints(t, elsewhere, none...)
	const why = "not published in Service web: address 10.20.1.20 on network data: another pod on the same node claims it too"
	w.wantEvent(t, namespace, "first", v1alpha1.EventAddressWithheld, why)
	w.wantEvent(t, elsewhere, "second", v1alpha1.EventAddressWithheld, why)

	// Whose sandbox is gone, or who ended, does not have it any more.
	sandbox := func(there corev1.ConditionStatus) {
		t.Helper()
		change(t, w, second, true, func(p *corev1.Pod) {
			setReady(p, true)
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: there})
		})
	}
	sandbox(corev1.ConditionFalse)
	w.wantEndpoints(t, namespace, published...)
	w.wantEndpoints(t, elsewhere, none...)
	sandbox(corev1.ConditionTrue)
	w.wantEndpoints(t, namespace, none...)
	change(t, w, second, true, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
	w.wantEndpoints(t, namespace, published...)
}

// A node gives an address to the next pod before the former's object is gone.
func testAddressReused(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.create(t, service(namespace, "data"))
	former := w.pod(t, namespace, "former", "worker", attachment("data", "eth2", "10.20.1.30"))
	w.wantEndpoints(t, namespace, "data IPv4: former 10.20.1.30 ready", "data IPv6: -")
	change(t, w, former, false, func(p *corev1.Pod) { p.Finalizers = []string{"test.netplane.io/hold"} })
	if err := w.Delete(t.Context(), former); err != nil {
		t.Fatal(err)
	}
	w.pod(t, namespace, "next", "worker", attachment("data", "eth2", "10.20.1.30"))
	w.wantEndpoints(t, namespace, "data IPv4: next 10.20.1.30 ready", "data IPv6: -")
	change(t, w, former, false, func(p *corev1.Pod) { p.Finalizers = nil })
	if err := w.Delete(t.Context(), former, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	w.wantEndpoints(t, namespace, "data IPv4: next 10.20.1.30 ready", "data IPv6: -")
}

// Blocks of a Network that was deleted say nothing about its successor.
func testNetworkMadeAnew(t *testing.T, w *world) {
	namespace := w.namespace(t)
	network := w.network("again", "phy-net1", "10.50.0.0/16", "")
	w.create(t, network)
	w.block(t, "again", "worker", "10.50.1.0/26")
	w.create(t, service(namespace, "again"))
	w.pod(t, namespace, "web-0", "worker", attachment("again", "eth2", "10.50.1.5"))
	published := "again IPv4: web-0 10.50.1.5 ready"
	w.wantEndpoints(t, namespace, published)
	w.wantEndpointsOf(t, namespace, "web-again", published)
	if err := w.Delete(t.Context(), network); err != nil {
		t.Fatal(err)
	}
	w.wantEndpoints(t, namespace)
	w.wantChildren(t, namespace)
	w.createFor(t, w.network("again", "phy-net1", "10.50.0.0/16", ""))
	w.wantEvent(t, namespace, "web-0", v1alpha1.EventAddressWithheld, "not published in Service web: address 10.50.1.5 on network again: "+noBlock)
	w.wantEndpoints(t, namespace, "again IPv4: -")
	former := &v1alpha1.IPBlock{ObjectMeta: metav1.ObjectMeta{Name: addressing.BlockName("again", netip.MustParsePrefix("10.50.1.0/26"))}}
	if err := w.Delete(t.Context(), former); err != nil {
		t.Fatal(err)
	}
	w.block(t, "again", "worker", "10.50.1.0/26")
	w.wantEndpoints(t, namespace, published)
}
