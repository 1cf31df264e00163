// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// The library's tracker waits for each slice that it knows of to be among the
// Service's. One that somebody took away by its label never would be.
func testRelabelled(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.create(t, service(namespace, "data"))
	pod := w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	published := []string{"data IPv4: web-0 10.20.1.5 ready", "data IPv6: -"}
	w.wantEndpoints(t, namespace, published...)
	for _, label := range []string{discoveryv1.LabelServiceName, v1alpha1.LabelNetwork} {
		items, err := w.slicesOf(t.Context(), namespace)
		if err != nil {
			t.Fatal(err)
		}
		for i := range items {
			change(t, w, &items[i], false, func(s *discoveryv1.EndpointSlice) { s.Labels[label] = "other" })
		}
		w.wantEndpoints(t, namespace, published...)
		w.wantEndpointsOf(t, namespace, "other")
	}
	change(t, w, pod, true, func(p *corev1.Pod) { setReady(p, false) })
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 notready", "data IPv6: -")
}

func testPodReplaced(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.create(t, service(namespace, "data"))
	uid := func(pod *corev1.Pod) {
		t.Helper()
		w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 ready", "data IPv6: -")
		eventually(t, timeout, func() string {
			for _, name := range []string{"web", "web-data"} {
				items, err := w.slicesNamed(t.Context(), namespace, name)
				if err != nil {
					return err.Error()
				}
				for _, slice := range items {
					for _, e := range slice.Endpoints {
						if e.TargetRef.UID != pod.UID {
							return fmt.Sprintf("%s names the pod of before", slice.Name)
						}
					}
				}
			}
			return ""
		})
	}
	before := w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	uid(before)
	if err := w.Delete(t.Context(), before, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	uid(w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5")))
}

// No garbage collector runs here: what the controller writes of a Service that
// is being deleted while it is at it, it has to find itself.
func testServiceFlaps(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	for i := range 20 {
		svc := service(namespace, "management,data")
		w.create(t, svc)
		time.Sleep(time.Duration(i) * 4 * time.Millisecond)
		if err := w.Delete(t.Context(), svc); err != nil {
			t.Fatal(err)
		}
	}
	w.wantEndpoints(t, namespace)
	w.wantChildren(t, namespace)
	w.wantEndpointsOf(t, namespace, "web-data")
	svc := service(namespace, "data")
	w.create(t, svc)
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 ready", "data IPv6: -")
	items, err := w.slicesOf(t.Context(), namespace)
	if err != nil {
		t.Fatal(err)
	}
	for _, slice := range items {
		if !metav1.IsControlledBy(&slice, svc) {
			t.Errorf("slice %s belongs to a Service of before", slice.Name)
		}
	}
}

// A cache that is behind our own writes would have the library make a second
// slice for endpoints that it does not see yet.
func testManyChanges(t *testing.T, w *world) {
	namespace := w.namespace(t)
	svc := service(namespace, "data")
	w.create(t, svc)
	w.wantEndpoints(t, namespace, "data IPv4: -", "data IPv6: -")
	var doubled []string
	stop := w.watchSlices(t, namespace, func(all map[string]*discoveryv1.EndpointSlice) {
		seen := map[string]string{}
		for _, slice := range all {
			if other, ok := seen[groupOf(slice)]; ok {
				doubled = append(doubled, fmt.Sprintf("%s: %s and %s", groupOf(slice), other, slice.Name))
			}
			seen[groupOf(slice)] = slice.Name
		}
	})
	want := []string{}
	for i := range 8 {
		pod := w.pod(t, namespace, fmt.Sprintf("web-%d", i), "worker", attachment("data", "eth2", fmt.Sprintf("10.20.1.%d", 20+i)))
		for flip := range 4 {
			change(t, w, pod, true, func(p *corev1.Pod) { setReady(p, flip%2 == 1) })
			change(t, w, svc, false, func(s *corev1.Service) { s.Labels["flip"] = fmt.Sprint(i, "-", flip) })
		}
		want = append(want, fmt.Sprintf("data IPv4: web-%d 10.20.1.%d ready", i, 20+i))
	}
	w.wantEndpoints(t, namespace, append(want, "data IPv6: -")...)
	stop()
	if len(doubled) > 0 {
		t.Errorf("%d times a group had two slices, first %s", len(doubled), doubled[0])
	}
}

// Only one controller acts, by its lease; but one that has lost it unawares may
// go on for a moment. Two must come to rest, and at the right state.
func TestTwoControllersAtOnce(t *testing.T) {
	w := newWorld(t)
	w.run(t)
	w.run(t)
	namespace := w.namespace(t)
	svc := service(namespace, "management,data")
	w.create(t, svc)
	var want []string
	var pods []*corev1.Pod
	for i := range 6 {
		pods = append(pods, w.pod(t, namespace, fmt.Sprintf("web-%d", i), "worker",
			attachment("data", "eth2", fmt.Sprintf("10.20.1.%d", 20+i)), attachment("management", "eth1", fmt.Sprintf("10.10.1.%d", 20+i))))
	}
	for flip := range 6 {
		for _, pod := range pods {
			change(t, w, pod, true, func(p *corev1.Pod) { setReady(p, flip%2 == 1) })
		}
	}
	for network, prefix := range map[string]string{"data": "10.20.1.", "management": "10.10.1."} {
		for i := range 6 {
			want = append(want, fmt.Sprintf("%s IPv4: web-%d %s%d ready", network, i, prefix, 20+i))
		}
		want = append(want, network+" IPv6: -")
	}
	slices.Sort(want)
	w.wantEndpoints(t, namespace, want...)
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data, management")
	w.wantChildren(t, namespace, "web-data of web on data: None [IPv4 IPv6] [http:80]", "web-management of web on management: None [IPv4 IPv6] [http:80]")

	// They do not undo each other's work for ever.
	state := func() string {
		items, err := w.slicesOf(t.Context(), namespace)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Get(t.Context(), client.ObjectKeyFromObject(svc), svc); err != nil {
			t.Fatal(err)
		}
		out := svc.ResourceVersion
		for _, slice := range items {
			out += " " + slice.Name + "@" + slice.ResourceVersion
		}
		return out
	}
	eventually(t, timeout, func() string {
		before := state()
		time.Sleep(2 * time.Second)
		return cmp.Diff(before, state())
	})
	w.wantEndpoints(t, namespace, want...)
}

// What the tracker has not seen made may go, too, right after a start.
func TestASliceThatGoesAfterARestartComesBack(t *testing.T) {
	w := newWorld(t)
	stop := w.run(t)
	namespace := w.namespace(t)
	w.create(t, service(namespace, "data"))
	w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	published := []string{"data IPv4: web-0 10.20.1.5 ready", "data IPv6: -"}
	w.wantEndpoints(t, namespace, published...)
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data")
	stop()
	w.run(t)
	// Another Service that is published shows that the controller is at work,
	// and has been through what it found.
	other := w.namespace(t)
	w.create(t, service(other, "data"))
	w.wantEndpoints(t, other, "data IPv4: -", "data IPv6: -")
	time.Sleep(2 * time.Second)
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
}
