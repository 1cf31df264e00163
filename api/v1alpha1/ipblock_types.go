// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// IPBlockSpec is immutable but for nodeUID and vtep.
type IPBlockSpec struct {
	// network is the Network's name.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Network string `json:"network"`
	// networkUID tells a Network from a later one of the same name.
	// +required
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	NetworkUID types.UID `json:"networkUID"`
	// cidr is the block: an aligned piece of the Network's subnet. Dual-stack
	// networks carve IPv4; IPv6 addresses follow from it.
	// +required
	CIDR CIDR `json:"cidr"`
	// nodeName is the node that holds the block.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName"`
	// nodeUID tells a Node from a later one of the same name. The node's agent
	// changes it when its Node was deleted and registered anew while addresses
	// of the block are in use.
	// +required
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	NodeUID types.UID `json:"nodeUID"`
	// vtep is the node's tunnel address, of Networks of plugin vxlan: where the
	// other nodes send what is for the block's addresses. A link-local address
	// is on the physical network. The node's agent keeps it true.
	// +optional
	VTEP IP `json:"vtep,omitempty"`
}

// IPBlock is a piece of a Network's subnet that one node holds. Its name is
// made of network and CIDR, so that the API server itself refuses a second
// claim. To release it, delete it: the finalizer holds it while an address in
// it is alive.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=ipb,categories=netplane
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:selectablefield:JSONPath=`.spec.network`
// +kubebuilder:printcolumn:name="Network",type=string,JSONPath=`.spec.network`
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="VTEP",type=string,JSONPath=`.spec.vtep`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == self.spec.network + '.' + self.spec.cidr.replace(':', '-').replace('/', '-')",message="metadata.name must be <network>.<cidr> with ':' and '/' written as '-'"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.spec.cidr) || string(cidr(self.spec.cidr)) == self.spec.cidr",message="spec.cidr must be in canonical form, such as fd00:20::/122: a block has one name only"
// +kubebuilder:validation:XValidation:rule="self.spec.network == oldSelf.spec.network && self.spec.networkUID == oldSelf.spec.networkUID && self.spec.cidr == oldSelf.spec.cidr && self.spec.nodeName == oldSelf.spec.nodeName",message="spec is immutable but for nodeUID and vtep: delete the block to release it"
type IPBlock struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec IPBlockSpec `json:"spec"`
}

// IPBlockList is a list of IPBlocks.
//
// +kubebuilder:object:root=true
type IPBlockList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []IPBlock `json:"items"`
}
