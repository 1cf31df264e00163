// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipclaim

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/netplane/netplane/api/v1alpha1"
)

// retryConflict is the wait after a write that met a newer object: its event
// is on the way.
const retryConflict = 100 * time.Millisecond

// claimReconciler decides on claims. It runs one worker, which alone touches
// what the looker has seen, and pending.
//
// +kubebuilder:rbac:groups=netplane.io,resources=ipclaims,verbs=get;list;watch;patch;delete
// +kubebuilder:rbac:groups=netplane.io,resources=ipclaims/status,verbs=update
// +kubebuilder:rbac:groups=netplane.io,resources=networks;nodenetworks,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=nodes;pods;namespaces,verbs=get;list;watch
type claimReconciler struct {
	looker looker
	client client.Client
	live   client.Reader
	// pending are the resource versions of claims that the last step has made
	// stale: the cache shows them until the step's event comes.
	pending map[string]string
}

// Reconcile decides on one claim and takes at most one step; the event of the
// step brings it back.
func (r *claimReconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var claim v1alpha1.IPClaim
	if err := r.client.Get(ctx, request.NamespacedName, &claim); err != nil {
		delete(r.looker.seen, request.Name)
		delete(r.pending, request.Name)
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if r.pending[claim.Name] == claim.ResourceVersion {
		delete(r.pending, claim.Name) // once: a write may change nothing
		return ctrl.Result{RequeueAfter: retryConflict}, nil
	}
	facts, err := r.looker.look(ctx, r.client, &claim)
	if err != nil {
		return ctrl.Result{}, err
	}
	decision := Decide(facts)
	if decision.Action == Keep {
		return ctrl.Result{RequeueAfter: decision.Wait}, nil
	}
	if mustConfirm(&claim, decision.Action) {
		// The caches may lag.
		if facts, err = r.looker.look(ctx, r.live, &claim); err != nil {
			return ctrl.Result{}, err
		}
		confirmed := Decide(facts)
		if confirmed.Action != decision.Action {
			return ctrl.Result{RequeueAfter: max(confirmed.Wait, retryConflict)}, nil
		}
		decision = confirmed
	}
	version := claim.ResourceVersion
	err = r.act(ctx, &claim, facts, decision)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return ctrl.Result{RequeueAfter: retryConflict}, nil
	}
	if err == nil {
		r.pending[claim.Name] = version
	}
	return ctrl.Result{RequeueAfter: decision.Wait}, err
}

// mustConfirm tells whether a step takes the address from a pod that had it.
func mustConfirm(claim *v1alpha1.IPClaim, action Action) bool {
	switch action {
	case Delete, Release:
		return true
	case Hand, Vacate:
		return claim.Status.PodUID != ""
	default:
		return false
	}
}

func (r *claimReconciler) act(ctx context.Context, claim *v1alpha1.IPClaim, f *Facts, decision Decision) error {
	switch decision.Action {
	case Hold, Release:
		return r.finalize(ctx, claim, decision.Action == Hold)
	case Delete:
		return r.remove(ctx, claim)
	case Hand:
		claim.Status.PodUID, claim.Status.PodName, claim.Status.NodeName = f.Next.UID, f.Next.Name, f.Next.Spec.NodeName
	case Note:
		claim.Status.NodeName = f.PodNode
	case Vacate:
		claim.Status.PodUID, claim.Status.PodName, claim.Status.NodeName = "", "", ""
	default:
	}
	return r.write(ctx, claim, decision.Condition)
}

// write is the one place that writes a status. It fails if the claim has
// changed since it was read: another pod may have it by then.
func (r *claimReconciler) write(ctx context.Context, claim *v1alpha1.IPClaim, condition metav1.Condition) error {
	if condition.Type != "" {
		condition.LastTransitionTime = metav1.NewTime(r.looker.clock.Now())
		meta.SetStatusCondition(&claim.Status.Conditions, condition)
	}
	if err := r.client.Status().Update(ctx, claim); err != nil {
		return fmt.Errorf("writing the status of IPClaim %q: %w", claim.Name, err)
	}
	log.FromContext(ctx).V(2).Info("Wrote the status of an IPClaim", "pod", claim.Status.PodName, "podUID", claim.Status.PodUID,
		"node", claim.Status.NodeName, "reason", condition.Reason, "message", condition.Message)
	return nil
}

func (r *claimReconciler) finalize(ctx context.Context, claim *v1alpha1.IPClaim, hold bool) error {
	before := claim.DeepCopy()
	if hold {
		controllerutil.AddFinalizer(claim, v1alpha1.FinalizerIPClaim)
	} else {
		controllerutil.RemoveFinalizer(claim, v1alpha1.FinalizerIPClaim)
	}
	if err := r.client.Patch(ctx, claim, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("changing the finalizer of IPClaim %q: %w", claim.Name, err)
	}
	log.FromContext(ctx).V(2).Info("Changed the finalizer of an IPClaim", "held", hold)
	return nil
}

func (r *claimReconciler) remove(ctx context.Context, claim *v1alpha1.IPClaim) error {
	exactly := client.Preconditions{UID: &claim.UID, ResourceVersion: &claim.ResourceVersion}
	if err := r.client.Delete(ctx, claim, exactly); err != nil {
		return fmt.Errorf("deleting IPClaim %q: %w", claim.Name, err)
	}
	log.FromContext(ctx).V(2).Info("Deleted an IPClaim that nobody needs any more", "network", claim.Spec.Network, "address", claim.Spec.Address)
	return nil
}
