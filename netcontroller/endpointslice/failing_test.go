// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	clocktesting "k8s.io/utils/clock/testing"
)

func TestFailingLastsFromTheFirstErrorToTheNextSuccess(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(time.Unix(1000, 0))
	f := newFailing(clock)
	svc, failed := types.NamespacedName{Namespace: "shop", Name: "web"}, errors.New("failed")
	for i, step := range []struct {
		after time.Duration
		err   error
		want  bool
	}{
		{0, failed, false},
		{failingPeriod / 2, failed, false},
		{failingPeriod / 2, failed, true},
		{time.Hour, failed, true},
		{0, nil, false},
		{time.Hour, failed, false},
	} {
		clock.SetTime(clock.Now().Add(step.after))
		if got := f.lasts(svc, step.err); got != step.want {
			t.Errorf("step %d: lasts = %v, want %v", i, got, step.want)
		}
	}
}

func TestIncompleteSaysTheSameOfTheSameErrors(t *testing.T) {
	one, two := errors.New("one"), fmt.Errorf("two: %w", errors.New("its cause"))
	const want = "not all endpoints could be written, so that what was published before stays: one; two: its cause"
	for _, err := range []error{
		errors.Join(utilerrors.NewAggregate([]error{one, two})),
		errors.Join(utilerrors.NewAggregate([]error{two}), nil, utilerrors.NewAggregate([]error{one, two})),
		errors.Join(two, one),
	} {
		if got := incomplete(err).message; got != want {
			t.Errorf("message %q, want %q", got, want)
		}
	}
}

func TestWhatTheAPIServerRefusesIsNoPassingError(t *testing.T) {
	of := schema.GroupResource{Resource: "services"}
	quota := apierrors.NewForbidden(of, "web-data", errors.New("exceeded quota"))
	terminating := apierrors.NewForbidden(of, "web-data", errors.New("the namespace is being terminated"))
	terminating.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
	for name, tt := range map[string]struct {
		err  error
		want bool
	}{
		"no error":           {nil, false},
		"a quota":            {fmt.Errorf("creating Service: %w", quota), true},
		"a namespace's end":  {terminating, false},
		"an invalid name":    {apierrors.NewInvalid(schema.GroupKind{Kind: "Service"}, "web-1", nil), true},
		"a conflict":         {apierrors.NewConflict(of, "web-data", errors.New("modified")), false},
		"taken in the while": {apierrors.NewAlreadyExists(of, "web-data"), false},
		"a timeout":          {apierrors.NewTimeoutError("busy", 1), false},
		"no answer at all":   {errors.New("connection refused"), false},
	} {
		if got := isRefused(tt.err); got != tt.want {
			t.Errorf("%s: refused = %v, want %v", name, got, tt.want)
		}
	}
}

func TestWhatIsSaidWhenSlicesCannotBeWritten(t *testing.T) {
	const taking = "Unknown AwaitingSelectorKey: endpoints are published on: data, beside those of Kubernetes itself: add netplane.io/endpoints: by-network to spec.selector within 2m0s, or ours are withdrawn"
	const failed = "not all endpoints could be written, so that what was published before stays: failed"
	for name, tt := range map[string]struct {
		stage    stage
		before   string // the condition's reason
		problems []problem
		lasts    bool
		want     string
	}{
		"passing":                   {stageOurs, "EndpointsPublished", nil, false, "True EndpointsPublished: before"},
		"passing, with a problem":   {stageOurs, "EndpointsPublished", []problem{{"UnknownNetwork", "dta"}}, false, "False UnknownNetwork: dta"},
		"lasting":                   {stageOurs, "EndpointsPublished", nil, true, "False EndpointsIncomplete: " + failed},
		"lasting, with a problem":   {stageOurs, "EndpointsPublished", []problem{{"UnknownNetwork", "dta"}}, true, "False UnknownNetwork: dta; " + failed},
		"at first":                  {stageOurs, "", nil, false, "False EndpointsIncomplete: " + failed},
		"the key just came in":      {stageOurs, "AwaitingSelectorKey", nil, false, "False EndpointsIncomplete: " + failed},
		"passing, before the key":   {stageTaking, "", nil, false, taking},
		"lasting, before the key":   {stageTaking, "AwaitingSelectorKey", nil, true, taking + "; " + failed},
		"passing, while handing":    {stageGiving, "EndpointsPublished", nil, false, "Unknown HandingBack: endpoints stay published on: data, until those of Kubernetes itself are ready"},
		"lasting, while it handing": {stageGiving, "HandingBack", nil, true, "Unknown HandingBack: endpoints stay published on: data, until those of Kubernetes itself are ready; " + failed},
	} {
		t.Run(name, func(t *testing.T) {
			clock := clocktesting.NewFakePassiveClock(time.Unix(1000, 0))
			r := &reconciler{failing: newFailing(clock), takeOver: DefaultTakeOverPeriod}
			svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}
			if tt.before != "" {
				svc.Status.Conditions = []metav1.Condition{{Type: "netplane.io/EndpointsByNetwork", Status: metav1.ConditionTrue, Reason: tt.before, Message: "before"}}
			}
			if tt.lasts {
				r.failing.lasts(types.NamespacedName{Namespace: "shop", Name: "web"}, errors.New("failed"))
				clock.SetTime(clock.Now().Add(failingPeriod))
			}
			got, _ := r.endpointsVerdict(svc, intent{stage: tt.stage, problems: tt.problems}, []group{{network: "data"}}, errors.New("failed"))
			if text := fmt.Sprintf("%s %s: %s", got.Status, got.Reason, got.Message); text != tt.want {
				t.Errorf("condition\n%s\nwant\n%s", text, tt.want)
			}
		})
	}
}
