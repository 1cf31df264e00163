// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ipblock cleans up after nodes and Networks that are gone: it deletes
// their IPBlocks, and takes the finalizer off those that no agent is left to
// empty. Blocks of living nodes are their agents'; it marks those that another
// node's pods live in, because agents do not see each other.
package ipblock

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/netplane/netplane/api/v1alpha1"
)

// DefaultGrace is how long a Node must have been gone, and its pods with it.
// kubelet stops the containers of pods that were deleted from the API within
// their grace period, 30 s unless a pod says otherwise.
const DefaultGrace = time.Minute

// Names of the cache's indexes, this controller's own.
const (
	indexNode    = "ipblock.node"
	indexNetwork = "ipblock.network"
	// indexConflict has NodeNetworks by the blocks in their status.conflicts.
	indexConflict = "ipblock.conflict"
)

// Options of the controller; zero values mean the defaults.
type Options struct {
	// Grace is the wait before blocks of a Node that is gone are freed.
	Grace time.Duration
	// Clock tells for how long something has been seen.
	Clock clock.PassiveClock
}

// Setup registers the controller with mgr. It needs the indexes of package
// network, whose Setup must have been called.
func Setup(mgr ctrl.Manager, opts Options) error {
	if opts.Grace == 0 {
		opts.Grace = DefaultGrace
	}
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	ctx := context.Background() // registers only: nothing is read before the caches start
	for name, key := range map[string]func(*v1alpha1.IPBlock) string{
		indexNode:    func(b *v1alpha1.IPBlock) string { return b.Spec.NodeName },
		indexNetwork: func(b *v1alpha1.IPBlock) string { return b.Spec.Network },
	} {
		err := mgr.GetFieldIndexer().IndexField(ctx, &v1alpha1.IPBlock{}, name, func(object client.Object) []string {
			block, ok := object.(*v1alpha1.IPBlock)
			if !ok {
				return nil
			}
			return []string{key(block)}
		})
		if err != nil {
			return fmt.Errorf("making the cache index %s: %w", name, err)
		}
	}
	err := mgr.GetFieldIndexer().IndexField(ctx, &v1alpha1.NodeNetwork{}, indexConflict, conflictsOf)
	if err != nil {
		return fmt.Errorf("making the cache index %s: %w", indexConflict, err)
	}
	r := &reconciler{
		client:   mgr.GetClient(),
		live:     mgr.GetAPIReader(),
		recorder: mgr.GetEventRecorder(v1alpha1.FieldOwnerController),
		clock:    opts.Clock,
		grace:    opts.Grace,
		watching: map[string]sighting{},
	}
	err = ctrl.NewControllerManagedBy(mgr).
		Named("ipblock").
		For(&v1alpha1.IPBlock{}).
		Watches(&corev1.Node{}, blocksBy(mgr.GetClient(), indexNode), builder.WithPredicates(nodeChanged())).
		Watches(&v1alpha1.NodeNetwork{}, handler.EnqueueRequestsFromMapFunc(contestedBlocks), builder.WithPredicates(conflictsChanged())).
		Watches(&v1alpha1.Network{}, blocksBy(mgr.GetClient(), indexNetwork), builder.WithPredicates(networkGoes())).
		Complete(r)
	if err != nil {
		return fmt.Errorf("setting up the IPBlock controller: %w", err)
	}
	return nil
}

// blocksBy asks for a sync of the blocks that an index has under an object's name.
func blocksBy(reader client.Reader, index string) handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, object client.Object) []reconcile.Request {
		var blocks v1alpha1.IPBlockList
		if err := reader.List(ctx, &blocks, client.MatchingFields{index: object.GetName()}, client.UnsafeDisableDeepCopy); err != nil {
			log.FromContext(ctx).Error(err, "Reading a cache index", "index", index)
			return nil
		}
		requests := make([]reconcile.Request, 0, len(blocks.Items))
		for i := range blocks.Items {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&blocks.Items[i])})
		}
		return requests
	})
}

// nodeChanged passes Nodes that come, go, are another, or are fenced.
func nodeChanged() predicate.Predicate {
	return predicate.Funcs{
		UpdateFunc: func(e event.UpdateEvent) bool {
			before, bok := e.ObjectOld.(*corev1.Node)
			after, aok := e.ObjectNew.(*corev1.Node)
			return !bok || !aok || before.UID != after.UID || Fenced(before) != Fenced(after)
		},
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}

// networkGoes passes every update of a Network that is being deleted: its
// status tells when the last pod has left it.
func networkGoes() predicate.Predicate {
	return predicate.Funcs{
		UpdateFunc: func(e event.UpdateEvent) bool {
			return e.ObjectOld.GetUID() != e.ObjectNew.GetUID() || !e.ObjectNew.GetDeletionTimestamp().IsZero()
		},
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}
