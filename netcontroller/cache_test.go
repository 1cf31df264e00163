// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestSlimPodKeepsWhatControllersRead(t *testing.T) {
	http, metrics := corev1.ContainerPort{Name: "http", ContainerPort: 80}, corev1.ContainerPort{Name: "metrics", ContainerPort: 9090}
	always := corev1.ContainerRestartPolicyAlways
	then := metav1.NewTime(time.Unix(1000, 0))
	ours := map[string]string{
		"netplane.io/networks": "data", "netplane.io/attached-networks": "data=1",
		"k8s.v1.cni.cncf.io/network-status": "[]", "netplane.io/network-status-sandbox": "s",
	}
	annotations := maps.Clone(ours)
	annotations["example.org/a"] = "b"
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "p", Namespace: "n", UID: "u", ResourceVersion: "7", Generation: 2, CreationTimestamp: then, DeletionTimestamp: &then,
			Finalizers: []string{"f"}, Annotations: annotations, Labels: map[string]string{"c": "d"},
			GenerateName: "p-", OwnerReferences: []metav1.OwnerReference{{Name: "rs"}}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet"}},
		},
		Spec: corev1.PodSpec{
			NodeName: "worker", Hostname: "h", Subdomain: "s", HostNetwork: true, SchedulerName: "s",
			Volumes:     []corev1.Volume{{Name: "v"}},
			Tolerations: []corev1.Toleration{{Key: "k"}},
			Containers: []corev1.Container{
				{Name: "c", Image: "i", Ports: []corev1.ContainerPort{http, {ContainerPort: 81}}, Env: []corev1.EnvVar{{Name: "e"}}}, {Name: "d"},
			},
			InitContainers: []corev1.Container{
				{Name: "init", Ports: []corev1.ContainerPort{{Name: "never", ContainerPort: 82}}},
				{Name: "sidecar", Image: "i", Ports: []corev1.ContainerPort{metrics}, RestartPolicy: &always},
			},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}}, HostIP: "192.0.2.1",
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
				{Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: "r", Message: "m", LastTransitionTime: then},
				{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue},
				{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC"},
			},
			ContainerStatuses: []corev1.ContainerStatus{
				{Name: "c", Image: "i", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
				{Name: "d", Image: "i", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "m"}}},
			},
		},
	}
	want := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "p", Namespace: "n", UID: "u", ResourceVersion: "7", Generation: 2, CreationTimestamp: then, DeletionTimestamp: &then,
			Finalizers: []string{"f"}, Annotations: ours, Labels: map[string]string{"c": "d"},
		},
		Spec: corev1.PodSpec{
			NodeName: "worker", Hostname: "h", Subdomain: "s", HostNetwork: true,
			Containers: []corev1.Container{{Ports: []corev1.ContainerPort{http, metrics}}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}},
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: "r", LastTransitionTime: then},
				{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC"},
			},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "d", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}}},
		},
	}
	got, err := newSlimmer().slimPod(pod)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(any(want), got); diff != "" {
		t.Errorf("pod (-want +got):\n%s", diff)
	}
}

func TestPodsShareOnlyWhatIsEqual(t *testing.T) {
	s := newSlimmer()
	slim := func(labels map[string]string, port int32) *corev1.Pod {
		t.Helper()
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: labels}}
		pod.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: port}}}}
		got, err := s.slimPod(pod)
		if err != nil {
			t.Fatal(err)
		}
		out, ok := got.(*corev1.Pod)
		if !ok || !maps.Equal(out.Labels, labels) || out.Spec.Containers[0].Ports[0].ContainerPort != port {
			t.Fatalf("labels %v and port %d became %+v", labels, port, got)
		}
		return out
	}
	first := slim(map[string]string{"a": "b", "c": "d"}, 80)
	same := slim(map[string]string{"c": "d", "a": "b"}, 80)
	if &first.Spec.Containers[0] != &same.Spec.Containers[0] {
		t.Error("equal ports are held twice")
	}
	slim(map[string]string{"a": "b"}, 81)
	slim(map[string]string{"a": "b", "c": "e"}, 80)
	slim(nil, 80)
	slim(map[string]string{}, 80)
}
