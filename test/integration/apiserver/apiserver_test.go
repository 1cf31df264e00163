// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestStartServesNetplanesKinds(t *testing.T) {
	config := Start(t)
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, resource := range []string{
		v1alpha1.ResourceNetworks, v1alpha1.ResourcePhysicalNetworks, v1alpha1.ResourceNodeNetworks, v1alpha1.ResourceIPBlocks,
	} {
		if _, err := client.Resource(v1alpha1.SchemeGroupVersion.WithResource(resource)).List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Errorf("listing %s: %v", resource, err)
		}
	}
}
