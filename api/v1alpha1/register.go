// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupName is the API group of every netplane kind.
const GroupName = "netplane.io"

// SchemeGroupVersion is the group and version of the types in this package.
var SchemeGroupVersion = schema.GroupVersion{Group: GroupName, Version: "v1alpha1"}

// Resource names of the kinds, as they stand in API paths.
const (
	ResourceNetworks         = "networks"
	ResourcePhysicalNetworks = "physicalnetworks"
	ResourceNodeNetworks     = "nodenetworks"
	ResourceIPBlocks         = "ipblocks"
	ResourceIPClaims         = "ipclaims"
)

// AddToScheme registers the kinds of this package; it fails only when another
// type already holds one of their names.
func AddToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(SchemeGroupVersion,
		&Network{}, &NetworkList{},
		&PhysicalNetwork{}, &PhysicalNetworkList{},
		&NodeNetwork{}, &NodeNetworkList{},
		&IPBlock{}, &IPBlockList{},
		&IPClaim{}, &IPClaimList{},
	)
	metav1.AddToGroupVersion(scheme, SchemeGroupVersion)
	return nil
}
