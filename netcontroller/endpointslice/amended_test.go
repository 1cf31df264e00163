// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

// Pods keep the addresses that they have when a Network's spec is changed.
func TestPublishGoesOnWithWhatWasExcludedLater(t *testing.T) {
	exclude := func(s *v1alpha1.NetworkSpec) { s.ExcludeRanges = []v1alpha1.IPRange{"10.20.0.1-10.20.0.5"} }
	tests := map[string]struct {
		generation int64
		edit       func(*v1alpha1.NetworkSpec)
		address    string
		want       []string
	}{
		"excluded later":                      {2, exclude, "10.20.0.5", []string{"web 10.20.0.5 True"}},
		"excluded from the first":             {1, exclude, "10.20.0.5", nil},
		"the node's own by it":                {2, exclude, "10.20.0.6", []string{"web 10.20.0.6 True"}},
		"the gateway of today":                {2, func(s *v1alpha1.NetworkSpec) { s.Gateway = "10.20.0.5" }, "10.20.0.5", nil},
		"an address of another node's block":  {2, exclude, "10.20.0.70", nil},
		"one that it never kept back from us": {2, exclude, "10.20.0.9", []string{"web 10.20.0.9 True"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			svc, pod, known := example(t)
			spec := v1alpha1.NetworkSpec{PhysicalNet: "phy-net1", Subnet: "10.20.0.0/16"}
			tt.edit(&spec)
			known.networks["data"] = networkOf(&v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "data", Generation: tt.generation}, Spec: spec})
			attach(pod, attachment("data", "eth1", tt.address))
			groups := tell(publish(svc, parsed(t, "data"), []*corev1.Pod{pod}, known).groups)
			if len(groups) != 1 {
				t.Fatalf("groups = %+v, want one", groups)
			}
			if diff := cmp.Diff(tt.want, groups[0].Pods); diff != "" {
				t.Errorf("published (-want +got):\n%s", diff)
			}
		})
	}
}
