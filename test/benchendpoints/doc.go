// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package benchendpoints measures how fast and at what cost the controller
// publishes Services over networks, beside kube-controller-manager's own
// controller of EndpointSlices. See README.md for what is measured and how to
// read it. It has benchmarks only, so that no run of the tests waits for it.
package benchendpoints
