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
	"cmp"
	"fmt"
	"slices"
	"strings"

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

// Of tells whether the claim is one on this very Network, and not on an earlier
// one of its name.
func Of(claim *v1alpha1.IPClaim, network *v1alpha1.Network) bool {
	return claim.Spec.Network == network.Name && (claim.Spec.NetworkUID == "" || claim.Spec.NetworkUID == network.UID)
}

// Describe names an owner for people.
func Describe(owner v1alpha1.IPClaimOwner) string {
	if owner.Kind == v1alpha1.IPClaimOwnerReference {
		return fmt.Sprintf("ipam-claim-reference %s of namespace %s", owner.Name, owner.Namespace)
	}
	return fmt.Sprintf("interface %s of pod %s/%s", owner.Interface, owner.Namespace, owner.Name)
}

// Key is one text for an owner on a network: what claims and requests are
// matched by, and where the search for an address begins.
func Key(network string, owner v1alpha1.IPClaimOwner) string {
	return strings.Join([]string{network, owner.Namespace, string(owner.Kind), owner.Name, owner.Interface}, "/")
}

// Choose is the one of several claims that answers the request of the owner's:
// the oldest that is not being deleted, or else the oldest that is; nil if none
// does.
func Choose(claims []*v1alpha1.IPClaim, owner v1alpha1.IPClaimOwner, request *podnetworks.Request) *v1alpha1.IPClaim {
	var best *v1alpha1.IPClaim
	for _, claim := range claims {
		if Answers(claim, owner, request) && (best == nil || compare(claim, best) < 0) {
			best = claim
		}
	}
	return best
}

func compare(a, b *v1alpha1.IPClaim) int {
	if deleted := a.DeletionTimestamp != nil; deleted != (b.DeletionTimestamp != nil) {
		if deleted {
			return 1
		}
		return -1
	}
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
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
