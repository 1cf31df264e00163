// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
	ours "github.com/netplane/netplane/netcontroller/endpointslice"
)

const countSlices = "count/endpointslices.discovery.k8s.io"

// TestRefusals: what the API server does not let the controller write is told
// by a condition, and neither mixes endpoints for ever nor takes any down.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.runBuiltIn(t)
	w.runWith(t, ours.Options{TakeOverPeriod: takeOver})
	w.awaitStart(t)
	for name, test := range map[string]func(*testing.T, *world){
		"no more Services, at a hand-over": testServicesUsedUp,
		"no more slices, at a hand-over":   testSlicesUsedUp,
		"a pod whose Node is gone":         testNodeGone,
		"no more slices, on another one":   testNetworksChangedInVain,
		"a network's name misspelt":        testNetworkMisspelt,
	} {
		t.Run(name, func(t *testing.T) { test(t, w) })
	}
}

// useUp lets nobody create more of a kind in the namespace. No controller
// counts here: what is said to be used stands.
func (w *world) useUp(t *testing.T, namespace string, what corev1.ResourceName) *corev1.ResourceQuota {
	t.Helper()
	quota := &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "few", Namespace: namespace},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{what: resource.MustParse("1")}},
	}
	w.create(t, quota)
	change(t, w, quota, true, func(q *corev1.ResourceQuota) { q.Status.Hard, q.Status.Used = q.Spec.Hard, q.Spec.Hard })
	return quota
}

func (w *world) raise(t *testing.T, quota *corev1.ResourceQuota, what corev1.ResourceName) {
	t.Helper()
	many := corev1.ResourceList{what: resource.MustParse("100")}
	change(t, w, quota, false, func(q *corev1.ResourceQuota) { q.Spec.Hard = many })
	change(t, w, quota, true, func(q *corev1.ResourceQuota) { q.Status.Hard = many })
}

// wantConditionLike waits for a condition of the Service web that begins and
// goes on like this.
func (w *world) wantConditionLike(t *testing.T, namespace, of, begin, goesOn string) {
	t.Helper()
	eventually(t, timeout, func() string {
		got := w.condition(t.Context(), namespace, "web", of)
		if strings.HasPrefix(got, begin) && strings.Contains(got, goesOn) {
			return ""
		}
		return fmt.Sprintf("condition %q, want %q... %q", got, begin, goesOn)
	})
}

func testServicesUsedUp(t *testing.T, w *world) {
	namespace, svc := w.plainService(t)
	other := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "other", Namespace: namespace}, Spec: corev1.ServiceSpec{Ports: svc.Spec.Ports}}
	w.create(t, other)
	quota := w.useUp(t, namespace, corev1.ResourceServices)
	gapless := w.gapless(t, namespace)
	change(t, w, svc, false, annotate)
	w.wantCondition(t, namespace, awaiting)
	w.wantEndpoints(t, namespace, beside()...)
	const refused, why = `False ServiceNameRefused: the name of network "data" is not as it should be: creating Service `, "exceeded quota: few"
	w.wantConditionLike(t, namespace, v1alpha1.ConditionNamesByNetwork, refused, why)
	w.wantCondition(t, namespace, keyMissing)
	w.wantEndpoints(t, namespace, builtIn...)
	w.wantNames(t, namespace, "")
	change(t, w, svc, false, addKey)
	w.wantEndpoints(t, namespace, onData...)
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data")
	w.wantConditionLike(t, namespace, v1alpha1.ConditionNamesByNetwork, refused, why)
	gapless()

	// A Service that goes is a reason to ask again.
	w.raise(t, quota, corev1.ResourceServices)
	if err := w.Delete(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	w.wantNames(t, namespace, "True NamesPublished: networks have names of their own: web-data")
}

func testSlicesUsedUp(t *testing.T, w *world) {
	namespace, svc := w.plainService(t)
	w.useUp(t, namespace, countSlices)
	change(t, w, svc, false, annotate)
	w.wantConditionLike(t, namespace, v1alpha1.ConditionEndpointsByNetwork, awaiting+"; not all endpoints could be written, so that what was published before stays: ", "exceeded quota: few")
	w.wantCondition(t, namespace, keyMissing)
	w.wantEndpoints(t, namespace, builtIn...)
	w.wantChildren(t, namespace)
}

// The slice library writes the rest, and returns an error.
func testNodeGone(t *testing.T, w *world) {
	namespace, svc := w.plainService(t)
	w.pod(t, namespace, "lost", "nowhere")
	change(t, w, svc, false, func(s *corev1.Service) {
		s.Annotations = map[string]string{v1alpha1.AnnotationNetworks: "data,default"}
	})
	lost := "not all endpoints could be written, so that what was published before stays: skipping Pod lost for Service " + namespace + "/web-default: Node nowhere Not Found; " +
		"skipping Pod lost for Service " + namespace + "/web: Node nowhere Not Found"
	w.wantConditionLike(t, namespace, v1alpha1.ConditionEndpointsByNetwork, "Unknown AwaitingSelectorKey: ", lost)
	w.wantCondition(t, namespace, keyMissing)
	w.wantEndpoints(t, namespace, builtIn...)
	change(t, w, svc, false, addKey)
	w.wantCondition(t, namespace, "False EndpointsIncomplete: "+lost)
	w.wantEvent(t, namespace, "web", v1alpha1.ReasonEndpointsIncomplete, lost)
	w.create(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "nowhere"}})
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data, default")
}

func testNetworksChangedInVain(t *testing.T, w *world) {
	namespace, svc := w.ownService(t)
	for name, last := range map[string]string{"web-0": "5", "web-1": "6"} {
		w.attach(t, podNamed(namespace, name), attachment("data", "eth2", "10.20.1."+last), attachment("management", "eth1", "10.10.1."+last))
	}
	gapless := w.gapless(t, namespace)
	quota := w.useUp(t, namespace, countSlices)
	change(t, w, svc, false, func(s *corev1.Service) { s.Annotations[v1alpha1.AnnotationNetworks] = "management" })
	w.wantConditionLike(t, namespace, v1alpha1.ConditionEndpointsByNetwork, "False EndpointsIncomplete: not all endpoints could be written", "exceeded quota: few")
	w.wantEndpoints(t, namespace, onData...)
	w.raise(t, quota, countSlices)
	w.wantEndpoints(t, namespace, " IPv4: -", " IPv6: -", "management IPv4: web-0 10.10.1.5 ready", "management IPv4: web-1 10.10.1.6 ready", "management IPv6: -")
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: management")
	gapless("web-0", "web-1")
}

func testNetworkMisspelt(t *testing.T, w *world) {
	namespace, svc := w.ownService(t)
	gapless := w.gapless(t, namespace)
	change(t, w, svc, false, func(s *corev1.Service) { s.Annotations[v1alpha1.AnnotationNetworks] = "dta" })
	const message = `there is no Network "dta": create it, or name another in the annotation netplane.io/networks; until then endpoints stay published as before on: data`
	w.wantCondition(t, namespace, "False UnknownNetwork: "+message)
	w.wantEvent(t, namespace, "web", v1alpha1.ReasonUnknownNetwork, message)
	w.wantEndpoints(t, namespace, onData...)
	w.wantChildren(t, namespace, "web-data of web on data: None [IPv4 IPv6] [http:80]")
	// They are followed still.
	change(t, w, podNamed(namespace, "web-1"), true, func(p *corev1.Pod) { setReady(p, false) })
	w.wantEndpoints(t, namespace, " IPv4: -", " IPv6: -", "data IPv4: web-0 10.20.1.5 ready", "data IPv4: web-1 10.20.1.6 notready", "data IPv6: -")
	change(t, w, svc, false, func(s *corev1.Service) { s.Annotations[v1alpha1.AnnotationNetworks] = "management" })
	w.wantEndpoints(t, namespace, " IPv4: -", " IPv6: -", "management IPv4: -", "management IPv6: -")
	gapless()
}
