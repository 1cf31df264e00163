// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// A DNS server answers for a Service's name with the addresses of all its
// networks. So each network of a Service has a child: a headless Service
// without selector, named <service>-<network>, whose slices are written as the
// parent's own for that network.

// errNameTaken says that a child's name is another Service's.
var errNameTaken = errors.New("the name is another Service's")

// parentOf is the name of the Service that a child belongs to.
func parentOf(svc *corev1.Service) (name string, isChild bool) {
	owner := metav1.GetControllerOf(svc)
	if owner == nil || owner.Kind != "Service" || owner.APIVersion != "v1" || svc.Labels[v1alpha1.LabelService] != owner.Name {
		return "", false
	}
	return owner.Name, true
}

// childrenOf are the children that a Service shall have, one for each group,
// and what stands against others.
func childrenOf(svc *corev1.Service, groups []group) (children []*corev1.Service, problems []problem) {
	for i := range groups {
		name := svc.Name + "-" + groups[i].network
		if len(name) > validation.DNS1035LabelMaxLength {
			problems = append(problems, problem{v1alpha1.ReasonServiceNameTooLong, fmt.Sprintf("network %q has no name of its own: %s would have %d characters, %d are allowed: shorten the Service's name or the Network's", groups[i].network, name, len(name), validation.DNS1035LabelMaxLength)})
			continue
		}
		children = append(children, childOf(svc, name, &groups[i]))
	}
	return children, problems
}

func childOf(svc *corev1.Service, name string, g *group) *corev1.Service {
	policy := corev1.IPFamilyPolicySingleStack
	if len(g.service.Spec.IPFamilies) > 1 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	child := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name:            name,
			Namespace:       svc.Namespace,
			Labels:          map[string]string{v1alpha1.LabelService: svc.Name, v1alpha1.LabelNetwork: g.network},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(svc, corev1.SchemeGroupVersion.WithKind("Service"))},
		},
		Spec: corev1.ServiceSpec{
			Type:                     corev1.ServiceTypeClusterIP,
			ClusterIP:                corev1.ClusterIPNone,
			IPFamilies:               g.service.Spec.IPFamilies,
			IPFamilyPolicy:           &policy,
			PublishNotReadyAddresses: svc.Spec.PublishNotReadyAddresses,
		},
	}
	for _, port := range g.service.Spec.Ports {
		port.NodePort = 0
		child.Spec.Ports = append(child.Spec.Ports, port)
	}
	return child
}

// childGroup are the slices of a child: those of the parent for the network,
// under the child's name. Pods whose host name is one of the parent's subdomain
// have it below the child's name, too.
func childGroup(parent *corev1.Service, child *corev1.Service, of *group) group {
	shadow := *of.service
	shadow.ObjectMeta = child.ObjectMeta
	shadow.Labels = map[string]string{}
	for key, value := range child.Labels {
		shadow.Labels[key] = value
	}
	if proxy, ok := of.service.Labels[labelServiceProxyName]; ok {
		shadow.Labels[labelServiceProxyName] = proxy
	}
	shadow.Spec.Type, shadow.Spec.ClusterIP, shadow.Spec.ClusterIPs = child.Spec.Type, child.Spec.ClusterIP, child.Spec.ClusterIPs
	out := group{network: of.network, service: &shadow, pods: make([]*corev1.Pod, len(of.pods))}
	for i, pod := range of.pods {
		if pod.Spec.Subdomain == parent.Name {
			renamed := *pod
			renamed.Spec.Subdomain = child.Name
			pod = &renamed
		}
		out.pods[i] = pod
	}
	return out
}

// nameNetworks brings the children of a Service in line with its groups. It
// returns the groups of the children's slices; an error leaves those of the
// others in it. What the API server refuses is a problem, and no error: it
// does not hold up the endpoints.
func (r *reconciler) nameNetworks(ctx context.Context, svc *corev1.Service, groups []group) (ofChildren []group, problems []problem, err error) {
	byNetwork := make(map[string]*group, len(groups))
	for i := range groups {
		byNetwork[groups[i].network] = &groups[i]
	}
	wanted, problems := childrenOf(svc, groups)
	keep := map[string]bool{}
	var errs []error
	for _, want := range wanted {
		keep[want.Name] = true
		network := want.Labels[v1alpha1.LabelNetwork]
		child, err := r.ensureChild(ctx, svc, want)
		switch {
		case errors.Is(err, errNameTaken):
			problems = append(problems, problem{v1alpha1.ReasonServiceNameTaken, fmt.Sprintf("network %q has no name of its own: there is another Service %s: rename one of them", network, want.Name)})
		case isRefused(err):
			problems = append(problems, problem{v1alpha1.ReasonServiceNameRefused, fmt.Sprintf("the name of network %q is not as it should be: %v", network, err)})
		case err != nil:
			errs = append(errs, err)
		}
		if child != nil {
			ofChildren = append(ofChildren, childGroup(svc, child, byNetwork[network]))
		}
	}
	errs = append(errs, r.removeChildren(ctx, client.ObjectKeyFromObject(svc), func(child *corev1.Service) bool {
		return keep[child.Name] && metav1.IsControlledBy(child, svc)
	}))
	return ofChildren, problems, errors.Join(errs...)
}

// ensureChild makes one child as wanted. It returns nil without an error for a
// child that is being deleted: the event of that brings the parent back. One
// that cannot be changed comes with the error: it has endpoints all the same.
func (r *reconciler) ensureChild(ctx context.Context, svc, want *corev1.Service) (*corev1.Service, error) {
	key := client.ObjectKeyFromObject(want)
	var have corev1.Service
	err := r.client.Get(ctx, key, &have)
	if apierrors.IsNotFound(err) {
		// That the name is taken although the cache does not show it is an error
		// as any: the next try knows by whom.
		if err := r.client.Create(ctx, want); err != nil && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil, fmt.Errorf("creating Service %s: %w", key, err)
		}
		return want, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading Service %s: %w", key, err)
	}
	if parent, isChild := parentOf(&have); !isChild || parent != svc.Name {
		return nil, errNameTaken
	}
	if have.DeletionTimestamp != nil || !metav1.IsControlledBy(&have, svc) {
		return nil, nil // of an earlier Service of this name; removeChildren looks after it
	}
	if isAsWanted(&have, want) {
		return &have, nil
	}
	bringInLine(&have, want)
	err = r.client.Update(ctx, &have)
	if apierrors.IsInvalid(err) { // the first IP family cannot be changed
		return nil, r.removeChild(ctx, &have)
	}
	if err != nil {
		return &have, fmt.Errorf("updating Service %s: %w", key, err)
	}
	return &have, nil
}

// isAsWanted compares what a child is made of; labels that others add may stay.
func isAsWanted(have, want *corev1.Service) bool {
	changed := have.DeepCopy()
	bringInLine(changed, want)
	return equality.Semantic.DeepEqual(have, changed)
}

func bringInLine(have, want *corev1.Service) {
	for key, value := range want.Labels {
		have.Labels[key] = value // a child has labels, or it were none
	}
	spec := &have.Spec
	spec.Type, spec.Selector, spec.Ports = want.Spec.Type, nil, want.Spec.Ports
	spec.IPFamilies, spec.IPFamilyPolicy = want.Spec.IPFamilies, want.Spec.IPFamilyPolicy
	spec.PublishNotReadyAddresses = want.Spec.PublishNotReadyAddresses
}

// removeChildren removes the children of the Service of this name but those to
// keep. Their slices are the caller's business.
func (r *reconciler) removeChildren(ctx context.Context, parent client.ObjectKey, keep func(*corev1.Service) bool) error {
	var list corev1.ServiceList
	err := r.client.List(ctx, &list, client.InNamespace(parent.Namespace), client.MatchingFields{indexServiceParent: parent.Name})
	if err != nil {
		return fmt.Errorf("listing the children of Service %s: %w", parent, err)
	}
	var errs []error
	for i := range list.Items {
		if !keep(&list.Items[i]) {
			errs = append(errs, r.removeChild(ctx, &list.Items[i]))
		}
	}
	return errors.Join(errs...)
}

func (r *reconciler) removeChild(ctx context.Context, child *corev1.Service) error {
	err := r.client.Delete(ctx, child, client.Preconditions{UID: &child.UID})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("removing Service %s: %w", client.ObjectKeyFromObject(child), err)
	}
	return nil
}

// retryOf is when to ask again for what was refused; zero means never.
func retryOf(problems []problem) time.Duration {
	if slices.ContainsFunc(problems, func(p problem) bool { return p.reason == v1alpha1.ReasonServiceNameRefused }) {
		return refusedRetry
	}
	return 0
}

// namesVerdict is the Service's condition about its children.
func namesVerdict(groups []group, problems []problem) verdict {
	return newVerdict(v1alpha1.ConditionNamesByNetwork, v1alpha1.ReasonNamesPublished, "networks have names of their own: "+strings.Join(serviceNames(groups), ", "), problems)
}
