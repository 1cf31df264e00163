// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestReadServiceSaysWhatToChange(t *testing.T) {
	key := map[string]string{v1alpha1.SelectorEndpointsKey: v1alpha1.SelectorEndpointsByNetwork}
	both := map[string]string{"app": "web", v1alpha1.SelectorEndpointsKey: v1alpha1.SelectorEndpointsByNetwork}
	tests := map[string]struct {
		annotation string
		spec       corev1.ServiceSpec
		want       *problem
	}{
		"all well": {"data", corev1.ServiceSpec{Selector: both}, nil},
		"malformed": {
			"data@eth0", corev1.ServiceSpec{Selector: both},
			&problem{"InvalidAnnotation", `annotation netplane.io/networks: item 1: "data@eth0" names the interface "eth0": a Service names the network alone, data`},
		},
		"a port that is not there": {
			"web: [data]", corev1.ServiceSpec{Selector: both, Ports: []corev1.ServicePort{{Name: "http"}}},
			&problem{"InvalidAnnotation", `annotation netplane.io/networks: port "web": the Service has no port of this name`},
		},
		"ExternalName": {
			"data", corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName},
			&problem{"InvalidAnnotation", "annotation netplane.io/networks: a Service of type ExternalName has no endpoints: remove the annotation, or change the type"},
		},
		"no selector key": {
			"data", corev1.ServiceSpec{Selector: map[string]string{"app": "web"}},
			&problem{"SelectorKeyMissing", "spec.selector lacks netplane.io/endpoints: by-network: add it, or Kubernetes itself publishes the pods' addresses of the cluster network"},
		},
		"another value of the key": {
			"data", corev1.ServiceSpec{Selector: map[string]string{"app": "web", v1alpha1.SelectorEndpointsKey: "yes"}},
			&problem{"SelectorKeyMissing", "spec.selector lacks netplane.io/endpoints: by-network: add it, or Kubernetes itself publishes the pods' addresses of the cluster network"},
		},
		"nothing but the key would select every pod": {
			"data", corev1.ServiceSpec{Selector: key},
			&problem{"SelectorEmpty", "spec.selector has nothing besides netplane.io/endpoints: add the labels of the pods"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.AnnotationNetworks: tt.annotation}}, Spec: tt.spec}
			_, got := readService(svc)
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(problem{})); diff != "" {
				t.Errorf("problem (-want +got):\n%s", diff)
			}
		})
	}
}

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
	got := verdict([]string{"data"}, []problem{{"UnknownNetwork", "one"}, {"NoSharedFamily", "two"}})
	want := metav1.Condition{Type: "netplane.io/EndpointsByNetwork", Status: metav1.ConditionFalse, Reason: "UnknownNetwork", Message: "one; two"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("condition (-want +got):\n%s", diff)
	}
	long := verdict(nil, []problem{{"InvalidAnnotation", strings.Repeat("é", maxMessage)}})
	if len(long.Message) > maxMessage+3 || !strings.HasSuffix(long.Message, "é...") {
		t.Errorf("a message of %d bytes that ends in %q", len(long.Message), long.Message[len(long.Message)-8:])
	}
}

func TestADoubtIsToldOnceAndOnlyWhenItLasts(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(time.Unix(1000, 0))
	d := newDoubts(clock)
	svc := types.NamespacedName{Namespace: "shop", Name: "web"}
	forged := withheld{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "1"}}, claim{"data", netip.MustParseAddr("192.0.2.1")}, whyNoBlock}
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
