// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package netns tests, on a real kernel and without a cluster, what netplane
// does to links and namespaces. Each test makes namespaces of its own.
package netns
