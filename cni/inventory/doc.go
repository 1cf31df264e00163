// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package inventory knows which of the node's NICs back which physical
// networks. It reads the node's map file, PhysicalNetworks and the kernel's
// links, decides by the pure function Resolve, hands the result to the rest of
// the agent as a Snapshot and publishes it as the status of the node's
// NodeNetwork.
package inventory
