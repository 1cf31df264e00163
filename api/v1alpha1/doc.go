// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 is the API of group netplane.io: PhysicalNetwork,
// NodeNetwork, Network and IPBlock, with every condition type, reason,
// annotation and label key that netplane's parts exchange. It is the only
// package besides api/podnetworks and api/addressing that all of them share.
//
// +kubebuilder:object:generate=true
// +groupName=netplane.io
package v1alpha1
