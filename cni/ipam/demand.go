// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// maxDemands bounds the annotations that demands remembers.
const maxDemands = 1024

// demands remembers what annotations ask for: the pods of one workload share
// theirs, and reading YAML for every pod at every look would cost more than all
// else.
type demands struct {
	mu    sync.Mutex
	known map[string]map[string]int
}

// of returns the addresses that an annotation asks for, by Network; one that
// cannot be read asks for none, its pod never gets an interface.
func (d *demands) of(annotation string) map[string]int {
	if annotation == "" {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if out, ok := d.known[annotation]; ok {
		return out
	}
	if d.known == nil || len(d.known) >= maxDemands {
		d.known = map[string]map[string]int{}
	}
	var out map[string]int
	if requests, err := podnetworks.Parse(annotation); err == nil {
		out = podnetworks.Demand(requests)
	}
	d.known[annotation] = out
	return out
}

// demand returns what the pods bound to this node ask of a Network, by pod UID.
func (c *Claimer) demand(ctx context.Context, network string) (map[string]int, error) {
	var pods corev1.PodList
	if err := c.client.List(ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("listing the node's pods: %w", err)
	}
	out := map[string]int{}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Spec.NodeName != c.node || terminal(pod) {
			continue
		}
		if count := c.demands.of(pod.Annotations[v1alpha1.AnnotationNetworks])[network]; count > 0 {
			out[string(pod.UID)] = count
		}
	}
	return out, nil
}

// terminal pods never start a sandbox again; the addresses they still have
// count as leases.
func terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}
