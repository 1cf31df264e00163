// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestPodsThatAreBeingStarted(t *testing.T) {
	deleted := metav1.Now()
	for name, test := range map[string]struct {
		annotations map[string]string
		phase       corev1.PodPhase
		deleted     *metav1.Time
		want        bool
	}{
		"asks for nothing":           {annotations: map[string]string{"other": "x"}, phase: corev1.PodPending},
		"gave up what it asked for":  {annotations: map[string]string{v1alpha1.AnnotationNetworks: " "}, phase: corev1.PodPending},
		"asks for a Network":         {annotations: map[string]string{v1alpha1.AnnotationNetworks: "data"}, phase: corev1.PodPending, want: true},
		"asks for a definition":      {annotations: map[string]string{v1alpha1.AnnotationNPWGNetworks: "x"}, phase: corev1.PodPending, want: true},
		"asks for another eth0":      {annotations: map[string]string{v1alpha1.AnnotationMultusDefaultNetwork: "x"}, phase: corev1.PodPending, want: true},
		"has it":                     {annotations: map[string]string{v1alpha1.AnnotationNPWGNetworks: "x", v1alpha1.AnnotationNetworkStatus: "[]"}, phase: corev1.PodPending},
		"runs":                       {annotations: map[string]string{v1alpha1.AnnotationNetworks: "data"}, phase: corev1.PodRunning},
		"goes before it has started": {annotations: map[string]string{v1alpha1.AnnotationNetworks: "data"}, phase: corev1.PodPending, deleted: &deleted},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: test.annotations, DeletionTimestamp: test.deleted}, Status: corev1.PodStatus{Phase: test.phase}}
		if got := beingStarted(pod); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
