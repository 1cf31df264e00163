// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"context"
	"fmt"
	"slices"
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

// ownTypes are the conditions of a Service that are ours.
func ownTypes() []string {
	return []string{v1alpha1.ConditionEndpointsByNetwork, v1alpha1.ConditionNamesByNetwork}
}

// isReported tells whether a Service has a condition of ours.
func isReported(svc *corev1.Service) bool {
	return slices.ContainsFunc(ownTypes(), func(of string) bool { return meta.FindStatusCondition(svc.Status.Conditions, of) != nil })
}

// verdict is one of the Service's conditions, and the problems that events tell.
type verdict struct {
	metav1.Condition
	problems []problem
}

// newVerdict is good news, or the first problem's reason and what all of them
// say. It has no counts, so that pods coming and going do not change it.
func newVerdict(of, goodReason, good string, problems []problem) verdict {
	if len(problems) == 0 {
		return verdict{Condition: metav1.Condition{Type: of, Status: metav1.ConditionTrue, Reason: goodReason, Message: shorten(good, maxMessage)}}
	}
	messages := make([]string, 0, len(problems))
	for _, p := range problems {
		messages = append(messages, p.message)
	}
	return verdict{
		Condition: metav1.Condition{Type: of, Status: metav1.ConditionFalse, Reason: problems[0].reason, Message: shorten(strings.Join(messages, "; "), maxMessage)},
		problems:  problems,
	}
}

func endpointsVerdict(groups []group, problems []problem) verdict {
	return newVerdict(v1alpha1.ConditionEndpointsByNetwork, v1alpha1.ReasonEndpointsPublished, "endpoints are published on: "+networkText(groups), problems)
}

// takingVerdict: endpoints are published, and wait for the selector's key.
func takingVerdict(groups []group, problems []problem, period time.Duration) verdict {
	awaited := problem{v1alpha1.ReasonAwaitingSelectorKey, fmt.Sprintf("endpoints are published on: %s, beside those of Kubernetes itself: add %s: %s to spec.selector within %s, or ours are withdrawn", networkText(groups), v1alpha1.SelectorEndpointsKey, v1alpha1.SelectorEndpointsByNetwork, period)}
	out := newVerdict(v1alpha1.ConditionEndpointsByNetwork, "", "", append([]problem{awaited}, problems...))
	out.Status = metav1.ConditionUnknown
	return out
}

// givingVerdict: endpoints are published until the built-in ones are there. That
// alone is no news for an event.
func givingVerdict(groups []group, problems []problem) verdict {
	handing := problem{v1alpha1.ReasonHandingBack, "endpoints stay published on: " + networkText(groups) + ", until those of Kubernetes itself are ready"}
	out := newVerdict(v1alpha1.ConditionEndpointsByNetwork, "", "", append([]problem{handing}, problems...))
	out.Status, out.problems = metav1.ConditionUnknown, problems
	return out
}

func networkText(groups []group) string {
	names := make([]string, 0, len(groups))
	for i := range groups {
		names = append(names, groups[i].network)
	}
	return strings.Join(names, ", ")
}

// stageVerdict is what a stage says of itself, and after what time it has to be
// looked at again; zero means never.
func (r *reconciler) stageVerdict(want intent, groups []group) (v verdict, again time.Duration) {
	switch want.stage {
	case stageTaking:
		return takingVerdict(groups, want.problems, r.takeOver), r.takeOver - want.elapsed
	case stageGiving:
		if want.elapsed >= handBackLimit {
			return givingVerdict(groups, want.problems), handBackLatePoll
		}
		return givingVerdict(groups, want.problems), handBackPoll
	default:
		return endpointsVerdict(groups, want.problems), 0
	}
}

// endpointsVerdict is what a stage says when its slices were written, or could
// not be. An error that may pass leaves standing what was said before, if that
// tells that the Service is ours: good news is never of what is not done.
func (r *reconciler) endpointsVerdict(svc *corev1.Service, want intent, groups []group, writeErr error) (v verdict, again time.Duration) {
	lasts := r.failing.lasts(client.ObjectKeyFromObject(svc), writeErr)
	before := standing(svc, v1alpha1.ConditionEndpointsByNetwork)
	isKnown := len(before) > 0 && isOursBy(before[0].Reason)
	if writeErr != nil && want.stage == stageOurs && !lasts && isKnown && len(want.problems) == 0 {
		return before[0], 0
	}
	if lasts || writeErr != nil && want.stage == stageOurs && !isKnown {
		want.problems = append(slices.Clip(want.problems), incomplete(writeErr))
	}
	return r.stageVerdict(want, groups)
}

// namesVerdict is what is said of the Service's children, if there are to be any.
func (r *reconciler) namesVerdict(svc *corev1.Service, groups, ofChildren []group, problems []problem, err error) []verdict {
	switch {
	case len(groups) == 0:
		return nil
	case err != nil && len(problems) == 0:
		return standing(svc, v1alpha1.ConditionNamesByNetwork)
	default:
		return []verdict{namesVerdict(ofChildren, problems)}
	}
}

// standing is what a condition says already.
func standing(svc *corev1.Service, of string) []verdict {
	if before := meta.FindStatusCondition(svc.Status.Conditions, of); before != nil {
		return []verdict{{Condition: *before}}
	}
	return nil
}

func shorten(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "..."
}

// report writes our conditions where they differ, removes those without a
// verdict, and tells each problem by an event when it is new. svc has them then.
func (r *reconciler) report(ctx context.Context, svc *corev1.Service, verdicts ...verdict) error {
	var conditions []*metav1ac.ConditionApplyConfiguration
	var news []problem
	after := slices.DeleteFunc(slices.Clone(svc.Status.Conditions), func(c metav1.Condition) bool { return slices.Contains(ownTypes(), c.Type) })
	changed := false
	for _, of := range ownTypes() {
		before := meta.FindStatusCondition(svc.Status.Conditions, of)
		i := slices.IndexFunc(verdicts, func(v verdict) bool { return v.Type == of })
		if i < 0 {
			changed = changed || before != nil
			continue
		}
		next := verdicts[i].Condition
		next.ObservedGeneration = svc.Generation
		next.LastTransitionTime = metav1.NewTime(r.doubts.clock.Now().Truncate(time.Second))
		if before != nil && before.Status == next.Status {
			next.LastTransitionTime = before.LastTransitionTime
		}
		changed = changed || before == nil || *before != next
		if before == nil || before.Reason != next.Reason || before.Message != next.Message {
			news = append(news, verdicts[i].problems...)
		}
		after = append(after, next)
		conditions = append(conditions, metav1ac.Condition().WithType(next.Type).WithStatus(next.Status).WithReason(next.Reason).
			WithMessage(next.Message).WithLastTransitionTime(next.LastTransitionTime).WithObservedGeneration(next.ObservedGeneration))
	}
	if !changed {
		return nil
	}
	if err := r.applyConditions(ctx, svc, conditions...); err != nil {
		return err
	}
	svc.Status.Conditions = after
	r.warn(svc, news)
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
