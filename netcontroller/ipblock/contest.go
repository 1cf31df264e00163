// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipblock

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/netplane/netplane/api/v1alpha1"
)

// conflictsOf are the blocks that a node reports as had by another, too.
func conflictsOf(object client.Object) []string {
	node, ok := object.(*v1alpha1.NodeNetwork)
	if !ok {
		return nil
	}
	out := make([]string, 0, len(node.Status.Conflicts))
	for i := range node.Status.Conflicts {
		out = append(out, node.Status.Conflicts[i].Block)
	}
	return out
}

// contestedBlocks asks for a sync of the blocks that a node reports.
func contestedBlocks(_ context.Context, object client.Object) []reconcile.Request {
	var out []reconcile.Request
	for _, name := range conflictsOf(object) {
		out = append(out, ctrl.Request{NamespacedName: types.NamespacedName{Name: name}})
	}
	return out
}

// conflictsChanged passes what changes the blocks that a node reports.
func conflictsChanged() predicate.Predicate {
	return predicate.Funcs{
		CreateFunc: func(e event.CreateEvent) bool { return len(conflictsOf(e.Object)) > 0 },
		DeleteFunc: func(e event.DeleteEvent) bool { return len(conflictsOf(e.Object)) > 0 },
		UpdateFunc: func(e event.UpdateEvent) bool {
			return !equality.Semantic.DeepEqual(conflictsOf(e.ObjectOld), conflictsOf(e.ObjectNew))
		},
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}

// Contester is the first node, by name, that reports addresses in use in a
// block that is another's; empty if there is none. What the block's own node
// reports is the answer to a mark of ours.
func Contester(block *v1alpha1.IPBlock, reports []v1alpha1.NodeNetwork) string {
	var names []string
	for i := range reports {
		if name := reports[i].Name; name != block.Spec.NodeName && slices.Contains(conflictsOf(&reports[i]), block.Name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return slices.Min(names)
}

// markContested tells a block's node through an annotation that another node's
// pods have addresses in it, as long as that is so.
func (r *reconciler) markContested(ctx context.Context, block *v1alpha1.IPBlock) error {
	var reports v1alpha1.NodeNetworkList
	if err := r.client.List(ctx, &reports, client.MatchingFields{indexConflict: block.Name}); err != nil {
		return fmt.Errorf("listing the nodes that contest IPBlock %q: %w", block.Name, err)
	}
	contester := Contester(block, reports.Items)
	if block.Annotations[v1alpha1.AnnotationContestedBy] == contester {
		return nil
	}
	before := block.DeepCopy()
	if contester == "" {
		delete(block.Annotations, v1alpha1.AnnotationContestedBy)
	} else {
		metav1.SetMetaDataAnnotation(&block.ObjectMeta, v1alpha1.AnnotationContestedBy, contester)
	}
	if err := r.client.Patch(ctx, block, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("marking IPBlock %q as contested: %w", block.Name, err)
	}
	log.FromContext(ctx).Info("Told an IPBlock's node whether another node's pods have addresses in it",
		"network", block.Spec.Network, "node", block.Spec.NodeName, "contestedBy", contester)
	return nil
}
