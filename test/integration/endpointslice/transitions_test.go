// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/netplane/netplane/api/v1alpha1"
	ours "github.com/netplane/netplane/netcontroller/endpointslice"
)

const keyMissing = "False SelectorKeyMissing: spec.selector lacks netplane.io/endpoints: by-network: add it, or Kubernetes itself publishes the pods' addresses of the cluster network"

// testKeyPutBack: whoever changes their mind while the built-in controller
// takes over, or after it has, has ours again. With the annotation there
// already, the two race, so that there may be a gap.
func testKeyPutBack(t *testing.T, w *world) {
	namespace, svc := w.ownService(t)
	change(t, w, svc, false, removeKey)
	change(t, w, svc, false, addKey)
	w.wantEndpoints(t, namespace, onData...)
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data")
	change(t, w, svc, false, removeKey)
	w.wantEndpoints(t, namespace, builtIn...)
	w.wantCondition(t, namespace, keyMissing)
	change(t, w, svc, false, addKey)
	w.wantEndpoints(t, namespace, onData...)
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data")
}

func testKeyOfOtherValue(t *testing.T, w *world) {
	namespace, svc := w.ownService(t)
	never := w.never(t, namespace, func(s *discoveryv1.EndpointSlice) bool {
		isOurs := s.Labels[discoveryv1.LabelManagedBy] == v1alpha1.EndpointSliceManagedBy
		return isOurs == (len(s.Endpoints) == 0) && s.AddressType == discoveryv1.AddressTypeIPv4
	})
	change(t, w, svc, false, func(s *corev1.Service) { s.Spec.Selector[v1alpha1.SelectorEndpointsKey] = "yes" })
	message := `spec.selector has netplane.io/endpoints: "yes": its value must be by-network`
	w.wantCondition(t, namespace, "False SelectorKeyInvalid: "+message)
	w.wantEvent(t, namespace, "web", v1alpha1.ReasonSelectorKeyInvalid, message)
	w.wantEndpoints(t, namespace, onData...) // the other controller selects nothing with it, either
	change(t, w, svc, false, addKey)
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data")
	never()

	// Removed with that value, it is handed back as any.
	change(t, w, svc, false, func(s *corev1.Service) { s.Spec.Selector[v1alpha1.SelectorEndpointsKey] = "yes" })
	w.wantCondition(t, namespace, "False SelectorKeyInvalid: "+message)
	gapless := w.gapless(t, namespace)
	change(t, w, svc, false, removeKey)
	w.wantEndpoints(t, namespace, builtIn...)
	w.wantCondition(t, namespace, keyMissing)
	gapless("web-0", "web-1")
}

func testMalformedAdded(t *testing.T, w *world) {
	namespace, svc := w.plainService(t)
	gapless := w.gapless(t, namespace)
	never := w.never(t, namespace, func(s *discoveryv1.EndpointSlice) bool {
		return s.Labels[discoveryv1.LabelManagedBy] == v1alpha1.EndpointSliceManagedBy
	})
	change(t, w, svc, false, func(s *corev1.Service) {
		s.Annotations = map[string]string{v1alpha1.AnnotationNetworks: "http: data"}
	})
	w.wantCondition(t, namespace, `False InvalidAnnotation: annotation netplane.io/networks: port "http": its networks must be a list, such as [management, data]`)
	w.wantEndpoints(t, namespace, builtIn...)
	never()
	change(t, w, svc, false, func(s *corev1.Service) { s.Annotations[v1alpha1.AnnotationNetworks] = "http: [data]" })
	w.wantEndpoints(t, namespace, beside()...)
	change(t, w, svc, false, addKey)
	w.wantEndpoints(t, namespace, onData...)
	gapless("web-0", "web-1")
}

func testDeletedAtHandOver(t *testing.T, w *world) {
	for name, edit := range map[string]func(*corev1.Service){"to networks": annotate, "back": removeBoth} {
		t.Run(name, func(t *testing.T) {
			var namespace string
			var svc *corev1.Service
			if name == "back" {
				namespace, svc = w.ownService(t)
			} else {
				namespace, svc = w.plainService(t)
			}
			change(t, w, svc, false, edit)
			if err := w.Delete(t.Context(), svc); err != nil {
				t.Fatal(err)
			}
			// Kubernetes' own slices are the garbage collector's, which does not run here.
			eventually(t, timeout, func() string {
				items, err := w.slicesOf(t.Context(), namespace)
				if err != nil {
					return err.Error()
				}
				for _, slice := range items {
					if slice.Labels[discoveryv1.LabelManagedBy] == v1alpha1.EndpointSliceManagedBy {
						return "slice " + slice.Name + " is left"
					}
				}
				return cmp.Diff([]string(nil), w.children(t.Context(), namespace))
			})
			w.wantEndpointsOf(t, namespace, "web-data")
		})
	}
}

func testPortRenamed(t *testing.T, w *world) {
	namespace := w.namespace(t)
	svc := service(namespace, "http: [data]")
	w.create(t, svc)
	w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	published := []string{"data IPv4: web-0 10.20.1.5 ready", "data IPv6: -"}
	w.wantEndpoints(t, namespace, published...)
	gapless := w.gapless(t, namespace)
	change(t, w, svc, false, func(s *corev1.Service) { s.Spec.Ports[0].Name = "www" })
	w.wantCondition(t, namespace, `False InvalidAnnotation: annotation netplane.io/networks: port "http": the Service has no port of this name`)
	change(t, w, svc, false, func(s *corev1.Service) { s.Annotations[v1alpha1.AnnotationNetworks] = "www: [data]" })
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data")
	for _, name := range []string{"web", "web-data"} {
		eventually(t, timeout, func() string {
			items, err := w.slicesNamed(t.Context(), namespace, name)
			if err != nil {
				return err.Error()
			}
			var ports []string
			for _, slice := range items {
				for _, port := range slice.Ports {
					ports = append(ports, ptr.Deref(port.Name, ""))
				}
			}
			return cmp.Diff([]string{"www"}, ports)
		})
	}
	w.wantEndpoints(t, namespace, published...)
	gapless("web-0")
}

func testSelectorEmpty(t *testing.T, w *world) {
	namespace := w.namespace(t)
	svc := service(namespace, "data")
	w.create(t, svc)
	w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 ready", "data IPv6: -")
	change(t, w, svc, false, func(s *corev1.Service) { delete(s.Spec.Selector, "app") })
	message := "spec.selector has nothing besides netplane.io/endpoints: add the labels of the pods"
	w.wantCondition(t, namespace, "False SelectorEmpty: "+message)
	w.wantEvent(t, namespace, "web", v1alpha1.ReasonSelectorEmpty, message)
	w.wantEndpoints(t, namespace) // an empty selector selects no pod, not all of them
	w.wantChildren(t, namespace)
}

func testExternalName(t *testing.T, w *world) {
	namespace := w.namespace(t)
	svc := service(namespace, "data")
	w.create(t, svc)
	w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 ready", "data IPv6: -")
	change(t, w, svc, false, func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalName, s.Spec.ClusterIP, s.Spec.ClusterIPs = corev1.ServiceTypeExternalName, "web.example.org", "", nil
		s.Spec.IPFamilies, s.Spec.IPFamilyPolicy = nil, nil
	})
	w.wantCondition(t, namespace, "False InvalidAnnotation: annotation netplane.io/networks: a Service of type ExternalName has no endpoints: remove the annotation, or change the type")
	w.wantEndpoints(t, namespace)
	w.wantChildren(t, namespace)
	change(t, w, svc, false, removeBoth)
	w.wantCondition(t, namespace, "")
}

// TestLeaderChange: the one that waits has caches of its own, which were filled
// before what it has to act on.
func TestLeaderChange(t *testing.T) {
	w := newWorld(t)
	lead := func(o *ctrl.Options) {
		o.LeaderElection, o.LeaderElectionID, o.LeaderElectionNamespace = true, "netplane-controller", v1alpha1.SystemNamespace
		o.LeaderElectionReleaseOnCancel = true
		// Long enough never to be lost on a busy machine; it is given up, not left to end.
		o.LeaseDuration, o.RenewDeadline, o.RetryPeriod = ptr.To(time.Minute), ptr.To(50*time.Second), ptr.To(200*time.Millisecond)
	}
	stop := w.runWith(t, ours.Options{}, lead)
	namespace := w.namespace(t)
	svc := service(namespace, "data")
	w.create(t, svc)
	w.wantEndpoints(t, namespace, "data IPv4: -", "data IPv6: -")
	w.runWith(t, ours.Options{}, lead)
	w.readyPods(t, namespace)
	published := onData[2:]
	w.wantEndpoints(t, namespace, published...)
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data")
	gapless := w.gapless(t, namespace)
	gone := w.namespace(t)
	deleted := service(gone, "data")
	w.create(t, deleted)
	w.wantEndpoints(t, gone, "data IPv4: -", "data IPv6: -")
	stop()

	change(t, w, podNamed(namespace, "web-1"), true, func(p *corev1.Pod) { setReady(p, false) })
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 ready", "data IPv4: web-1 10.20.1.6 notready", "data IPv6: -")
	if err := w.Delete(context.Background(), deleted); err != nil {
		t.Fatal(err)
	}
	w.wantEndpoints(t, gone)
	w.wantChildren(t, gone)
	gapless("web-0")
	items, err := w.slicesOf(t.Context(), namespace)
	if err != nil {
		t.Fatal(err)
	}
	if len(items) != 2 {
		t.Errorf("%d slices, want one for each family", len(items))
	}
}
