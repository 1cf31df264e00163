// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestASlipInANetworksNameTakesNothingDown(t *testing.T) {
	slice := func(network string, ports ...string) *discoveryv1.EndpointSlice {
		out := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{discoveryv1.LabelServiceName: "web", v1alpha1.LabelNetwork: network}}}
		for _, name := range ports {
			out.Ports = append(out.Ports, discoveryv1.EndpointPort{Name: &name})
		}
		return out
	}
	onData, perPort := []*discoveryv1.EndpointSlice{slice("data", "http", "metrics")}, []*discoveryv1.EndpointSlice{slice("data", "http"), slice("management", "metrics")}
	tests := map[string]struct {
		annotation    string
		families      []corev1.IPFamily
		existing      []*discoveryv1.EndpointSlice
		http, metrics []string
		problem       string
	}{
		"no slip": {annotation: "management", existing: onData, http: []string{"management"}, metrics: []string{"management"}},
		"a slip":  {annotation: "dta", existing: onData, http: []string{"dta", "data"}, metrics: []string{"dta", "data"}, problem: "UnknownNetwork: until then endpoints stay published as before on: data"},
		"a slip at one port": {
			annotation: "http: [dta]\nmetrics: [management]", existing: perPort,
			http: []string{"dta", "data"}, metrics: []string{"management"}, problem: "UnknownNetwork: until then endpoints stay published as before on: data",
		},
		"a slip beside another change": {
			annotation: "http: [dta]\nmetrics: [default]", existing: perPort,
			http: []string{"dta", "data"}, metrics: []string{"default", "management"}, problem: "UnknownNetwork: until then endpoints stay published as before on: data, management",
		},
		"one too many":               {annotation: "data,dta", existing: onData, http: []string{"data", "dta"}, metrics: []string{"data", "dta"}},
		"nothing was published":      {annotation: "dta", http: []string{"dta"}, metrics: []string{"dta"}},
		"the Network itself is gone": {annotation: "gone", existing: []*discoveryv1.EndpointSlice{slice("gone", "http")}, http: []string{"gone"}, metrics: []string{"gone"}},
		"that of before is gone":     {annotation: "dta", existing: []*discoveryv1.EndpointSlice{slice("gone", "http")}, http: []string{"dta"}, metrics: []string{"dta"}},
		"no family in common": {
			annotation: "only6", families: []corev1.IPFamily{corev1.IPv4Protocol}, existing: onData,
			http: []string{"only6", "data"}, metrics: []string{"only6", "data"}, problem: "NoSharedFamily: until then endpoints stay published as before on: data",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			svc, _, known := example(t)
			known.networks["default"] = clusterNetwork()
			known.networks["only6"] = network{name: "only6", families: []corev1.IPFamily{corev1.IPv6Protocol}}
			if tt.families != nil {
				svc.Spec.IPFamilies = tt.families
			}
			got, problems := keepPublished(svc, parsed(t, tt.annotation), tt.existing, known)
			if diff := cmp.Diff(tt.http, got.ForPort("http")); diff != "" {
				t.Errorf("networks of http (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.metrics, got.ForPort("metrics")); diff != "" {
				t.Errorf("networks of metrics (-want +got):\n%s", diff)
			}
			text := ""
			for _, p := range problems {
				text += p.reason + ": " + p.message
			}
			if text != tt.problem {
				t.Errorf("problem %q, want %q", text, tt.problem)
			}
		})
	}
}
