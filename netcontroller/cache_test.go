// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestSlimPodKeepsWhatControllersRead(t *testing.T) {
	ports := []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}
	always := corev1.ContainerRestartPolicyAlways
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "p", Annotations: map[string]string{"a": "b"}, Labels: map[string]string{"c": "d"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet"}},
		},
		Spec: corev1.PodSpec{
			NodeName: "worker", Hostname: "h", Subdomain: "s", HostNetwork: true,
			Volumes:        []corev1.Volume{{Name: "v"}},
			Tolerations:    []corev1.Toleration{{Key: "k"}},
			Containers:     []corev1.Container{{Name: "c", Image: "i", Ports: ports, Env: []corev1.EnvVar{{Name: "e"}}}},
			InitContainers: []corev1.Container{{Name: "sidecar", Image: "i", Ports: ports, RestartPolicy: &always}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"},
	}
	want := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Annotations: map[string]string{"a": "b"}, Labels: map[string]string{"c": "d"}},
		Spec: corev1.PodSpec{
			NodeName: "worker", Hostname: "h", Subdomain: "s", HostNetwork: true,
			Containers:     []corev1.Container{{Name: "c", Ports: ports}},
			InitContainers: []corev1.Container{{Name: "sidecar", Ports: ports, RestartPolicy: &always}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"},
	}
	got, err := slimPod(pod)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(any(want), got); diff != "" {
		t.Errorf("pod (-want +got):\n%s", diff)
	}
}
