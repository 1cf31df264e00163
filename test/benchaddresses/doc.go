// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package benchaddresses measures netplane's address management: the time of
// an address on the node, the writes at the API server for a pod, and the claims
// of many nodes at once. See README.md for what is measured and how to read it. It has benchmarks only, so that no run of the
// tests waits for it.
package benchaddresses
