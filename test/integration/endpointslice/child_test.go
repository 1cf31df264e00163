// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// children are the namespace's Services that belong to another, as lines.
func (w *world) children(ctx context.Context, namespace string) []string {
	var list corev1.ServiceList
	if err := w.List(ctx, &list, client.InNamespace(namespace), client.HasLabels{v1alpha1.LabelService}); err != nil {
		return []string{err.Error()}
	}
	var out []string
	for i := range list.Items {
		svc := &list.Items[i]
		var ports []string
		for _, port := range svc.Spec.Ports {
			ports = append(ports, fmt.Sprintf("%s:%d", port.Name, port.Port))
		}
		out = append(out, fmt.Sprintf("%s of %s on %s: %s %v %v", svc.Name, svc.Labels[v1alpha1.LabelService], svc.Labels[v1alpha1.LabelNetwork],
			svc.Spec.ClusterIP, svc.Spec.IPFamilies, ports))
	}
	return out
}

func (w *world) wantChildren(t *testing.T, namespace string, want ...string) {
	t.Helper()
	eventually(t, timeout, func() string { return cmp.Diff(want, w.children(t.Context(), namespace)) })
}

func (w *world) wantNames(t *testing.T, namespace, want string) {
	t.Helper()
	w.wantConditionOf(t, namespace, "web", v1alpha1.ConditionNamesByNetwork, want)
}

func testChildren(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.createFor(t, w.network("narrow", "phy-net1", "10.30.0.0/16", ""))
	w.block(t, "narrow", "worker", "10.30.1.0/26")
	svc := service(namespace, "http: [data, narrow]\nmetrics: [data]")
	svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "metrics", Port: 9090})
	w.create(t, svc)
	pod := w.podNamed(t, namespace, "web-0", "web", "worker")
	w.attach(t, pod, attachment("data", "eth2", "10.20.1.5", "fd00:10:20::a14:105"), attachment("narrow", "eth3", "10.30.1.5"))

	w.wantChildren(t, namespace,
		"web-data of web on data: None [IPv4 IPv6] [http:80 metrics:9090]",
		"web-narrow of web on narrow: None [IPv4] [http:80]")
	w.wantEndpointsOf(t, namespace, "web-data", "data IPv4: web-0 10.20.1.5 ready", "data IPv6: web-0 fd00:10:20::a14:105 ready")
	w.wantEndpointsOf(t, namespace, "web-narrow", "narrow IPv4: web-0 10.30.1.5 ready")
	w.wantNames(t, namespace, "True NamesPublished: networks have names of their own: web-data, web-narrow")

	for _, name := range []string{"web", "web-data", "web-narrow"} {
		items, err := w.slicesNamed(t.Context(), namespace, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, slice := range items {
			for _, e := range slice.Endpoints {
				if ptr.Deref(e.Hostname, "") != "web-0" {
					t.Errorf("slice %s: endpoint %v has the host name %q, want web-0", slice.Name, e.Addresses, ptr.Deref(e.Hostname, ""))
				}
			}
			if owner := metav1.GetControllerOf(&slice); owner == nil || owner.Name != name {
				t.Errorf("slice %s: owner %+v, want Service %s", slice.Name, owner, name)
			}
		}
	}

	change(t, w, svc, false, func(s *corev1.Service) { s.Annotations[v1alpha1.AnnotationNetworks] = "data" })
	w.wantChildren(t, namespace, "web-data of web on data: None [IPv4 IPv6] [http:80 metrics:9090]")
	w.wantEndpointsOf(t, namespace, "web-narrow")
	w.wantNames(t, namespace, "True NamesPublished: networks have names of their own: web-data")
	change(t, w, svc, false, func(s *corev1.Service) { s.Spec.Ports = s.Spec.Ports[:1] })
	w.wantChildren(t, namespace, "web-data of web on data: None [IPv4 IPv6] [http:80]")
}

func testChildRepaired(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.create(t, service(namespace, "data"))
	w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	const child = "web-data of web on data: None [IPv4 IPv6] [http:80]"
	published := []string{"data IPv4: web-0 10.20.1.5 ready", "data IPv6: -"}
	w.wantChildren(t, namespace, child)
	w.wantEndpointsOf(t, namespace, "web-data", published...)

	key := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "web-data"}}
	change(t, w, key, false, func(s *corev1.Service) {
		s.Labels["team"] = "mine"
		s.Spec.Ports[0].Port = 81
		s.Spec.Selector = map[string]string{"app": "other"}
	})
	w.wantChildren(t, namespace, child)
	if err := w.Get(t.Context(), client.ObjectKeyFromObject(key), key); err != nil {
		t.Fatal(err)
	}
	if key.Labels["team"] != "mine" || len(key.Spec.Selector) > 0 {
		t.Errorf("labels %v and selector %v: a foreign label stays, a selector does not", key.Labels, key.Spec.Selector)
	}
	before := key.UID
	if err := w.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	eventually(t, timeout, func() string {
		if err := w.Get(t.Context(), client.ObjectKeyFromObject(key), key); err != nil || key.UID == before {
			return fmt.Sprintf("the child is not back: %v", err)
		}
		return ""
	})
	eventually(t, timeout, func() string {
		items, err := w.slicesNamed(t.Context(), namespace, "web-data")
		if err != nil || len(items) != 2 {
			return fmt.Sprintf("%d slices, %v", len(items), err)
		}
		for _, slice := range items {
			if !metav1.IsControlledBy(&slice, key) {
				return "slice " + slice.Name + " belongs to the child of before"
			}
		}
		return ""
	})
	w.wantEndpointsOf(t, namespace, "web-data", published...)
}

func testChildNameTaken(t *testing.T, w *world) {
	namespace := w.namespace(t)
	foreign := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web-data", Namespace: namespace},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}, Selector: map[string]string{"app": "other"}},
	}
	w.create(t, foreign)
	before := foreign.ResourceVersion
	w.create(t, service(namespace, "management,data"))
	const message = `network "data" has no name of its own: there is another Service web-data: rename one of them`
	w.wantNames(t, namespace, "False ServiceNameTaken: "+message)
	w.wantEvent(t, namespace, "web", v1alpha1.ReasonServiceNameTaken, message)
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data, management")
	w.wantEndpointsOf(t, namespace, "web-data")
	w.wantEndpointsOf(t, namespace, "web-management", "management IPv4: -", "management IPv6: -")
	if err := w.Get(t.Context(), client.ObjectKeyFromObject(foreign), foreign); err != nil {
		t.Fatal(err)
	}
	if foreign.ResourceVersion != before {
		t.Errorf("the foreign Service was written: %+v", foreign)
	}
	if err := w.Delete(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	w.wantNames(t, namespace, "True NamesPublished: networks have names of their own: web-data, web-management")
	w.wantEndpointsOf(t, namespace, "web-data", "data IPv4: -", "data IPv6: -")
}

// A Service web on a-b and one web-a on b both want the name web-a-b.
func testTwoParents(t *testing.T, w *world) {
	namespace := w.namespace(t)
	for name, subnet := range map[string]v1alpha1.CIDR{"a-b": "10.60.0.0/16", "b": "10.61.0.0/16"} {
		w.createFor(t, w.network(name, "phy-net1", subnet, ""))
	}
	first := service(namespace, "a-b")
	w.create(t, first)
	w.wantNames(t, namespace, "True NamesPublished: networks have names of their own: web-a-b")
	second := service(namespace, "b")
	second.Name = "web-a"
	w.create(t, second)
	names := func(want string) {
		t.Helper()
		w.wantConditionOf(t, namespace, "web-a", v1alpha1.ConditionNamesByNetwork, want)
	}
	names(`False ServiceNameTaken: network "b" has no name of its own: there is another Service web-a-b: rename one of them`)
	w.wantEndpointsOf(t, namespace, "web-a-b", "a-b IPv4: -")
	change(t, w, first, false, func(s *corev1.Service) { s.Annotations[v1alpha1.AnnotationNetworks] = "data" })
	names("True NamesPublished: networks have names of their own: web-a-b")
	w.wantChildren(t, namespace, "web-a-b of web-a on b: None [IPv4] [http:80]", "web-data of web on data: None [IPv4 IPv6] [http:80]")
	w.wantEndpointsOf(t, namespace, "web-a-b", "b IPv4: -")
}

func testChildNameTooLong(t *testing.T, w *world) {
	namespace := w.namespace(t)
	svc := service(namespace, "management,data")
	svc.Name = strings.Repeat("w", 58) // 63 with -data
	w.create(t, svc)
	message := `network "management" has no name of its own: ` + svc.Name + "-management would have 69 characters, 63 are allowed: shorten the Service's name or the Network's"
	w.wantConditionOf(t, namespace, svc.Name, v1alpha1.ConditionNamesByNetwork, "False ServiceNameTooLong: "+message)
	w.wantEvent(t, namespace, svc.Name, v1alpha1.ReasonServiceNameTooLong, message)
	w.wantChildren(t, namespace, svc.Name+"-data of "+svc.Name+" on data: None [IPv4 IPv6] [http:80]")
}

func testChildrenLeave(t *testing.T, w *world) {
	const child = "web-data of web on data: None [IPv4 IPv6] [http:80]"
	placeholders := []string{"data IPv4: -", "data IPv6: -"}
	t.Run("with the annotation", func(t *testing.T) {
		namespace := w.namespace(t)
		svc := service(namespace, "data")
		w.create(t, svc)
		w.wantEndpointsOf(t, namespace, "web-data", placeholders...)
		w.wantNames(t, namespace, "True NamesPublished: networks have names of their own: web-data")
		change(t, w, svc, false, func(s *corev1.Service) {
			s.Annotations = nil
			delete(s.Spec.Selector, v1alpha1.SelectorEndpointsKey)
		})
		w.wantChildren(t, namespace)
		w.wantEndpointsOf(t, namespace, "web-data")
		w.wantNames(t, namespace, "")
	})
	// In a cluster the garbage collector would do the same.
	t.Run("with the Service", func(t *testing.T) {
		namespace := w.namespace(t)
		svc := service(namespace, "data")
		w.create(t, svc)
		w.wantEndpointsOf(t, namespace, "web-data", placeholders...)
		if err := w.Delete(t.Context(), svc); err != nil {
			t.Fatal(err)
		}
		w.wantChildren(t, namespace)
		w.wantEndpointsOf(t, namespace, "web-data")
		w.create(t, service(namespace, "data"))
		w.wantChildren(t, namespace, child)
		w.wantEndpointsOf(t, namespace, "web-data", placeholders...)
	})
}
