// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"errors"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/ipclaims"
	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// A fixed address is the controller's to give: it makes an IPClaim and hands it
// to one pod at a time. Here a pod only waits until that is done, for a node's
// agent serves no fixed address that is not handed to the pod. Which node the
// pod goes to does not matter to it.

// anchors tells whether the pod's eth0 is on the network with a fixed address.
func anchors(asked *parsed, network string) bool {
	primary := podnetworks.Primary(asked.requests)
	return primary != nil && primary.Name == network && primary.Fixed()
}

// claimOwner indexes claims by network and identity.
func claimOwner(obj any) ([]string, error) {
	claim, ok := obj.(*v1alpha1.IPClaim)
	if !ok {
		return nil, nil
	}
	return []string{ipclaims.Key(claim.Spec.Network, claim.Spec.Owner)}, nil
}

// awaitsFixed says for which fixed address a pod waits, and why; it is empty
// if the pod has all that it asks for. The networks exist and are usable.
func (pl *NetworkFit) awaitsFixed(pod *v1.Pod, asked *parsed) string {
	for i := range asked.requests {
		request := &asked.requests[i]
		if !request.Fixed() {
			continue
		}
		net, ok := lookup[*network](pl.sources.networks, request.Name)
		if !ok {
			return fmt.Sprintf("network %q is gone", request.Name)
		}
		if err := checkFixed(net.plan, request); err != nil {
			return fmt.Sprintf("annotation %s: item %d (network %q): %v", v1alpha1.AnnotationNetworks, i+1, request.Name, err)
		}
		if why := pl.sources.awaits(pod, request, net); why != "" {
			return fmt.Sprintf("network %q: %s", request.Name, why)
		}
	}
	return ""
}

// checkFixed says why no claim can ever answer the request.
func checkFixed(plan *addressing.Plan, request *podnetworks.Request) error {
	if plan == nil {
		return errors.New("fixed addresses (ips, sticky, ipam-claim-reference) are for Networks with a subnet and a staticRange")
	}
	_, err := plan.FixedOf(request.IPs)
	return err
}

// awaits says why the pod may not use the fixed address yet.
func (s *Sources) awaits(pod *v1.Pod, request *podnetworks.Request, net *network) string {
	owner := ipclaims.Owner(pod.Namespace, pod.Name, request)
	claims := s.claimsOf(net, owner)
	holds := func(claim *v1alpha1.IPClaim) bool {
		return ipclaims.Holds(claim, pod.Namespace, pod.Name, pod.UID, request)
	}
	if slices.ContainsFunc(claims, holds) {
		return ""
	}
	claim := ipclaims.Choose(claims, owner, request)
	if claim == nil {
		return s.lacksClaim(request, net.plan)
	}
	bound := meta.FindStatusCondition(claim.Status.Conditions, v1alpha1.ConditionBound)
	switch {
	case claim.DeletionTimestamp != nil:
		return fmt.Sprintf("waits for fixed address %s: its IPClaim is being deleted", claim.Spec.Address)
	case bound != nil && bound.Status != metav1.ConditionTrue && bound.Reason != v1alpha1.ReasonOwnerAbsent:
		return fmt.Sprintf("waits for fixed address %s: %s: %s", claim.Spec.Address, bound.Reason, bound.Message)
	case claim.Status.PodUID != "" && claim.Status.PodName != pod.Name:
		return fmt.Sprintf("waits for fixed address %s: pod %s/%s has it", claim.Spec.Address, owner.Namespace, claim.Status.PodName)
	case claim.Status.PodUID != "":
		return fmt.Sprintf("waits for fixed address %s: the former pod of this name has it", claim.Spec.Address)
	}
	return fmt.Sprintf("waits for fixed address %s: netplane-controller has not handed it to the pod yet", claim.Spec.Address)
}

// lacksClaim says why there is no claim that answers the request.
func (s *Sources) lacksClaim(request *podnetworks.Request, plan *addressing.Plan) string {
	if len(request.IPs) > 0 {
		addr, err := plan.FixedOf(request.IPs)
		if err != nil {
			return err.Error()
		}
		if other, ok := lookup[*v1alpha1.IPClaim](s.fixed, addressing.ClaimName(request.Name, addr)); ok {
			return fmt.Sprintf("fixed address %s belongs to %s", addr, ipclaims.Describe(other.Spec.Owner))
		}
	}
	return "waits for a fixed address: netplane-controller has made no IPClaim for the pod yet; see the pod's other events"
}

func (s *Sources) claimsOf(net *network, owner v1alpha1.IPClaimOwner) []*v1alpha1.IPClaim {
	objects, err := s.fixed.ByIndex(indexFixedByOwner, ipclaims.Key(net.Name, owner))
	if err != nil {
		return nil // the index exists since NewSources
	}
	claims := make([]*v1alpha1.IPClaim, 0, len(objects))
	for _, obj := range objects {
		if claim, ok := obj.(*v1alpha1.IPClaim); ok && ipclaims.Of(claim, net.Network) {
			claims = append(claims, claim)
		}
	}
	return claims
}

// afterIPClaim queues a pod if a claim is handed to it. It also queues it when a
// claim that it waits for comes, or comes to tell something else, so that the
// pod says what it waits for.
func (pl *NetworkFit) afterIPClaim(logger klog.Logger, pod *v1.Pod, oldObj, newObj any) (fwk.QueueingHint, error) {
	before, after, err := objects[*v1alpha1.IPClaim](oldObj, newObj)
	asked := pl.sources.demands.of(pod)
	if err != nil || asked == nil {
		return fwk.Queue, err
	}
	concerned := slices.ContainsFunc(asked.requests, func(request podnetworks.Request) bool { return concerns(after, pod, &request) })
	return hint(logger, concerned && tells(before, after), pod, "IPClaim", after.Name), nil
}

// concerns tells whether the pod is one that the claim may be handed to, or
// asks for an address that is another's.
func concerns(claim *v1alpha1.IPClaim, pod *v1.Pod, request *podnetworks.Request) bool {
	return request.Fixed() && (ipclaims.Answers(claim, ipclaims.Owner(pod.Namespace, pod.Name, request), request) ||
		claim.Spec.Network == request.Name && slices.Contains(request.IPs, string(claim.Spec.Address)))
}

// tells tells whether a claim says something else than before to those who wait
// for it. That its pod is bound to a node, or gone, does not matter to them
// until it is handed on.
func tells(before, after *v1alpha1.IPClaim) bool {
	if before == nil || before.UID != after.UID || before.Status.PodUID != after.Status.PodUID {
		return true
	}
	told := func(claim *v1alpha1.IPClaim) (out metav1.Condition) {
		if bound := meta.FindStatusCondition(claim.Status.Conditions, v1alpha1.ConditionBound); bound != nil {
			out = metav1.Condition{Status: bound.Status, Reason: bound.Reason, Message: bound.Message}
		}
		return out
	}
	return told(before) != told(after)
}
