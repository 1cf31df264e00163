// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bench measures netplane-scheduler against the stock kube-scheduler.
// See README.md for what is measured and how to read it.
package bench
