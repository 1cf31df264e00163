// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// cacheOptions keep the caches small: every pod of the cluster is in them.
func cacheOptions() cache.Options {
	ours := labels.SelectorFromSet(labels.Set{discoveryv1.LabelManagedBy: v1alpha1.EndpointSliceManagedBy})
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:                {Transform: slimPod},
			&discoveryv1.EndpointSlice{}: {Label: ours},
		},
	}
}

// slimPod drops the large parts of a pod that no controller here reads. Pods
// are never written, so that nothing is lost by it.
func slimPod(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil // a tombstone
	}
	pod.ManagedFields = nil
	pod.Spec.Volumes = nil
	pod.Spec.Affinity = nil
	pod.Spec.Tolerations = nil
	pod.Spec.TopologySpreadConstraints = nil
	for _, containers := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range containers {
			c := &containers[i]
			// Ports are found by name, those of sidecars too (KEP-753).
			containers[i] = corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy}
		}
	}
	return pod, nil
}
