// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/netplane/netplane/api/v1alpha1"
)

type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// enqueue asks for a sync of the cluster-scoped objects that names returns, of
// the old and the new state alike, after a wait that gathers further events.
func enqueue(wait time.Duration, names func(client.Object) []string) handler.Funcs {
	add := func(q queue, objects ...client.Object) {
		for _, object := range objects {
			for _, name := range names(object) {
				q.AddAfter(reconcile.Request{NamespacedName: types.NamespacedName{Name: name}}, wait)
			}
		}
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { add(q, e.Object) },
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) { add(q, e.ObjectOld, e.ObjectNew) },
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) { add(q, e.Object) },
	}
}

// siblings maps objects to the Networks of the same physical networks.
type siblings struct{ reader client.Reader }

func (s *siblings) ofNetwork(object client.Object) []string {
	names := s.on(physicalNetworkOf(object))
	if slices.Contains(pluginOf(object), v1alpha1.PluginVXLAN) {
		names = append(names, s.list(indexPlugin, v1alpha1.PluginVXLAN)...)
	}
	return names
}

func (s *siblings) ofPhysicalNetwork(object client.Object) []string {
	return s.on([]string{object.GetName()})
}

func (s *siblings) ofNodeNetwork(object client.Object) []string {
	return s.on(mappedPhysicalNetworks(object))
}

func (s *siblings) on(physicalNets []string) []string {
	var names []string
	for _, physicalNet := range physicalNets {
		names = append(names, s.list(indexPhysicalNet, physicalNet)...)
	}
	return names
}

func (s *siblings) list(index, key string) []string {
	ctx := context.Background() // reads the cache only, which does not wait
	var networks v1alpha1.NetworkList
	if err := s.reader.List(ctx, &networks, client.MatchingFields{index: key}, client.UnsafeDisableDeepCopy); err != nil {
		log.FromContext(ctx).Error(err, "Listing Networks", "index", index, "key", key)
		return nil
	}
	names := make([]string, 0, len(networks.Items))
	for i := range networks.Items {
		names = append(names, networks.Items[i].Name)
	}
	return names
}

// whenUpdated passes every event but updates that changed does not care for.
func whenUpdated(changed func(before, after client.Object) bool) predicate.Funcs {
	return predicate.Funcs{
		UpdateFunc:  func(e event.UpdateEvent) bool { return changed(e.ObjectOld, e.ObjectNew) },
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}

// specChanged: a Network's spec decides whether others overlap it. A deletion
// timestamp counts as a generation too.
func specChanged() predicate.Funcs {
	return whenUpdated(func(before, after client.Object) bool { return before.GetGeneration() != after.GetGeneration() })
}

func cameOrWent() predicate.Funcs {
	return whenUpdated(func(before, after client.Object) bool { return false })
}

// backingChanged: which nodes back which physical network, and for whom.
func backingChanged() predicate.Funcs {
	return whenUpdated(func(before, after client.Object) bool {
		b, bok := before.(*v1alpha1.NodeNetwork)
		a, aok := after.(*v1alpha1.NodeNetwork)
		return !bok || !aok || agentReady(a) != agentReady(b) ||
			!equality.Semantic.DeepEqual(a.Status.PhysicalNetworks, b.Status.PhysicalNetworks) ||
			!equality.Semantic.DeepEqual(a.Status.Refused, b.Status.Refused)
	})
}

func heldChanged() predicate.Funcs {
	return whenUpdated(func(before, after client.Object) bool {
		b, bok := before.(*v1alpha1.NodeNetwork)
		a, aok := after.(*v1alpha1.NodeNetwork)
		return !bok || !aok || !equality.Semantic.DeepEqual(a.Status.Held, b.Status.Held)
	})
}

func demandChanged() predicate.Funcs {
	return whenUpdated(func(before, after client.Object) bool {
		b, bok := before.(*corev1.Pod)
		a, aok := after.(*corev1.Pod)
		return !bok || !aok || b.UID != a.UID || !maps.Equal(Demand(a), Demand(b))
	})
}
