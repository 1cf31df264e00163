// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// Limits of texts, in bytes. The API's own are 32768 and 1024 (KEP-383).
const (
	maxMessage = 4096 // of a condition
	maxNote    = 900  // of an event, less what we write around it
)

// actionPublish is the action of our events.
const actionPublish = "PublishEndpoints"

func ownCondition(svc *corev1.Service) *metav1.Condition {
	return meta.FindStatusCondition(svc.Status.Conditions, v1alpha1.ConditionEndpointsByNetwork)
}

// verdict is the Service's condition: the first problem's reason, and what all
// of them say. It has no counts, so that pods coming and going do not change it.
func verdict(networks []string, problems []problem) metav1.Condition {
	if len(problems) == 0 {
		return metav1.Condition{
			Type:    v1alpha1.ConditionEndpointsByNetwork,
			Status:  metav1.ConditionTrue,
			Reason:  v1alpha1.ReasonEndpointsPublished,
			Message: "endpoints are published on: " + strings.Join(networks, ", "),
		}
	}
	messages := make([]string, 0, len(problems))
	for _, p := range problems {
		messages = append(messages, p.message)
	}
	return metav1.Condition{
		Type:    v1alpha1.ConditionEndpointsByNetwork,
		Status:  metav1.ConditionFalse,
		Reason:  problems[0].reason,
		Message: shorten(strings.Join(messages, "; "), maxMessage),
	}
}

func shorten(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "..."
}

// report writes the condition where it differs, and tells each problem by an
// event when it does.
func (r *reconciler) report(ctx context.Context, svc *corev1.Service, networks []string, problems []problem) error {
	next := verdict(networks, problems)
	next.ObservedGeneration = svc.Generation
	before := ownCondition(svc)
	if before != nil && before.Status == next.Status && before.Reason == next.Reason && before.Message == next.Message && before.ObservedGeneration == next.ObservedGeneration {
		return nil
	}
	next.LastTransitionTime = metav1.NewTime(r.doubts.clock.Now().Truncate(time.Second))
	if before != nil && before.Status == next.Status {
		next.LastTransitionTime = before.LastTransitionTime
	}
	condition := metav1ac.Condition().WithType(next.Type).WithStatus(next.Status).WithReason(next.Reason).
		WithMessage(next.Message).WithLastTransitionTime(next.LastTransitionTime).WithObservedGeneration(next.ObservedGeneration)
	if err := r.applyConditions(ctx, svc, condition); err != nil {
		return err
	}
	if before == nil || before.Reason != next.Reason || before.Message != next.Message {
		r.warn(svc, problems)
	}
	return nil
}

// warn makes one event per reason; see tell.
func (r *reconciler) warn(svc *corev1.Service, problems []problem) {
	byReason := map[string][]string{}
	for _, p := range problems {
		byReason[p.reason] = append(byReason[p.reason], p.message)
	}
	for reason, messages := range byReason {
		r.events.Eventf(svc, nil, corev1.EventTypeWarning, reason, actionPublish, "%s", shorten(strings.Join(messages, "; "), maxNote))
	}
}

// clearCondition takes our condition away from a Service that is not ours any more.
func (r *reconciler) clearCondition(ctx context.Context, svc *corev1.Service) error {
	if ownCondition(svc) == nil {
		return nil
	}
	return r.applyConditions(ctx, svc)
}

// applyConditions writes exactly these conditions of ours: server-side apply
// leaves those of others and removes what we applied before.
func (r *reconciler) applyConditions(ctx context.Context, svc *corev1.Service, conditions ...*metav1ac.ConditionApplyConfiguration) error {
	status := corev1ac.ServiceStatus().WithConditions(conditions...)
	apply := corev1ac.Service(svc.Name, svc.Namespace).WithUID(svc.UID).WithStatus(status)
	err := r.client.Status().Apply(ctx, apply, client.FieldOwner(v1alpha1.FieldOwnerController), client.ForceOwnership)
	if err != nil {
		return fmt.Errorf("writing the condition of Service %s: %w", client.ObjectKeyFromObject(svc), err)
	}
	return nil
}
