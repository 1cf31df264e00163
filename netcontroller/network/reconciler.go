// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/netplane/netplane/api/v1alpha1"
)

// actionEvaluate is the action that events name.
const actionEvaluate = "Evaluate"

// retryConflict is the wait after a write that met a newer object: its event
// is on the way, and the sync that follows starts from it.
const retryConflict = 100 * time.Millisecond

// reconciler is the only writer of Network.status and of the Network's
// finalizer.
//
// +kubebuilder:rbac:groups=netplane.io,resources=networks,verbs=get;list;watch;patch;update
// +kubebuilder:rbac:groups=netplane.io,resources=networks/status,verbs=get;patch;update
// +kubebuilder:rbac:groups=netplane.io,resources=networks/finalizers,verbs=update
// +kubebuilder:rbac:groups=netplane.io,resources=physicalnetworks;nodenetworks;ipblocks;ipclaims,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups="",resources=events,verbs=create;patch
type reconciler struct {
	client   client.Client
	live     client.Reader
	recorder events.EventRecorder
	gauges   *gauges
	pace     *pace
}

// Reconcile brings one Network's finalizer and status up to date.
func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var network v1alpha1.Network
	if err := r.client.Get(ctx, request.NamespacedName, &network); err != nil {
		if apierrors.IsNotFound(err) {
			r.gauges.forgetNetwork(request.Name)
			return ctrl.Result{}, nil
		}
		return ctrl.Result{}, fmt.Errorf("reading Network %q: %w", request.Name, err)
	}
	if network.DeletionTimestamp.IsZero() && !controllerutil.ContainsFinalizer(&network, v1alpha1.FinalizerNetwork) {
		return onConflict(r.hold(ctx, &network))
	}
	facts, err := r.gather(ctx, &network)
	if err != nil {
		return ctrl.Result{}, err
	}
	if !network.DeletionTimestamp.IsZero() && Holding(facts).Empty() && controllerutil.ContainsFinalizer(&network, v1alpha1.FinalizerNetwork) {
		return onConflict(r.release(ctx, &network))
	}
	return r.publish(ctx, &network, Evaluate(facts))
}

// gather reads from the caches all that decides the Network's status. What it
// returns belongs to the caches and is read only.
func (r *reconciler) gather(ctx context.Context, network *v1alpha1.Network) (*Facts, error) {
	f := &Facts{Network: network}
	var physical v1alpha1.PhysicalNetwork
	err := r.client.Get(ctx, client.ObjectKey{Name: network.Spec.PhysicalNet}, &physical)
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("reading PhysicalNetwork %q: %w", network.Spec.PhysicalNet, err)
	}
	f.PhysicalNetworkExists = err == nil

	var (
		siblings       v1alpha1.NetworkList
		overlays       v1alpha1.NetworkList
		nodes, holders v1alpha1.NodeNetworkList
		blocks         v1alpha1.IPBlockList
		claims         v1alpha1.IPClaimList
	)
	for _, read := range []struct {
		into       client.ObjectList
		index, key string
	}{
		{&siblings, indexPhysicalNet, network.Spec.PhysicalNet},
		{&overlays, indexPlugin, v1alpha1.PluginVXLAN},
		{&nodes, indexNodePhysicalNet, network.Spec.PhysicalNet},
		{&holders, indexNodeHeld, network.Name},
		{&blocks, indexBlockNetwork, network.Name},
		{&claims, indexClaimNetwork, network.Name},
	} {
		if err := r.client.List(ctx, read.into, client.MatchingFields{read.index: read.key}, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("reading the cache index %s: %w", read.index, err)
		}
	}
	f.Overlays = overlays.Items
	f.Siblings, f.Nodes, f.Holders, f.Blocks, f.Claims = siblings.Items, nodes.Items, holders.Items, blocks.Items, claims.Items
	if f.Pods, err = PodsOf(ctx, r.client, network.Name); err != nil {
		return nil, fmt.Errorf("listing the pods of Network %q: %w", network.Name, err)
	}
	return f, nil
}

// hold puts the finalizer on: before the Network is Ready, and so before any
// node claims addresses of it.
func (r *reconciler) hold(ctx context.Context, network *v1alpha1.Network) error {
	before := network.DeepCopy()
	controllerutil.AddFinalizer(network, v1alpha1.FinalizerNetwork)
	if err := r.client.Patch(ctx, network, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("adding the finalizer to Network %q: %w", network.Name, err)
	}
	return nil
}

// release takes the finalizer off, after asking the API server itself: a
// block or claim that was created a moment ago may not be in the cache yet.
func (r *reconciler) release(ctx context.Context, network *v1alpha1.Network) error {
	var blocks v1alpha1.IPBlockList
	if err := r.live.List(ctx, &blocks, client.MatchingFields{v1alpha1.FieldIPBlockNetwork: network.Name}); err != nil {
		return fmt.Errorf("listing the IPBlocks of Network %q: %w", network.Name, err)
	}
	for i := range blocks.Items {
		if blocks.Items[i].Spec.NetworkUID == network.UID {
			return nil // its event brings us back
		}
	}
	var claims v1alpha1.IPClaimList
	if err := r.live.List(ctx, &claims, client.MatchingFields{v1alpha1.FieldIPClaimNetwork: network.Name}); err != nil {
		return fmt.Errorf("listing the IPClaims of Network %q: %w", network.Name, err)
	}
	if slices.ContainsFunc(claims.Items, func(claim v1alpha1.IPClaim) bool { return keepsNetwork(&claim, network) }) {
		return nil
	}
	before := network.DeepCopy()
	controllerutil.RemoveFinalizer(network, v1alpha1.FinalizerNetwork)
	err := r.client.Patch(ctx, network, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("removing the finalizer of Network %q: %w", network.Name, err)
	}
	log.FromContext(ctx).V(2).Info("Released a Network that nothing uses any more")
	return nil
}

// publish writes the status if it differs: conditions at once, counters when
// their time has come.
func (r *reconciler) publish(ctx context.Context, network *v1alpha1.Network, want v1alpha1.NetworkStatus) (ctrl.Result, error) {
	r.gauges.setNetwork(network.Name, &want)
	have := network.Status.DeepCopy()
	owned := []string{v1alpha1.ConditionReady, v1alpha1.ConditionTight, v1alpha1.ConditionAddressesAvailable}
	news := changed(have.Conditions, want.Conditions)
	want.Conditions = merge(have.Conditions, want.Conditions, owned, r.pace.clock.Now())
	if equality.Semantic.DeepEqual(*have, want) {
		return ctrl.Result{}, nil
	}
	if wait := r.pace.wait(network.UID); wait > 0 && !transition(&want, have) {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	network.Status = want
	if err := r.client.Status().Update(ctx, network); err != nil {
		return onConflict(fmt.Errorf("writing the status of Network %q: %w", network.Name, err))
	}
	r.pace.wrote(network.UID)
	report(ctx, r.recorder, network, news)
	return ctrl.Result{}, nil
}

// report logs and records the conditions that changed.
func report(ctx context.Context, recorder events.EventRecorder, object runtime.Object, news []metav1.Condition) {
	for _, condition := range news {
		log.FromContext(ctx).V(2).Info("Condition changed", "condition", condition.Type, "status", condition.Status,
			"reason", condition.Reason, "message", condition.Message)
		recorder.Eventf(object, nil, eventType(condition), condition.Reason, actionEvaluate, "%s", condition.Message)
	}
}

// onConflict turns a write that met a newer object, or none, into a later try.
func onConflict(err error) (ctrl.Result, error) {
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return ctrl.Result{RequeueAfter: retryConflict}, nil
	}
	return ctrl.Result{}, err
}
