// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// physicalReconciler is the only writer of PhysicalNetwork.status.
//
// +kubebuilder:rbac:groups=netplane.io,resources=physicalnetworks;nodenetworks,verbs=get;list;watch
// +kubebuilder:rbac:groups=netplane.io,resources=physicalnetworks/status,verbs=get;patch;update
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
type physicalReconciler struct {
	client   client.Client
	recorder events.EventRecorder
	gauges   *gauges
	pace     *pace
}

// Reconcile brings one PhysicalNetwork's status up to date.
func (r *physicalReconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var physical v1alpha1.PhysicalNetwork
	if err := r.client.Get(ctx, request.NamespacedName, &physical); err != nil {
		if apierrors.IsNotFound(err) {
			r.gauges.forgetPhysicalNetwork(request.Name)
			return ctrl.Result{}, nil
		}
		return ctrl.Result{}, fmt.Errorf("reading PhysicalNetwork %q: %w", request.Name, err)
	}
	var nodes v1alpha1.NodeNetworkList
	if err := r.client.List(ctx, &nodes, client.MatchingFields{indexNodePhysicalNet: physical.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return ctrl.Result{}, fmt.Errorf("reading the cache index %s: %w", indexNodePhysicalNet, err)
	}
	return r.publish(ctx, &physical, EvaluatePhysical(&physical, nodes.Items))
}

func (r *physicalReconciler) publish(ctx context.Context, physical *v1alpha1.PhysicalNetwork, want v1alpha1.PhysicalNetworkStatus) (ctrl.Result, error) {
	r.gauges.setPhysicalNetwork(physical.Name, want.Nodes)
	have := physical.Status.DeepCopy()
	news := changed(have.Conditions, want.Conditions)
	want.Conditions = merge(have.Conditions, want.Conditions, []string{v1alpha1.ConditionReady}, r.pace.clock.Now())
	if equality.Semantic.DeepEqual(*have, want) {
		return ctrl.Result{}, nil
	}
	urgent := want.ObservedGeneration != have.ObservedGeneration || firstOrLast(want.Nodes, have.Nodes) ||
		!equality.Semantic.DeepEqual(want.Conditions, have.Conditions)
	if wait := r.pace.wait(physical.UID); wait > 0 && !urgent {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	physical.Status = want
	if err := r.client.Status().Update(ctx, physical); err != nil {
		return onConflict(fmt.Errorf("writing the status of PhysicalNetwork %q: %w", physical.Name, err))
	}
	r.pace.wrote(physical.UID)
	report(ctx, r.recorder, physical, news)
	return ctrl.Result{}, nil
}
