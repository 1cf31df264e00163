// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/netplane/netplane/api/v1alpha1"
)

var (
	keyed = map[string]string{"app": "web", v1alpha1.SelectorEndpointsKey: v1alpha1.SelectorEndpointsByNetwork}
	plain = map[string]string{"app": "web"}
)

func TestDecide(t *testing.T) {
	const missing = "SelectorKeyMissing: spec.selector lacks netplane.io/endpoints: by-network: add it, or Kubernetes itself publishes the pods' addresses of the cluster network"
	const malformed = `InvalidAnnotation: annotation netplane.io/networks: item 2 (network ""): the network's name is missing`
	now := time.Unix(100_000, 0)
	type want struct {
		Stage    stage
		Networks []string
		Problem  string
		Elapsed  time.Duration
	}
	tests := map[string]struct {
		annotation string // none if empty
		spec       corev1.ServiceSpec
		reason     string        // of the condition; none if empty
		since      time.Duration // the condition's age
		added      bool          // the annotation, before our eyes
		slices     []string      // networks of which there are slices
		want       want
	}{
		"all well":               {annotation: "data", spec: corev1.ServiceSpec{Selector: keyed}, want: want{Stage: stageOurs, Networks: []string{"data"}}},
		"neither asked nor ours": {spec: corev1.ServiceSpec{Selector: plain}, want: want{Stage: stageForeign}},
		"malformed from the first": {
			annotation: "data@eth0", spec: corev1.ServiceSpec{Selector: keyed},
			want: want{Stage: stageOurs, Problem: `InvalidAnnotation: annotation netplane.io/networks: item 1: "data@eth0" names the interface "eth0": a Service names the network alone, data`},
		},
		"malformed later": {
			annotation: "data@eth0", spec: corev1.ServiceSpec{Selector: keyed}, slices: []string{"data", "management"},
			want: want{Stage: stageOurs, Networks: []string{"data", "management"}, Problem: `InvalidAnnotation: annotation netplane.io/networks: item 1: "data@eth0" names the interface "eth0": a Service names the network alone, data`},
		},
		"a port that is not there": {
			annotation: "web: [data]", spec: corev1.ServiceSpec{Selector: keyed, Ports: []corev1.ServicePort{{Name: "http"}}},
			want: want{Stage: stageOurs, Problem: `InvalidAnnotation: annotation netplane.io/networks: port "web": the Service has no port of this name`},
		},
		"ExternalName": {
			annotation: "data", spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName}, slices: []string{"data"},
			want: want{Stage: stageRefused, Problem: "InvalidAnnotation: annotation netplane.io/networks: a Service of type ExternalName has no endpoints: remove the annotation, or change the type"},
		},
		"ExternalName, not asked":         {spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName}, reason: "EndpointsPublished", slices: []string{"data"}, want: want{Stage: stageForeign}},
		"no selector":                     {annotation: "data", want: want{Stage: stageRefused, Problem: missing}},
		"no selector any more":            {annotation: "data", reason: "EndpointsPublished", slices: []string{"data"}, want: want{Stage: stageRefused, Problem: missing}},
		"neither selector nor annotation": {reason: "EndpointsPublished", slices: []string{"data"}, want: want{Stage: stageForeign}},
		"nothing but the key would be all": {
			annotation: "data", spec: corev1.ServiceSpec{Selector: map[string]string{v1alpha1.SelectorEndpointsKey: v1alpha1.SelectorEndpointsByNetwork}},
			want: want{Stage: stageRefused, Problem: "SelectorEmpty: spec.selector has nothing besides netplane.io/endpoints: add the labels of the pods"},
		},
		"another value of the key": {
			annotation: "data", spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web", v1alpha1.SelectorEndpointsKey: "yes"}},
			want: want{Stage: stageOurs, Networks: []string{"data"}, Problem: `SelectorKeyInvalid: spec.selector has netplane.io/endpoints: "yes": its value must be by-network`},
		},
		"the key without the annotation": {
			spec: corev1.ServiceSpec{Selector: keyed}, slices: []string{"data"},
			want: want{Stage: stageOurs, Networks: []string{"default"}, Problem: "AnnotationMissing: spec.selector has netplane.io/endpoints, but there is no annotation netplane.io/networks: the endpoints are those of the cluster network; add the annotation, or remove the entry from the selector"},
		},

		"created without the key":     {annotation: "data", spec: corev1.ServiceSpec{Selector: plain}, want: want{Stage: stageRefused, Problem: missing}},
		"and still without it":        {annotation: "data", spec: corev1.ServiceSpec{Selector: plain}, reason: "SelectorKeyMissing", want: want{Stage: stageRefused, Problem: missing}},
		"malformed, and without it":   {annotation: "data,", spec: corev1.ServiceSpec{Selector: plain}, want: want{Stage: stageRefused, Problem: missing + malformed}},
		"the annotation added":        {annotation: "data", added: true, spec: corev1.ServiceSpec{Selector: plain}, want: want{Stage: stageTaking, Networks: []string{"data"}}},
		"a malformed one added":       {annotation: "data,", added: true, spec: corev1.ServiceSpec{Selector: plain}, want: want{Stage: stageRefused, Problem: malformed}},
		"of ours, the key removed":    {annotation: "data", spec: corev1.ServiceSpec{Selector: plain}, reason: "InvalidAnnotation", want: want{Stage: stageRefused, Problem: missing}},
		"and corrected":               {annotation: "data", added: true, spec: corev1.ServiceSpec{Selector: plain}, reason: "InvalidAnnotation", want: want{Stage: stageTaking, Networks: []string{"data"}}},
		"a while after it was added":  {annotation: "data", spec: corev1.ServiceSpec{Selector: plain}, reason: "AwaitingSelectorKey", since: time.Minute, slices: []string{"data"}, want: want{Stage: stageTaking, Networks: []string{"data"}, Elapsed: time.Minute}},
		"too long after it was added": {annotation: "data", spec: corev1.ServiceSpec{Selector: plain}, reason: "AwaitingSelectorKey", since: 2 * time.Minute, slices: []string{"data"}, want: want{Stage: stageRefused, Problem: missing}},
		"the annotation taken back":   {spec: corev1.ServiceSpec{Selector: plain}, reason: "AwaitingSelectorKey", slices: []string{"data"}, want: want{Stage: stageForeign}},
		"the key added in time":       {annotation: "data", spec: corev1.ServiceSpec{Selector: keyed}, reason: "AwaitingSelectorKey", slices: []string{"data"}, want: want{Stage: stageOurs, Networks: []string{"data"}}},
		"the key added late":          {annotation: "data", spec: corev1.ServiceSpec{Selector: keyed}, reason: "SelectorKeyMissing", want: want{Stage: stageOurs, Networks: []string{"data"}}},

		"the key removed":                {annotation: "data", spec: corev1.ServiceSpec{Selector: plain}, reason: "EndpointsPublished", since: time.Minute, slices: []string{"data"}, want: want{Stage: stageGiving, Networks: []string{"data"}}},
		"a key of another value removed": {annotation: "data", spec: corev1.ServiceSpec{Selector: plain}, reason: "SelectorKeyInvalid", since: time.Minute, slices: []string{"data"}, want: want{Stage: stageGiving, Networks: []string{"data"}}},
		"both removed":                   {spec: corev1.ServiceSpec{Selector: plain}, reason: "UnknownNetwork", since: time.Minute, slices: []string{"data"}, want: want{Stage: stageGiving, Networks: []string{"data"}}},
		"a while after both were":        {spec: corev1.ServiceSpec{Selector: plain}, reason: "HandingBack", since: time.Minute, slices: []string{"data"}, want: want{Stage: stageGiving, Networks: []string{"data"}, Elapsed: time.Minute}},
		"nothing of ours is left":        {spec: corev1.ServiceSpec{Selector: plain}, reason: "HandingBack", want: want{Stage: stageForeign}},
		"handed back, the annotation in": {annotation: "data", spec: corev1.ServiceSpec{Selector: plain}, reason: "HandingBack", want: want{Stage: stageRefused, Problem: missing}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: tt.spec}
			if tt.annotation != "" {
				svc.Annotations = map[string]string{v1alpha1.AnnotationNetworks: tt.annotation}
			}
			if tt.reason != "" {
				svc.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionEndpointsByNetwork, Reason: tt.reason, LastTransitionTime: metav1.NewTime(now.Add(-tt.since))}}
			}
			var existing []*discoveryv1.EndpointSlice
			for _, network := range tt.slices {
				existing = append(existing, &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{
					discoveryv1.LabelServiceName: "web", v1alpha1.LabelNetwork: network,
				}}})
			}
			decided := decide(svc, existing, tt.added, now, 2*time.Minute)
			got := want{Stage: decided.stage, Networks: decided.networks.Networks(), Elapsed: decided.elapsed}
			for _, p := range decided.problems {
				got.Problem += p.reason + ": " + p.message
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("decided (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatTheAnnotationSaidIsReadFromTheSlices(t *testing.T) {
	slice := func(service, network string, ports ...string) *discoveryv1.EndpointSlice {
		out := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{discoveryv1.LabelServiceName: service, v1alpha1.LabelNetwork: network}}}
		for _, name := range ports {
			out.Ports = append(out.Ports, discoveryv1.EndpointPort{Name: &name})
		}
		return out
	}
	got := networksOf("web", []*discoveryv1.EndpointSlice{
		slice("web", "data", "http", "metrics"), slice("web", "data", "http", "metrics"), slice("web", "management", "metrics"), slice("web-other", "other", "http"),
	})
	if diff := cmp.Diff([]string{"data"}, got.ForPort("http")); diff != "" {
		t.Errorf("http (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"data", "management"}, got.ForPort("metrics")); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	if got := networksOf("web", []*discoveryv1.EndpointSlice{slice("web", "data")}).ForPort("any"); !cmp.Equal(got, []string{"data"}) {
		t.Errorf("without ports: %v, want data for all", got)
	}
	if got := networksOf("web", []*discoveryv1.EndpointSlice{slice("web", "data", "http")}).ForPort("renamed"); !cmp.Equal(got, []string{"data"}) {
		t.Errorf("with one network: %v, want data for all", got)
	}
}

func TestBuiltInSlicesSuffice(t *testing.T) {
	svc := &corev1.Service{Spec: corev1.ServiceSpec{IPFamilies: dual}}
	pod := func(name string, edit func(*corev1.Pod), ips ...string) *corev1.Pod {
		out := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
		}
		for _, ip := range ips {
			out.Status.PodIP = ip
			out.Status.PodIPs = append(out.Status.PodIPs, corev1.PodIP{IP: ip})
		}
		if edit != nil {
			edit(out)
		}
		return out
	}
	slice := func(ready bool, ips ...string) discoveryv1.EndpointSlice {
		return discoveryv1.EndpointSlice{Endpoints: []discoveryv1.Endpoint{{Addresses: ips, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(ready)}}}}
	}
	both := []*corev1.Pod{pod("a", nil, "10.244.1.5", "fd00:244::5"), pod("b", nil, "10.244.1.6", "fd00:244::6")}
	unready := []*corev1.Pod{both[0], pod("b", func(p *corev1.Pod) { p.Status.Conditions = nil }, "10.244.1.6", "fd00:244::6")}
	going := []*corev1.Pod{both[0], pod("b", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }, "10.244.1.6", "fd00:244::6")}
	all := []discoveryv1.EndpointSlice{slice(true, "10.244.1.5"), slice(true, "10.244.1.6"), slice(true, "fd00:244::5"), slice(true, "fd00:244::6")}
	for name, tt := range map[string]struct {
		pods    []*corev1.Pod
		builtIn []discoveryv1.EndpointSlice
		elapsed time.Duration
		want    bool
		publish bool // also those that are not ready
	}{
		"all are in":                       {both, all, 0, true, false},
		"none is in":                       {both, nil, time.Hour, false, false},
		"one is not":                       {both, all[:3], 0, false, false},
		"one is not, for long":             {both, all[:3], handBackLimit, true, false},
		"one is in, not ready":             {both, append([]discoveryv1.EndpointSlice{slice(false, "fd00:244::6")}, all[:3]...), 0, false, false},
		"nobody is ready":                  {[]*corev1.Pod{pod("a", func(p *corev1.Pod) { p.Status.Conditions = nil }, "10.244.1.5")}, nil, 0, true, false},
		"the only one is going":            {[]*corev1.Pod{pod("a", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }, "10.244.1.5")}, nil, 0, true, false},
		"an address of another family":     {[]*corev1.Pod{pod("a", nil, "10.244.1.5")}, all[:1], 0, true, false},
		"one is not ready":                 {unready, all[:1], 0, false, false},
		"one is not ready, and not wanted": {unready, []discoveryv1.EndpointSlice{all[0], all[2]}, 0, true, false},
		"one is not ready, but wanted":     {unready, []discoveryv1.EndpointSlice{all[0], all[2]}, 0, false, true},
		"one is not ready, wanted, and in": {unready, all, 0, true, true},
		"one is going, but wanted":         {going, []discoveryv1.EndpointSlice{all[0], all[2]}, 0, false, true},
		"nobody is ready, and all wanted":  {unready[1:], nil, time.Hour, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			svc.Spec.PublishNotReadyAddresses = tt.publish
			if got := suffices(svc, tt.pods, tt.builtIn, tt.elapsed); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
