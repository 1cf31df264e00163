// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// IPClaimOwnerKind says what names the identity that an address belongs to.
// +kubebuilder:validation:Enum=Pod;Reference
type IPClaimOwnerKind string

const (
	// IPClaimOwnerPod is a pod's name: the pods of a StatefulSet keep theirs
	// across restarts and nodes.
	IPClaimOwnerPod IPClaimOwnerKind = "Pod"
	// IPClaimOwnerReference is an ipam-claim-reference (NPWG multi-network
	// specification v1.3, 4.1.2.1.11): the pods of a virtual machine share it,
	// whatever they are called.
	IPClaimOwnerReference IPClaimOwnerKind = "Reference"
)

// IPClaimReclaimPolicy says what becomes of a claim whose pod is gone.
// +kubebuilder:validation:Enum=Retain;Delete
type IPClaimReclaimPolicy string

const (
	// IPClaimRetain keeps the address for the next pod of the same identity.
	IPClaimRetain IPClaimReclaimPolicy = "Retain"
	// IPClaimDelete frees it, for pods that name an address without wanting it
	// to be theirs for ever.
	IPClaimDelete IPClaimReclaimPolicy = "Delete"
)

// IPClaimOwner is the identity that an address belongs to. It outlives pods.
//
// +kubebuilder:validation:XValidation:rule="self.kind != 'Pod' || (has(self.interface) && size(self.interface) > 0)",message="interface is required beside kind Pod: a pod may have several interfaces on one network"
// +kubebuilder:validation:XValidation:rule="self.kind != 'Reference' || !has(self.interface) || size(self.interface) == 0",message="interface must be left out beside kind Reference: the reference alone names one interface"
type IPClaimOwner struct {
	// kind says what name is: Pod or Reference.
	// +required
	Kind IPClaimOwnerKind `json:"kind"`
	// namespace of the pods.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// name of the pod, or the pods' ipam-claim-reference.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// interface is the interface's name in the pod, for kind Pod.
	// +optional
	// +kubebuilder:validation:MaxLength=15
	Interface string `json:"interface,omitempty"`
}

// IPClaimSpec says which address belongs to whom. It is written by
// netplane-controller for pods that ask for a fixed address, or by an admin who
// reserves one. All but reclaimPolicy is immutable.
type IPClaimSpec struct {
	// network is the Network's name.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Network string `json:"network"`
	// networkUID tells a Network from a later one of the same name. An admin may
	// leave it out: the claim is then good for any of that name.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=64
	NetworkUID types.UID `json:"networkUID,omitempty"`
	// address lies in the Network's staticRange. Of a dual-stack network it is
	// the IPv4 address: the IPv6 address follows from it.
	// +required
	Address IP `json:"address"`
	// owner is whom the address belongs to.
	// +required
	Owner IPClaimOwner `json:"owner"`
	// reclaimPolicy says what becomes of the claim when its pod is gone: Retain
	// keeps it for the owner's next pod, Delete frees the address.
	// +optional
	// +kubebuilder:default=Retain
	ReclaimPolicy IPClaimReclaimPolicy `json:"reclaimPolicy,omitempty"`
}

// IPClaimStatus says which pod has the address now. It is written by
// netplane-controller only: podUID before the pod is scheduled, node after it
// is bound, so that the node is known when the pod object is gone. No other pod
// gets the address before the former one is really gone and its node is alive,
// and has given the address back, or is fenced.
type IPClaimStatus struct {
	// podUID is the pod that may use the address; empty if none may.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=64
	PodUID types.UID `json:"podUID,omitempty"`
	// podName is that pod's name, in the owner's namespace.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	PodName string `json:"podName,omitempty"`
	// nodeName is the node that the pod is bound to: its agent alone serves the
	// address. Empty until then.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// IPClaim is one address of a Network's staticRange that belongs to one
// identity. Its name is made of network and address, so that the API server
// itself refuses a second claim of the same address. Deleting it frees the
// address once no pod uses it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=ipcl,categories=netplane
// +kubebuilder:subresource:status
// +kubebuilder:selectablefield:JSONPath=`.spec.network`
// +kubebuilder:selectablefield:JSONPath=`.status.nodeName`
// +kubebuilder:printcolumn:name="Network",type=string,JSONPath=`.spec.network`
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.address`
// +kubebuilder:printcolumn:name="Namespace",type=string,JSONPath=`.spec.owner.namespace`
// +kubebuilder:printcolumn:name="Owner",type=string,JSONPath=`.spec.owner.name`
// +kubebuilder:printcolumn:name="Bound",type=string,JSONPath=`.status.conditions[?(@.type=="Bound")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Bound")].reason`
// +kubebuilder:printcolumn:name="Pod",type=string,JSONPath=`.status.podName`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.status.nodeName`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == self.spec.network + '.' + self.spec.address.replace(':', '-')",message="metadata.name must be <network>.<address> with ':' written as '-'"
// +kubebuilder:validation:XValidation:rule="!isIP(self.spec.address) || string(ip(self.spec.address)) == self.spec.address",message="spec.address must be in canonical form, such as fd00:20::5: an address has one name only"
// +kubebuilder:validation:XValidation:rule="self.spec.network == oldSelf.spec.network && self.spec.address == oldSelf.spec.address && self.spec.owner == oldSelf.spec.owner && has(self.spec.networkUID) == has(oldSelf.spec.networkUID) && (!has(self.spec.networkUID) || self.spec.networkUID == oldSelf.spec.networkUID)",message="spec is immutable but for reclaimPolicy: delete the claim, and make another"
type IPClaim struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec IPClaimSpec `json:"spec"`
	// +optional
	Status IPClaimStatus `json:"status,omitempty"`
}

// IPClaimList is a list of IPClaims.
//
// +kubebuilder:object:root=true
type IPClaimList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []IPClaim `json:"items"`
}
