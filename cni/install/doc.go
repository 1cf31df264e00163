// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package install puts the CNI binary and its configuration on the node.
//
// The configuration wraps the one that the node had before: pods that ask for
// no network go on getting exactly that. The binary is put in place first and
// the configuration last, each by an atomic rename, so that a runtime never
// sees a configuration whose binary is missing or half written.
package install
