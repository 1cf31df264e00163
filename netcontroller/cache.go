// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/lru"
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
			&corev1.Pod{}:                {Transform: newSlimmer().slimPod},
			&discoveryv1.EndpointSlice{}: {Label: ours},
		},
	}
}

// sharedParts is how many different parts of pods are remembered.
const sharedParts = 4096

// slimmer has pods share what they have in common, as those of one ReplicaSet
// do: objects in a cache are never changed.
type slimmer struct{ parts *lru.Cache }

func newSlimmer() *slimmer { return &slimmer{parts: lru.New(sharedParts)} }

// share returns a part that equals this one, by the key that tells it.
func share[T any](s *slimmer, key string, part T) T {
	if found, ok := s.parts.Get(key); ok {
		if same, ok := found.(T); ok {
			return same
		}
	}
	s.parts.Add(key, part)
	return part
}

// slimPod leaves of a pod what a controller here, or the library that writes
// slices, reads: less than half of its memory. Pods are never written, so that
// nothing is lost by it.
func (s *slimmer) slimPod(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil // a tombstone
	}
	meta := pod.ObjectMeta
	meta.GenerateName, meta.OwnerReferences, meta.ManagedFields = "", nil, nil
	meta.Annotations = slimAnnotations(meta.Annotations)
	meta.Labels = share(s, "labels "+labels.FormatLabels(meta.Labels), meta.Labels)
	return &corev1.Pod{
		ObjectMeta: meta,
		Spec: corev1.PodSpec{
			NodeName: pod.Spec.NodeName, Hostname: pod.Spec.Hostname, Subdomain: pod.Spec.Subdomain, HostNetwork: pod.Spec.HostNetwork,
			Containers: s.slimContainers(&pod.Spec),
		},
		Status: corev1.PodStatus{
			Phase: pod.Status.Phase, PodIP: pod.Status.PodIP, PodIPs: pod.Status.PodIPs,
			Conditions: slimConditions(pod.Status.Conditions), ContainerStatuses: slimStatuses(pod.Status.ContainerStatuses),
		},
	}, nil
}

func slimAnnotations(all map[string]string) map[string]string {
	var out map[string]string
	for _, key := range []string{
		v1alpha1.AnnotationNetworks, v1alpha1.AnnotationAttached, v1alpha1.AnnotationNetworkStatus, v1alpha1.AnnotationNetworkStatusSandbox,
	} {
		if value, ok := all[key]; ok {
			if out == nil {
				out = map[string]string{}
			}
			out[key] = value
		}
	}
	return out
}

// slimContainers is one container with all ports that a Service can find by
// name, those of sidecars too (KEP-753); the first of a name counts.
func (s *slimmer) slimContainers(spec *corev1.PodSpec) []corev1.Container {
	var named []corev1.ContainerPort
	add := func(c *corev1.Container) {
		for i := range c.Ports {
			if c.Ports[i].Name != "" {
				named = append(named, c.Ports[i])
			}
		}
	}
	for i := range spec.Containers {
		add(&spec.Containers[i])
	}
	for i := range spec.InitContainers {
		if c := &spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	if len(named) == 0 {
		return nil
	}
	return share(s, fmt.Sprint("ports ", named), []corev1.Container{{Ports: slices.Clip(named)}})
}

// slimConditions are those that say something: that a sandbox exists, and that
// nobody disrupts a pod, is what their absence says, too.
func slimConditions(all []corev1.PodCondition) []corev1.PodCondition {
	var out []corev1.PodCondition
	for i := range all {
		c := &all[i]
		if c.Type == corev1.PodReady || c.Type == corev1.PodReadyToStartContainers && c.Status == corev1.ConditionFalse ||
			c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue {
			out = append(out, corev1.PodCondition{Type: c.Type, Status: c.Status, Reason: c.Reason, LastTransitionTime: c.LastTransitionTime})
		}
	}
	return slices.Clip(out)
}

// slimStatuses are the containers that wait: what is said about agents.
func slimStatuses(all []corev1.ContainerStatus) []corev1.ContainerStatus {
	var out []corev1.ContainerStatus
	for i := range all {
		if waiting := all[i].State.Waiting; waiting != nil {
			out = append(out, corev1.ContainerStatus{
				Name: all[i].Name, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: waiting.Reason}},
			})
		}
	}
	return out
}
