// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// InterfaceSelector chooses NICs of a node; exactly one field is set. Except
// for name, it can choose several.
//
// +kubebuilder:validation:MinProperties=1
// +kubebuilder:validation:MaxProperties=1
type InterfaceSelector struct {
	// name of the link in the host's namespace.
	// +optional
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:Pattern=`^[^/: ]+$`
	Name string `json:"name,omitempty"`
	// macAddress is the permanent hardware address, aa:bb:cc:dd:ee:ff.
	// +optional
	// +kubebuilder:validation:Pattern=`^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$`
	MACAddress string `json:"macAddress,omitempty"`
	// pciAddress is domain:bus:device.function, 0000:3b:00.0.
	// +optional
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`
	PCIAddress string `json:"pciAddress,omitempty"`
	// driver is the kernel driver's name, as ethtool -i shows it.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Driver string `json:"driver,omitempty"`
}

// NodeInterface maps the NICs of some nodes to a physical network.
type NodeInterface struct {
	// nodeSelector is over node labels; empty selects every node.
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	// +required
	Interface InterfaceSelector `json:"interface"`
}

// PhysicalNetworkSpec is written by users only.
type PhysicalNetworkSpec struct {
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Description string `json:"description,omitempty"`
	// mtu that the network carries; a warning stands where a NIC has less.
	// +optional
	// +kubebuilder:validation:Minimum=576
	// +kubebuilder:validation:Maximum=65535
	MTU int32 `json:"mtu,omitempty"`
	// nodeInterfaces map NICs for many nodes at once; the first entry whose
	// nodeSelector fits wins. A node's own map file overrides all of them.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	NodeInterfaces []NodeInterface `json:"nodeInterfaces,omitempty"`
}

// PhysicalNetworkStatus is written by netplane-controller only.
type PhysicalNetworkStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// +optional
	Nodes NodeCounts `json:"nodes"`
}

// PhysicalNetwork is one of the cluster's physical networks; nodes map their
// NICs to it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=physnet,categories=netplane
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Description",type=string,JSONPath=`.spec.description`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.nodes.ready`
// +kubebuilder:printcolumn:name="Mapped",type=integer,JSONPath=`.status.nodes.total`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",message="metadata.name must be a DNS label: lower case letters, digits and '-', at most 63, no dots"
type PhysicalNetwork struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec PhysicalNetworkSpec `json:"spec,omitempty"`
	// +optional
	Status PhysicalNetworkStatus `json:"status,omitempty"`
}

// PhysicalNetworkList is a list of PhysicalNetworks.
//
// +kubebuilder:object:root=true
type PhysicalNetworkList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []PhysicalNetwork `json:"items"`
}
