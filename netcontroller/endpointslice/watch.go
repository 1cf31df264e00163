// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"context"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	sliceutil "k8s.io/endpointslice/util"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/netplane/netplane/api/v1alpha1"
)

type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// watcher turns events into the keys of the Services that they concern. The
// queue holds each once, and hands it out when pace says so.
type watcher struct {
	reader    client.Reader
	pace      *pace
	tracker   *sliceutil.EndpointSliceTracker
	additions *additions
	statuses  *statuses
}

// serviceCreated: at start, Services that lost the annotation while we were
// away are known by our condition, or by slices of ours.
func (w *watcher) serviceCreated(e event.CreateEvent) bool {
	return concernsUs(e.Object)
}

// serviceUpdated notes what the reconciliation that it lets through has to know.
func (w *watcher) serviceUpdated(e event.UpdateEvent) bool {
	before, ok1 := e.ObjectOld.(*corev1.Service)
	now, ok2 := e.ObjectNew.(*corev1.Service)
	if ok1 && ok2 {
		w.additions.note(before, now)
	}
	return concernsUs(e.ObjectOld) || concernsUs(e.ObjectNew)
}

func concernsUs(object client.Object) bool {
	svc, ok := object.(*corev1.Service)
	if !ok {
		return false
	}
	if _, isChild := parentOf(svc); isChild {
		return false // the parent's business; see children
	}
	_, hasKey := svc.Spec.Selector[v1alpha1.SelectorEndpointsKey]
	return hasKey || isAnnotated(svc) || isReported(svc)
}

// children enqueues the parent of a child that somebody changed or removed. Any
// Service that goes, a child too, may give a name free that a network of another
// waits for, or a place in a quota.
func (w *watcher) children() handler.EventHandler {
	enqueue := func(q queue, object client.Object) {
		if svc, ok := object.(*corev1.Service); ok {
			if parent, isChild := parentOf(svc); isChild {
				w.add(q, types.NamespacedName{Namespace: svc.Namespace, Name: parent})
			}
		}
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { enqueue(q, e.Object) },
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) {
			enqueue(q, e.ObjectOld)
			enqueue(q, e.ObjectNew)
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) {
			enqueue(q, e.Object)
			for _, svc := range w.listServices(ctx, client.InNamespace(e.Object.GetNamespace()), client.MatchingFields{indexServiceNetwork: anyNetwork}) {
				// By its name, too: the condition may not be in the cache yet.
				if strings.HasPrefix(e.Object.GetName(), svc.Name+"-") || meta.IsStatusConditionFalse(svc.Status.Conditions, v1alpha1.ConditionNamesByNetwork) {
					w.add(q, client.ObjectKeyFromObject(&svc))
				}
			}
		},
	}
}

func isAnnotated(svc *corev1.Service) bool {
	_, ok := svc.Annotations[v1alpha1.AnnotationNetworks]
	return ok
}

func (w *watcher) pods() handler.EventHandler {
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) { w.podChanged(ctx, q, nil, e.Object) },
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) {
			w.podChanged(ctx, q, e.Object, nil)
		},
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			w.podChanged(ctx, q, e.ObjectOld, e.ObjectNew)
		},
	}
}

// podChanged enqueues the Services that select the pod, before or now, and
// those of other pods that claim one of its addresses. One of the two is nil for
// a pod that came or went.
func (w *watcher) podChanged(ctx context.Context, q queue, before, now client.Object) {
	old, wasThere := before.(*corev1.Pod)
	pod, isThere := now.(*corev1.Pod)
	if isThere {
		w.statuses.set(pod)
	}
	if wasThere && (!isThere || old.UID != pod.UID) {
		w.statuses.drop(old.UID)
	}
	if wasThere && isThere && !matters(old, pod) {
		return
	}
	for _, version := range []*corev1.Pod{old, pod} {
		if version == nil {
			continue
		}
		w.enqueueSelecting(ctx, q, version)
		for _, c := range claimsOf(version) {
			for _, rival := range w.statuses.rivals(version, c) {
				w.enqueueSelecting(ctx, q, rival)
			}
		}
	}
}

// matters tells whether an update of a pod can change an endpoint.
func matters(old, pod *corev1.Pod) bool {
	for _, key := range []string{v1alpha1.AnnotationNetworks, v1alpha1.AnnotationNetworkStatus, v1alpha1.AnnotationNetworkStatusSandbox} {
		if old.Annotations[key] != pod.Annotations[key] {
			return true
		}
	}
	return old.UID != pod.UID ||
		!maps.Equal(old.Labels, pod.Labels) ||
		(old.DeletionTimestamp == nil) != (pod.DeletionTimestamp == nil) ||
		old.Status.Phase != pod.Status.Phase ||
		sliceutil.IsPodReady(old) != sliceutil.IsPodReady(pod) ||
		hasSandbox(old) != hasSandbox(pod) ||
		old.Spec.NodeName != pod.Spec.NodeName ||
		!slices.Equal(old.Status.PodIPs, pod.Status.PodIPs)
}

func (w *watcher) enqueueSelecting(ctx context.Context, q queue, pod *corev1.Pod) {
	for _, svc := range w.listServices(ctx, client.InNamespace(pod.Namespace), client.MatchingFields{indexServiceNetwork: anyNetwork}) {
		if selector := selectorOf(&svc); len(selector) > 0 && labels.SelectorFromSet(selector).Matches(labels.Set(pod.Labels)) {
			w.add(q, client.ObjectKeyFromObject(&svc))
		}
	}
}

// slices enqueues the Service of a slice of ours that somebody else changed.
// What the library did itself, it told the tracker.
func (w *watcher) slices() handler.EventHandler {
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) {
			if slice, ok := e.Object.(*discoveryv1.EndpointSlice); ok && isOurs(slice) && w.tracker.ShouldSync(slice) {
				w.add(q, serviceOf(slice))
			}
		},
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) {
			old, ok1 := e.ObjectOld.(*discoveryv1.EndpointSlice)
			slice, ok2 := e.ObjectNew.(*discoveryv1.EndpointSlice)
			if !ok1 || !ok2 || !isOurs(old) && !isOurs(slice) {
				return
			}
			if old.Labels[discoveryv1.LabelServiceName] != slice.Labels[discoveryv1.LabelServiceName] {
				w.tracker.HandleDeletion(old) // or the tracker would wait for it for ever
			}
			if serviceOf(old) != serviceOf(slice) {
				w.add(q, serviceOf(old))
			}
			if isOurs(old) != isOurs(slice) || !maps.Equal(old.Labels, slice.Labels) || w.tracker.ShouldSync(slice) {
				w.add(q, serviceOf(slice))
			}
		},
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) {
			slice, ok := e.Object.(*discoveryv1.EndpointSlice)
			// What the tracker does not know is a slice of before our start.
			if ok && isOurs(slice) && (!w.tracker.Has(slice) || !w.tracker.HandleDeletion(slice)) {
				w.add(q, serviceOf(slice))
			}
		},
	}
}

func isOurs(slice *discoveryv1.EndpointSlice) bool {
	return slice.Labels[discoveryv1.LabelManagedBy] == v1alpha1.EndpointSliceManagedBy
}

// serviceOf is the Service whose reconciliation keeps the slice: a child's
// parent, or the Service itself.
func serviceOf(slice *discoveryv1.EndpointSlice) types.NamespacedName {
	name, ok := slice.Labels[v1alpha1.LabelService]
	if !ok {
		name = slice.Labels[discoveryv1.LabelServiceName]
	}
	return types.NamespacedName{Namespace: slice.Namespace, Name: name}
}

func (w *watcher) networks() handler.EventHandler {
	enqueue := func(ctx context.Context, q queue, name string) {
		for key := range w.onNetwork(ctx, name) {
			w.add(q, key)
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) { enqueue(ctx, q, e.Object.GetName()) },
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) { enqueue(ctx, q, e.Object.GetName()) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			if e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration() || e.ObjectOld.GetUID() != e.ObjectNew.GetUID() {
				enqueue(ctx, q, e.ObjectNew.GetName())
			}
		},
	}
}

// nodeNetworks enqueues the Services with pods on a node whose NICs came or
// went: at once, as traffic is lost while the slices tell of a NIC that is down.
func (w *watcher) nodeNetworks() handler.EventHandler {
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) {
			w.enqueueOnNode(ctx, q, e.Object.GetName(), anyNetwork, true)
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) {
			w.enqueueOnNode(ctx, q, e.Object.GetName(), anyNetwork, true)
		},
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			old, ok1 := e.ObjectOld.(*v1alpha1.NodeNetwork)
			now, ok2 := e.ObjectNew.(*v1alpha1.NodeNetwork)
			if ok1 && ok2 && (!maps.Equal(linkedNetworks(old), linkedNetworks(now)) || !maps.Equal(downNICs(old), downNICs(now))) {
				w.enqueueOnNode(ctx, q, now.Name, anyNetwork, true)
			}
		},
	}
}

// linkedNetworks are the physical networks that a node has a working NIC for.
func linkedNetworks(node *v1alpha1.NodeNetwork) map[string]bool {
	out := map[string]bool{}
	for i := range node.Status.PhysicalNetworks {
		if node.Status.PhysicalNetworks[i].Ready {
			out[node.Status.PhysicalNetworks[i].Name] = true
		}
	}
	return out
}

// downNICs are the NICs behind a node's physical networks that are down. One that
// is not listed may have got another name.
func downNICs(node *v1alpha1.NodeNetwork) map[string]bool {
	out := map[string]bool{}
	for i := range node.Status.Interfaces {
		nic := &node.Status.Interfaces[i]
		if nic.State == v1alpha1.OperStateDown && slices.ContainsFunc(node.Status.PhysicalNetworks, func(p v1alpha1.NodePhysicalNetwork) bool { return slices.Contains(p.Interfaces, nic.Name) }) {
			out[nic.Name] = true
		}
	}
	return out
}

// blocks enqueues the Services with pods on the node that got or gave back a
// block. A block's spec is immutable, and one that is being deleted still serves.
func (w *watcher) blocks() handler.EventHandler {
	enqueue := func(ctx context.Context, q queue, object client.Object) {
		if block, ok := object.(*v1alpha1.IPBlock); ok {
			w.enqueueOnNode(ctx, q, block.Spec.NodeName, block.Spec.Network, false)
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) { enqueue(ctx, q, e.Object) },
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) { enqueue(ctx, q, e.Object) },
	}
}

// ipClaims enqueues the Services that select the pod that got or lost a fixed
// address, or whose node was noted.
func (w *watcher) ipClaims() handler.EventHandler {
	enqueue := func(ctx context.Context, q queue, object client.Object) {
		claim, ok := object.(*v1alpha1.IPClaim)
		if !ok || claim.Status.PodUID == "" {
			return
		}
		var pod corev1.Pod
		key := client.ObjectKey{Namespace: claim.Spec.Owner.Namespace, Name: claim.Status.PodName}
		if err := w.reader.Get(ctx, key, &pod, uncopied()); err == nil && pod.UID == claim.Status.PodUID {
			w.enqueueSelecting(ctx, q, &pod) // a pod that is not there concerns no Service
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) { enqueue(ctx, q, e.Object) },
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) { enqueue(ctx, q, e.Object) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			old, ok1 := e.ObjectOld.(*v1alpha1.IPClaim)
			now, ok2 := e.ObjectNew.(*v1alpha1.IPClaim)
			if ok1 && ok2 && (old.Status.PodUID != now.Status.PodUID || old.Status.NodeName != now.Status.NodeName) {
				enqueue(ctx, q, old)
				enqueue(ctx, q, now)
			}
		},
	}
}

// enqueueOnNode enqueues the Services that name the network, in the namespaces
// of the node's pods.
func (w *watcher) enqueueOnNode(ctx context.Context, q queue, node, network string, atOnce bool) {
	namespaces := map[string]bool{}
	for _, pod := range w.listPods(ctx, client.MatchingFields{indexPodNode: node}) {
		namespaces[pod.Namespace] = true
	}
	for namespace := range namespaces {
		for key := range w.onNetwork(ctx, network, client.InNamespace(namespace)) {
			if atOnce {
				q.Add(reconcile.Request{NamespacedName: key})
			} else {
				w.add(q, key)
			}
		}
	}
}

// onNetwork are the Services that name the network, and those that are published
// on it although their annotation does not name it, or cannot be read.
func (w *watcher) onNetwork(ctx context.Context, network string, options ...client.ListOption) map[types.NamespacedName]bool {
	out := map[types.NamespacedName]bool{}
	for _, svc := range w.listServices(ctx, append(options, client.MatchingFields{indexServiceNetwork: network})...) {
		out[client.ObjectKeyFromObject(&svc)] = true
	}
	var published discoveryv1.EndpointSliceList
	err := w.reader.List(ctx, &published, append(options, client.UnsafeDisableDeepCopy, client.MatchingFields{indexSliceNetwork: network})...)
	if err != nil {
		log.FromContext(ctx).Error(err, "Cannot list slices from the cache", "network", network)
	}
	for i := range published.Items {
		out[serviceOf(&published.Items[i])] = true
	}
	return out
}

func (w *watcher) add(q queue, key types.NamespacedName) {
	q.AddAfter(reconcile.Request{NamespacedName: key}, w.pace.delay(key))
}

func (w *watcher) listPods(ctx context.Context, options ...client.ListOption) []corev1.Pod {
	var list corev1.PodList
	if err := w.reader.List(ctx, &list, append(options, client.UnsafeDisableDeepCopy)...); err != nil {
		log.FromContext(ctx).Error(err, "Cannot list pods from the cache")
	}
	return list.Items
}

func (w *watcher) listServices(ctx context.Context, options ...client.ListOption) []corev1.Service {
	var list corev1.ServiceList
	if err := w.reader.List(ctx, &list, append(options, client.UnsafeDisableDeepCopy)...); err != nil {
		log.FromContext(ctx).Error(err, "Cannot list Services from the cache")
	}
	return list.Items
}
