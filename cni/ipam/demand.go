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
	known map[texts]map[string]int
}

// texts are a pod's annotations netplane.io/networks and attached-networks.
type texts struct{ asked, attached string }

// of returns the addresses that a pod takes, by Network: the larger of what it
// asks for and what it has, as the scheduler counts them. An annotation that
// cannot be read asks for none, its pod never gets an interface.
func (d *demands) of(annotations map[string]string) map[string]int {
	pod := texts{annotations[v1alpha1.AnnotationNetworks], annotations[v1alpha1.AnnotationAttached]}
	if pod == (texts{}) {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if out, ok := d.known[pod]; ok {
		return out
	}
	if d.known == nil || len(d.known) >= maxDemands {
		d.known = map[texts]map[string]int{}
	}
	out := pod.demand()
	d.known[pod] = out
	return out
}

func (t texts) demand() map[string]int {
	var asked []podnetworks.Use
	if requests, err := podnetworks.Parse(t.asked); err == nil {
		asked = podnetworks.Uses(requests)
	}
	attached, err := podnetworks.ParseAttached(t.attached)
	if err != nil {
		attached = nil // it is written again
	}
	out := map[string]int{}
	for _, use := range podnetworks.Taken(asked, attached) {
		if use.Addresses > 0 {
			out[use.Network] = use.Addresses
		}
	}
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
		if count := c.demands.of(pod.Annotations)[network]; count > 0 {
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
