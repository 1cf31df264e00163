// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipblock

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/netcontroller/network"
)

// actionCleanUp is the action that events name.
const actionCleanUp = "CleanUp"

// sighting is since when a block's Node has been seen gone, and nothing has been
// seen that could use the block. It lives in memory only: after a restart the
// controller watches for a whole grace again.
type sighting struct {
	uid   types.UID
	quiet time.Time
}

// reconciler deletes blocks and releases those of dead nodes. It runs one
// worker, which alone touches watching.
//
// +kubebuilder:rbac:groups=netplane.io,resources=ipblocks,verbs=get;list;watch;patch;delete
// +kubebuilder:rbac:groups=netplane.io,resources=networks;nodenetworks,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=nodes;pods,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
type reconciler struct {
	client   client.Client
	live     client.Reader
	recorder events.EventRecorder
	clock    clock.PassiveClock
	grace    time.Duration
	watching map[string]sighting // by the block's name
}

// Reconcile decides on one block and takes at most one step; the event of the
// step brings it back.
func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var block v1alpha1.IPBlock
	if err := r.client.Get(ctx, request.NamespacedName, &block); err != nil {
		delete(r.watching, request.Name)
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if err := r.markContested(ctx, &block); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	facts, err := r.look(ctx, cached, &block)
	if err != nil {
		return ctrl.Result{}, err
	}
	action, wait := Decide(facts)
	if action == Keep {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	// The caches may lag. What cannot be undone is decided on what the API
	// server itself says.
	if facts, err = r.look(ctx, live, &block); err != nil {
		return ctrl.Result{}, err
	}
	if confirmed, wait := Decide(facts); confirmed != action {
		return ctrl.Result{RequeueAfter: max(wait, time.Second)}, nil
	}
	if action == Delete {
		err = r.remove(ctx, &block, facts)
	} else {
		err = r.release(ctx, &block, facts)
	}
	if apierrors.IsConflict(err) {
		return ctrl.Result{RequeueAfter: time.Second}, nil
	}
	return ctrl.Result{}, client.IgnoreNotFound(err)
}

// source is where look reads from.
type source int

const (
	// cached: everything comes from the caches.
	cached source = iota
	// live: all but what agents hold, and the Network's pods on other nodes,
	// comes from the API server.
	live
)

// look gathers the facts about a block.
func (r *reconciler) look(ctx context.Context, from source, block *v1alpha1.IPBlock) (Facts, error) {
	f := Facts{
		Deleted:   !block.DeletionTimestamp.IsZero(),
		Finalizer: controllerutil.ContainsFinalizer(block, v1alpha1.FinalizerIPBlock),
		Grace:     r.grace,
	}
	var reader client.Reader = r.client
	if from == live {
		reader = r.live
	}
	pods, err := network.PodsOf(ctx, r.client, block.Spec.Network)
	if err != nil {
		return f, fmt.Errorf("listing the pods of Network %q: %w", block.Spec.Network, err)
	}
	if f.Network, err = networkState(ctx, reader, block, pods); err != nil {
		return f, err
	}
	var node corev1.Node
	err = reader.Get(ctx, client.ObjectKey{Name: block.Spec.NodeName}, &node)
	if client.IgnoreNotFound(err) != nil {
		return f, fmt.Errorf("reading Node %q: %w", block.Spec.NodeName, err)
	}
	there := err == nil && node.UID == block.Spec.NodeUID
	f.NodeGone, f.Fenced = !there, there && Fenced(&node)
	if there && !f.Fenced {
		delete(r.watching, block.Name)
		return f, nil
	}
	if from == live {
		if pods, err = r.podsOn(ctx, block); err != nil {
			return f, err
		}
	}
	if f.Fenced {
		f.InUse = InUse(block, pods, nil, time.Time{}) // what its agent held is over
		return f, nil
	}
	var nodeNetwork v1alpha1.NodeNetwork
	if err := r.client.Get(ctx, client.ObjectKey{Name: block.Spec.NodeName}, &nodeNetwork); client.IgnoreNotFound(err) != nil {
		return f, fmt.Errorf("reading NodeNetwork %q: %w", block.Spec.NodeName, err)
	}
	f.InUse = InUse(block, pods, &nodeNetwork, node.CreationTimestamp.Time)
	f.QuietFor = r.sight(block, f.InUse)
	return f, nil
}

// podsOn lists the living pods of a block's node and network, from the API server.
func (r *reconciler) podsOn(ctx context.Context, block *v1alpha1.IPBlock) ([]corev1.Pod, error) {
	var pods corev1.PodList
	if err := r.live.List(ctx, &pods, client.MatchingFields{"spec.nodeName": block.Spec.NodeName}); err != nil {
		return nil, fmt.Errorf("listing the pods of Node %q: %w", block.Spec.NodeName, err)
	}
	return slices.DeleteFunc(pods.Items, func(pod corev1.Pod) bool {
		_, asks := network.Demand(&pod)[block.Spec.Network]
		return !asks
	}), nil
}

// sight notes that a block's Node is gone, and tells for how long that has been
// so and nothing could use the block.
func (r *reconciler) sight(block *v1alpha1.IPBlock, inUse bool) time.Duration {
	now := r.clock.Now()
	s := r.watching[block.Name]
	if s.uid != block.UID || inUse {
		s = sighting{uid: block.UID, quiet: now}
		r.watching[block.Name] = s
	}
	return now.Sub(s.quiet)
}

func networkState(ctx context.Context, reader client.Reader, block *v1alpha1.IPBlock, pods []corev1.Pod) (NetworkState, error) {
	var owner v1alpha1.Network
	err := reader.Get(ctx, client.ObjectKey{Name: block.Spec.Network}, &owner)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return NetworkServes, fmt.Errorf("reading Network %q: %w", block.Spec.Network, err)
	case apierrors.IsNotFound(err) || owner.UID != block.Spec.NetworkUID:
		return NetworkUnknown, nil
	case !owner.DeletionTimestamp.IsZero() && len(pods) == 0:
		return NetworkTerminating, nil
	}
	return NetworkServes, nil
}

func (r *reconciler) remove(ctx context.Context, block *v1alpha1.IPBlock, f Facts) error {
	// The version, because the node's agent may have adopted the block.
	if err := r.client.Delete(ctx, block, client.Preconditions{UID: &block.UID, ResourceVersion: &block.ResourceVersion}); err != nil {
		return fmt.Errorf("deleting IPBlock %q: %w", block.Name, err)
	}
	log.FromContext(ctx).V(2).Info("Deleted an IPBlock", "network", block.Spec.Network, "node", block.Spec.NodeName,
		"nodeGone", f.NodeGone, "nodeFenced", f.Fenced, "networkUnknown", f.Network == NetworkUnknown, "networkTerminating", f.Network == NetworkTerminating)
	return nil
}

func (r *reconciler) release(ctx context.Context, block *v1alpha1.IPBlock, f Facts) error {
	before := block.DeepCopy()
	controllerutil.RemoveFinalizer(block, v1alpha1.FinalizerIPBlock)
	if err := r.client.Patch(ctx, block, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("releasing IPBlock %q: %w", block.Name, err)
	}
	delete(r.watching, block.Name)
	state := "gone"
	if f.Fenced {
		state = "out of service"
	}
	log.FromContext(ctx).V(2).Info("Released an IPBlock in the stead of its node's agent", "network", block.Spec.Network,
		"node", block.Spec.NodeName, "nodeFenced", f.Fenced)
	r.recorder.Eventf(block, nil, corev1.EventTypeNormal, v1alpha1.EventBlockReleased, actionCleanUp,
		"Node %s is %s: its addresses are free again", block.Spec.NodeName, state)
	return nil
}
