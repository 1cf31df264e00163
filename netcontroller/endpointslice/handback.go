// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	sliceutil "k8s.io/endpointslice/util"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// builtInManager is the managed-by label of kube-controller-manager's slices.
const builtInManager = "endpointslice-controller.k8s.io"

// isTakenOver tells whether the built-in slices of a Service that was ours are
// good enough for ours to go. They are in no cache of ours, and so are read
// from the API server, for as long as the hand-over lasts.
func (r *reconciler) isTakenOver(ctx context.Context, svc *corev1.Service, elapsed time.Duration) (bool, error) {
	pods, err := r.listPods(ctx, svc)
	if err != nil {
		return false, err
	}
	var list discoveryv1.EndpointSliceList
	err = r.live.List(ctx, &list, client.InNamespace(svc.Namespace), client.MatchingLabels{
		discoveryv1.LabelServiceName: svc.Name,
		discoveryv1.LabelManagedBy:   builtInManager,
	})
	if err != nil {
		return false, fmt.Errorf("listing the built-in slices of Service %s: %w", client.ObjectKeyFromObject(svc), err)
	}
	return suffices(svc, pods, list.Items, elapsed), nil
}

// suffices: every pod that Kubernetes would publish as ready is so in the built-in
// slices, in each family that the Service has; or some are, and the others have
// had their time.
func suffices(svc *corev1.Service, pods []*corev1.Pod, builtIn []discoveryv1.EndpointSlice, elapsed time.Duration) bool {
	ready := map[netip.Addr]bool{}
	for i := range builtIn {
		for _, endpoint := range builtIn[i].Endpoints {
			if endpoint.Conditions.Ready == nil || !*endpoint.Conditions.Ready {
				continue
			}
			for _, text := range endpoint.Addresses {
				if addr, err := netip.ParseAddr(text); err == nil {
					ready[addr] = true
				}
			}
		}
	}
	if len(ready) > 0 && elapsed >= handBackLimit {
		return true
	}
	all := svc.Spec.PublishNotReadyAddresses
	for _, pod := range pods {
		if !sliceutil.ShouldPodBeInEndpoints(pod, all) || !all && !sliceutil.IsPodReady(pod) {
			continue
		}
		for _, ip := range pod.Status.PodIPs {
			addr, err := netip.ParseAddr(ip.IP)
			if err == nil && slices.Contains(svc.Spec.IPFamilies, familyOf(addr)) && !ready[addr] {
				return false
			}
		}
	}
	return true
}
