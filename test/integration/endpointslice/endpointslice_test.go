// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package endpointslice_test tries the controller of EndpointSlices against a
// real API server: that slices follow pods, blocks, NICs, networks and the
// Service itself.
package endpointslice_test

import (
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestEndpointSlices(t *testing.T) {
	w := newWorld(t)
	w.run(t)
	for name, test := range map[string]func(*testing.T, *world){
		"a slice group per network and family":        testGroups,
		"slices carry what consumers need":            testSliceForm,
		"a pod made not ready leaves within a second": testNotReady,
		"a pod going away is terminating, then gone":  testTerminating,
		"a NIC down takes one network out":            testLinkDown,
		"one of two NICs down takes its pods out":     testOwnNICDown,
		"a forged address is withheld":                testForged,
		"a fixed address follows its IPClaim":         testFixed,
		"an address that two claim is withheld":       testContested,
		"the annotation removed":                      testAnnotationRemoved,
		"the Service deleted":                         testServiceDeleted,
		"a malformed annotation":                      testMalformed,
		"a malformed annotation, and the network":     testMalformedFollows,
		"networks per port":                           testPerPort,
		"a network that comes and goes":               testNetworkComesAndGoes,
		"reachability changed":                        testReachability,
		"a slice removed by somebody else":            testSliceRepaired,
		"a Service without annotation":                testUntouched,
		"more pods than a slice holds":                testManyPods,
		"a child Service names each network":          testChildren,
		"a child is kept as it should be":             testChildRepaired,
		"a foreign Service of a child's name":         testChildNameTaken,
		"two parents of a child's name":               testTwoParents,
		"a child's name too long":                     testChildNameTooLong,
		"children leave with what they are for":       testChildrenLeave,
		"addresses of pods that are not ready":        testPublishNotReady,
		"hints for zones and nodes":                   testHints,
		"the families that the Service wants":         testFamilies,
		"no family in common":                         testNoFamily,
		"default and networks by port":                testDefaultByPort,
		"addresses that no block knows":               testNoBlocks,
		"an address that none can have":               testNoHostAddress,
		"a forged status and the cluster network":     testForgedOnDefault,
		"a status that is none of the agent's":        testNotTheAgents,
		"an address that passes to the next pod":      testAddressReused,
		"a Network deleted and made anew":             testNetworkMadeAnew,
		"a port renamed":                              testPortRenamed,
		"a selector of the key alone":                 testSelectorEmpty,
		"a type without endpoints":                    testExternalName,
		"a slice relabelled":                          testRelabelled,
		"a pod of the same name and address":          testPodReplaced,
		"a Service that comes and goes":               testServiceFlaps,
		"many changes at once":                        testManyChanges,
	} {
		t.Run(name, func(t *testing.T) { test(t, w) })
	}
}

func TestWhatChangedWhileTheControllerWasAway(t *testing.T) {
	w := newWorld(t)
	stop := w.run(t)
	namespace := w.namespace(t)
	svc := service(namespace, "data")
	w.create(t, svc)
	pod := w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	other := w.namespace(t)
	unannotated := service(other, "data")
	w.create(t, unannotated)
	deleted := w.namespace(t)
	gone := service(deleted, "data")
	w.create(t, gone)
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 ready", "data IPv6: -")
	w.wantEndpoints(t, other, "data IPv4: -", "data IPv6: -")
	w.wantCondition(t, other, "True EndpointsPublished: endpoints are published on: data")
	w.wantEndpoints(t, deleted, "data IPv4: -", "data IPv6: -")
	stop()

	w.attach(t, pod, attachment("data", "eth2", "10.20.1.6"))
	change(t, w, unannotated, false, func(s *corev1.Service) {
		s.Annotations = nil
		delete(s.Spec.Selector, v1alpha1.SelectorEndpointsKey)
	})
	if err := w.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	w.run(t)
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.6 ready", "data IPv6: -")
	w.wantEndpoints(t, other)
	w.wantCondition(t, other, "")
	w.wantEndpoints(t, deleted)
}

func testGroups(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.create(t, service(namespace, "management,data"))
	w.pod(t, namespace, "web-0", "worker", attachment("management", "eth1", "10.10.1.5", "fd00:10:10::a0a:105"), attachment("data", "eth2", "10.20.1.5", "fd00:10:20::a14:105"))
	w.pod(t, namespace, "web-1", "worker2", attachment("data", "eth2", "10.20.2.5", "fd00:10:20::a14:205"))
	w.wantEndpoints(t, namespace,
		"data IPv4: web-0 10.20.1.5 ready",
		"data IPv4: web-1 10.20.2.5 ready",
		"data IPv6: web-0 fd00:10:20::a14:105 ready",
		"data IPv6: web-1 fd00:10:20::a14:205 ready",
		"management IPv4: web-0 10.10.1.5 ready",
		"management IPv6: web-0 fd00:10:10::a0a:105 ready")
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data, management")
}

func testSliceForm(t *testing.T, w *world) {
	namespace := w.namespace(t)
	svc := service(namespace, "data")
	w.create(t, svc)
	pod := w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 ready", "data IPv6: -")
	items, err := w.slicesOf(t.Context(), namespace)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(items, func(s discoveryv1.EndpointSlice) bool { return s.AddressType == discoveryv1.AddressTypeIPv4 })
	slice := items[i]
	labels := map[string]string{
		"kubernetes.io/service-name":               "web",
		"endpointslice.kubernetes.io/managed-by":   "netplane.io",
		"netplane.io/network":                      "data",
		"service.kubernetes.io/headless":           "",
		"service.kubernetes.io/service-proxy-name": "netplane.io",
		"team": "shop",
	}
	if diff := cmp.Diff(labels, slice.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if owner := metav1.GetControllerOf(&slice); owner == nil || owner.UID != svc.UID {
		t.Errorf("owner %+v, want the Service", owner)
	}
	endpoint := slice.Endpoints[0]
	if endpoint.TargetRef.UID != pod.UID || *endpoint.NodeName != "worker" || *endpoint.Zone != "zone-of-worker" {
		t.Errorf("endpoint %+v does not name pod, node and zone", endpoint)
	}
	if len(slice.Ports) != 1 || *slice.Ports[0].Name != "http" || *slice.Ports[0].Port != 80 {
		t.Errorf("ports %+v, want http 80", slice.Ports)
	}
}

func testNotReady(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.create(t, service(namespace, "management,data"))
	pod := w.pod(t, namespace, "web-0", "worker", attachment("management", "eth1", "10.10.1.5"), attachment("data", "eth2", "10.20.1.5"))
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 ready", "data IPv6: -", "management IPv4: web-0 10.10.1.5 ready", "management IPv6: -")
	changed := time.Now()
	change(t, w, pod, true, func(p *corev1.Pod) { setReady(p, false) })
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 notready", "data IPv6: -", "management IPv4: web-0 10.10.1.5 notready", "management IPv6: -")
	// A second is the aim; the test allows for a machine that others use too.
	if took := time.Since(changed); took > 3*time.Second {
		t.Errorf("the change took %s", took)
	}
}

func testTerminating(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.create(t, service(namespace, "data"))
	pod := w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	change(t, w, pod, false, func(p *corev1.Pod) { p.Finalizers = []string{"test.netplane.io/hold"} })
	if err := w.Delete(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 terminating,serving", "data IPv6: -")
	change(t, w, pod, false, func(p *corev1.Pod) { p.Finalizers = nil })
	if err := w.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	w.wantEndpoints(t, namespace, "data IPv4: -", "data IPv6: -")
}

func testLinkDown(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.node(t, "worker-link", "phy-net0", "phy-net1")
	w.block(t, "management", "worker-link", "10.10.9.0/26")
	w.block(t, "data", "worker-link", "10.20.9.0/26")
	w.create(t, service(namespace, "management,data"))
	w.pod(t, namespace, "web-0", "worker-link", attachment("management", "eth1", "10.10.9.5"), attachment("data", "eth2", "10.20.9.5"))
	up := []string{"data IPv4: web-0 10.20.9.5 ready", "data IPv6: -", "management IPv4: web-0 10.10.9.5 ready", "management IPv6: -"}
	w.wantEndpoints(t, namespace, up...)
	changed := time.Now()
	w.link(t, "worker-link", map[string]bool{"phy-net0": true, "phy-net1": false})
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.9.5 notready", "data IPv6: -", "management IPv4: web-0 10.10.9.5 ready", "management IPv6: -")
	// A second is the aim; the test allows for a machine that others use too.
	took := time.Since(changed)
	t.Logf("the endpoints left %s after the NIC went down", took)
	if took > 3*time.Second {
		t.Errorf("that took %s", took)
	}
	w.wantEndpointsOf(t, namespace, "web-data", "data IPv4: web-0 10.20.9.5 notready", "data IPv6: -")
	w.link(t, "worker-link", map[string]bool{"phy-net0": true, "phy-net1": true})
	w.wantEndpoints(t, namespace, up...)
}

func testAnnotationRemoved(t *testing.T, w *world) {
	namespace := w.namespace(t)
	svc := service(namespace, "data")
	w.create(t, svc)
	w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 ready", "data IPv6: -")
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data")
	change(t, w, svc, false, func(s *corev1.Service) { s.Annotations = nil })
	w.wantEndpoints(t, namespace, "default IPv4: web-0 10.244.1.5 ready", "default IPv6: web-0 fd00:244::5 ready")
	message := "spec.selector has netplane.io/endpoints, but there is no annotation netplane.io/networks: the endpoints are those of the cluster network; add the annotation, or remove the entry from the selector"
	w.wantCondition(t, namespace, "False AnnotationMissing: "+message)
	w.wantEvent(t, namespace, "web", v1alpha1.ReasonAnnotationMissing, message)
	change(t, w, svc, false, func(s *corev1.Service) {
		s.Annotations = map[string]string{v1alpha1.AnnotationNetworks: "management"}
	})
	w.wantEndpoints(t, namespace, "management IPv4: -", "management IPv6: -")
}

func testServiceDeleted(t *testing.T, w *world) {
	namespace := w.namespace(t)
	svc := service(namespace, "data")
	w.create(t, svc)
	w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	published := []string{"data IPv4: web-0 10.20.1.5 ready", "data IPv6: -"}
	w.wantEndpoints(t, namespace, published...)
	if err := w.Delete(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	w.wantEndpoints(t, namespace)
	w.create(t, service(namespace, "data"))
	w.wantEndpoints(t, namespace, published...)
}

func testMalformed(t *testing.T, w *world) {
	namespace := w.namespace(t)
	svc := service(namespace, "data@eth1")
	w.create(t, svc)
	message := `annotation netplane.io/networks: item 1: "data@eth1" names the interface "eth1": a Service names the network alone, data`
	w.wantCondition(t, namespace, "False InvalidAnnotation: "+message)
	w.wantEvent(t, namespace, "web", v1alpha1.ReasonInvalidAnnotation, message)
	w.wantEndpoints(t, namespace)
	pod := w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	change(t, w, svc, false, func(s *corev1.Service) { s.Annotations[v1alpha1.AnnotationNetworks] = "data" })
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 ready", "data IPv6: -")
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data")

	// A slip takes nothing down, and what stands is kept up to date.
	change(t, w, svc, false, func(s *corev1.Service) { s.Annotations[v1alpha1.AnnotationNetworks] = "htp: [data]" })
	w.wantCondition(t, namespace, `False InvalidAnnotation: annotation netplane.io/networks: port "htp": the Service has no port of this name`)
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 ready", "data IPv6: -")
	change(t, w, pod, true, func(p *corev1.Pod) { setReady(p, false) })
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 notready", "data IPv6: -")
}

func testPerPort(t *testing.T, w *world) {
	namespace := w.namespace(t)
	svc := service(namespace, "http: [data]\nmetrics: [management, data]\n")
	svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "metrics", Port: 9090})
	w.create(t, svc)
	w.pod(t, namespace, "web-0", "worker", attachment("management", "eth1", "10.10.1.5"), attachment("data", "eth2", "10.20.1.5"))
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 ready", "data IPv6: -", "management IPv4: web-0 10.10.1.5 ready", "management IPv6: -")
	items, err := w.slicesOf(t.Context(), namespace)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, slice := range items {
		if slice.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		for _, port := range slice.Ports {
			got[slice.Labels[v1alpha1.LabelNetwork]] = append(got[slice.Labels[v1alpha1.LabelNetwork]], *port.Name)
		}
	}
	for network := range maps.Keys(got) {
		slices.Sort(got[network])
	}
	if diff := cmp.Diff(map[string][]string{"data": {"http", "metrics"}, "management": {"metrics"}}, got); diff != "" {
		t.Errorf("ports per network (-want +got):\n%s", diff)
	}
}

func testNetworkComesAndGoes(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.create(t, service(namespace, "data,storage"))
	message := `there is no Network "storage": create it, or name another in the annotation netplane.io/networks`
	w.wantCondition(t, namespace, "False UnknownNetwork: "+message)
	w.wantEvent(t, namespace, "web", v1alpha1.ReasonUnknownNetwork, message)
	w.wantEndpoints(t, namespace, "data IPv4: -", "data IPv6: -")
	storage := w.network("storage", "phy-net1", "10.30.0.0/16", "")
	w.create(t, storage)
	w.wantEndpoints(t, namespace, "data IPv4: -", "data IPv6: -", "storage IPv4: -")
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data, storage")
	if err := w.Delete(t.Context(), storage); err != nil {
		t.Fatal(err)
	}
	w.wantEndpoints(t, namespace, "data IPv4: -", "data IPv6: -")
	w.wantCondition(t, namespace, "False UnknownNetwork: "+message)
}

func testReachability(t *testing.T, w *world) {
	namespace := w.namespace(t)
	network := w.network("routed", "phy-net1", "10.40.0.0/16", "")
	w.create(t, network)
	svc := service(namespace, "routed")
	svc.Spec.ClusterIP, svc.Spec.IPFamilyPolicy = "", nil
	w.create(t, svc)
	message := `port "http": its networks are isolated from the nodes, so that nothing answers at the cluster IP: make the Service headless (clusterIP: None), set serviceProxy: InPod on a network, or name one whose reachability is Routed`
	w.wantCondition(t, namespace, "False IsolatedClusterIP: "+message)
	w.wantEvent(t, namespace, "web", v1alpha1.ReasonIsolatedClusterIP, message)
	w.wantHidden(t, namespace, true)
	change(t, w, network, false, func(n *v1alpha1.Network) { n.Spec.ServiceProxy = v1alpha1.ServiceProxyInPod })
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: routed")
	w.wantHidden(t, namespace, true) // kube-proxy keeps off as before
	change(t, w, network, false, func(n *v1alpha1.Network) { n.Spec.ServiceProxy = v1alpha1.ServiceProxyNone })
	w.wantCondition(t, namespace, "False IsolatedClusterIP: "+message)
	change(t, w, network, false, func(n *v1alpha1.Network) { n.Spec.Reachability = v1alpha1.ReachabilityRouted })
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: routed")
	w.wantHidden(t, namespace, false)
}

// wantHidden waits until the one slice there is hidden from kube-proxy, by both
// labels that any of its versions goes by, or by none.
func (w *world) wantHidden(t *testing.T, namespace string, want bool) {
	t.Helper()
	eventually(t, timeout, func() string {
		items, err := w.slicesOf(t.Context(), namespace)
		if err != nil {
			return err.Error()
		}
		var got [][2]bool
		for _, slice := range items {
			_, headless := slice.Labels[corev1.IsHeadlessService]
			got = append(got, [2]bool{headless, slice.Labels["service.kubernetes.io/service-proxy-name"] == "netplane.io"})
		}
		return cmp.Diff([][2]bool{{want, want}}, got)
	})
}

func testSliceRepaired(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.create(t, service(namespace, "data"))
	w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	published := []string{"data IPv4: web-0 10.20.1.5 ready", "data IPv6: -"}
	w.wantEndpoints(t, namespace, published...)
	items, err := w.slicesOf(t.Context(), namespace)
	if err != nil {
		t.Fatal(err)
	}
	for i := range items {
		if err := w.Delete(t.Context(), &items[i]); err != nil {
			t.Fatal(err)
		}
	}
	w.wantEndpoints(t, namespace, published...)
	if items, err = w.slicesOf(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	for i := range items {
		if items[i].AddressType == discoveryv1.AddressTypeIPv4 {
			change(t, w, &items[i], false, func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses = []string{"192.0.2.1"} })
		}
	}
	w.wantEndpoints(t, namespace, published...)
}

func testUntouched(t *testing.T, w *world) {
	namespace := w.namespace(t)
	svc := service(namespace, "")
	removeBoth(svc)
	w.create(t, svc)
	foreign := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "web-other", Namespace: namespace, Labels: map[string]string{discoveryv1.LabelServiceName: "web", discoveryv1.LabelManagedBy: "someone"}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	w.create(t, foreign)
	w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	before := svc.ResourceVersion
	// A Service of ours that is published after the pod came shows that the
	// controller has seen the pod, and had its chance.
	other := w.namespace(t)
	w.create(t, service(other, "data"))
	w.wantEndpoints(t, other, "data IPv4: -", "data IPv6: -")
	time.Sleep(2 * time.Second)
	w.wantEndpoints(t, namespace, " IPv4: -")
	if err := w.Get(t.Context(), client.ObjectKeyFromObject(svc), svc); err != nil {
		t.Fatal(err)
	}
	if svc.ResourceVersion != before {
		t.Errorf("a Service without annotation was written: %+v", svc.Status)
	}
}

func testManyPods(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.node(t, "worker-many", "phy-net0", "phy-net1")
	for _, cidr := range []string{"10.20.20.0/26", "10.20.20.64/26"} {
		w.block(t, "data", "worker-many", cidr)
	}
	w.create(t, service(namespace, "data"))
	want := []string{"data IPv6: -"}
	for i := range 105 {
		// 0, 1, 64 and 65 are the network's or the nodes' own.
		last := i + 2
		if last >= 64 {
			last += 2
		}
		name := "web-" + string(rune('a'+i/26)) + string(rune('a'+i%26))
		address := "10.20.20." + strconv.Itoa(last)
		w.pod(t, namespace, name, "worker-many", attachment("data", "eth2", address))
		want = append(want, "data IPv4: "+name+" "+address+" ready")
	}
	slices.Sort(want)
	w.wantEndpoints(t, namespace, want...)
	items, err := w.slicesOf(t.Context(), namespace)
	if err != nil {
		t.Fatal(err)
	}
	for _, slice := range items {
		if len(slice.Endpoints) > 100 {
			t.Errorf("slice %s has %d endpoints", slice.Name, len(slice.Endpoints))
		}
	}
	if err := w.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(namespace), client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	w.wantEndpoints(t, namespace, "data IPv4: -", "data IPv6: -")
}
