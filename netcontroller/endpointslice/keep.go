// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// keepPublished adds to the networks that a Service names those that it is
// published on and names no more, as long as one that it names cannot be
// published: a slip such as "dta" for "data" takes nothing down, and what is
// kept goes on following the pods. A Network that is gone keeps nothing.
func keepPublished(svc *corev1.Service, named podnetworks.ServiceNetworks, existing []*discoveryv1.EndpointSlice, known facts) (podnetworks.ServiceNetworks, []problem) {
	reason := ""
	for _, name := range named.Networks() {
		if p := unpublishable(svc, name, known); p != nil && reason == "" {
			reason = p.reason
		}
	}
	published := networksOf(svc.Name, existing)
	kept := slices.DeleteFunc(published.Networks(), func(name string) bool {
		return slices.Contains(named.Networks(), name) || unpublishable(svc, name, known) != nil
	})
	if reason == "" || len(kept) == 0 {
		return named, nil
	}
	byPort := map[string][]string{}
	for i := range svc.Spec.Ports {
		port := svc.Spec.Ports[i].Name
		byPort[port] = slices.Clone(named.ForPort(port))
		for _, name := range published.ForPort(port) {
			if slices.Contains(kept, name) {
				byPort[port] = append(byPort[port], name)
			}
		}
	}
	return podnetworks.ServiceOn(byPort, append(named.Networks(), kept...)...),
		[]problem{{reason, "until then endpoints stay published as before on: " + strings.Join(kept, ", ")}}
}

// unpublishable says why a Service cannot be published on a network; nil means
// that it can.
func unpublishable(svc *corev1.Service, name string, known facts) *problem {
	n, ok := known.networks[name]
	if !ok {
		return &problem{v1alpha1.ReasonUnknownNetwork, fmt.Sprintf("there is no Network %q: create it, or name another in the annotation %s", name, v1alpha1.AnnotationNetworks)}
	}
	if len(sharedFamilies(svc, n)) == 0 {
		return &problem{v1alpha1.ReasonNoSharedFamily, fmt.Sprintf("network %q has %s addresses, the Service wants %s: change spec.ipFamilies and spec.ipFamilyPolicy", name, familyText(n.families), familyText(svc.Spec.IPFamilies))}
	}
	return nil
}
