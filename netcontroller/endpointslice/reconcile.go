// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/endpointslice"
	sliceutil "k8s.io/endpointslice/util"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// staleDelay is how long the cache gets to see our own last writes.
const staleDelay = 100 * time.Millisecond

// reconciler brings one Service's slices in line. Its parts are safe for
// concurrent use on different Services; the queue never hands out one twice.
type reconciler struct {
	client  client.Client
	events  events.EventRecorder
	slices  *endpointslice.Reconciler
	tracker *sliceutil.EndpointSliceTracker
	trigger *sliceutil.TriggerTimeTracker
	doubts  *doubts
}

// Reconcile implements reconcile.Reconciler for the key of a Service.
func (r *reconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var svc corev1.Service
	err := r.client.Get(ctx, request.NamespacedName, &svc)
	if err != nil && !apierrors.IsNotFound(err) {
		return reconcile.Result{}, fmt.Errorf("reading Service %s: %w", request, err)
	}
	existing, listErr := r.listSlices(ctx, request.NamespacedName)
	if listErr != nil {
		return reconcile.Result{}, listErr
	}
	if err != nil { // NotFound
		return reconcile.Result{}, r.forget(ctx, request.NamespacedName, existing)
	}
	if svc.DeletionTimestamp != nil {
		return reconcile.Result{}, nil // the slices follow by their owner reference
	}
	if !isAnnotated(&svc) {
		if err := r.forget(ctx, request.NamespacedName, existing); err != nil {
			return reconcile.Result{}, err
		}
		return reconcile.Result{}, r.clearCondition(ctx, &svc)
	}
	if r.tracker.StaleSlices(&svc, existing) {
		return reconcile.Result{RequeueAfter: staleDelay}, nil
	}
	return r.sync(ctx, &svc, existing)
}

// sync publishes a Service that carries the annotation.
func (r *reconciler) sync(ctx context.Context, svc *corev1.Service, existing []*discoveryv1.EndpointSlice) (reconcile.Result, error) {
	networks, fault := readService(svc)
	if fault != nil {
		// Slices that nobody keeps up to date would soon name other pods' addresses.
		err := r.removeSlices(ctx, existing)
		r.doubts.update(client.ObjectKeyFromObject(svc), nil)
		return reconcile.Result{}, errors.Join(err, r.report(ctx, svc, nil, []problem{*fault}))
	}
	pods, err := r.listPods(ctx, svc)
	if err != nil {
		return reconcile.Result{}, err
	}
	known, err := r.gather(ctx, networks.Networks(), pods)
	if err != nil {
		return reconcile.Result{}, err
	}
	out := publish(svc, networks, pods, known)
	trigger := r.trigger.ComputeEndpointLastChangeTriggerTime(svc.Namespace, svc, pods)
	err = r.write(ctx, out.groups, existing, trigger)
	again := r.tell(svc, out.withheld)
	err = errors.Join(err, r.report(ctx, svc, networks.Networks(), out.problems))
	if err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{RequeueAfter: again}, nil
}

// readService reads what the Service says about its networks. A fault stops
// publishing: the message says what to change.
func readService(svc *corev1.Service) (podnetworks.ServiceNetworks, *problem) {
	networks, err := podnetworks.ParseService(svc.Annotations[v1alpha1.AnnotationNetworks])
	if err == nil {
		names := make([]string, 0, len(svc.Spec.Ports))
		for i := range svc.Spec.Ports {
			names = append(names, svc.Spec.Ports[i].Name)
		}
		err = networks.CheckPorts(names)
	}
	if err == nil && svc.Spec.Type == corev1.ServiceTypeExternalName {
		err = errors.New("a Service of type ExternalName has no endpoints: remove the annotation, or change the type")
	}
	if err != nil {
		return networks, &problem{v1alpha1.ReasonInvalidAnnotation, fmt.Sprintf("annotation %s: %v", v1alpha1.AnnotationNetworks, err)}
	}
	if svc.Spec.Selector[v1alpha1.SelectorEndpointsKey] != v1alpha1.SelectorEndpointsByNetwork {
		return networks, &problem{v1alpha1.ReasonSelectorKeyMissing, fmt.Sprintf("spec.selector lacks %s: %s: add it, or Kubernetes itself publishes the pods' addresses of the cluster network", v1alpha1.SelectorEndpointsKey, v1alpha1.SelectorEndpointsByNetwork)}
	}
	if len(selectorOf(svc)) == 0 {
		return networks, &problem{v1alpha1.ReasonSelectorEmpty, fmt.Sprintf("spec.selector has nothing besides %s: add the labels of the pods", v1alpha1.SelectorEndpointsKey)}
	}
	return networks, nil
}

// selectorOf is the Service's selector without the entry that keeps
// kube-controller-manager away.
func selectorOf(svc *corev1.Service) labels.Set {
	selector := maps.Clone(svc.Spec.Selector)
	delete(selector, v1alpha1.SelectorEndpointsKey)
	return selector
}

// listPods returns the cache's own pods: nothing may change them.
func (r *reconciler) listPods(ctx context.Context, svc *corev1.Service) ([]*corev1.Pod, error) {
	var list corev1.PodList
	err := r.client.List(ctx, &list, client.InNamespace(svc.Namespace), client.MatchingLabels(selectorOf(svc)), client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, fmt.Errorf("listing the pods of Service %s: %w", client.ObjectKeyFromObject(svc), err)
	}
	pods := make([]*corev1.Pod, len(list.Items))
	for i := range list.Items {
		pods[i] = &list.Items[i]
	}
	return pods, nil
}

// listSlices returns copies of the slices that we own for the Service; the
// library sorts their ports in place.
func (r *reconciler) listSlices(ctx context.Context, svc client.ObjectKey) ([]*discoveryv1.EndpointSlice, error) {
	var list discoveryv1.EndpointSliceList
	err := r.client.List(ctx, &list, client.InNamespace(svc.Namespace), client.MatchingLabels{
		discoveryv1.LabelServiceName: svc.Name,
		discoveryv1.LabelManagedBy:   v1alpha1.EndpointSliceManagedBy,
	})
	if err != nil {
		return nil, fmt.Errorf("listing the slices of Service %s: %w", svc, err)
	}
	out := make([]*discoveryv1.EndpointSlice, len(list.Items))
	for i := range list.Items {
		out[i] = &list.Items[i]
	}
	return out, nil
}

// gather reads from the cache what publish needs to know.
func (r *reconciler) gather(ctx context.Context, names []string, pods []*corev1.Pod) (facts, error) {
	var known facts
	known = facts{
		networks: map[string]network{},
		blocks:   map[onNode][]netip.Prefix{},
		fixed:    map[types.UID][]claim{},
		linked:   map[onNode]bool{},
		contested: func(pod *corev1.Pod, c claim) bool {
			var rivals corev1.PodList
			err := r.client.List(ctx, &rivals, client.MatchingFields{indexPodClaim: c.key()}, client.UnsafeDisableDeepCopy)
			if err != nil {
				log.FromContext(ctx).Error(err, "Cannot list the claimants of an address, so it is withheld", "address", c.addr)
				return true
			}
			n, ok := known.networks[c.network]
			return outclaimed(pod, rivals.Items, ok && n.plan == nil)
		},
	}
	if err := r.gatherNetworks(ctx, names, &known); err != nil {
		return facts{}, err
	}
	seen := map[string]bool{}
	for _, pod := range pods {
		node := pod.Spec.NodeName
		if node == "" {
			continue
		}
		if err := r.gatherFixed(ctx, pod, &known); err != nil {
			return facts{}, err
		}
		if seen[node] {
			continue
		}
		seen[node] = true
		if err := r.gatherNode(ctx, node, &known); err != nil {
			return facts{}, err
		}
	}
	return known, nil
}

func (r *reconciler) gatherNetworks(ctx context.Context, names []string, known *facts) error {
	for _, name := range names {
		if name == v1alpha1.DefaultNetworkName {
			known.networks[name] = clusterNetwork()
			continue
		}
		var obj v1alpha1.Network
		err := r.client.Get(ctx, client.ObjectKey{Name: name}, &obj, uncopied())
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading Network %s: %w", name, err)
		}
		known.networks[name] = networkOf(&obj)
	}
	return nil
}

func (r *reconciler) gatherNode(ctx context.Context, node string, known *facts) error {
	var links v1alpha1.NodeNetwork
	err := r.client.Get(ctx, client.ObjectKey{Name: node}, &links, uncopied())
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("reading NodeNetwork %s: %w", node, err)
	}
	if err == nil {
		for physicalNet := range linkedNetworks(&links) {
			known.linked[onNode{node, physicalNet}] = true
		}
	}
	for name, n := range known.networks {
		if n.plan == nil {
			continue
		}
		holder := onNode{node, name}
		var list v1alpha1.IPBlockList
		err := r.client.List(ctx, &list, client.MatchingFields{indexBlockHolder: holder.key()}, client.UnsafeDisableDeepCopy)
		if err != nil {
			return fmt.Errorf("listing the blocks of node %s in network %s: %w", node, name, err)
		}
		for i := range list.Items {
			spec := &list.Items[i].Spec
			if prefix, err := netip.ParsePrefix(string(spec.CIDR)); err == nil && spec.NetworkUID == n.uid {
				known.blocks[holder] = append(known.blocks[holder], prefix)
			}
		}
	}
	return nil
}

// gatherFixed reads which fixed addresses a pod has.
func (r *reconciler) gatherFixed(ctx context.Context, pod *corev1.Pod, known *facts) error {
	var list v1alpha1.IPClaimList
	err := r.client.List(ctx, &list, client.MatchingFields{indexIPClaimPod: string(pod.UID)}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return fmt.Errorf("listing the IPClaims of pod %s: %w", client.ObjectKeyFromObject(pod), err)
	}
	for i := range list.Items {
		spec := &list.Items[i].Spec
		n, named := known.networks[spec.Network]
		addr, err := netip.ParseAddr(string(spec.Address))
		if err == nil && named && (spec.NetworkUID == "" || spec.NetworkUID == n.uid) && list.Items[i].Status.NodeName == pod.Spec.NodeName {
			known.fixed[pod.UID] = append(known.fixed[pod.UID], claim{spec.Network, addr})
		}
	}
	return nil
}

// write brings the slices of every group in line, and removes those of networks
// that the Service does not name any more.
func (r *reconciler) write(ctx context.Context, groups []group, existing []*discoveryv1.EndpointSlice, trigger time.Time) error {
	byNetwork := map[string][]*discoveryv1.EndpointSlice{}
	for _, slice := range existing {
		name := slice.Labels[v1alpha1.LabelNetwork]
		byNetwork[name] = append(byNetwork[name], slice)
	}
	var errs []error
	for _, g := range groups {
		logger := log.FromContext(ctx).WithValues("network", g.network)
		errs = append(errs, r.slices.Reconcile(logger, g.service, g.pods, byNetwork[g.network], trigger))
		delete(byNetwork, g.network)
	}
	for _, leftover := range byNetwork {
		errs = append(errs, r.removeSlices(ctx, leftover))
	}
	return errors.Join(errs...)
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

// forget removes what we made for a Service that is gone or not ours any more.
func (r *reconciler) forget(ctx context.Context, svc client.ObjectKey, existing []*discoveryv1.EndpointSlice) error {
	if err := r.removeSlices(ctx, existing); err != nil {
		return err
	}
	r.slices.DeleteService(svc.Namespace, svc.Name)
	r.tracker.DeleteService(svc.Namespace, svc.Name)
	r.trigger.DeleteService(svc.Namespace, svc.Name)
	r.doubts.update(svc, nil)
	return nil
}

// tell makes events of addresses that stay withheld: one per pod, because the
// events API counts another with the same reason as a repetition of the first.
func (r *reconciler) tell(svc *corev1.Service, all []withheld) (again time.Duration) {
	now, again := r.doubts.update(client.ObjectKeyFromObject(svc), all)
	for len(now) > 0 {
		pod := now[0].pod
		var whats []string
		now = slices.DeleteFunc(now, func(w withheld) bool {
			if w.pod.UID == pod.UID {
				whats = append(whats, fmt.Sprintf("address %s on network %s: %s", w.addr, w.network, w.why))
			}
			return w.pod.UID == pod.UID
		})
		r.events.Eventf(pod, svc, corev1.EventTypeWarning, v1alpha1.EventAddressWithheld, actionPublish,
			"not published in Service %s: %s", svc.Name, shorten(strings.Join(whats, "; "), maxNote))
	}
	return again
}
