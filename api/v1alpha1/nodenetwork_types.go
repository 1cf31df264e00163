// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// OperState is a link's operational state (RFC 2863, as the kernel's operstate).
type OperState string

// Operational states that netplane tells apart; anything that carries no
// traffic is Down.
const (
	OperStateUp   OperState = "Up"
	OperStateDown OperState = "Down"
)

// NodeInterfaceStatus describes one NIC of the node.
type NodeInterfaceStatus struct {
	// name of the link in the host's namespace.
	// +required
	Name string `json:"name"`
	// +optional
	MAC string `json:"mac,omitempty"`
	// +optional
	MTU int32 `json:"mtu,omitempty"`
	// speedMbps is absent where the driver does not tell.
	// +optional
	SpeedMbps int64 `json:"speedMbps,omitempty"`
	// numaNode is absent where the NIC has none.
	// +optional
	NUMANode *int32 `json:"numaNode,omitempty"`
	// +optional
	PCIAddress string `json:"pciAddress,omitempty"`
	// +optional
	Driver string `json:"driver,omitempty"`
	// addresses of the host on this NIC, as CIDRs.
	// +optional
	// +listType=atomic
	Addresses []string `json:"addresses,omitempty"`
	// state is absent while the NIC is inside a pod, where the node cannot see it.
	// +optional
	State OperState `json:"state,omitempty"`
	// inUse is true while the NIC itself is inside a pod.
	// +optional
	InUse bool `json:"inUse,omitempty"`
}

// NodePhysicalNetwork says which NICs of the node back a physical network.
type NodePhysicalNetwork struct {
	// name of the PhysicalNetwork.
	// +required
	Name string `json:"name"`
	// interfaces that back it, as the node's map or nodeInterfaces named them.
	// +optional
	// +listType=atomic
	Interfaces []string `json:"interfaces,omitempty"`
	// exclusive are those of interfaces that pods may have for themselves
	// (plugin host-device), the ones that they have included. Other Networks use
	// none of these.
	// +optional
	// +listType=atomic
	Exclusive []string `json:"exclusive,omitempty"`
	// ready: at least one of the interfaces exists and is up, or is inside a pod.
	// +optional
	Ready bool `json:"ready"`
	// reason is InterfaceUp, InterfaceInPod, InterfaceDown or InterfaceNotFound.
	// +optional
	Reason string `json:"reason,omitempty"`
}

// RefusedNetwork is a Network that the node cannot serve although its NICs
// back the physical network.
type RefusedNetwork struct {
	// network is the Network's name.
	// +required
	Network string `json:"network"`
	// reason is PluginConflict, HostInterface, InterfaceDown, MTUExceedsInterface,
	// NoTunnelAddress, PluginUnavailable, PluginNotInstalled, Uninstalled or Bypassed.
	// +required
	Reason string `json:"reason"`
	// +optional
	Message string `json:"message,omitempty"`
}

// HeldAddresses counts addresses of the node that cannot be given out although
// no living pod accounts for them: leaked, of pods that are gone but whose
// sandbox is not, or free ones of a block that is closed for now (see
// conflicts). They lie in the node's blocks, or are fixed.
type HeldAddresses struct {
	// network is the Network's name.
	// +required
	Network string `json:"network"`
	// +required
	Count int32 `json:"count"`
	// podUID is the pod that they belonged to, if known. An entry with a podUID
	// counts only when that pod does not exist.
	// +optional
	PodUID types.UID `json:"podUID,omitempty"`
	// fixed: they are of the Network's staticRange, which IPClaims give, and take
	// nothing of the node's blocks. No IPClaim is handed to another pod while its
	// last one has such an entry.
	// +optional
	Fixed bool `json:"fixed,omitempty"`
	// address is the fixed one, which the entry is of alone. No IPClaim of it is
	// handed to another pod while a node has such an entry of a pod that is gone,
	// even if the claim does not know that pod: after an API server was restored
	// from a backup.
	// It is no IP, as the cost of that type's rule is beyond what the API server
	// allows in a list without a bound; agents write it.
	// +optional
	// +kubebuilder:validation:MaxLength=39
	Address string `json:"address,omitempty"`
	// quarantined: no interface has them. They are the free addresses of blocks
	// that are closed for now, and say nothing of any other block of the node.
	// +optional
	Quarantined bool `json:"quarantined,omitempty"`
}

// BlockConflict says that two nodes have an IPBlock, in which addresses are in
// use on this node: after an etcd restored from a backup, or a block that was
// removed by force. Neither node gives out addresses of it.
type BlockConflict struct {
	// block is the IPBlock's name.
	// +required
	// +kubebuilder:validation:MaxLength=253
	Block string `json:"block"`
	// otherNode has the block in the API, or addresses in use in this node's.
	// +required
	// +kubebuilder:validation:MaxLength=253
	OtherNode string `json:"otherNode"`
	// addresses in use here.
	// +required
	Addresses int32 `json:"addresses"`
	// since is when the oldest of these addresses was given out.
	// +required
	Since metav1.Time `json:"since"`
	// pods that have them, as namespace/name: up to 3.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=3
	// +kubebuilder:validation:items:MaxLength=317
	Pods []string `json:"pods,omitempty"`
}

// MaxBlockConflicts bounds NodeNetworkStatus.Conflicts.
const MaxBlockConflicts = 64

// NodeNetworkStatus is written by the node's agent, but for condition AgentReady.
type NodeNetworkStatus struct {
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// interfaces are the node's NICs, by name.
	// +optional
	// +listType=map
	// +listMapKey=name
	Interfaces []NodeInterfaceStatus `json:"interfaces,omitempty"`
	// physicalNetworks are the mappings in force, by name.
	// +optional
	// +listType=map
	// +listMapKey=name
	PhysicalNetworks []NodePhysicalNetwork `json:"physicalNetworks,omitempty"`
	// mapped is physicalNetworks in one line for people, such as
	// phy-net0=eth1,phy-net1=eth2(InterfaceDown): a column of kubectl shows only
	// the first element of a list.
	// +optional
	Mapped string `json:"mapped,omitempty"`
	// refused are Networks that this node cannot serve.
	// +optional
	// +listType=map
	// +listMapKey=network
	Refused []RefusedNetwork `json:"refused,omitempty"`
	// held are addresses that no living pod accounts for.
	// +optional
	// +listType=atomic
	Held []HeldAddresses `json:"held,omitempty"`
	// conflicts are blocks that this node and another one have; of more than 64
	// the others follow as these are settled.
	// +optional
	// +listType=map
	// +listMapKey=block
	// +kubebuilder:validation:MaxItems=64
	Conflicts []BlockConflict `json:"conflicts,omitempty"`
}

// NodeNetwork is what one Node offers: its NICs and which physical networks
// they back. It has the Node's name and is owned by it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=nodenet,categories=netplane
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Agent",type=string,JSONPath=`.status.conditions[?(@.type=="AgentReady")].status`
// +kubebuilder:printcolumn:name="Mapped",type=string,JSONPath=`.status.mapped`
// +kubebuilder:printcolumn:name="Inventory",type=string,JSONPath=`.status.conditions[?(@.type=="InventoryReady")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type NodeNetwork struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Status NodeNetworkStatus `json:"status,omitempty"`
}

// NodeNetworkList is a list of NodeNetworks.
//
// +kubebuilder:object:root=true
type NodeNetworkList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []NodeNetwork `json:"items"`
}
