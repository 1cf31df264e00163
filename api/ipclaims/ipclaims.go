// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ipclaims tells which IPClaim answers a pod's request for a fixed
// address. It is pure: controller, scheduler and agent come to the same answer.
//
// The controller makes the claim, and hands it to one pod at a time
// (status.podUID); the scheduler places the pod once it is handed to it; the
// controller notes the node (status.nodeName), and that node's agent serves it.
package ipclaims

import (
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// Owner is the identity that a request's fixed address belongs to. namespace
// and pod are the pod's.
func Owner(namespace, pod string, request *podnetworks.Request) v1alpha1.IPClaimOwner {
	if request.IPAMClaimReference != "" {
		return v1alpha1.IPClaimOwner{Kind: v1alpha1.IPClaimOwnerReference, Namespace: namespace, Name: request.IPAMClaimReference}
	}
	return v1alpha1.IPClaimOwner{Kind: v1alpha1.IPClaimOwnerPod, Namespace: namespace, Name: pod, Interface: request.IfName}
}

// ReclaimPolicy is that of a claim made for the request: an address that
// follows a name is kept for it, one that the pod only names is not.
func ReclaimPolicy(request *podnetworks.Request) v1alpha1.IPClaimReclaimPolicy {
	if request.Sticky || request.IPAMClaimReference != "" {
		return v1alpha1.IPClaimRetain
	}
	return v1alpha1.IPClaimDelete
}

// Answers tells whether the claim is one for this request of the owner's. Of
// several the oldest counts; those of one second go by name.
func Answers(claim *v1alpha1.IPClaim, owner v1alpha1.IPClaimOwner, request *podnetworks.Request) bool {
	return claim.Spec.Network == request.Name && claim.Spec.Owner == owner &&
		(len(request.IPs) == 0 || slices.Contains(request.IPs, string(claim.Spec.Address)))
}

// Holds tells whether the pod may use the claim's address: whether the claim
// answers the request and is handed to this pod.
func Holds(claim *v1alpha1.IPClaim, namespace, pod string, uid types.UID, request *podnetworks.Request) bool {
	return claim.Status.PodUID == uid && uid != "" && Answers(claim, Owner(namespace, pod, request), request)
}
