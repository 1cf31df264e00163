// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package attach tests, on a real kernel and without a cluster, how pods get
// their interfaces: cni/link and cni/attach inside namespaces that stand for
// nodes and pods, and the CNI binary as a runtime runs it.
//
// The tests run in network and mount namespaces of their own, and without root
// in a user namespace too where the system allows one.
package attach
