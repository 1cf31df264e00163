// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestAPodIsOnTheClustersNetworkUnlessOneOfOursIsItsEth0(t *testing.T) {
	for annotation, want := range map[string]int{
		"":                1,
		" \n":             1, // it has given up its networks while it runs
		"data@net1":       1,
		"management@eth0": 0,
		"data@":           0, // what cannot be read may be on eth0
	} {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "p", Annotations: map[string]string{v1alpha1.AnnotationNetworks: annotation}},
			Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.244.0.9"}}},
		}
		if got := len(clusterShadows(pod, []corev1.IPFamily{corev1.IPv4Protocol})); got != want {
			t.Errorf("%q: %d endpoints, want %d", annotation, got, want)
		}
	}
}
