// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"regexp"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// newService is a headless Service over management and data.
func newService(ns, name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Annotations: map[string]string{v1alpha1.AnnotationNetworks: "management,data"}},
		Spec: corev1.ServiceSpec{
			ClusterIP:      corev1.ClusterIPNone,
			IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicyRequireDualStack),
			Selector:       map[string]string{"app": name, v1alpha1.SelectorEndpointsKey: v1alpha1.SelectorEndpointsByNetwork},
			Ports:          []corev1.ServicePort{{Name: "http", Port: webPort, TargetPort: intstr.FromInt32(webPort)}},
		},
	}
}

// group is what one set of slices is for.
type group struct {
	network string
	family  discoveryv1.AddressType
}

var allGroups = []group{
	{netManagement, discoveryv1.AddressTypeIPv4}, {netManagement, discoveryv1.AddressTypeIPv6},
	{netData, discoveryv1.AddressTypeIPv4}, {netData, discoveryv1.AddressTypeIPv6},
}

// readyByGroup are the ready addresses of a Service's slices; a slice that is
// not netplane's is an error.
func readyByGroup(t *testing.T, ns, service string) (map[group][]string, error) {
	t.Helper()
	var slicesList discoveryv1.EndpointSliceList
	if err := env.client.List(t.Context(), &slicesList, client.InNamespace(ns), client.MatchingLabels{discoveryv1.LabelServiceName: service}); err != nil {
		return nil, err
	}
	out := map[group][]string{}
	for i := range slicesList.Items {
		s := &slicesList.Items[i]
		if by := s.Labels[discoveryv1.LabelManagedBy]; by != v1alpha1.EndpointSliceManagedBy {
			// Kubernetes' own controller leaves an empty slice for a selector that nothing matches.
			if len(s.Endpoints) > 0 {
				return nil, fmt.Errorf("slice %s of %s has endpoints %v", s.Name, by, s.Endpoints)
			}
			continue
		}
		if s.Labels["service.kubernetes.io/service-proxy-name"] == "" {
			return nil, fmt.Errorf("slice %s of an isolated network is open to kube-proxy", s.Name)
		}
		g := group{s.Labels[v1alpha1.LabelNetwork], s.AddressType}
		for _, e := range s.Endpoints {
			if ptr.Deref(e.Conditions.Ready, false) {
				out[g] = append(out[g], e.Addresses...)
			}
		}
	}
	return out, nil
}

// wantByGroup are the addresses that pods have, by network and family.
func wantByGroup(t *testing.T, pods []*corev1.Pod) map[group][]string {
	t.Helper()
	out := map[group][]string{}
	for _, g := range allGroups {
		for _, pod := range pods {
			out[g] = append(out[g], addressIn(t, pod, g.network, g.family == discoveryv1.AddressTypeIPv6))
		}
	}
	return out
}

func awaitSlices(t *testing.T, ns, service string, pods []*corev1.Pod) {
	t.Helper()
	want := wantByGroup(t, pods)
	eventually(t, 20*time.Second, fmt.Sprintf("the slices of %s to have %d pods", service, len(pods)), func() error {
		got, err := readyByGroup(t, ns, service)
		if err != nil {
			return err
		}
		for _, g := range allGroups {
			if !slices.Equal(sorted(got[g]), sorted(want[g])) {
				return fmt.Errorf("%s %s has %v, want %v", g.network, g.family, got[g], want[g])
			}
		}
		for g := range got {
			if !slices.Contains(allGroups, g) {
				return fmt.Errorf("there are slices of %+v", g)
			}
		}
		return nil
	})
}

// TestServiceOverNetworks is promise f: a Service's slices follow its pods'
// addresses per network and family; DNS answers with them; a pod that is not
// ready leaves.
func TestServiceOverNetworks(t *testing.T) {
	ns := namespace(t)
	const name = "web"
	if err := env.client.Create(t.Context(), newService(ns, name)); err != nil {
		t.Fatal(err)
	}
	var pods []*corev1.Pod
	for _, suffix := range []string{"worker", "worker3"} {
		pod := newPod(ns, name+"-"+suffix, "management@eth0,data@eth1", on(env.node(suffix)), labelled("app", name))
		pod.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
			PeriodSeconds: 1, FailureThreshold: 1,
			ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", "/tmp/ready"}}},
		}
		pods = append(pods, createPod(t, pod))
	}
	for _, pod := range pods {
		awaitRunning(t, pod, 60*time.Second)
	}
	awaitSlices(t, ns, name, pods)

	asker := enter(t, run(t, newPod(ns, "asker", "data", on(env.node("worker")))))
	var all []string
	for _, addresses := range wantByGroup(t, pods) {
		all = append(all, addresses...)
	}
	awaitNames(t, asker, name+"."+ns+".svc.cluster.local", all)
	asker.mustReach(t, addressIn(t, pods[1], netData, false), webPort, pods[1].Name)

	t.Run("not ready", func(t *testing.T) {
		sick := enter(t, pods[0])
		if _, err := sick.sh(t, "rm /tmp/ready"); err != nil {
			t.Fatal(err)
		}
		awaitSlices(t, ns, name, pods[1:])
		if _, err := sick.sh(t, "touch /tmp/ready"); err != nil {
			t.Fatal(err)
		}
		awaitSlices(t, ns, name, pods)
	})
	t.Run("deleted", func(t *testing.T) {
		if err := env.client.Delete(t.Context(), pods[0]); err != nil {
			t.Fatal(err)
		}
		awaitSlices(t, ns, name, pods[1:])
	})
}

var answerLine = regexp.MustCompile(`(?m)^Address(?: \d+)?: *([0-9a-f.:]+)\s*$`)

// awaitNames waits until nslookup in a pod answers with exactly these addresses.
func awaitNames(t *testing.T, b box, host string, want []string) {
	t.Helper()
	// A CoreDNS that caches the names of its own zone keeps an answer, also that there is none, for up to 30 s.
	eventually(t, 45*time.Second, "nslookup "+host, func() error {
		out, err := b.sh(t, "nslookup "+host)
		if err != nil {
			return err
		}
		var got []string
		for _, match := range answerLine.FindAllStringSubmatch(out, -1) {
			got = append(got, match[1])
		}
		if !slices.Equal(sorted(got), sorted(want)) {
			return fmt.Errorf("it answers %v, want %v:\n%s", got, want, out)
		}
		return nil
	})
}

// TestServiceWithoutTheAnnotationIsPlain: Kubernetes' own controller keeps it.
func TestServiceWithoutTheAnnotationIsPlain(t *testing.T) {
	ns := namespace(t)
	pod := run(t, newPod(ns, "plain", "", labelled("app", "plain")))
	service := newService(ns, "plain")
	service.Annotations = nil
	service.Spec.Selector = map[string]string{"app": "plain"}
	if err := env.client.Create(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the slices of a plain Service", func() error {
		var list discoveryv1.EndpointSliceList
		if err := env.client.List(t.Context(), &list, client.InNamespace(ns), client.MatchingLabels{discoveryv1.LabelServiceName: "plain"}); err != nil {
			return err
		}
		found := 0
		for i := range list.Items {
			if by := list.Items[i].Labels[discoveryv1.LabelManagedBy]; by != "endpointslice-controller.k8s.io" {
				t.Fatalf("slice %s is managed by %s", list.Items[i].Name, by)
			}
			found += len(list.Items[i].Endpoints)
		}
		if found != len(pod.Status.PodIPs) {
			return fmt.Errorf("%d endpoints, want %d", found, len(pod.Status.PodIPs))
		}
		return nil
	})
}
