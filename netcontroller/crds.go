// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"github.com/netplane/netplane/api/v1alpha1"
)

// missingCRDsError names the kinds that the API server does not serve.
type missingCRDsError struct{ names []string }

// Error names every missing CustomResourceDefinition and the cure.
func (e *missingCRDsError) Error() string {
	return fmt.Sprintf("the API server lacks the CustomResourceDefinition(s) %s: install them with kubectl apply -k manifests/base",
		strings.Join(e.names, ", "))
}

// checkCRDs fails at once where the caches would wait for ever.
func checkCRDs(config *rest.Config) error {
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return fmt.Errorf("making the discovery client: %w", err)
	}
	served := map[string]bool{}
	list, err := client.ServerResourcesForGroupVersion(v1alpha1.SchemeGroupVersion.String())
	switch {
	case err == nil:
		for i := range list.APIResources {
			served[list.APIResources[i].Name] = true
		}
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("asking the API server for the kinds of %s: %w", v1alpha1.SchemeGroupVersion, err)
	}
	var missing []string
	for _, resource := range []string{
		v1alpha1.ResourceNetworks, v1alpha1.ResourcePhysicalNetworks,
		v1alpha1.ResourceNodeNetworks, v1alpha1.ResourceIPBlocks, v1alpha1.ResourceIPClaims,
	} {
		if !served[resource] {
			missing = append(missing, resource+"."+v1alpha1.GroupName)
		}
	}
	if len(missing) > 0 {
		return &missingCRDsError{names: missing}
	}
	return nil
}
