// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package serviceproxy has pods reach ClusterIPs over Networks with serviceProxy
// InPod, by rules inside the pods' own namespaces: no node carries such traffic.
//
// Cluster.Answer, which is pure, decides by Services and EndpointSlices who
// answers at which ClusterIP; Manager follows both, for the Networks that pods of
// this node are on, and has cni/link change the pods' rules.
package serviceproxy
