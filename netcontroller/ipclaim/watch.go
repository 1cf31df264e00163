// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipclaim

import (
	"context"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/netplane/netplane/api/ipclaims"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/netcontroller/ipblock"
)

type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// watcher turns events into the keys of what they concern.
type watcher struct {
	reader client.Reader
	ended  *ended
}

// claimsBy asks for a sync of the claims that an index has under an object's name.
func (w *watcher) claimsBy(index string) handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, object client.Object) []reconcile.Request {
		var out []reconcile.Request
		for _, claim := range w.claims(ctx, index, object.GetName()) {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKey{Name: claim.Name}})
		}
		return out
	})
}

// claimsOfOffer asks for a sync of the claims whose pods had the NodeNetwork's
// node, and of those whose addresses it holds or held.
func (w *watcher) claimsOfOffer() handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, object client.Object) []reconcile.Request {
		var out []reconcile.Request
		for _, claim := range w.claims(ctx, indexClaimNode, object.GetName()) {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKey{Name: claim.Name}})
		}
		for _, name := range heldClaims(object) {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKey{Name: name}})
		}
		return out
	})
}

// heldClaims names the claims of the fixed addresses that a node holds for pods
// that are gone.
func heldClaims(object client.Object) []string {
	offer, ok := object.(*v1alpha1.NodeNetwork)
	if !ok {
		return nil
	}
	var out []string
	for i := range offer.Status.Held {
		if name := heldClaim(&offer.Status.Held[i]); name != "" {
			out = append(out, name)
		}
	}
	return out
}

// siblings asks for a sync of the other claims of an owner when one goes: its
// pod may be theirs now.
func (w *watcher) siblings() handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, object client.Object) []reconcile.Request {
		claim, ok := object.(*v1alpha1.IPClaim)
		if !ok {
			return nil
		}
		var out []reconcile.Request
		for _, other := range w.claims(ctx, indexClaimOwner, ipclaims.Key(claim.Spec.Network, claim.Spec.Owner)) {
			if other.Name != claim.Name {
				out = append(out, reconcile.Request{NamespacedName: client.ObjectKey{Name: other.Name}})
			}
		}
		return out
	})
}

// pods asks for a sync of the claims that a pod has or may wait for, and
// remembers which pods had ended when they went.
func (w *watcher) pods() handler.EventHandler {
	enqueue := func(ctx context.Context, q queue, pod *corev1.Pod) {
		names := map[string]bool{}
		for _, claim := range w.claims(ctx, indexClaimPod, string(pod.UID)) {
			names[claim.Name] = true
		}
		for _, key := range ownerKeys(pod) {
			for _, claim := range w.claims(ctx, indexClaimOwner, key) {
				names[claim.Name] = true
			}
		}
		for name := range names {
			q.Add(reconcile.Request{NamespacedName: client.ObjectKey{Name: name}})
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) {
			if pod, ok := e.Object.(*corev1.Pod); ok && isOurs(pod) {
				enqueue(ctx, q, pod)
			}
		},
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			before, ok1 := e.ObjectOld.(*corev1.Pod)
			pod, ok2 := e.ObjectNew.(*corev1.Pod)
			if !ok1 || !ok2 || !isOurs(before) && !isOurs(pod) || !matters(before, pod) {
				return
			}
			if before.UID != pod.UID {
				w.gone(before)
				enqueue(ctx, q, before)
			}
			enqueue(ctx, q, pod)
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) {
			if pod, ok := e.Object.(*corev1.Pod); ok && isOurs(pod) {
				w.gone(pod)
				enqueue(ctx, q, pod)
			}
		},
	}
}

func (w *watcher) gone(pod *corev1.Pod) {
	if endedByKubelet(pod) {
		w.ended.add(pod.UID)
	}
}

// isOurs passes quickly over the many pods that ask for no network, and had
// none before their annotation was changed.
func isOurs(pod *corev1.Pod) bool {
	_, asks := pod.Annotations[v1alpha1.AnnotationNetworks]
	_, has := pod.Annotations[v1alpha1.AnnotationAttached]
	return asks || has
}

func matters(before, pod *corev1.Pod) bool {
	return before.UID != pod.UID || before.Spec.NodeName != pod.Spec.NodeName || before.Status.Phase != pod.Status.Phase ||
		before.DeletionTimestamp.IsZero() != pod.DeletionTimestamp.IsZero() ||
		before.Annotations[v1alpha1.AnnotationNetworks] != pod.Annotations[v1alpha1.AnnotationNetworks]
}

// withoutClaim asks for a sync of the pods that wait for a claim to be made, and
// of the owner's own, when a claim goes.
func (w *watcher) withoutClaim(wanting *wanting) handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, object client.Object) []reconcile.Request {
		out := wanting.requests()
		claim, ok := object.(*v1alpha1.IPClaim)
		if !ok {
			return out
		}
		var pods corev1.PodList
		key := ipclaims.Key(claim.Spec.Network, claim.Spec.Owner)
		if err := w.reader.List(ctx, &pods, client.MatchingFields{indexPodOwner: key}, client.UnsafeDisableDeepCopy); err != nil {
			log.FromContext(ctx).Error(err, "Reading a cache index", "index", indexPodOwner)
		}
		for i := range pods.Items {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&pods.Items[i])})
		}
		return out
	})
}

func (w *watcher) claims(ctx context.Context, index, key string) []v1alpha1.IPClaim {
	var list v1alpha1.IPClaimList
	if err := w.reader.List(ctx, &list, client.MatchingFields{index: key}, client.UnsafeDisableDeepCopy); err != nil {
		log.FromContext(ctx).Error(err, "Reading a cache index", "index", index)
	}
	return list.Items
}

// whenUpdated passes every event but updates that changed does not care for.
func whenUpdated(changed func(before, after client.Object) bool) predicate.Funcs {
	return predicate.Funcs{
		UpdateFunc:  func(e event.UpdateEvent) bool { return changed(e.ObjectOld, e.ObjectNew) },
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}

// wentOrGoes passes a claim's end, and its beginning.
func wentOrGoes() predicate.Funcs {
	f := whenUpdated(func(before, after client.Object) bool {
		return before.GetUID() != after.GetUID() || before.GetDeletionTimestamp().IsZero() != after.GetDeletionTimestamp().IsZero()
	})
	f.CreateFunc = func(event.CreateEvent) bool { return false }
	return f
}

func went() predicate.Funcs { return wentOrGoes() }

func cameOrWent() predicate.Funcs {
	return whenUpdated(func(before, after client.Object) bool { return before.GetUID() != after.GetUID() })
}

// specChanged: a deletion timestamp counts as a generation too.
func specChanged() predicate.Funcs {
	return whenUpdated(func(before, after client.Object) bool {
		return before.GetUID() != after.GetUID() || before.GetGeneration() != after.GetGeneration()
	})
}

func nodeAnswers() predicate.Funcs {
	return whenUpdated(func(before, after client.Object) bool {
		b, bok := before.(*corev1.Node)
		a, aok := after.(*corev1.Node)
		if !bok || !aok || b.UID != a.UID {
			return true
		}
		wasReady, wasSince := readiness(b)
		isReady, since := readiness(a)
		return wasReady != isReady || !wasSince.Equal(since) || ipblock.Fenced(b) != ipblock.Fenced(a)
	})
}

func agentAnswers() predicate.Funcs {
	return whenUpdated(func(before, after client.Object) bool {
		b, bok := before.(*v1alpha1.NodeNetwork)
		a, aok := after.(*v1alpha1.NodeNetwork)
		return !bok || !aok || !equality.Semantic.DeepEqual(b.Status.Held, a.Status.Held) ||
			!equality.Semantic.DeepEqual(meta.FindStatusCondition(b.Status.Conditions, v1alpha1.ConditionAgentReady),
				meta.FindStatusCondition(a.Status.Conditions, v1alpha1.ConditionAgentReady))
	})
}

// usableChanged: a Network becomes Ready, or another.
func usableChanged() predicate.Funcs {
	return whenUpdated(func(before, after client.Object) bool {
		b, bok := before.(*v1alpha1.Network)
		a, aok := after.(*v1alpha1.Network)
		return !bok || !aok || b.UID != a.UID || b.Generation != a.Generation || isReady(b) != isReady(a)
	})
}

func isReady(network *v1alpha1.Network) bool {
	return meta.IsStatusConditionTrue(network.Status.Conditions, v1alpha1.ConditionReady)
}

func labelsChanged() predicate.Funcs {
	return whenUpdated(func(before, after client.Object) bool { return !maps.Equal(before.GetLabels(), after.GetLabels()) })
}

// asksAnew passes pods that ask for networks, and of their updates those that
// change what they ask for, or whether they stay.
func asksAnew() predicate.Funcs {
	ours := func(object client.Object) bool {
		pod, ok := object.(*corev1.Pod)
		return ok && isOurs(pod)
	}
	return predicate.Funcs{
		CreateFunc: func(e event.CreateEvent) bool { return ours(e.Object) },
		UpdateFunc: func(e event.UpdateEvent) bool {
			before, ok1 := e.ObjectOld.(*corev1.Pod)
			pod, ok2 := e.ObjectNew.(*corev1.Pod)
			return ok1 && ok2 && (isOurs(before) || isOurs(pod)) && matters(before, pod)
		},
		DeleteFunc:  func(e event.DeleteEvent) bool { return ours(e.Object) },
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}
