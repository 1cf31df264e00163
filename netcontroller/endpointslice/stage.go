// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// While the selector has our key, Kubernetes' own controller selects nothing,
// and all slices are ours. When the key comes or goes, one of the two has to
// publish first and the other to withdraw after it. We cannot keep the other
// waiting, so it is always we that publish early and withdraw late; the
// condition tells where that stands, so that a restart goes on with it.

// Periods of a hand-over.
const (
	// DefaultTakeOverPeriod is for a person with two commands to type.
	DefaultTakeOverPeriod = 2 * time.Minute
	// handBackLimit is how long we wait for the rest of the built-in endpoints
	// once there are some; for the first we wait for ever.
	handBackLimit = 30 * time.Second
	// handBackPoll is how often we look; later, handBackLatePoll.
	handBackPoll     = 200 * time.Millisecond
	handBackLatePoll = 5 * time.Second
)

// stage is where a Service stands between Kubernetes' own controller and us.
type stage int

const (
	stageForeign stage = iota // not ours: nothing of us stays
	stageRefused              // it wants to be ours, but nothing can be published
	stageTaking               // ours stand beside the built-in slices until the key comes
	stageOurs                 // the key is in
	stageGiving               // the key went; ours stay until the built-in endpoints are there
)

// intent is what is to be done about a Service.
type intent struct {
	stage    stage
	networks podnetworks.ServiceNetworks
	// problems say what is wrong with the Service itself. Unless the stage is
	// stageRefused, endpoints are published all the same.
	problems []problem
	// elapsed is for how long stageTaking or stageGiving has lasted.
	elapsed time.Duration
}

// decide reads nothing but its arguments; existing are our slices of the
// Service, and added tells that it got the annotation before our eyes.
func decide(svc *corev1.Service, existing []*discoveryv1.EndpointSlice, added bool, now time.Time, takeOver time.Duration) intent {
	_, hasKey := svc.Spec.Selector[v1alpha1.SelectorEndpointsKey]
	switch {
	case svc.Spec.Type == corev1.ServiceTypeExternalName && (hasKey || isAnnotated(svc)):
		return refused(invalid(errors.New("a Service of type ExternalName has no endpoints: remove the annotation, or change the type")))
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		return intent{stage: stageForeign}
	case hasKey && len(selectorOf(svc)) == 0:
		return refused(problem{v1alpha1.ReasonSelectorEmpty, fmt.Sprintf("spec.selector has nothing besides %s: add the labels of the pods", v1alpha1.SelectorEndpointsKey)})
	case hasKey:
		return decideOurs(svc, existing)
	default:
		return decideWithoutKey(svc, existing, added, now, takeOver)
	}
}

func refused(p problem) intent { return intent{stage: stageRefused, problems: []problem{p}} }

func invalid(err error) problem {
	return problem{v1alpha1.ReasonInvalidAnnotation, fmt.Sprintf("annotation %s: %v", v1alpha1.AnnotationNetworks, err)}
}

// decideOurs: a slip in the annotation does not take a Service down. What was
// published stays so, and is kept up to date.
func decideOurs(svc *corev1.Service, existing []*discoveryv1.EndpointSlice) intent {
	out := intent{stage: stageOurs}
	if value := svc.Spec.Selector[v1alpha1.SelectorEndpointsKey]; value != v1alpha1.SelectorEndpointsByNetwork {
		out.problems = append(out.problems, problem{v1alpha1.ReasonSelectorKeyInvalid, fmt.Sprintf("spec.selector has %s: %q: its value must be %s", v1alpha1.SelectorEndpointsKey, value, v1alpha1.SelectorEndpointsByNetwork)})
	}
	if !isAnnotated(svc) {
		out.networks = podnetworks.ServiceOn(nil, v1alpha1.DefaultNetworkName)
		out.problems = append(out.problems, problem{v1alpha1.ReasonAnnotationMissing, fmt.Sprintf("spec.selector has %s, but there is no annotation %s: the endpoints are those of the cluster network; add the annotation, or remove the entry from the selector", v1alpha1.SelectorEndpointsKey, v1alpha1.AnnotationNetworks)})
		return out
	}
	var err error
	if out.networks, err = readNetworks(svc); err != nil {
		out.networks = networksOf(svc.Name, existing)
		out.problems = append(out.problems, invalid(err))
	}
	return out
}

// decideWithoutKey: endpoints stand beside the built-in ones only where a
// hand-over was begun, which the condition says, or the annotation was seen to
// come.
func decideWithoutKey(svc *corev1.Service, existing []*discoveryv1.EndpointSlice, added bool, now time.Time, takeOver time.Duration) intent {
	missing := refused(problem{v1alpha1.ReasonSelectorKeyMissing, fmt.Sprintf("spec.selector lacks %s: %s: add it, or Kubernetes itself publishes the pods' addresses of the cluster network", v1alpha1.SelectorEndpointsKey, v1alpha1.SelectorEndpointsByNetwork)})
	annotated := isAnnotated(svc)
	if len(svc.Spec.Selector) == 0 { // nobody else publishes it
		if annotated {
			return missing
		}
		return intent{stage: stageForeign}
	}
	reason, since := "", now
	if before := meta.FindStatusCondition(svc.Status.Conditions, v1alpha1.ConditionEndpointsByNetwork); before != nil {
		reason, since = before.Reason, before.LastTransitionTime.Time
	}
	switch {
	case isOursBy(reason) && len(existing) > 0:
		out := intent{stage: stageGiving}
		if reason == v1alpha1.ReasonHandingBack {
			out.elapsed = now.Sub(since)
		}
		var err error
		if out.networks, err = readNetworks(svc); !annotated || err != nil {
			out.networks = networksOf(svc.Name, existing)
		}
		return out
	case !annotated:
		return intent{stage: stageForeign}
	}
	networks, err := readNetworks(svc)
	switch isBegun := added || reason == v1alpha1.ReasonAwaitingSelectorKey; {
	case err != nil && isBegun:
		return refused(invalid(err))
	case err != nil:
		missing.problems = append(missing.problems, invalid(err))
		return missing
	case !isBegun:
		return missing
	}
	out := intent{stage: stageTaking, networks: networks}
	if reason == v1alpha1.ReasonAwaitingSelectorKey {
		out.elapsed = now.Sub(since)
	}
	if out.elapsed >= takeOver {
		return missing
	}
	return out
}

// isOursBy tells by the condition's reason whether a Service was published by us
// alone, or is being given back.
func isOursBy(reason string) bool {
	return reason != "" && reason != v1alpha1.ReasonAwaitingSelectorKey && reason != v1alpha1.ReasonSelectorKeyMissing
}

// readNetworks reads the annotation, and holds it against the Service's ports.
func readNetworks(svc *corev1.Service) (podnetworks.ServiceNetworks, error) {
	networks, err := podnetworks.ParseService(svc.Annotations[v1alpha1.AnnotationNetworks])
	if err != nil {
		return podnetworks.ServiceNetworks{}, err
	}
	names := make([]string, 0, len(svc.Spec.Ports))
	for i := range svc.Spec.Ports {
		names = append(names, svc.Spec.Ports[i].Name)
	}
	return networks, networks.CheckPorts(names)
}

// networksOf reads from the slices of a Service what its annotation said. One
// network alone was all ports', whatever their names are now.
func networksOf(service string, existing []*discoveryv1.EndpointSlice) podnetworks.ServiceNetworks {
	byPort := map[string][]string{}
	all := map[string]bool{}
	for _, slice := range existing {
		if slice.Labels[discoveryv1.LabelServiceName] != service {
			continue
		}
		network := slice.Labels[v1alpha1.LabelNetwork]
		all[network] = true
		for _, port := range slice.Ports {
			if port.Name != nil && !slices.Contains(byPort[*port.Name], network) {
				byPort[*port.Name] = append(byPort[*port.Name], network)
			}
		}
	}
	if len(all) == 1 {
		clear(byPort)
	}
	return podnetworks.ServiceOn(byPort, slices.Sorted(maps.Keys(all))...)
}

// selectorOf is the Service's selector without the entry that keeps
// kube-controller-manager away.
func selectorOf(svc *corev1.Service) labels.Set {
	selector := maps.Clone(svc.Spec.Selector)
	delete(selector, v1alpha1.SelectorEndpointsKey)
	return selector
}
