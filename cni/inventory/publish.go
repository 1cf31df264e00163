// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// maxMessage is the limit of a condition's message (metav1.Condition).
const maxMessage = 32768

// cacheLag is how long the cache may take to show our own write; until then
// the status that was written last counts, not the one that is read.
const cacheLag = 5 * time.Second

// publisher writes the status of one NodeNetwork.
type publisher struct {
	client   client.Client
	clock    clock.PassiveClock
	nodeName string

	// written is what was applied last, under the given UID.
	written    *v1alpha1.NodeNetworkStatus
	writtenUID types.UID
	writtenAt  time.Time
}

func (i *Inventory) publish(ctx context.Context) error {
	_, err := i.publishIfChanged(ctx)
	return err
}

// publishIfChanged writes what the API server does not show yet.
func (i *Inventory) publishIfChanged(ctx context.Context) (wrote bool, err error) {
	snapshot := i.current.Load()
	if snapshot == nil {
		return false, nil
	}
	status := v1alpha1.NodeNetworkStatus{Held: i.deps.Held.Held(), Conflicts: i.deps.Held.Conflicts()}
	snapshot.fill(&status)
	status.Conditions = []metav1.Condition{i.condition(snapshot), consistency(status.Conflicts)}
	return i.publisher.publish(ctx, &status)
}

func (i *Inventory) condition(snapshot *Snapshot) metav1.Condition {
	out := metav1.Condition{
		Type:    v1alpha1.ConditionInventoryReady,
		Status:  metav1.ConditionTrue,
		Reason:  v1alpha1.ReasonInventoryRead,
		Message: strings.Join(snapshot.warnings, "; "),
	}
	if i.mapErr != nil {
		out.Status, out.Reason = metav1.ConditionFalse, v1alpha1.ReasonInvalidMap
		out.Message = i.mapErr.Error()
	}
	out.Message = out.Message[:min(len(out.Message), maxMessage)]
	return out
}

// consistency says which blocks two nodes have, and what ends that.
func consistency(conflicts []v1alpha1.BlockConflict) metav1.Condition {
	out := metav1.Condition{Type: v1alpha1.ConditionBlocksConsistent, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonNoBlockConflict}
	if len(conflicts) == 0 {
		return out
	}
	texts := make([]string, 0, len(conflicts))
	for i := range conflicts {
		c := &conflicts[i]
		texts = append(texts, fmt.Sprintf("IPBlock %s is node %s's, too; %d addresses of it are in use here since %s by pods %s",
			c.Block, c.OtherNode, c.Addresses, c.Since.UTC().Format(time.RFC3339), strings.Join(c.Pods, ", ")))
	}
	out.Status, out.Reason = metav1.ConditionFalse, v1alpha1.ReasonBlockConflict
	out.Message = "delete the pods that have addresses in these blocks, here or, if they are younger, on the other node: " + strings.Join(texts, "; ")
	out.Message = out.Message[:min(len(out.Message), maxMessage)]
	return out
}

func (p *publisher) publish(ctx context.Context, want *v1alpha1.NodeNetworkStatus) (wrote bool, err error) {
	shown, err := p.ensure(ctx)
	if err != nil {
		return false, err
	}
	p.keepTransition(want, shown)
	if p.upToDate(want, shown) {
		return false, nil
	}
	if err := p.apply(ctx, want); err != nil {
		return false, err
	}
	p.written, p.writtenUID, p.writtenAt = want, shown.UID, p.clock.Now()
	return true, nil
}

// upToDate says whether the API server has this status: as far as we know
// right after a write, as the cache shows it later (somebody else may have
// changed it).
func (p *publisher) upToDate(want *v1alpha1.NodeNetworkStatus, shown *v1alpha1.NodeNetwork) bool {
	if p.written != nil && p.writtenUID == shown.UID && p.clock.Since(p.writtenAt) < cacheLag {
		return sameStatus(want, p.written)
	}
	return sameStatus(want, &shown.Status)
}

// sameStatus compares what the agent writes, and passes over the rest.
func sameStatus(a, b *v1alpha1.NodeNetworkStatus) bool {
	own := func(s *v1alpha1.NodeNetworkStatus) v1alpha1.NodeNetworkStatus {
		out := *s
		out.Conditions = nil
		for _, name := range []string{v1alpha1.ConditionInventoryReady, v1alpha1.ConditionBlocksConsistent} {
			if c := meta.FindStatusCondition(s.Conditions, name); c != nil {
				out.Conditions = append(out.Conditions, metav1.Condition{Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message})
			}
		}
		return out
	}
	x, y := own(a), own(b)
	return equality.Semantic.DeepEqual(&x, &y)
}

// keepTransition dates the conditions: from the last ones if the status is the same.
func (p *publisher) keepTransition(want *v1alpha1.NodeNetworkStatus, shown *v1alpha1.NodeNetwork) {
	before := shown.Status.Conditions
	if p.written != nil && p.writtenUID == shown.UID {
		before = p.written.Conditions
	}
	for i := range want.Conditions {
		c := &want.Conditions[i]
		c.LastTransitionTime = metav1.NewTime(p.clock.Now())
		if old := meta.FindStatusCondition(before, c.Type); old != nil && old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
	}
}

// ensure returns the NodeNetwork, made if it is missing: owned by the Node, so
// that it goes with it.
func (p *publisher) ensure(ctx context.Context) (*v1alpha1.NodeNetwork, error) {
	var node corev1.Node
	if err := p.client.Get(ctx, types.NamespacedName{Name: p.nodeName}, &node); err != nil {
		return nil, fmt.Errorf("reading the Node: %w", err)
	}
	var shown v1alpha1.NodeNetwork
	err := p.client.Get(ctx, types.NamespacedName{Name: p.nodeName}, &shown)
	if err == nil {
		return &shown, checkOwner(&shown, &node)
	}
	if !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("reading the NodeNetwork: %w", err)
	}
	made := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{
		Name: p.nodeName,
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: corev1.SchemeGroupVersion.String(), Kind: "Node", Name: node.Name, UID: node.UID,
		}},
	}}
	err = p.client.Create(ctx, made, client.FieldOwner(v1alpha1.FieldOwnerAgent))
	if apierrors.IsAlreadyExists(err) && p.written != nil && p.clock.Since(p.writtenAt) < cacheLag {
		return &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: p.nodeName, UID: p.writtenUID}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("creating the NodeNetwork: %w", err)
	}
	p.written = nil
	return made, nil
}

// checkOwner refuses to write into what is about to be collected: the Node was
// deleted and registered again under the same name.
func checkOwner(shown *v1alpha1.NodeNetwork, node *corev1.Node) error {
	if shown.DeletionTimestamp != nil {
		return fmt.Errorf("NodeNetwork %s is being deleted", shown.Name)
	}
	for _, owner := range shown.OwnerReferences {
		if owner.Kind == "Node" && owner.UID != node.UID {
			return fmt.Errorf("NodeNetwork %s is of an earlier Node of that name (UID %s) and is about to be collected", shown.Name, owner.UID)
		}
	}
	return nil
}

func (p *publisher) apply(ctx context.Context, status *v1alpha1.NodeNetworkStatus) error {
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(status)
	if err != nil {
		return fmt.Errorf("converting the NodeNetwork's status: %w", err)
	}
	config := &unstructured.Unstructured{Object: map[string]any{"status": raw}}
	config.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind("NodeNetwork"))
	config.SetName(p.nodeName)
	err = p.client.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(config),
		client.FieldOwner(v1alpha1.FieldOwnerAgent), client.ForceOwnership)
	if err != nil {
		return fmt.Errorf("writing the NodeNetwork's status: %w", err)
	}
	return nil
}
