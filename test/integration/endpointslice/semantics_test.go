// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/netplane/netplane/api/v1alpha1"
)

func testPublishNotReady(t *testing.T, w *world) {
	namespace := w.namespace(t)
	svc := service(namespace, "data")
	svc.Spec.PublishNotReadyAddresses = true
	w.create(t, svc)
	pod := w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	change(t, w, pod, true, func(p *corev1.Pod) { setReady(p, false) })
	// What consumers go by is ready; that the pod does not serve is told, too.
	for _, name := range []string{"web", "web-data"} {
		eventually(t, timeout, func() string {
			items, err := w.slicesNamed(t.Context(), namespace, name)
			if err != nil {
				return err.Error()
			}
			for _, slice := range items {
				if len(slice.Endpoints) == 0 {
					continue
				}
				if c := slice.Endpoints[0].Conditions; !*c.Ready || *c.Serving {
					return fmt.Sprintf("%s: %+v", slice.Name, c)
				}
				return ""
			}
			return "no endpoint of " + name
		})
	}
	change(t, w, svc, false, func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = false })
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 notready", "data IPv6: -")
	w.wantEndpointsOf(t, namespace, "web-data", "data IPv4: web-0 10.20.1.5 notready", "data IPv6: -")
}

func testHints(t *testing.T, w *world) {
	namespace := w.namespace(t)
	svc := service(namespace, "management,data")
	svc.Spec.TrafficDistribution = ptr.To(corev1.ServiceTrafficDistributionPreferSameNode)
	w.create(t, svc)
	w.pod(t, namespace, "web-0", "worker", attachment("management", "eth1", "10.10.1.5"), attachment("data", "eth2", "10.20.1.5"))
	want := func(hints map[string]string) {
		t.Helper()
		eventually(t, timeout, func() string {
			items, err := w.slicesOf(t.Context(), namespace)
			if err != nil {
				return err.Error()
			}
			got := map[string]string{}
			for _, slice := range items {
				for _, e := range slice.Endpoints {
					text := "none"
					if e.Hints != nil {
						text = fmt.Sprint(e.Hints.ForZones, e.Hints.ForNodes)
					}
					got[slice.Labels[v1alpha1.LabelNetwork]] = text
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(hints) {
				return fmt.Sprintf("hints %v, want %v", got, hints)
			}
			return ""
		})
	}
	const node = "[{zone-of-worker}] [{worker}]"
	want(map[string]string{"data": node, "management": node})
	change(t, w, svc, false, func(s *corev1.Service) {
		s.Spec.TrafficDistribution = ptr.To(corev1.ServiceTrafficDistributionPreferSameZone)
	})
	const zone = "[{zone-of-worker}] []"
	want(map[string]string{"data": zone, "management": zone})
	change(t, w, svc, false, func(s *corev1.Service) { s.Spec.TrafficDistribution = nil })
	want(map[string]string{"data": "none", "management": "none"})
}

func testFamilies(t *testing.T, w *world) {
	namespace := w.namespace(t)
	svc := service(namespace, "data")
	svc.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicySingleStack)
	w.create(t, svc)
	w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5", "fd00:10:20::a14:105"))
	four, six := "data IPv4: web-0 10.20.1.5 ready", "data IPv6: web-0 fd00:10:20::a14:105 ready"
	want := func(family string, lines ...string) {
		t.Helper()
		w.wantEndpoints(t, namespace, lines...)
		w.wantEndpointsOf(t, namespace, "web-data", lines...)
		w.wantChildren(t, namespace, "web-data of web on data: None ["+family+"] [http:80]")
	}
	want("IPv4", four)
	change(t, w, svc, false, func(s *corev1.Service) { s.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyPreferDualStack) })
	want("IPv4 IPv6", four, six)
	change(t, w, svc, false, func(s *corev1.Service) {
		s.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicySingleStack)
		s.Spec.IPFamilies = s.Spec.IPFamilies[:1]
	})
	want("IPv4", four)
}

func testNoFamily(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.createFor(t, w.network("only4", "phy-net1", "10.31.0.0/16", ""))
	svc := service(namespace, "data,only4")
	svc.Spec.IPFamilyPolicy, svc.Spec.IPFamilies = ptr.To(corev1.IPFamilyPolicySingleStack), []corev1.IPFamily{corev1.IPv6Protocol}
	w.create(t, svc)
	message := `network "only4" has IPv4 addresses, the Service wants IPv6: change spec.ipFamilies and spec.ipFamilyPolicy`
	w.wantCondition(t, namespace, "False NoSharedFamily: "+message)
	w.wantEvent(t, namespace, "web", v1alpha1.ReasonNoSharedFamily, message)
	w.wantEndpoints(t, namespace, "data IPv6: -")
	w.wantChildren(t, namespace, "web-data of web on data: None [IPv6] [http:80]")
}

func testDefaultByPort(t *testing.T, w *world) {
	namespace := w.namespace(t)
	svc := service(namespace, "http: [data]\nmetrics: [default]\n")
	svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "metrics", Port: 9090})
	w.create(t, svc)
	w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 ready", "data IPv6: -",
		"default IPv4: web-0 10.244.1.5 ready", "default IPv6: web-0 fd00:244::5 ready")
	w.wantChildren(t, namespace, "web-data of web on data: None [IPv4 IPv6] [http:80]", "web-default of web on default: None [IPv4 IPv6] [metrics:9090]")
	items, err := w.slicesOf(t.Context(), namespace)
	if err != nil {
		t.Fatal(err)
	}
	for _, slice := range items {
		_, hidden := slice.Labels["service.kubernetes.io/service-proxy-name"]
		if isolated := slice.Labels[v1alpha1.LabelNetwork] == "data"; hidden != isolated {
			t.Errorf("slice of %s hidden from kube-proxy: %v", slice.Labels[v1alpha1.LabelNetwork], hidden)
		}
	}
}

// Networks whose addresses another plugin gives rest on the policy that guards
// network-status, and on that nobody else claims the same.
func testNoBlocks(t *testing.T, w *world) {
	namespace := w.namespace(t)
	foreign := w.network("flannel", "phy-net1", "", "")
	foreign.Spec.Plugin = "Flannel"
	w.createFor(t, foreign)
	w.create(t, service(namespace, "flannel"))
	w.pod(t, namespace, "web-0", "worker", attachment("flannel", "eth2", "192.168.7.5", "fd00:7::5"))
	published := []string{"flannel IPv4: web-0 192.168.7.5 ready", "flannel IPv6: web-0 fd00:7::5 ready"}
	w.wantEndpoints(t, namespace, published...)
	rival := w.pod(t, namespace, "web-1", "worker2", attachment("flannel", "eth2", "192.168.7.5"))
	w.wantEndpoints(t, namespace, "flannel IPv4: -", published[1])
	for _, pod := range []string{"web-0", "web-1"} {
		w.wantEvent(t, namespace, pod, v1alpha1.EventAddressWithheld, "not published in Service web: address 192.168.7.5 on network flannel: another pod claims it too")
	}
	w.attach(t, rival)
	w.wantEndpoints(t, namespace, published...)
}

// createFor makes a Network for the length of the test.
func (w *world) createFor(t *testing.T, network *v1alpha1.Network) {
	t.Helper()
	w.create(t, network)
	t.Cleanup(func() {
		if err := w.Delete(context.Background(), &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: network.Name}}); err != nil {
			t.Error(err)
		}
	})
}

// groupOf names the group that a slice belongs to.
func groupOf(s *discoveryv1.EndpointSlice) string {
	return s.Labels[v1alpha1.LabelNetwork] + " " + string(s.AddressType)
}

// What stays published under an annotation that cannot be read, or that names a
// network that does not exist, follows Networks and blocks as before.
func testMalformedFollows(t *testing.T, w *world) {
	for name, slip := range map[string]string{"malformed": "moved@eth1", "misspelt": "mved"} {
		t.Run(name, func(t *testing.T) {
			namespace := w.namespace(t)
			network := w.network("moved-"+name, "phy-net1", "10.62.0.0/16", "")
			w.create(t, network)
			w.block(t, network.Name, "worker", "10.62.1.0/26")
			svc := service(namespace, network.Name)
			w.create(t, svc)
			w.pod(t, namespace, "web-0", "worker", attachment(network.Name, "eth2", "10.62.1.5"))
			w.pod(t, namespace, "web-1", "worker", attachment(network.Name, "eth2", "10.62.7.5"))
			one := []string{network.Name + " IPv4: web-0 10.62.1.5 ready"}
			w.wantEndpoints(t, namespace, one...)
			change(t, w, svc, false, func(s *corev1.Service) { s.Annotations[v1alpha1.AnnotationNetworks] = slip })
			eventually(t, timeout, func() string {
				got := w.condition(t.Context(), namespace, "web", v1alpha1.ConditionEndpointsByNetwork)
				if strings.HasPrefix(got, "False InvalidAnnotation: ") || strings.HasPrefix(got, "False UnknownNetwork: ") {
					return ""
				}
				return "condition " + got
			})
			w.wantEndpoints(t, namespace, one...)
			w.block(t, network.Name, "worker", "10.62.7.0/26")
			w.wantEndpoints(t, namespace, append(one, network.Name+" IPv4: web-1 10.62.7.5 ready")...)
			if err := w.Delete(t.Context(), network); err != nil {
				t.Fatal(err)
			}
			w.wantEndpoints(t, namespace)
		})
	}
}

// testOwnNICDown: the network has another NIC that is up, and so is ready; the
// pods of the NIC that is down are not.
func testOwnNICDown(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.node(t, "worker-two", "phy-net0", "phy-net1")
	w.block(t, "data", "worker-two", "10.20.10.0/26")
	nics := func(second v1alpha1.OperState) {
		t.Helper()
		change(t, w, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "worker-two"}}, true, func(n *v1alpha1.NodeNetwork) {
			n.Status.PhysicalNetworks = []v1alpha1.NodePhysicalNetwork{{Name: "phy-net1", Ready: true, Interfaces: []string{"ens1", "ens2"}}}
			n.Status.Interfaces = []v1alpha1.NodeInterfaceStatus{{Name: "ens1", State: v1alpha1.OperStateUp}, {Name: "ens2", State: second}}
		})
	}
	nics(v1alpha1.OperStateUp)
	w.create(t, service(namespace, "data"))
	for i, nic := range []string{"ens1", "ens2"} {
		on := attachment("data", "eth2", fmt.Sprintf("10.20.10.%d", 5+i))
		on.NIC = nic
		w.pod(t, namespace, fmt.Sprintf("web-%d", i), "worker-two", on)
	}
	up := []string{"data IPv4: web-0 10.20.10.5 ready", "data IPv4: web-1 10.20.10.6 ready", "data IPv6: -"}
	w.wantEndpoints(t, namespace, up...)
	nics(v1alpha1.OperStateDown)
	w.wantEndpoints(t, namespace, up[0], "data IPv4: web-1 10.20.10.6 notready", up[2])
	nics(v1alpha1.OperStateUp)
	w.wantEndpoints(t, namespace, up...)
}
