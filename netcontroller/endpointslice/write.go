// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/netplane/netplane/api/v1alpha1"
)

// sliceSet is what one group's slices have in common.
type sliceSet struct{ service, network string }

// write brings the slices of every group in line, and then removes those of
// networks that the Service does not name any more: not before what takes their
// place is there.
func (r *reconciler) write(ctx context.Context, groups []group, existing []*discoveryv1.EndpointSlice, trigger time.Time) error {
	bySet := map[sliceSet][]*discoveryv1.EndpointSlice{}
	for _, slice := range existing {
		of := sliceSet{slice.Labels[discoveryv1.LabelServiceName], slice.Labels[v1alpha1.LabelNetwork]}
		bySet[of] = append(bySet[of], slice)
	}
	// At once: a group has slices of its own, and waits for the API server only.
	errs := make([]error, len(groups))
	var all sync.WaitGroup
	zoneOf := r.zones(ctx, groups)
	for i := range groups {
		g := &groups[i]
		have := bySet[g.set()]
		delete(bySet, g.set())
		all.Go(func() { errs[i] = r.writeGroup(ctx, g, have, zoneOf, trigger) })
	}
	all.Wait()
	failed := map[string]bool{}
	for i := range groups {
		failed[groups[i].service.Name] = failed[groups[i].service.Name] || errs[i] != nil
	}
	for of, leftover := range bySet {
		if !failed[of.service] {
			errs = append(errs, r.removeSlices(ctx, leftover))
		}
	}
	return errors.Join(errs...)
}

// writeGroup has the library bring a group in line: what has changed of it, or,
// as long as nobody knows that the rest is as it shall be, all.
func (r *reconciler) writeGroup(ctx context.Context, g *group, have []*discoveryv1.EndpointSlice, zoneOf zones, trigger time.Time) error {
	pods, some, whole := g.pods, have, true
	if r.passes.holds(g) {
		if fewer, ofThem, ok := narrow(g, have, narrowing{r.most, zoneOf, r.isLeft}); ok {
			pods, some, whole = fewer, ofThem, false
			if len(some) == 0 {
				return nil
			}
		}
	}
	logger := log.FromContext(ctx).WithValues("service", g.service.Name, "network", g.network)
	if err := r.slices.Reconcile(logger, g.service, pods, some, trigger); err != nil {
		r.passes.forget(g)
		return err
	}
	if whole {
		before := map[types.UID]int64{}
		for _, slice := range have {
			if !r.tracker.Has(slice) {
				before[slice.UID] = slice.Generation
			}
		}
		r.passes.note(g, before)
	}
	return nil
}

// isLeft tells whether a slice is as the library left it: it is not behind, or
// nothing would be written. Whoever changes more of it than its annotations and
// owners gives it another generation.
func (r *reconciler) isLeft(g *group, slice *discoveryv1.EndpointSlice) bool {
	left := r.passes.wasRight(g, slice)
	if r.tracker.Has(slice) {
		left = !r.tracker.ShouldSync(slice)
	}
	return left && slices.ContainsFunc(slice.OwnerReferences, func(o metav1.OwnerReference) bool { return o.UID == g.service.UID })
}

// zones reads the nodes of all pods of the groups.
func (r *reconciler) zones(ctx context.Context, groups []group) zones {
	type known struct {
		zone   string
		exists bool
	}
	nodes := map[string]known{}
	for i := range groups {
		for _, pod := range groups[i].pods {
			name := pod.Spec.NodeName
			if _, ok := nodes[name]; ok {
				continue
			}
			var node corev1.Node
			err := r.client.Get(ctx, client.ObjectKey{Name: name}, &node, uncopied())
			nodes[name] = known{node.Labels[corev1.LabelTopologyZone], err == nil}
		}
	}
	return func(name string) (string, bool) { return nodes[name].zone, nodes[name].exists }
}

func (r *reconciler) removeSlices(ctx context.Context, all []*discoveryv1.EndpointSlice) error {
	var errs []error
	for _, slice := range all {
		err := r.client.Delete(ctx, slice, client.Preconditions{UID: &slice.UID})
		if client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("removing slice %s: %w", client.ObjectKeyFromObject(slice), err))
			continue
		}
		r.tracker.ExpectDeletion(slice)
	}
	return errors.Join(errs...)
}
