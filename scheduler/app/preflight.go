// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
)

// How long CRDs may take to be served that are installed together with us.
const (
	preflightPeriod  = 500 * time.Millisecond
	preflightTimeout = 5 * time.Second
)

// awaitResources fails, naming the cure, if the API server does not serve the
// resources. Without it kube-scheduler would wait for their informers for
// ever, with nothing but reflector errors in its log
// (kubernetes/kubernetes#110444).
func awaitResources(ctx context.Context, config *rest.Config, resources []schema.GroupVersionResource, cure string) error {
	config = rest.CopyConfig(config)
	config.Timeout = preflightTimeout
	config.QPS = -1 // a request that waits for its turn until the end would hide what the ones before were told
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return fmt.Errorf("making a discovery client: %w", err)
	}
	var missing []string
	var failure error
	err = wait.PollUntilContextTimeout(ctx, preflightPeriod, preflightTimeout, true, func(context.Context) (bool, error) {
		// Not with the poll's own context: its end is no answer.
		missing, failure = missingResources(ctx, client, resources)
		return failure == nil && len(missing) == 0, nil
	})
	switch {
	case err == nil:
		return nil
	case len(missing) > 0:
		return fmt.Errorf("the API server does not serve %s: %s", strings.Join(missing, ", "), cure)
	case failure != nil:
		return fmt.Errorf("asking the API server whether netplane's CustomResourceDefinitions are installed: %w", failure)
	}
	return fmt.Errorf("waiting for netplane's CustomResourceDefinitions: %w", err)
}

// missingResources returns those that are not served, as CRDs are named.
func missingResources(ctx context.Context, client discovery.ServerResourcesInterfaceWithContext, resources []schema.GroupVersionResource) ([]string, error) {
	var missing []string
	for _, resource := range resources {
		served, err := client.ServerResourcesForGroupVersionWithContext(ctx, resource.GroupVersion().String())
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
		if err == nil && slices.ContainsFunc(served.APIResources, func(r metav1.APIResource) bool { return r.Name == resource.Resource }) {
			continue
		}
		missing = append(missing, resource.GroupResource().String()+" ("+resource.Version+")")
	}
	return missing, nil
}
