// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	sliceutil "k8s.io/endpointslice/util"
	"k8s.io/utils/ptr"
)

// The slice library hashes every endpoint that it is given three times. For a
// Service of thousands of pods that is most of what the change of one of them
// costs; so it is given the slices that the change concerns, with their pods.

// wanted is a pod that has to have an endpoint.
type wanted struct {
	pod  *corev1.Pod
	home bool // it is in a slice
}

// family is what one address family of a group has, and shall have.
type family struct {
	want     map[string]*wanted // by address
	have     []*discoveryv1.EndpointSlice
	chosen   []bool        // of have
	homeless []*corev1.Pod // those that are in no slice
}

// zones knows the nodes: the zone of one, empty for none, and whether it exists.
type zones func(node string) (zone string, exists bool)

// narrowing is what narrow asks of its surroundings.
type narrowing struct {
	most   int // endpoints in a slice
	zoneOf zones
	// isLeft tells whether a slice of the group is as the library left it.
	isLeft func(*group, *discoveryv1.EndpointSlice) bool
}

// narrow leaves out what stands as it shall: slices of which each endpoint is
// that of one of the group's pods, as the library would make it, and the pods
// of these. What is in no slice may go into any that has room. It is for a group
// of which the library saw all, for the same Service: the labels and ports of a
// slice that is as the library left it are not looked at. ok is false if it cannot
// tell, and then the library has to see all; of a group in which nothing is to be
// done there are no slices.
func narrow(g *group, have []*discoveryv1.EndpointSlice, by narrowing) (pods []*corev1.Pod, some []*discoveryv1.EndpointSlice, ok bool) {
	if g.service.Spec.TrafficDistribution != nil || len(g.service.Spec.IPFamilies) == 0 {
		return nil, nil, false // hints may depend on other slices' endpoints
	}
	families, ok := familiesOf(g, have)
	if !ok {
		return nil, nil, false
	}
	idle := true
	for _, f := range families {
		if len(f.have) == 0 || !f.compare(g, by) {
			return nil, nil, false
		}
		idle = idle && len(f.homeless) == 0 && !slices.Contains(f.chosen, true)
	}
	if idle {
		return nil, nil, true
	}
	for _, f := range families {
		its, ofThem := f.narrowed()
		if len(its) == 0 || len(ofThem) == 0 {
			return nil, nil, false // the library would make a placeholder for the family
		}
		pods, some = append(pods, its...), append(some, ofThem...)
	}
	return pods, some, true
}

// familiesOf sorts a group's pods and slices by family. It cannot for slices of a
// family that the Service has not, and for two pods
// with one address, as those of one host network.
func familiesOf(g *group, have []*discoveryv1.EndpointSlice) ([]*family, bool) {
	var out []*family
	byType := map[discoveryv1.AddressType]*family{}
	for _, ipFamily := range g.service.Spec.IPFamilies {
		f := &family{want: make(map[string]*wanted, len(g.pods)/len(g.service.Spec.IPFamilies))}
		out, byType[discoveryv1.AddressType(ipFamily)] = append(out, f), f
	}
	for _, slice := range have {
		f, ok := byType[slice.AddressType]
		if !ok {
			return nil, false
		}
		f.have = append(f.have, slice)
	}
	all := make([]wanted, len(g.pods)) // at once, as they are many
	for i, pod := range g.pods {
		addressType := discoveryv1.AddressTypeIPv4
		if strings.Contains(pod.Status.PodIP, ":") {
			addressType = discoveryv1.AddressTypeIPv6
		}
		f, ok := byType[addressType]
		if !ok || f.want[pod.Status.PodIP] != nil {
			return nil, false
		}
		all[i].pod = pod
		f.want[pod.Status.PodIP] = &all[i]
	}
	return out, true
}

// compare chooses the slices that are not as they shall be, and finds the pods
// that are in none. It cannot where the library would not go on either.
func (f *family) compare(g *group, by narrowing) bool {
	f.chosen = make([]bool, len(f.have))
	for i, slice := range f.have {
		f.chosen[i] = !by.isLeft(g, slice)
		for j := range slice.Endpoints {
			endpoint := &slice.Endpoints[j]
			w := f.of(endpoint)
			if w == nil {
				f.chosen[i] = true
				continue
			}
			if w.home {
				return false
			}
			w.home = true
			f.chosen[i] = f.chosen[i] || !isAsMade(endpoint, w.pod, g.service, by.zoneOf)
		}
	}
	for _, w := range f.want {
		if _, exists := by.zoneOf(w.pod.Spec.NodeName); !exists {
			return false
		}
		if !w.home {
			f.homeless = append(f.homeless, w.pod)
		}
	}
	for i, slice := range f.have {
		hasRoom := len(slice.Endpoints) < by.most
		f.chosen[i] = f.chosen[i] || hasRoom && len(f.homeless) > 0
	}
	return true
}

// narrowed are the slices that are chosen, or any one, and their pods.
func (f *family) narrowed() (pods []*corev1.Pod, some []*discoveryv1.EndpointSlice) {
	if len(f.chosen) > 0 && !slices.Contains(f.chosen, true) {
		f.chosen[0] = true
	}
	for i, slice := range f.have {
		if !f.chosen[i] {
			continue
		}
		some = append(some, slice)
		for j := range slice.Endpoints {
			if w := f.of(&slice.Endpoints[j]); w != nil {
				pods = append(pods, w.pod)
			}
		}
	}
	return append(pods, f.homeless...), some
}

// of is the pod that an endpoint is of; nil if none is wanted there.
func (f *family) of(endpoint *discoveryv1.Endpoint) *wanted {
	if endpoint.TargetRef == nil || len(endpoint.Addresses) != 1 {
		return nil
	}
	w := f.want[endpoint.Addresses[0]]
	if w == nil || w.pod.UID != endpoint.TargetRef.UID {
		return nil
	}
	return w
}

// isAsMade tells whether an endpoint is what the library makes of the pod
// (podToEndpoint in k8s.io/endpointslice). What it does not know of is changed.
func isAsMade(endpoint *discoveryv1.Endpoint, pod *corev1.Pod, service *corev1.Service, zoneOf zones) bool {
	serving, terminating := sliceutil.IsPodReady(pod), pod.DeletionTimestamp != nil
	ready := service.Spec.PublishNotReadyAddresses || serving && !terminating
	hostname := ""
	if sliceutil.ShouldSetHostname(pod, service) {
		hostname = pod.Spec.Hostname
	}
	zone, _ := zoneOf(pod.Spec.NodeName)
	is := func(have *bool, want bool) bool { return have != nil && *have == want }
	ref, c := endpoint.TargetRef, &endpoint.Conditions
	return is(c.Ready, ready) && is(c.Serving, serving) && is(c.Terminating, terminating) &&
		ref.Kind == "Pod" && ref.Namespace == pod.Namespace && ref.Name == pod.Name && ref.APIVersion == "" && ref.ResourceVersion == "" && ref.FieldPath == "" &&
		ptr.Deref(endpoint.NodeName, "") == pod.Spec.NodeName && ptr.Deref(endpoint.Zone, "") == zone && ptr.Deref(endpoint.Hostname, "") == hostname &&
		endpoint.Hints == nil && len(endpoint.DeprecatedTopology) == 0
}
