// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestOfServicesIsKeptWhereTheirClusterIPsLead(t *testing.T) {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "web", Labels: map[string]string{"app": "web"},
			Annotations: map[string]string{"note": "long", v1alpha1.AnnotationNetworks: "data"},
		},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}, Selector: map[string]string{"app": "web"}, SessionAffinity: corev1.ServiceAffinityClientIP,
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080), NodePort: 30080}},
		},
	}
	slim := func() any {
		out, err := slimService(svc.DeepCopy())
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	want := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", Annotations: map[string]string{v1alpha1.AnnotationNetworks: "data"}},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}, SessionAffinity: corev1.ServiceAffinityClientIP,
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
	if diff := cmp.Diff(any(want), slim()); diff != "" {
		t.Error(diff)
	}
	svc.Spec.ClusterIP, svc.Spec.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
	want = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}}
	if diff := cmp.Diff(any(want), slim()); diff != "" {
		t.Error(diff)
	}
}

func TestOfSlicesIsKeptWhoAnswersToWhom(t *testing.T) {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web-1", Labels: map[string]string{
			"app": "web", discoveryv1.LabelServiceName: "web", v1alpha1.LabelNetwork: "data",
		}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: ptr.To[int32](8080)}},
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{"10.20.0.5"}, NodeName: ptr.To("worker"), Zone: ptr.To("east"), Hostname: ptr.To("web-0"),
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}, Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "east"}}},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "web-0"},
		}},
	}
	want := slice.DeepCopy()
	delete(want.Labels, "app")
	want.Endpoints[0].Zone, want.Endpoints[0].Hostname, want.Endpoints[0].TargetRef = nil, nil, nil
	got, err := slimSlice(slice)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(any(want), got); diff != "" {
		t.Error(diff)
	}
}
