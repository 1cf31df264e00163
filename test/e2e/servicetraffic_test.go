// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// zone is what follows a namespace in the names of its Services.
const zone = ".svc.cluster.local"

// TestRolloutUnderTraffic: while a Deployment is rolled, no request fails on any
// of its networks: to addresses that are in the slices, to names of CoreDNS, to
// a ClusterIP in the pod and to one of kube-proxy.
func TestRolloutUnderTraffic(t *testing.T) {
	t.Parallel()
	called := newNetwork(t, "e2e-roll", v1alpha1.NetworkSpec{
		PhysicalNet: physData, Plugin: v1alpha1.PluginVXLAN, Subnet: "10.173.0.0/24", Subnet6: "fd00:10:173::/64",
		ServiceProxy: v1alpha1.ServiceProxyInPod,
	})
	routed := newNetwork(t, "e2e-rollr", v1alpha1.NetworkSpec{
		PhysicalNet: physData, Plugin: v1alpha1.PluginBridge, Reachability: v1alpha1.ReachabilityRouted,
		Subnet: "10.49.0.0/24", Subnet6: "fd00:10:49::/64",
	})
	awaitNetwork(t, called.Name, metav1.ConditionTrue, v1alpha1.ReasonReady)
	awaitNetwork(t, routed.Name, metav1.ConditionTrue, v1alpha1.ReasonReady)
	ns := namespace(t)
	const name = "web"
	isolated := "management,data," + called.Name
	d := deployment(ns, name, isolated+","+routed.Name+"@eth0", 6)
	inPod, byProxy := newClusterIP(ns, "in-pod", name, called), newClusterIP(ns, "by-proxy", name, routed)
	for _, object := range []client.Object{newService(ns, name), inPod, byProxy, d} {
		if err := env.client.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	// A node has its way into the routed network as long as a pod there has its
	// eth0 on it, wherever the others are.
	run(t, newPod(ns, "anchor", routed.Name+"@eth0", on(env.node("worker"))))
	before := awaitPods(t, ns, name, 6)
	awaitSlices(t, ns, name, before)
	asker := enter(t, run(t, newPod(ns, "asker", isolated)))
	plain := enter(t, run(t, newPod(ns, "plain", "", on(env.node("worker")))))
	mustAnswerAll(t, asker, inPod, before)
	mustAnswerAll(t, plain, byProxy, before)
	b := newBalancer(t.Context(), t, ns, name)
	all := flows{
		"ClusterIP in the pod":    send(t, asker, func() []string { return inPod.Spec.ClusterIPs }),
		"ClusterIP by kube-proxy": send(t, plain, func() []string { return byProxy.Spec.ClusterIPs }),
		"addresses on management": send(t, asker, func() []string { return b.ready(netManagement) }),
		"addresses on data":       send(t, asker, func() []string { return b.ready(netData) }),
		"the name on management":  sendByName(t, asker, name+"-"+netManagement+"."+ns+zone),
		"the name on data":        sendByName(t, asker, name+"-"+netData+"."+ns+zone),
	}
	time.Sleep(3 * time.Second)
	roll(t, d)
	time.Sleep(serves + 2*time.Second) // until the last of the old ones is gone
	all.check(t)
	after := awaitPods(t, ns, name, 6)
	for _, pod := range after {
		if slices.ContainsFunc(before, func(old *corev1.Pod) bool { return old.UID == pod.UID }) {
			t.Errorf("pod %s was not rolled", pod.Name)
		}
	}
	awaitSlices(t, ns, name, after)
}

// newClusterIP is a Service with ClusterIPs over one network.
func newClusterIP(ns, name, app string, network *v1alpha1.Network) *corev1.Service {
	svc := newService(ns, app)
	svc.Name, svc.Spec.ClusterIP = name, ""
	svc.Annotations[v1alpha1.AnnotationNetworks] = network.Name
	return svc
}

// mustAnswerAll: some of the pods answer at each of the ClusterIPs.
func mustAnswerAll(t *testing.T, from box, svc *corev1.Service, pods []*corev1.Pod) {
	t.Helper()
	var names []string
	for _, pod := range pods {
		names = append(names, pod.Name)
	}
	for _, ip := range svc.Spec.ClusterIPs {
		from.mustAnswer(t, ip, webPort, names...)
	}
}

// roll replaces all pods of a Deployment.
func roll(t *testing.T, d *appsv1.Deployment) {
	t.Helper()
	change := client.MergeFrom(d.DeepCopy())
	d.Spec.Template.Annotations["e2e"] = "rolled"
	if err := env.client.Patch(t.Context(), d, change); err != nil {
		t.Fatal(err)
	}
	want := *d.Spec.Replicas
	eventually(t, 240*time.Second, "the Deployment to be rolled", func() error {
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(d), d); err != nil {
			return err
		}
		if s := d.Status; s.ObservedGeneration < d.Generation || s.UpdatedReplicas != want || s.AvailableReplicas != want || s.Replicas != want {
			return fmt.Errorf("of %d pods %d are new, %d available", s.Replicas, s.UpdatedReplicas, s.AvailableReplicas)
		}
		return nil
	})
}

// TestServiceMovedUnderTraffic: from the cluster network to two networks and
// back, no request fails, to addresses of the slices or to the Service's name,
// and at no moment there is no endpoint.
func TestServiceMovedUnderTraffic(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	const name = "web"
	svc := newService(ns, name)
	svc.Annotations = nil
	svc.Spec.Selector = map[string]string{"app": name}
	if err := env.client.Create(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	if err := env.client.Create(t.Context(), deployment(ns, name, "management,data", 3)); err != nil {
		t.Fatal(err)
	}
	pods := awaitPods(t, ns, name, 3)
	asker := enter(t, run(t, newPod(ns, "asker", "management,data")))
	b := newBalancer(t.Context(), t, ns, name)
	byKubernetes := func() error { return b.isPlain(len(pods) * len(pods[0].Status.PodIPs)) }
	eventually(t, 20*time.Second, "Kubernetes to publish the Service", byKubernetes)
	all := flows{
		"addresses": send(t, asker, func() []string { return b.ready("") }),
		"the name":  sendByName(t, asker, name+"."+ns+zone),
	}
	patch := func(edit func(*corev1.Service)) {
		t.Helper()
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(svc), svc); err != nil {
			t.Fatal(err)
		}
		before := client.MergeFrom(svc.DeepCopy())
		edit(svc)
		if err := env.client.Patch(t.Context(), svc, before); err != nil {
			t.Fatal(err)
		}
	}
	patch(func(s *corev1.Service) {
		s.Annotations = map[string]string{v1alpha1.AnnotationNetworks: "management,data"}
	})
	eventually(t, 20*time.Second, "the selector's key to be awaited", func() error {
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(svc), svc); err != nil {
			return err
		}
		c := meta.FindStatusCondition(svc.Status.Conditions, v1alpha1.ConditionEndpointsByNetwork)
		if c == nil || c.Reason != v1alpha1.ReasonAwaitingSelectorKey {
			return fmt.Errorf("the condition is %+v", c)
		}
		return nil
	})
	patch(func(s *corev1.Service) {
		s.Spec.Selector[v1alpha1.SelectorEndpointsKey] = v1alpha1.SelectorEndpointsByNetwork
	})
	awaitSlices(t, ns, name, pods)
	time.Sleep(3 * time.Second)
	patch(func(s *corev1.Service) {
		s.Annotations = nil
		delete(s.Spec.Selector, v1alpha1.SelectorEndpointsKey)
	})
	eventually(t, 20*time.Second, "Kubernetes to publish the Service again", byKubernetes)
	time.Sleep(3 * time.Second)
	all.check(t)
	eventually(t, 20*time.Second, "the conditions to be gone", func() error {
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(svc), svc); err != nil {
			return err
		}
		if len(svc.Status.Conditions) > 0 {
			return fmt.Errorf("there are %+v", svc.Status.Conditions)
		}
		return nil
	})
}

// isPlain wants slices of Kubernetes' own controller only, with so many endpoints.
func (b *balancer) isPlain(want int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	found := 0
	for _, slice := range b.slices {
		if by := slice.Labels[discoveryv1.LabelManagedBy]; by != "endpointslice-controller.k8s.io" {
			return fmt.Errorf("slice %s is managed by %s", slice.Name, by)
		}
		found += len(slice.Endpoints)
	}
	if found != want {
		return fmt.Errorf("%d endpoints, want %d", found, want)
	}
	return nil
}
