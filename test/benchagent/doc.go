// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package benchagent measures what one agent costs its node and the API
// server: its memory, and the objects that it watches. See README.md for what
// is measured and how to read it. It has benchmarks only, so that no run of
// the tests waits for it.
package benchagent
