// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package benchattach measures how long a pod's interfaces take: by netplane,
// by bare netlink requests, and by the reference plugins run one after another.
// See README.md for what is measured and how to read it. It has benchmarks
// only, so that no run of the tests waits for it.
package benchattach
