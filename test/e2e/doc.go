// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e proves on a real kind cluster what netplane promises. Its tests
// have the build tag e2e and want the cluster that `make demo` leaves behind:
// kubectl context kind-netplane, or the one in NETPLANE_E2E_CONTEXT. The nodes
// are reached with `docker exec`, as their NICs are plugged, pulled and
// listened to. The tests run one after the other; each has a namespace of its
// own and removes what it made.
package e2e
