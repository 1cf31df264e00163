// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	sliceutil "k8s.io/endpointslice/util"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestSelectorOfLeavesTheServiceAlone(t *testing.T) {
	svc := &corev1.Service{Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web", v1alpha1.SelectorEndpointsKey: v1alpha1.SelectorEndpointsByNetwork}}}
	if diff := cmp.Diff(map[string]string{"app": "web"}, map[string]string(selectorOf(svc))); diff != "" {
		t.Errorf("selector (-want +got):\n%s", diff)
	}
	if len(svc.Spec.Selector) != 2 {
		t.Errorf("the Service's own selector is now %v", svc.Spec.Selector)
	}
}

func TestVerdictTellsEveryProblemUnderTheFirstReason(t *testing.T) {
	got := endpointsVerdict([]group{{network: "data"}}, []problem{{"UnknownNetwork", "one"}, {"NoSharedFamily", "two"}}).Condition
	want := metav1.Condition{Type: "netplane.io/EndpointsByNetwork", Status: metav1.ConditionFalse, Reason: "UnknownNetwork", Message: "one; two"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("condition (-want +got):\n%s", diff)
	}
	long := endpointsVerdict(nil, []problem{{"InvalidAnnotation", strings.Repeat("é", maxMessage)}})
	if len(long.Message) > maxMessage+3 || !strings.HasSuffix(long.Message, "é...") {
		t.Errorf("a message of %d bytes that ends in %q", len(long.Message), long.Message[len(long.Message)-8:])
	}
}

func TestADoubtIsToldOnceAndOnlyWhenItLasts(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(time.Unix(1000, 0))
	d := newDoubts(clock)
	svc := types.NamespacedName{Namespace: "shop", Name: "web"}
	forged := withheld{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "1"}}, "data", "192.0.2.1", whyNoBlock}
	expect := func(step string, now []withheld, wantTold int, wantAgain time.Duration) {
		t.Helper()
		told, again := d.update(svc, now)
		if len(told) != wantTold || again != wantAgain {
			t.Errorf("%s: told %d, again after %s; want %d and %s", step, len(told), again, wantTold, wantAgain)
		}
	}
	expect("first seen", []withheld{forged}, 0, doubtPeriod)
	clock.SetTime(clock.Now().Add(doubtPeriod / 2))
	expect("half the period", []withheld{forged}, 0, doubtPeriod/2)
	clock.SetTime(clock.Now().Add(doubtPeriod / 2))
	expect("the whole period", []withheld{forged}, 1, 0)
	expect("told already", []withheld{forged}, 0, 0)
	expect("gone", nil, 0, 0)
	expect("back", []withheld{forged}, 0, doubtPeriod)
}

func TestACacheWithoutAnySliceOfAChildIsStale(t *testing.T) {
	slice := func(service string) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: service + "-x", UID: types.UID(service), Generation: 1, Labels: map[string]string{discoveryv1.LabelServiceName: service},
		}}
	}
	tracker := sliceutil.NewEndpointSliceTracker()
	for _, service := range []string{"web", "web-data"} {
		tracker.Update(slice(service))
	}
	own, both := []*discoveryv1.EndpointSlice{slice("web")}, []*discoveryv1.EndpointSlice{slice("web"), slice("web-data")}
	for name, tt := range map[string]struct {
		existing []*discoveryv1.EndpointSlice
		names    []string
		want     bool
	}{
		"all is there":                     {both, []string{"web", "web-data"}, false},
		"the Service's own is not":         {nil, []string{"web"}, true},
		"the child's is not":               {own, []string{"web-data"}, true},
		"a child that was never published": {own, []string{"web-management"}, false},
		"a name that is another's":         {own, nil, false},
	} {
		if got := isBehind(tracker, "shop", slicesByService(tt.existing), tt.names...); got != tt.want {
			t.Errorf("%s: stale = %v, want %v", name, got, tt.want)
		}
	}
}
