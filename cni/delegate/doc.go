// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package delegate finds the CNI configuration by which a plugin that is not
// netplane's own makes the interfaces of a Network.
//
// It is the configuration of that network or plugin among those installed on
// the node, with the Network's pluginConfig merged into it (JSON merge patch,
// RFC 7386), or the pluginConfig alone if that is complete. Nothing is executed
// here: the CNI binary does that, in the host's own context.
package delegate
