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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/endpointslice"
	sliceutil "k8s.io/endpointslice/util"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/netplane/netplane/api/v1alpha1"
)

// staleDelay is how long the cache gets to see our own last writes.
const staleDelay = 100 * time.Millisecond

// reconciler brings one Service's slices in line. Its parts are safe for
// concurrent use on different Services; the queue never hands out one twice.
type reconciler struct {
	client  client.Client
	live    client.Reader // past the cache
	events  events.EventRecorder
	slices  *endpointslice.Reconciler
	tracker *sliceutil.EndpointSliceTracker
	trigger *sliceutil.TriggerTimeTracker
	doubts  *doubts
	failing *failing
	// additions is the watcher's, too.
	additions *additions
	pace      *pace
	passes    *passes
	statuses  *statuses // the watcher's, too
	// most is how many endpoints a slice may have.
	most int
	// takeOver is how long slices stand beside the built-in ones.
	takeOver time.Duration
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
	if isBehind(r.tracker, request.Namespace, slicesByService(existing), request.Name) {
		return reconcile.Result{RequeueAfter: staleDelay}, nil
	}
	return r.follow(ctx, &svc, existing)
}

// follow does what the Service's stage asks for.
func (r *reconciler) follow(ctx context.Context, svc *corev1.Service, existing []*discoveryv1.EndpointSlice) (reconcile.Result, error) {
	want := decide(svc, existing, r.additions.has(svc), r.doubts.clock.Now(), r.takeOver)
	if want.stage == stageGiving {
		done, err := r.isTakenOver(ctx, svc, want.elapsed)
		if err != nil {
			return reconcile.Result{}, err
		}
		if done {
			want = decideWithoutKey(svc, nil, false, r.doubts.clock.Now(), 0)
		}
	}
	switch want.stage {
	case stageForeign:
		if err := r.forget(ctx, client.ObjectKeyFromObject(svc), existing); err != nil {
			return reconcile.Result{}, err
		}
		return reconcile.Result{}, r.report(ctx, svc)
	case stageRefused:
		err := r.withdraw(ctx, client.ObjectKeyFromObject(svc), existing)
		return reconcile.Result{}, errors.Join(err, r.report(ctx, svc, endpointsVerdict(nil, want.problems)))
	default:
		return r.sync(ctx, svc, want, existing)
	}
}

// sync publishes a Service on the networks that it names.
func (r *reconciler) sync(ctx context.Context, svc *corev1.Service, want intent, existing []*discoveryv1.EndpointSlice) (reconcile.Result, error) {
	r.pace.begin(client.ObjectKeyFromObject(svc))
	pods, err := r.listPods(ctx, svc)
	if err != nil {
		return reconcile.Result{}, err
	}
	names := append(want.networks.Networks(), networksOf(svc.Name, existing).Networks()...)
	known, err := r.gather(ctx, names, pods)
	if err != nil {
		return reconcile.Result{}, err
	}
	networks, kept := keepPublished(svc, want.networks, existing, known)
	out := publish(svc, networks, pods, known)
	want.problems = slices.Concat(want.problems, out.problems, kept)
	if want.stage != stageOurs {
		// A hand-over's time counts from its condition: nothing is written before it.
		endpoints, _ := r.stageVerdict(want, out.groups)
		if err := r.report(ctx, svc, append(standing(svc, v1alpha1.ConditionNamesByNetwork), endpoints)...); err != nil {
			return reconcile.Result{}, err
		}
	}
	trigger := r.trigger.ComputeEndpointLastChangeTriggerTime(svc.Namespace, svc, pods)
	ofChildren, nameProblems, nameErr := r.nameNetworks(ctx, svc, out.groups)
	if isBehind(r.tracker, svc.Namespace, slicesByService(existing), serviceNames(ofChildren)...) {
		return reconcile.Result{RequeueAfter: staleDelay}, nil
	}
	writeErr := r.write(ctx, append(slices.Clip(out.groups), ofChildren...), existing, trigger)
	again := r.tell(svc, out.withheld)
	endpoints, handOver := r.endpointsVerdict(svc, want, out.groups, writeErr)
	verdicts := append(r.namesVerdict(svc, out.groups, ofChildren, nameProblems, nameErr), endpoints)
	for _, delay := range []time.Duration{handOver, retryOf(nameProblems)} {
		again = earlier(again, delay)
	}
	err = errors.Join(nameErr, writeErr, r.report(ctx, svc, verdicts...))
	if err != nil && ctx.Err() == nil && want.stage != stageOurs {
		log.FromContext(ctx).Error(err, "A hand-over goes on with what could not be written")
		return reconcile.Result{RequeueAfter: earlier(again, handOverRetry)}, nil
	}
	return reconcile.Result{RequeueAfter: again}, err
}

// earlier is the sooner of two delays, of which zero is never.
func earlier(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return a + b
	}
	return min(a, b)
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

// listSlices returns the slices that we own for the Service and its children.
// They are the cache's own but for their ports, which the library sorts in place.
func (r *reconciler) listSlices(ctx context.Context, svc client.ObjectKey) ([]*discoveryv1.EndpointSlice, error) {
	var list discoveryv1.EndpointSliceList
	err := r.client.List(ctx, &list, client.InNamespace(svc.Namespace), client.MatchingFields{indexSliceParent: svc.Name}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, fmt.Errorf("listing the slices of Service %s: %w", svc, err)
	}
	out := make([]*discoveryv1.EndpointSlice, len(list.Items))
	for i := range list.Items {
		out[i] = &list.Items[i]
		out[i].Ports = slices.Clone(out[i].Ports)
	}
	return out, nil
}

// isBehind tells whether the cache has not yet seen what we wrote last of one of
// these Services' slices, or of one of which it has slices. That of a child has
// to be asked for by name, as it may have none in the cache; but only once the
// child is known to be this Service's, as the name may have been another's.
func isBehind(tracker *sliceutil.EndpointSliceTracker, namespace string, existing map[string][]*discoveryv1.EndpointSlice, names ...string) bool {
	for _, name := range slices.AppendSeq(names, maps.Keys(existing)) {
		if tracker.StaleSlices(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}, existing[name]) {
			return true
		}
	}
	return false
}

func slicesByService(existing []*discoveryv1.EndpointSlice) map[string][]*discoveryv1.EndpointSlice {
	out := map[string][]*discoveryv1.EndpointSlice{}
	for _, slice := range existing {
		name := slice.Labels[discoveryv1.LabelServiceName]
		out[name] = append(out[name], slice)
	}
	return out
}

func serviceNames(groups []group) []string {
	out := make([]string, 0, len(groups))
	for i := range groups {
		out = append(out, groups[i].service.Name)
	}
	return out
}

// gather reads from the cache what publish needs to know.
func (r *reconciler) gather(ctx context.Context, names []string, pods []*corev1.Pod) (facts, error) {
	var known facts
	known = facts{
		networks: map[string]network{},
		blocks:   map[onNode][]netip.Prefix{},
		fixed:    map[types.UID][]claim{},
		linked:   map[onNode]bool{},
		down:     map[onNode]bool{},
		status:   r.statuses.of,
		contested: func(pod *corev1.Pod, c claim) bool {
			n, ok := known.networks[c.network]
			return r.statuses.isContested(pod, c, ok && n.plan == nil)
		},
	}
	if err := r.gatherNetworks(ctx, names, &known); err != nil {
		return facts{}, err
	}
	var fixed v1alpha1.IPClaimList // most clusters have none
	if err := r.client.List(ctx, &fixed, client.Limit(1), client.UnsafeDisableDeepCopy); err != nil {
		return facts{}, fmt.Errorf("looking for IPClaims: %w", err)
	}
	seen := map[string]bool{}
	for _, pod := range pods {
		node := pod.Spec.NodeName
		if node == "" {
			continue
		}
		if len(fixed.Items) > 0 {
			if err := r.gatherFixed(ctx, pod, &known); err != nil {
				return facts{}, err
			}
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
		for nic := range downNICs(&links) {
			known.down[onNode{node, nic}] = true
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

// withdraw removes what we made for a Service.
func (r *reconciler) withdraw(ctx context.Context, svc client.ObjectKey, existing []*discoveryv1.EndpointSlice) error {
	r.doubts.update(svc, nil)
	none := func(*corev1.Service) bool { return false }
	return errors.Join(r.removeSlices(ctx, existing), r.removeChildren(ctx, svc, none))
}

// forget withdraws, and remembers nothing of a Service that is gone or not ours
// any more.
func (r *reconciler) forget(ctx context.Context, svc client.ObjectKey, existing []*discoveryv1.EndpointSlice) error {
	if err := r.withdraw(ctx, svc, existing); err != nil {
		return err
	}
	names := map[string]bool{svc.Name: true}
	for _, slice := range existing {
		names[slice.Labels[discoveryv1.LabelServiceName]] = true
	}
	for name := range names {
		r.passes.forgetService(types.NamespacedName{Namespace: svc.Namespace, Name: name})
		r.slices.DeleteService(svc.Namespace, name)
		r.tracker.DeleteService(svc.Namespace, name)
	}
	r.trigger.DeleteService(svc.Namespace, svc.Name)
	r.pace.forget(svc)
	r.failing.lasts(svc, nil)
	r.additions.forget(svc)
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
				whats = append(whats, w.text())
			}
			return w.pod.UID == pod.UID
		})
		r.events.Eventf(pod, svc, corev1.EventTypeWarning, v1alpha1.EventAddressWithheld, actionPublish,
			"not published in Service %s: %s", svc.Name, shorten(strings.Join(whats, "; "), maxNote))
	}
	return again
}

func (w *withheld) text() string {
	if w.network == "" {
		return "all that its annotation claims: " + w.why
	}
	return fmt.Sprintf("address %s on network %s: %s", w.address, w.network, w.why)
}
